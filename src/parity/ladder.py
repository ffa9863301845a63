"""The ladder: what rounding explains, measured on the reference, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from parity.findings import Verdict, Worst
from parity.outcomes import Array

EPS64 = float(np.finfo(np.float64).eps)
EPS32 = float(np.finfo(np.float32).eps)
TINY64 = float(np.finfo(np.float64).smallest_subnormal)
TINY32 = float(np.finfo(np.float32).smallest_subnormal)

# Measured constants (docs: "how a verdict is reached").
SAFETY64 = 64.0  # correct layers stay below 31 times the bracket it multiplies
SAFETY32 = 4.0  # over the largest of five torch float32 runs
HOPELESS32 = 1024.0  # float32 beyond this many yardsticks is no rounding
SHRINKS = 2.0**-16  # rounding shrinks by 2**-29 from float32 to float64; faults stay
UNDECIDABLE = 2.0**-26  # noise above this share of the answer: the draw sits on a kink
CHANNEL = 16  # slices at least this long are judged on their own
ELEMENT64 = 8.0  # per element, over its own response and its own ulp
SCALE_GAP = 2.0**-29  # float64's eps over float32's
ROUNDING_SPREAD = 1024.0  # rounding shrinks by the gap times 0.004 to 330, as measured


@dataclass(frozen=True)
class Judgement:
    """One quantity on one rung: inside or outside what rounding explains."""

    inside: bool
    allowance: float
    error: float
    worst: Worst | None = None
    differing: int = 0
    size: int = 0
    where: str = "tensor"
    nonfinite: bool = False
    undecided: bool = False
    zero: bool = False
    conditioning: float = 0.0
    shrink: float | None = None
    yardstick: float = 0.0

    @property
    def usage(self) -> float:
        """The error as a share of its allowance."""
        return self.error / self.allowance if self.allowance > 0 else float(self.error > 0)


def largest(array: Array) -> float:
    """The largest finite magnitude, 0 for an empty array."""
    finite = np.abs(array[np.isfinite(array)]) if array.size else array
    return float(finite.max()) if finite.size else 0.0


def response(reference: Array, others: Sequence[Array]) -> Array:
    """Return the largest change of each element over perturbed runs; inf where one overflowed."""
    noise = np.zeros(reference.shape)
    with np.errstate(all="ignore"):
        for other in others:
            change = np.asarray(np.abs(other.astype(np.float64) - reference))
            same = (np.isnan(other) & np.isnan(reference)) | (other == reference)
            change[same] = 0.0
            change[np.isnan(change)] = np.inf
            np.maximum(noise, change, out=noise)
    return noise


def nonfinite_differs(mine: Array, theirs: Array) -> Array:
    """Return where NaN or ±inf stand on one side only (or with the other sign)."""
    with np.errstate(invalid="ignore"):
        special = ~(np.isfinite(mine) & np.isfinite(theirs))
        same = (np.isnan(mine) & np.isnan(theirs)) | (mine == theirs)
    return np.asarray(special & ~same)


def differences(mine: Array, theirs: Array) -> Array:
    """Return |mine - theirs|, zero where both hold the same NaN or infinity."""
    with np.errstate(all="ignore"):
        off = np.asarray(np.abs(mine.astype(np.float64) - theirs.astype(np.float64)))
    off[~(np.isfinite(mine) & np.isfinite(theirs))] = 0.0
    return np.asarray(off)


def slices(array: Array, axis: int | None) -> Array:
    """Return ``array`` as (slices, elements): along ``axis``, or one slice where they are short."""
    if axis is None or array.ndim <= axis or not array.size:
        return array.reshape(1, -1)
    moved = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    return moved if moved.shape[1] >= CHANNEL else array.reshape(1, -1)


def broadcast_back(per_slice: Array, array: Array, axis: int | None) -> Array:
    """Spread one number a slice over the elements of ``array``."""
    if per_slice.size == 1 or axis is None:
        return np.broadcast_to(per_slice.reshape(()), array.shape)
    shape = [1] * array.ndim
    shape[axis] = array.shape[axis]
    return np.broadcast_to(per_slice.reshape(shape), array.shape)


def _finite_max(rows: Array) -> Array:
    if not rows.shape[1]:
        return np.zeros(len(rows))
    return np.where(np.isfinite(rows), np.abs(rows), 0.0).max(axis=1)


def judge64(
    mine: Array,
    theirs: Array,
    noise: Array,
    *,
    axis: int | None = None,
    per_element: Array | None = None,
    pinned: bool = False,
    floor: float = 0.0,
) -> Judgement:
    """Judge a float64 quantity.

    ``noise`` is the reference's own response to one-ulp perturbations, element by element. The
    allowance is 64·(noise + 2·eps·max|ref|) + 4·smallest_subnormal, for the tensor and for slices
    of at least 16 elements along ``axis``; ``per_element`` gives a tighter bound for each element
    where the function is elementwise. ``pinned`` says that the noise was not measured on purpose
    (kinks), so it cannot leave the question undecided; ``floor`` is a scale whose rounding is
    granted too (the upstream gradient, where a derivative saturates).
    """
    scale, peak = largest(theirs), largest(noise) if np.isfinite(noise).all() else np.inf
    zero = bool(
        not pinned
        and scale > 0
        and (np.abs(theirs) <= SAFETY64 * noise).all()
        and np.isfinite(peak)
    )
    undecided = bool(not pinned and not zero and peak > UNDECIDABLE * scale)
    whole = SAFETY64 * (peak + 2 * EPS64 * max(scale, floor)) + 4 * TINY64
    allowed = np.full(theirs.shape, whole)
    if axis is not None and not undecided and theirs.size:
        per = SAFETY64 * (
            _finite_max(slices(noise, axis))
            + 2 * EPS64 * np.maximum(_finite_max(slices(theirs, axis)), floor)
        )
        np.minimum(allowed, broadcast_back(per + 4 * TINY64, theirs, axis), out=allowed)
    if per_element is not None:
        np.minimum(allowed, per_element, out=allowed)
    return _judge(
        mine,
        theirs,
        allowed,
        undecided=undecided,
        zero=zero,
        conditioning=peak / (EPS64 * scale) if scale > 0 else 0.0,
    )


def judge32(mine: Array, exact: Array, runs: Sequence[Array], floor: float = 0.0) -> Judgement:
    """Judge a float32 quantity against float64 on the same rounded numbers.

    ``runs`` are torch's own float32 answers, the plain one first and then perturbed ones; the
    yardstick is the largest of their errors. Allowed: 4·yardstick + 4·eps·max|ref64|. ``floor``
    is a scale whose rounding is granted too, as in :func:`judge64`.
    """
    with np.errstate(over="ignore"):
        narrow = exact.astype(np.float32)
    # an overflow that torch32 shows too is right, whatever float64 says; so is none where it does
    base = np.where(np.isfinite(runs[0]) | np.isfinite(mine), exact, runs[0].astype(np.float64))
    errors = [largest(differences(run, base)) for run in runs]
    yardstick = max(errors)
    scale = largest(narrow)
    whole = SAFETY32 * yardstick + SAFETY32 * EPS32 * max(scale, floor) + 4 * TINY32
    return _judge(
        mine,
        base,
        np.full(exact.shape, whole),
        yardstick=max(yardstick, EPS32 * scale, TINY32),
    )


def _judge(mine: Array, theirs: Array, allowed: Array, **facts: object) -> Judgement:
    odd = nonfinite_differs(mine, theirs)
    off = differences(mine, theirs)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        excess = np.asarray(np.where(allowed > 0, off / allowed, np.where(off > 0, np.inf, 0.0)))
    excess[odd] = np.inf
    outside = excess > 1.0
    worst = None
    allowance = float(allowed.max()) if allowed.size else 0.0
    error = float(off.max()) if off.size else 0.0
    if off.size:
        flat = int(np.argmax(np.where(odd, np.inf, excess)))
        index = tuple(int(i) for i in np.unravel_index(flat, off.shape))
        error = float(off[index]) if not odd[index] else float("inf")
        allowance = float(allowed[index])
        worst = Worst(index, float(mine[index]), float(theirs[index]), error)
    return Judgement(
        inside=not outside.any(),
        allowance=allowance,
        error=error,
        worst=worst,
        differing=int(outside.sum()),
        size=int(off.size),
        nonfinite=bool(odd.any()),
        **facts,  # type: ignore[arg-type]
    )


def shrink_ratio(
    mine64: Array, ref64: Array, mine32: Array | None, ref32: Array | None
) -> float | None:
    """Return err64 / err32: about 2**-29 for rounding, near 1 for a fault; None if unknown."""
    if mine32 is None or ref32 is None or mine32.shape != ref32.shape:
        return None
    error64 = largest(differences(mine64, ref64))
    error32 = largest(differences(mine32, ref32))
    floor = EPS32 * largest(ref32)
    return error64 / max(error32, floor, TINY32)


def verdict64(judged: Judgement, shrink: float | None) -> Verdict:
    """Return the verdict of the float64 rung."""
    if judged.nonfinite:
        return Verdict.MISMATCH
    if judged.undecided:
        return Verdict.UNDECIDED
    if judged.inside:
        return Verdict.MATCH
    if shrink is None:
        # no float32 side to compare with: beyond float32's own half-way mark it is no rounding
        scale = max(abs(judged.worst.theirs) if judged.worst else 0.0, judged.allowance / SAFETY64)
        shrink = judged.error / scale if scale else np.inf
        return Verdict.MISMATCH if shrink > SHRINKS * EPS32 else Verdict.INACCURATE
    return Verdict.MISMATCH if shrink > SHRINKS else Verdict.INACCURATE


def verdict32(judged: Judgement, error64: float = 0.0) -> Verdict:
    """Return the verdict of the float32 rung.

    ``error64`` is the same quantity's error in float64. An error that is there in both precisions
    and shrinks by about 2**-29 is rounding, however large: a one-pass variance far from zero.
    """
    if judged.nonfinite:
        return Verdict.MISMATCH
    if judged.inside:
        return Verdict.MATCH
    shrink = error64 / judged.error
    if SCALE_GAP / ROUNDING_SPREAD < shrink < SHRINKS:
        return Verdict.INACCURATE
    return Verdict.MISMATCH if judged.error > HOPELESS32 * judged.yardstick else Verdict.INACCURATE


def element_allowance(
    theirs: Array, noise: Array, amplified: Array, floor: Array | float = 0.0
) -> Array:
    """Return what rounding explains for each element of an elementwise function.

    Its own response to one ulp, torch's own float32 error scaled to float64 (cancellation inside
    torch's formula), and its own ulp; ``floor`` for gradients that saturate.
    """
    with np.errstate(all="ignore"):
        scale = np.where(np.isfinite(theirs), np.abs(theirs), 0.0)
        spread = np.where(np.isfinite(amplified), amplified, 0.0)
        own = np.where(np.isfinite(noise), noise, np.inf)
        return np.asarray(
            ELEMENT64 * (own + spread * SCALE_GAP + 2 * EPS64 * scale + floor) + 4 * TINY64
        )


def same_bits(mine: Mapping[str, Array | None], theirs: Mapping[str, Array | None]) -> bool:
    """Whether two sets of quantities are equal to the last bit (NaN equals NaN)."""
    for name, array in theirs.items():
        other = mine.get(name)
        if (array is None) != (other is None):
            return False
        if array is not None and other is not None:
            if array.shape != other.shape:
                return False
            if not np.array_equal(other, array, equal_nan=array.dtype.kind == "f"):
                return False
    return True
