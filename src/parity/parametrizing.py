"""``parity.parametrize``: one pytest test for each case and check."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from parity.cases import Case, Rejects, as_case
from parity.findings import GRAVITY, Finding, Report, UsageError, Verdict
from parity.options import nearest

PROMISES = ("untouched", "dtype", "aliasing", "repeat", "accumulate", "step", "dropout_mask")


class Check:
    """One promise of one case: call it with the case, and it raises or skips."""

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self.session = session

    def __call__(self, case: Any) -> None:
        """Raise ParityError where the promise is broken; skip where there is nothing to compare."""
        __tracebackhide__ = True
        report = self.session.report(as_case(case))
        part = self.part(report)
        self.session.note(part)
        if part.failures or (part.strict and not part.passed):
            part.raise_if_failed()
        if not any(f.verdict in (Verdict.MATCH, Verdict.INACCURATE) for f in part.findings):
            self.skip(part)

    def skip(self, part: Report) -> None:
        """Nothing to compare is a skip, never a pass."""
        import unittest

        reasons = [str(f.evidence.get("message", f.verdict)) for f in part.findings]
        raise unittest.SkipTest(reasons[0] if reasons else f"{self.name}: nothing to compare")

    def part(self, report: Report) -> Report:
        """Return the report's findings that this check is about."""
        chosen = tuple(f for f in report.findings if home(f) == self.name)
        if self.name in ("forward", "rejects"):  # what has no check of its own is told here
            names = {c for c in self.session.names.get(report.case, ())}
            chosen += tuple(f for f in report.findings if home(f) not in names)
        return Report(
            report.case,
            chosen,
            report.notes,
            report.covers,
            report.not_covered,
            report.strict,
            self.session.rerun(report.case, self.name),
            report.versions,
        )

    def __repr__(self) -> str:
        return f"<check {self.name}>"


def home(finding: Finding) -> str:
    """Return the name of the check that a finding belongs to."""
    if finding.quantity in PROMISES:
        return "promises"
    if finding.evidence.get("probe") and not finding.cause:
        return finding.quantity
    return finding.quantity


class Session:
    """Reports of the cases of one test run: each case is examined once for all its checks."""

    def __init__(self) -> None:
        self.reports: dict[int, Report] = {}
        self.names: dict[str, tuple[str, ...]] = {}
        self.overrides: dict[str, Any] = {}
        self.noted: list[Report] = []
        self.nodeids: dict[tuple[str, str], str] = {}

    def report(self, case: Case | Rejects) -> Report:
        """Return the case's report, made when it is first asked for."""
        key = id(case)
        if key not in self.reports:
            self.names[case.id] = case.checks
            self.reports[key] = case.report(**self.overrides)
        return self.reports[key]

    def note(self, part: Report) -> None:
        """Keep the part for the report that the plugin writes."""
        self.noted.append(part)

    def rerun(self, case: str, check: str) -> str:
        """Return the command that runs one check again."""
        node = self.nodeids.get((case, check))
        if node is None:
            return ""
        seed = self.overrides.get("seed", 0)
        return f"pytest '{node}' --parity-seeds {seed}"


SESSION = Session()


def parametrize(cases: Iterable[Any]) -> Any:
    """Decorate ``def test_layers(case, check): check(case)``: one test a case and check.

    Ids read ``conv2d-stride2-grad_weight``. Raises UsageError for rows that are no cases, and for
    two rows of one id.
    """
    import pytest

    rows = [as_case(row, i) for i, row in enumerate(cases)]
    if not rows:
        raise UsageError("parity.parametrize got no cases; give a list of parity.Case(…) rows")
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise UsageError(f"two cases have the id {row.id!r}; ids must differ")
        seen.add(row.id)
    params = []
    for row in rows:
        SESSION.names[row.id] = row.checks
        for name in row.checks:
            params.append(pytest.param(row, Check(name, SESSION), id=f"{row.id}-{name}"))
    return pytest.mark.parametrize(("case", "check"), params)


def gravest(findings: Iterable[Finding]) -> Verdict:
    """Return the gravest verdict of several findings."""
    order = {verdict: i for i, verdict in enumerate(GRAVITY)}
    return min((f.verdict for f in findings), key=lambda v: order[v], default=Verdict.SKIPPED)


__all__ = ["SESSION", "Check", "Session", "gravest", "nearest", "parametrize"]
