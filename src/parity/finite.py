"""Numbers on which a formula breaks down: far out in float32, and rows of zeros in any precision.

Only finiteness is held against torch's there: values are judged on the rungs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from parity.draws import ZEROS, Draw
from parity.examination import Examination
from parity.findings import Verdict
from parity.judged import Judged
from parity.ladder import judge64
from parity.outcomes import LayerError, Outcome


def unbroken(exam: Examination, name: str, draw: Draw, found: Iterable[Judged]) -> None:
    """Ask mine on a far draw in float32 too, where an exponential overflows from 89 on.

    ``found`` are the quantities as judged in float64: what is not finite there is said already.
    """
    pair, narrow = exam.pair, draw.rounded(np.float32)
    try:
        mine = pair.mine(narrow, "float32")
        theirs = pair.theirs(pair.masked(narrow, mine), "float32")
    except LayerError:
        return  # float32 is refused on the usual draws too
    sound = {j.quantity for j in found if j.mine is not None and np.isfinite(j.mine).all()}
    top = max(float(np.abs(a).max(initial=0)) for a in draw.inputs if a.dtype.kind == "f")
    text = (
        f"in float32 {{q}} is infinite or NaN for large inputs (|x| up to {top:.0f}), where "
        "torch's stays finite: an exponential or a square overflows; subtract the maximum, or "
        "choose the formula by the sign"
    )
    for judged in _broken(exam, narrow, mine, theirs, "float32", ("overflow", text)):
        if judged.quantity in sound:
            exam.add(judged, probe=name)


def zeros(exam: Examination, shapes: tuple[tuple[int, ...], ...] | None) -> None:
    """Ask mine where rows of the inputs are zero: norms have no derivative there, torch's 0."""
    pair = exam.pair
    if not any(spec.free and spec.shape for spec in pair.specs):
        return
    dtype = "float32" if exam.float32_only else "float64"
    try:
        draw = pair.draw(pair.options.seed, True, ZEROS, shapes)
    except LayerError:
        return  # torch refuses this size, which is said of the other draws
    try:
        mine = pair.mine(draw, dtype)
    except LayerError as failure:
        exam.not_covered.append(f"{ZEROS}: only mine refuses them ({failure})")
        return
    theirs = pair.theirs(pair.masked(draw, mine), dtype)
    text = (
        "{q} is infinite or NaN where a row of the input is zero, and torch's stays finite: guard "
        "the division by its norm"
    )
    for judged in _broken(exam, draw, mine, theirs, dtype, ("zero_not_guarded", text)):
        exam.add(judged, probe=ZEROS)
    exam.covers.append(ZEROS)


def infinities(exam: Examination, shapes: tuple[tuple[int, ...], ...] | None) -> None:
    """Ask mine where an input is infinite, as a mask makes it: what is NaN there is said.

    It is no finding: torch itself promises nothing there, and many of its functions make NaN.
    """
    pair = exam.pair
    try:
        draw = pair.draw(pair.options.seed, True, "generic", shapes)
        (x,) = (array.copy() for array in draw.inputs)
        x.flat[: min(2, x.size)] = [-np.inf, np.inf][: min(2, x.size)]
        draw = replace(draw, inputs=(x,), upstream=())
        ref, own = pair.theirs(draw).outputs[0], pair.mine(draw).outputs[0]
    except LayerError:
        return
    if own.shape != ref.shape or own.shape != x.shape:
        return
    lost = np.isnan(own) & ~np.isnan(ref)
    if lost.any() and np.isinf(x)[lost].all():  # else infinities meet others, as in a transform
        exam.notes.append("mine makes NaN of infinite inputs where torch does not")


def _broken(
    exam: Examination,
    draw: Draw,
    mine: Outcome,
    theirs: Outcome,
    dtype: str,
    cause: tuple[str, str],
) -> Iterable[Judged]:
    """Yield the quantities that are not finite on my side where torch's are."""
    from parity.diagnosis.registry import words

    for name, ref, own in exam.pair.partners(theirs, mine):
        if ref is None or own is None or own.shape != ref.shape or ref.dtype.kind != "f":
            continue
        lost = np.isfinite(ref) & ~np.isfinite(own)
        if own.dtype.kind != "f" or not lost.any():
            continue
        wide, kept = own.astype(np.float64), np.where(lost, ref, own).astype(np.float64)
        judged = judge64(wide, kept, np.zeros(own.shape), pinned=True)
        floating = sum(not spec.integral for spec in exam.pair.specs)
        said = cause[1].replace("{q}", words(name, floating))
        yield Judged(
            name, dtype, Verdict.MISMATCH, judged, draw, own, ref, cause=(cause[0], said)
        )  # fmt: skip
