"""A failure as a short script of NumPy and torch alone, to paste into an issue."""

from __future__ import annotations

from parity.bundling.writing import failing_draw
from parity.findings import Report
from parity.reproducing import Origin, first_failure
from parity.scripting.refusing import refuse_unshown, unshown
from parity.scripting.script import MOST_LINES, Script

__all__ = ["MOST_LINES", "write"]


def write(report: Report, origin: Origin) -> str:
    """Return the script of the failure that is easiest to show.

    Raises UsageError where torch refuses the inputs, and for a failure that no script would show.
    """
    finding = first_failure(report)
    refuse_unshown(finding)
    pair = origin.pair()
    draw = failing_draw(pair, finding)
    for literal in (False, True):  # numbers of the script's own are shorter, where they show it
        writer = Script(origin, pair, finding, draw, literal)
        lines = writer.lines()
        assert len(lines) <= MOST_LINES
        if writer.shows():
            return "\n".join(lines) + "\n"
    raise unshown(finding.quantity, "other weights than those of the check do not show it")
