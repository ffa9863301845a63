"""``parity.parametrize``: one pytest test for each case and check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from parity.cases import as_case
from parity.findings import Finding, Report, UsageError, Verdict
from parity.options import iterable
from parity.session import current, is_layout


class Check:
    """One promise of one case: call it with the case, and it raises or skips.

    ``names`` are all checks of the case, so that every finding belongs to exactly one of them.
    """

    def __init__(self, name: str, names: Sequence[str]) -> None:
        self.name = name
        self.names = tuple(names)

    def __call__(self, case: Any) -> None:
        """Raise ParityError where the promise is broken; skip where there is nothing to compare.

        Raises UsageError where the row itself cannot be checked.
        """
        __tracebackhide__ = True
        session = current()
        try:
            whole = session.report(as_case(case))
        except UsageError as error:
            raise UsageError(str(error)) from None  # the traceback ends in the user's line
        part = self.part(whole)
        part = replace(part, rerun=session.rerun(part))
        session.note(part, self.name)
        if part.failures or (self.name == self.names[0] and part.strict and part.not_covered):
            part.raise_if_failed()
        if not any(f.verdict in (Verdict.MATCH, Verdict.INACCURATE) for f in part.findings):
            self.skip(part, whole)

    def skip(self, part: Report, whole: Report) -> None:
        """Raise SkipTest: nothing to compare is a skip, never a pass."""
        import unittest

        reasons = [str(f.evidence.get("message") or f.verdict) for f in part.findings]
        if not reasons and whole.failures:
            first = whole.failures[0]
            why = first.evidence.get("message") or f"{first.quantity} is a {first.verdict}"
            reasons = [f"not judged: {why}"]
        raise unittest.SkipTest(reasons[0] if reasons else f"{self.name}: nothing to compare")

    def part(self, report: Report) -> Report:
        """Return the report's findings that this check is about."""
        chosen = tuple(f for f in report.findings if home(f, self.names) == self.name)
        return replace(report, findings=chosen)

    def __repr__(self) -> str:
        return f"<check {self.name}>"


def home(finding: Finding, names: Sequence[str]) -> str:
    """Return the one check among ``names`` that a finding belongs to."""
    if is_layout(finding) and "layouts" in names:
        return "layouts"
    if finding.quantity in names:
        return finding.quantity
    if finding.quantity == "backward":  # it raised: the first gradient tells
        return next((name for name in names if name.startswith("grad_")), names[0])
    return names[0]


def parametrize(cases: Iterable[Any]) -> Any:
    """Decorate ``def test_layers(case, check): check(case)``: one test a case and check.

    Ids read ``conv2d-stride2-grad_weight``. Raises UsageError for rows that are no cases, and for
    two rows of one id.
    """
    __tracebackhide__ = True
    from parity.plugin import table  # pytest is known to the plugin alone

    try:
        rows = [(row, check_names(row)) for row in _rows(cases)]
    except UsageError as error:
        raise UsageError(str(error)) from None  # the traceback ends in the user's line
    return table(
        (row, Check(name, names), f"{row.id}-{name}") for row, names in rows for name in names
    )


def _rows(cases: Iterable[Any]) -> list[Any]:
    if isinstance(cases, (str, bytes)) or not iterable(cases):
        raise UsageError(
            f"parity.parametrize got {type(cases).__name__}; give a list of parity.Case(…) rows"
        )
    rows = [as_case(row, i) for i, row in enumerate(cases)]
    if not rows:
        raise UsageError("parity.parametrize got no cases; give a list of parity.Case(…) rows")
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise UsageError(f"two cases have the id {row.id!r}; ids must differ")
        seen.add(row.id)
    return rows


def check_names(row: Any) -> tuple[str, ...]:
    """Return the names of a row's checks; a row that cannot be built has one that will say so.

    Raises UsageError for options that nobody knows.
    """
    try:
        return tuple(row.checks) or ("forward",)
    except UsageError as error:
        raise UsageError(f"case {row.id!r}: {error}") from error
    except Exception:  # one broken row must not take the other rows of the file with it
        return ("forward",)


__all__ = ["Check", "check_names", "home", "parametrize"]
