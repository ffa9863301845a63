"""Annotations: failures shown on their lines in a GitHub pull request, from the tests' own output.

The service reads lines that begin with ``::error``. They are printed where ``GITHUB_ACTIONS`` says
so, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MOST = 10  # the service shows ten errors of a step and drops the rest
LONGEST = 2000


class Annotations:
    """Hears how tests end, xdist's workers' too, and tells the service of those that failed."""

    def __init__(self, root: Path, environment: Mapping[str, str] | None = None) -> None:
        given = os.environ if environment is None else environment
        self.wanted = given.get("GITHUB_ACTIONS") == "true"
        self.root = root
        self.workspace = Path(given.get("GITHUB_WORKSPACE") or root)
        self._failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the annotation of a test that failed; a rerun that passes takes it back."""
        if report.outcome == "failed":
            self._failed[report.nodeid] = self._line(report)
        elif report.when == "setup":
            self._failed.pop(report.nodeid, None)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the annotations, each on a line of its own."""
        for line in self.lines():
            terminalreporter.write_line(line)

    def lines(self) -> Iterator[str]:
        """Yield what the service reads, the last line saying how many do not fit."""
        if not self.wanted:
            return
        found = [line for _, line in sorted(self._failed.items())]
        kept = found if len(found) <= MOST else found[: MOST - 1]
        yield from kept
        if len(found) > len(kept):
            left = len(found) - len(kept)
            yield command("error", f"{left} more tests failed; the job's log has them", title="…")

    def _line(self, report: Any) -> str:
        file, line = self._place(report)
        return command("error", _message(report), file=file, line=line, title=report.nodeid)

    def _place(self, report: Any) -> tuple[str, int]:
        """The failing line inside the repository: the deepest of the traceback, else the test's."""
        path, start, _ = report.location
        place = (self._shown(self.root / path), (start or 0) + 1)
        trace = getattr(report.longrepr, "reprtraceback", None)
        for entry in reversed(getattr(trace, "reprentries", [])):
            where = getattr(entry, "reprfileloc", None)
            if where is not None and (self.root / where.path).resolve() == (self.root / path):
                return place[0], int(where.lineno)
        return place

    def _shown(self, path: Path) -> str:
        """A path as the service knows it: from the checkout's top folder."""
        for top in (self.workspace, self.root):
            if path.is_relative_to(top):
                return path.relative_to(top).as_posix()
        return path.as_posix()


def _message(report: Any) -> str:
    crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", None)
    text = str(crash or report.longrepr or "failed")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def command(kind: str, message: str, **properties: Any) -> str:
    """Return a workflow command; nothing in it can end the line or begin another command."""
    named = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{kind} {named}::{_data(message)}" if named else f"::{kind}::{_data(message)}"


def _data(value: Any) -> str:
    text = str(value).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    # other characters at which some reader may break the line
    return "".join(c if c == "\t" or (c.isprintable() or c == " ") else "%EF%BF%BD" for c in text)


def _property(value: Any) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")
