"""The ladder: what rounding explains, measured on the reference, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType

import numpy as np

from parity.findings import Verdict, Worst
from parity.outcomes import Array, alike

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
SECOND_LOOK = 16  # one-ulp runs before rounding is called rougher than torch's
SLIGHT = 2.0**-20  # of the answer: an error that cancellation alone may have made
BLOCK = 2**15  # elements compared at a time, so that what is computed of them stays in the cache


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
        if np.isinf(self.error):
            return self.error  # also of an allowance that is infinite
        return self.error / self.allowance if self.allowance > 0 else float(self.error > 0)


def largest(array: Array) -> float:
    """The largest finite magnitude, 0 for an empty array."""
    if not array.size:
        return 0.0
    peak = max(float(array.max()), -float(array.min()))
    if np.isfinite(peak):
        return peak
    finite = np.abs(array[np.isfinite(array)])
    return float(finite.max()) if finite.size else 0.0


def _blocks(array: Array) -> Iterator[slice | EllipsisType]:
    """Yield what cuts ``array`` along axis 0 into blocks, in order."""
    if array.size <= BLOCK:
        yield ...
        return
    rows = max(1, BLOCK * len(array) // array.size)
    for start in range(0, len(array), rows):
        yield slice(start, start + rows)


def _gap(mine: Array, theirs: Array) -> tuple[Array, float]:
    """Return |mine - theirs| in float64, and the largest of it: finite where every element is.

    Nearly always it is, and then nothing needs to be asked of the elements of either side.
    """
    with np.errstate(all="ignore"):
        gap = np.asarray(np.subtract(mine, theirs, dtype=np.float64))
        np.abs(gap, out=gap)
        return gap, float(gap.max(initial=0.0))


def widen(noise: Array, reference: Array, other: Array) -> None:
    """Raise ``noise`` to how far ``other``, a perturbed run, is from ``reference``."""
    for part in _blocks(reference):
        old, new = reference[part], other[part]
        change, peak = _gap(new, old)
        if not np.isfinite(peak):
            change[(np.isnan(new) & np.isnan(old)) | (new == old)] = 0.0
            change[np.isnan(change)] = np.inf
        np.maximum(noise[part], change, out=noise[part])


def response(reference: Array, others: Sequence[Array]) -> Array:
    """Return the largest change of each element over perturbed runs; inf where one overflowed."""
    noise = np.zeros(reference.shape)
    for other in others:
        widen(noise, reference, other)
    return noise


def nonfinite_differs(mine: Array, theirs: Array) -> Array:
    """Return where NaN or ±inf stand on one side only (or with the other sign)."""
    with np.errstate(invalid="ignore"):
        special = ~(np.isfinite(mine) & np.isfinite(theirs))
        same = (np.isnan(mine) & np.isnan(theirs)) | (mine == theirs)
    return np.asarray(special & ~same)


def differences(mine: Array, theirs: Array) -> Array:
    """Return |mine - theirs|, zero where either is not finite."""
    gap, peak = _gap(mine, theirs)
    if not np.isfinite(peak):
        gap[~(np.isfinite(mine) & np.isfinite(theirs))] = 0.0
    return gap


def farthest(mine: Array, theirs: Array) -> float:
    """Return the largest of :func:`differences`."""
    found = 0.0
    for part in _blocks(theirs):
        _, peak = _gap(mine[part], theirs[part])
        if not np.isfinite(peak):
            peak = largest(differences(mine[part], theirs[part]))
        found = max(found, peak)
    return found


def _slice_peaks(array: Array, axis: int, signed: bool = True) -> Array:
    """Return the largest finite magnitude of each slice along ``axis``, to broadcast against it.

    Short slices are taken together: the largest of a few elements says little about their noise.
    """
    long = axis < array.ndim and array.size >= CHANNEL * array.shape[axis]
    others = tuple(i for i in range(array.ndim) if not long or i != axis)
    peaks = array.max(axis=others, keepdims=True)
    if signed:
        peaks = np.maximum(peaks, -array.min(axis=others, keepdims=True))
    if np.isfinite(peaks).all():
        return np.asarray(peaks)
    finite = np.where(np.isfinite(array), np.abs(array), 0.0)
    return np.asarray(finite.max(axis=others, keepdims=True))


@np.errstate(over="ignore", invalid="ignore")  # 64 times a noise near the largest number
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
    levels = None if axis is None or not theirs.size else _slice_peaks(theirs, axis)
    scale = largest(theirs) if levels is None else float(levels.max())
    peak = float(noise.max(initial=0.0))  # inf where a run overflowed
    zero = bool(
        not pinned
        and 0 < scale <= SAFETY64 * peak
        and np.isfinite(peak)
        and (np.abs(theirs) <= SAFETY64 * noise).all()
    )
    undecided = bool(not pinned and not zero and peak > UNDECIDABLE * scale)
    whole = SAFETY64 * (peak + 2 * EPS64 * max(scale, floor)) + 4 * TINY64
    allowed = np.asarray(whole)
    if axis is not None and levels is not None and not undecided:
        noises = _slice_peaks(noise, axis, signed=False)
        per = SAFETY64 * (noises + 2 * EPS64 * np.maximum(levels, floor))
        allowed = np.minimum(allowed, per + 4 * TINY64)
    if per_element is not None:
        allowed = np.minimum(allowed, per_element)
    return _judge(
        mine,
        theirs,
        allowed,
        undecided=undecided,
        zero=zero,
        conditioning=peak / scale / EPS64 if scale > 0 else 0.0,  # in steps: scale · eps may be 0
    )


def matches(
    mine: Array, theirs: Array, axis: int | None = None, per_element: Array | None = None
) -> bool:
    """Whether a float64 quantity matches without any noise, which only adds to what is allowed."""
    if per_element is None and _within(mine, theirs, axis):
        return True
    none = np.zeros(theirs.shape)
    return judge64(mine, theirs, none, axis=axis, per_element=per_element, pinned=True).inside


def _within(mine: Array, theirs: Array, axis: int | None) -> bool:
    """Whether every difference is allowed even by the smallest slice: a quick look.

    False leaves the question to :func:`judge64`.
    """
    if not theirs.size:
        return True
    least = largest(theirs) if axis is None else float(_slice_peaks(theirs, axis).min())
    _, peak = _gap(mine, theirs)
    return peak <= SAFETY64 * 2 * EPS64 * least + 4 * TINY64  # False of NaN, as of what is infinite


def judge32(mine: Array, exact: Array, runs: Sequence[Array], floor: float = 0.0) -> Judgement:
    """Judge a float32 quantity against float64 on the same rounded numbers.

    ``runs`` are torch's own float32 answers, the plain one first and then perturbed ones; the
    yardstick is the largest of their errors. See :func:`held32`.
    """
    base = arbiter(mine, exact, runs[0])
    return held32(mine, exact, base, max(farthest(run, base) for run in runs), floor)


def arbiter(mine: Array, exact: Array, plain: Array) -> Array:
    """Return what float32 answers are held against: ``exact``, but for overflows.

    One that torch's ``plain`` float32 shows too is right, whatever float64 says; so is none where
    it does.
    """
    known = np.isfinite(plain)
    if known.all():
        return exact
    return np.where(known | np.isfinite(mine), exact, plain.astype(np.float64))


def held32(
    mine: Array, exact: Array, base: Array, yardstick: float, floor: float = 0.0
) -> Judgement:
    """Judge a float32 quantity by a yardstick: how far torch's own float32 lies from ``base``.

    Allowed: 4·yardstick + 4·eps·max|ref64|. ``floor`` is a scale whose rounding is granted too, as
    in :func:`judge64`.
    """
    scale = _largest32(exact)
    whole = SAFETY32 * yardstick + SAFETY32 * EPS32 * max(scale, floor) + 4 * TINY32
    return _judge(mine, base, np.asarray(whole), yardstick=max(yardstick, EPS32 * scale, TINY32))


def _largest32(exact: Array) -> float:
    """The largest magnitude that stays finite when it is rounded to float32."""
    peak = largest(exact)
    if peak >= float(np.finfo(np.float32).max):
        with np.errstate(over="ignore"):
            return largest(exact.astype(np.float32))
    return float(np.float32(peak))


def _judge(mine: Array, theirs: Array, allowed: Array, **facts: object) -> Judgement:
    """Hold the differences against ``allowed``, which is positive and broadcasts over them."""
    if not theirs.size:
        return Judgement(True, 0.0, 0.0, **facts)  # type: ignore[arg-type]
    found = _worst(mine, theirs, allowed)
    odd = None
    if found is None:
        odd = nonfinite_differs(mine, theirs)
        found = _worst_of_odd(mine, theirs, allowed, odd)
    flat, error, differing = found
    index = tuple(int(i) for i in np.unravel_index(flat, theirs.shape))
    return Judgement(
        inside=not differing,
        allowance=_at(allowed, index),
        error=error,
        worst=Worst(index, float(mine[index]), float(theirs[index]), error),
        differing=differing,
        size=int(theirs.size),
        nonfinite=odd is not None and bool(odd.any()),
        **facts,  # type: ignore[arg-type]
    )


def _at(allowed: Array, index: tuple[int, ...]) -> float:
    """Return what is allowed at ``index`` of the array that ``allowed`` broadcasts over."""
    if allowed.size == 1:
        return float(allowed.reshape(()))
    return float(
        allowed[tuple(i if n > 1 else 0 for i, n in zip(index, allowed.shape, strict=True))]
    )


@np.errstate(over="ignore", invalid="ignore")
def _worst(mine: Array, theirs: Array, allowed: Array) -> tuple[int, float, int] | None:
    """Return where the first of the worst lies, its error, and how many lie outside.

    None where a difference is not finite.
    """
    # one allowance for all: the worst is the largest, and nothing need be divided
    one = allowed.size == 1
    limit = float(allowed.reshape(())) if one else 1.0
    by_rows = not one and len(allowed) > 1
    at, error, most, differing, start = 0, 0.0, -1.0, 0, 0
    for part in _blocks(theirs):
        off, peak = _gap(mine[part], theirs[part])
        if not np.isfinite(peak):
            return None
        excess = off if one else np.asarray(off / (allowed[part] if by_rows else allowed))
        top = peak if one else float(excess.max())
        if top > most:
            flat = int(np.argmax(excess))
            at, error, most = start + flat, float(off.flat[flat]), top
        if top > limit:
            differing += int(np.count_nonzero(excess > limit))
        start += off.size
    return at, error, differing


@np.errstate(over="ignore", invalid="ignore")
def _worst_of_odd(mine: Array, theirs: Array, allowed: Array, odd: Array) -> tuple[int, float, int]:
    """Return what :func:`_worst` does where some differ, in ``odd``, as no number does."""
    off = differences(mine, theirs)
    excess = np.asarray(off / allowed)
    excess[np.isnan(excess)] = 0.0  # both infinite
    excess[odd] = np.inf
    flat = int(np.argmax(excess))
    error = float("inf") if odd.flat[flat] else float(off.flat[flat])
    return flat, error, int(np.count_nonzero(excess > 1.0))


def shrink_ratio(
    mine64: Array, ref64: Array, mine32: Array | None, ref32: Array | None
) -> float | None:
    """Return err64 / err32: about 2**-29 for rounding, near 1 for a fault; None if unknown."""
    if mine32 is None or ref32 is None or mine32.shape != ref32.shape:
        return None
    error64, error32 = farthest(mine64, ref64), farthest(mine32, ref32)
    floor = EPS32 * largest(ref32)
    return error64 / max(error32, floor, TINY32)


def slight(judged: Judgement, ref: Array) -> bool:
    """Whether the error is one that cancellation alone may have made."""
    return not judged.nonfinite and judged.error <= SLIGHT * largest(ref)


def second_look(
    own: Array,
    ref: Array,
    moved: Sequence[Array | None],
    narrow: tuple[Array | None, Array | None],
    axis: int | None = None,
) -> Judgement | None:
    """Judge again by more noise; None where that does not explain the error either.

    A few one-ulp moves may all be swallowed by a large common term, or fall alike: ``moved`` are
    the answers of SECOND_LOOK of them. ``narrow`` is torch's answer in float32 and in float64 on
    numbers rounded to float32: it shows what torch's formula loses by cancellation. A layer that
    computes float32 in double hides by that that its float64 error is rounding.
    """
    noise = response(ref, [array for array in moved if array is not None])
    r32, r64 = narrow
    if r32 is not None and r64 is not None:
        noise = np.maximum(noise, SCALE_GAP * differences(r32, r64))
    again = judge64(own, ref, noise, axis=axis)
    return again if again.inside and not again.undecided else None


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
            if not alike(other, array):
                return False
    return True
