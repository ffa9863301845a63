"""One quantity of one draw, judged: the link between two sides that ran and a finding."""

from __future__ import annotations

from dataclasses import dataclass

from parity.draws import Draw
from parity.findings import Verdict
from parity.ladder import Judgement
from parity.outcomes import Array


@dataclass(frozen=True)
class Judged:
    """One quantity of one draw on one rung, judged, with the arrays it was judged on."""

    quantity: str
    dtype: str
    verdict: Verdict
    judgement: Judgement | None
    draw: Draw
    mine: Array | None = None
    theirs: Array | None = None
    message: str | None = None
    cause: tuple[str, str] | None = None


def channel_axis(name: str, array: Array) -> int | None:
    """Return the axis whose slices are judged on their own: channels, or a parameter's rows."""
    if array.ndim < 2:
        return None
    return 0 if name.startswith("grad_") and not name.startswith("grad_input") else 1
