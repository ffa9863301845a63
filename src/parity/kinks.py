"""Kinks that the inputs sit on: torch picks a side there, and the hand-written side must too."""

from __future__ import annotations

from parity.findings import Verdict
from parity.judged import Judged
from parity.ladder import EPS32, farthest, largest, nonfinite_differs
from parity.outcomes import Array
from parity.pair import Pair

AGREEMENT = 64.0  # float32's eps, times this: one formula in two precisions, without cancellation


def on_kinks(pair: Pair, found: list[Judged]) -> list[Judged]:
    """Judge again, with the inputs held still, what moving them left open.

    A tie, an exact zero or an infinity that moves by one ulp changes the answer by far more than
    rounding does, so the measured noise would explain anything. Where torch's float32 and float64
    agree nonetheless, the answer is no accident of rounding and both sides must give the same.
    Only for a reference whose formula the inputs reach directly: inside a net, rounding decides.
    """
    left = [j for j in found if j.verdict is Verdict.UNDECIDED or _zero(j)]
    if not left or not pair.reference.lone or pair.reference.dropouts:
        return found
    draw = left[0].draw
    wide, narrow = pair.theirs(draw).quantities, pair.theirs(draw, "float32").quantities
    names = {j.quantity for j in left if _agree(wide.get(j.quantity), narrow.get(j.quantity))}
    if not names:
        return found
    again = {j.quantity: j for j in pair.float64(draw, pinned=True) if j.quantity in names}
    return [again.get(j.quantity, j) for j in found]


def _zero(judged: Judged) -> bool:
    return judged.judgement is not None and judged.judgement.zero


def _agree(wide: Array | None, narrow: Array | None) -> bool:
    if wide is None or narrow is None or wide.shape != narrow.shape:
        return False
    if nonfinite_differs(narrow, wide).any():
        return False
    return farthest(narrow, wide) <= AGREEMENT * EPS32 * largest(wide)
