"""Why two training runs part: the first step's numbers read for a known fault."""

from __future__ import annotations

from parity.findings import Cause
from parity.trajectories.verdicts import Judge


def cause_of(judge: Judge) -> Cause | None:
    """Return the fault that explains the first parting, or None."""
    return None
