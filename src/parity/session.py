"""One test run: its settings, each case examined once, and what the report will hold."""

from __future__ import annotations

import os
import shlex
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from parity.findings import Cause, Finding, Report, UsageError, Verdict
from parity.settings import Settings, spans

GAP_CLOSED = "gap_closed"


class Session:
    """The state of one pytest run, or of no run at all where the plugin is not loaded."""

    def __init__(self, settings: Settings | None = None, plugged: bool = False) -> None:
        self.settings = settings or Settings()
        self.plugged = plugged
        self.reports: dict[int, tuple[Any, Report]] = {}
        self.nodeid = ""
        self.shown_nodeid = ""
        self._noted: list[dict[str, Any]] = []
        self._sections: list[tuple[str, Any]] = []

    # ---- examining ---------------------------------------------------------------------------

    def report(self, case: Any) -> Report:
        """Return the case's report, made when it is first asked for.

        Raises UsageError for a row that cannot be checked; a row that breaks is a finding.
        """
        known = self.reports.get(id(case))
        if known is None:
            # the case is kept beside its report, so that no other object gets its id
            known = self.reports[id(case)] = (case, self._examine(case))
        return known[1]

    def _examine(self, case: Any) -> Report:
        options = getattr(case, "options", None)
        pinned = options if isinstance(options, Mapping) else {}
        try:
            report = case.report(**self.settings.options(pinned, case.id))
        except UsageError:
            raise
        except Exception as error:
            report = Report(case.id, (broken(case.id, error),))
        return self.within_gaps(with_promises(report), pinned)

    def within_gaps(self, report: Report, pinned: Mapping[str, Any]) -> Report:
        """Drop complaints about gaps that are declared for all cases and do not concern this."""
        named = {*self.settings.gaps.get(report.case, {}), *(pinned.get("gaps") or {})}
        foreign = set(self.settings.gaps.get("", {})) - named
        compared = {f.quantity for f in report.findings if not _closed(f)}
        kept = tuple(
            f
            for f in report.findings
            if not (_closed(f) and f.quantity in foreign and f.quantity not in compared)
        )
        return report if len(kept) == len(report.findings) else replace(report, findings=kept)

    # ---- gathering ---------------------------------------------------------------------------

    def note(self, report: Report, check: str = "") -> None:
        """Keep a report, or a check's part of it, for the report of the run."""
        self._noted.append({**report.to_dict(), "check": check, "nodeid": self.nodeid})

    def contribute(self, section: str, payload: Any) -> None:
        """Keep an entry of one of the report's sections, as plain data."""
        self._sections.append((section, payload))

    def take(self) -> dict[str, Any] | None:
        """Hand over, as plain data, what has come since the last call; None for nothing."""
        if not self._noted and not self._sections:
            return None
        found = {"parts": self._noted, "sections": [list(item) for item in self._sections]}
        self._noted, self._sections = [], []
        return found

    # ---- running again -----------------------------------------------------------------------

    def start(self, nodeid: str, shown: str) -> None:
        """Remember the test that runs now; ``shown`` is its id as seen from the current folder."""
        self.nodeid, self.shown_nodeid = nodeid, shown

    def rerun(self, report: Report) -> str | None:
        """Return the command that runs the current test again, with the seeds that failed."""
        node = self.shown_nodeid
        if not node:  # without the plugin pytest still says which test runs
            node = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
        if not node:
            return None
        words = ["pytest", shlex.quote(node) if "'" in node else f"'{node}'"]
        if self.plugged:
            from parity.wording import distinct

            seeds = [f.seed for f in distinct(report)] or list(self.settings.seeds or (0,))
            words += ["--parity-seeds", spans(seeds), *self.settings.repeat]
        return " ".join(words)


def _closed(finding: Finding) -> bool:
    return finding.cause is not None and finding.cause.name == GAP_CLOSED


def broken(case: str, error: BaseException) -> Finding:
    """Return the finding for a case that could not even be set up."""
    text = f"the case raised {type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error, limit=-6))
    return Finding(
        case,
        "forward",
        verdict=Verdict.ERROR,
        cause=Cause("raised", text),
        evidence={"message": text, "traceback": trace},
    )


def with_promises(report: Report) -> Report:
    """Add a MATCH for promises that are only heard of when they are broken."""
    judged = {Verdict.MATCH, Verdict.INACCURATE, Verdict.MISMATCH}
    ran = [f for f in report.findings if f.quantity.startswith("forward") and f.verdict in judged]
    if not ran:
        return report
    kept = []
    if not any(f.quantity == "untouched" for f in report.findings):
        kept.append(
            ("untouched", "no run changed its inputs, its parameters or its upstream gradient")
        )
    if "memory layouts" in report.covers and not any(is_layout(f) for f in report.findings):
        kept.append(("layouts", "the same answer for every memory layout"))
    extra = tuple(
        Finding(report.case, name, seed=ran[0].seed, evidence={"message": text})
        for name, text in kept
    )
    return replace(report, findings=report.findings + extra)


def is_layout(finding: Finding) -> bool:
    """Whether a finding came from the same numbers in another memory layout."""
    return finding.quantity == "layouts" or str(finding.evidence.get("probe", "")).endswith(
        " arrays"
    )


class Fixture:
    """What a test gets as ``parity``: assert_parity for this test, and the module besides."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name

    def __call__(self, mine: Any, theirs: Any, *inputs: Any, **options: Any) -> Report:
        """Check a pair as :func:`parity.check` does, under the options of the test run.

        Returns the report. Raises ParityError with its whole text unless it has passed.
        """
        __tracebackhide__ = True
        from parity.checking import check

        session = self._session
        case = str(options.pop("case", None) or self._name)
        chosen = session.settings.options(options, case)
        try:
            report = check(mine, theirs, *inputs, **chosen, case=case)
        except UsageError as error:
            raise UsageError(str(error)) from None  # the traceback ends in the user's line
        report = session.within_gaps(report, options)
        report = replace(report, rerun=session.rerun(report))
        session.note(report)
        report.raise_if_failed()
        return report

    def __getattr__(self, name: str) -> Any:
        import parity

        return getattr(parity, name)


_OPEN: list[Session] = [Session()]


def current() -> Session:
    """Return the session of the run that is under way."""
    return _OPEN[-1]


def opened(session: Session) -> Session:
    """Make ``session`` the current one: a run inside a run has a session of its own."""
    _OPEN.append(session)
    return session


def closed(session: Session) -> None:
    """Go back to the session that was current before."""
    if session in _OPEN:
        _OPEN.remove(session)
