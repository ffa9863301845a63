"""What a run found, gathered from its tests, its own and its workers'."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.environment import versions
from parity.findings import GRAVITY

if TYPE_CHECKING:
    from parity.findings import Report
    from parity.settings import Settings

FORMAT = "torch-parity report"
VERSION = 1


@dataclass(eq=False)  # a plugin of a run must be hashable
class Record:
    """One report: the runs it tells of, what each test found, and the sections of others."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    sections: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    folder: Path | None = None
    written: tuple[str, ...] = ()
    problem: str = ""
    _tests: dict[str, tuple[str, str]] = field(default_factory=dict)
    _heard: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> Record:
        """Return an empty record of a run with these settings."""
        run = {
            "versions": versions(),
            "seeds": list(settings.seeds or (0,)),
            "dtypes": list(settings.dtypes or ("float64", "float32")),
            "device": settings.device or "cpu",
            "strict": bool(settings.strict),
            "created": now(),
            "tests": {},
            "others": [],
        }
        return cls(runs=[run], folder=settings.report)

    # ---- gathering ---------------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Hear of one phase of one test; xdist's controller hears of its workers' tests too."""
        outcome = report.outcome
        if report.when == "call" or outcome != "passed":
            text = str(getattr(report, "longrepr", "") or "").strip().splitlines()
            self._tests[report.nodeid] = (outcome, text[-1][:400] if text else "")
        found = getattr(report, "parity", None)
        if found:
            # a test that is run again (a rerun after failure) counts as it ended
            self._heard[f"{report.nodeid}\0{report.when}"] = found

    def settle(self) -> Record:
        """Put what was heard in the order of the tests' names: any number of workers, one file."""
        self.parts, self.sections = [], {}
        for key in sorted(self._heard):
            found = self._heard[key]
            self.parts += [{"run": 0, **part} for part in found["parts"]]
            for section, payload in found["sections"]:
                self.sections.setdefault(section, []).append({"run": 0, **payload})
        outcomes = [outcome for outcome, _ in self._tests.values()]
        known = {part["nodeid"] for part in self.parts}
        self.runs[0]["tests"] = {
            name: outcomes.count(name) for name in ("passed", "failed", "skipped")
        }
        self.runs[0]["others"] = [
            {"nodeid": node, "text": text}
            for node, (outcome, text) in sorted(self._tests.items())
            if outcome == "failed" and node not in known
        ]
        return self

    def add(self, report: Report, check: str = "", nodeid: str = "") -> None:
        """Add a whole report, where no test run does the gathering."""
        self.parts.append({"run": 0, **report.to_dict(), "check": check, "nodeid": nodeid})

    def finish(self) -> bool:
        """Write the report where one was asked for; False where that did not work."""
        self.settle()
        if self.folder is None:
            return True
        from parity.reporting.writing import write

        try:
            self.written = write(self, self.folder)
        except Exception as error:  # a report that fails must not cost the results of the tests
            self.problem = f"the report could not be written to {self.folder}: {error}"
        return not self.problem

    # ---- reading -----------------------------------------------------------------------------

    @property
    def passed(self) -> bool:
        """Whether every part passed, every test did, and something was compared."""
        others = any(run.get("others") for run in self.runs)
        matched = any(f["verdict"] == "MATCH" for f in self.findings)
        return matched and not others and not self.failures

    @property
    def findings(self) -> list[dict[str, Any]]:
        """All findings as plain data."""
        return [finding for part in self.parts for finding in part["findings"]]

    @property
    def failures(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """(part, finding) for all that fail, the gravest first, one a quantity and cause."""
        kept: dict[Any, tuple[dict[str, Any], dict[str, Any]]] = {}
        for part in self.parts:
            for finding in part["findings"]:
                if not fails(finding, part):
                    continue
                cause = (finding.get("cause") or {}).get("name")
                key = (part["run"], part["nodeid"], finding["case"], finding["quantity"], cause)
                if key not in kept or _gravity(finding) < _gravity(kept[key][1]):
                    kept[key] = (part, finding)
        return sorted(kept.values(), key=lambda item: _gravity(item[1]))

    def counts(self) -> dict[str, int]:
        """Return how many findings there are of each verdict, the gravest first."""
        found = [finding["verdict"] for finding in self.findings]
        return {verdict: n for verdict in GRAVITY if (n := found.count(verdict))}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "passed": self.passed,
            "counts": self.counts(),
            "runs": self.runs,
            "parts": self.parts,
            "sections": self.sections,
        }


def fails(finding: dict[str, Any], part: dict[str, Any]) -> bool:
    """Whether a finding fails its part."""
    bad = {"MISMATCH", "ERROR", "VACUOUS"}
    if part.get("strict"):
        bad |= {"INACCURATE", "UNDECIDED"}
    return finding["verdict"] in bad


def _gravity(finding: dict[str, Any]) -> int:
    return GRAVITY.index(finding["verdict"]) if finding["verdict"] in GRAVITY else 0


def now() -> str:
    """Return the time of the report; SOURCE_DATE_EPOCH fixes it where bytes must repeat."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    zone = datetime.UTC
    moment = (
        datetime.datetime.fromtimestamp(int(fixed), zone)
        if fixed.isdecimal()
        else datetime.datetime.now(zone)
    )
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def contribute(section: str, payload: Any) -> None:
    """Hand an entry over to a section of the report of the test run that is under way.

    See :mod:`parity.reporting.sections` for what an entry holds. Raises UsageError.
    """
    from parity.reporting.sections import entry
    from parity.session import current

    current().contribute(section, entry(section, payload))


def record(report: Report) -> Report:
    """Keep a report that was made by hand (:func:`parity.check`) for the report of the run."""
    from parity.session import current

    current().note(report)
    return report
