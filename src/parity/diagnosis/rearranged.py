"""Readings of one quantity as torch's rearranged, swapped, moved, rounded or not yet summed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from parity.diagnosis.registry import Reading, readings, words
from parity.diagnosis.trials import Trial
from parity.outcomes import Array

Change = Callable[[Array], Array]
ROUNDED = 2.0**-20  # a value that was only rounded to float32 or less is this near to torch's


def _of_theirs(change: Change) -> Callable[[Trial, str], Array | None]:
    def predict(trial: Trial, name: str) -> Array | None:
        ref = trial.theirs.get(name)
        return None if ref is None else change(ref)

    return predict


SIMPLE: tuple[tuple[str, str, Change], ...] = (
    ("zero", "{q} is zero throughout, torch's is not", np.zeros_like),
    ("absolute_value", "{q} is the absolute value of torch's", np.abs),
    ("squared", "{q} is the square of torch's", np.square),
    ("square_root", "{q} is the square root of torch's", np.sqrt),
    ("reciprocal", "{q} is 1 divided by torch's", np.reciprocal),
    ("sign_only", "{q} is only the sign of torch's", np.sign),
    ("ones", "{q} is one throughout", np.ones_like),
    ("averaged_to_one_value", "{q} is the mean of torch's, everywhere",
     lambda a: np.full_like(a, a.mean())),
    ("normalised", "{q} is torch's divided by its norm", lambda a: a / np.linalg.norm(a)),
)  # fmt: skip


@readings
def simple(trials: Sequence[Trial], name: str) -> Iterator[Reading]:
    """Read a quantity as one plain function of torch's."""
    for cause, text, change in SIMPLE:
        yield Reading(cause, text, _of_theirs(change))


@readings
def rearranged(trials: Sequence[Trial], name: str) -> Iterator[Reading]:
    """Read a quantity as torch's with axes exchanged, reversed, or its elements reshaped."""
    ref, own = trials[0].theirs.get(name), trials[0].get(name)
    if ref is None or own is None or ref.ndim == 0:
        return
    for axes in permutations(range(ref.ndim)) if 2 <= ref.ndim <= 4 else ():
        if axes != tuple(range(ref.ndim)):
            text = "{q} is torch's transposed" + (f": axes {axes}" if ref.ndim > 2 else "")
            yield Reading("transposed", text, _of_theirs(partial(np.transpose, axes=axes)))
    spatial = tuple(range(2, ref.ndim))
    for axes in ([spatial] if len(spatial) > 1 else []) + [(i,) for i in range(ref.ndim)]:
        where = "both spatial axes" if axes == spatial and len(axes) > 1 else f"axis {axes[0]}"
        flips = "kernel_flipped" if name == "grad_weight" and axes == spatial else "flipped"
        text = f"{{q}} is torch's reversed along {where}"
        yield Reading(flips, text, _of_theirs(partial(np.flip, axis=axes)))
    for axis in range(ref.ndim):
        for shift in (1, -1):
            text = f"{{q}} is torch's shifted by {shift} along axis {axis}"
            yield Reading("shifted", text, _of_theirs(partial(np.roll, shift=shift, axis=axis)))
    if own.shape != ref.shape and own.size == ref.size:
        yield Reading(
            "reshaped",
            f"{{q}} has torch's numbers in the shape {own.shape}; torch's is {ref.shape}",
            lambda t, q: _as_own(t, q),
        )
    if own.shape == ref.shape and ref.ndim > 1:
        yield Reading(
            "memory_order",
            "{q} has torch's numbers in another memory order: not transposed",
            _of_theirs(lambda a: a.reshape(a.shape[::-1]).transpose()),
        )


def _as_own(trial: Trial, name: str) -> Array | None:
    ref, own = trial.theirs.get(name), trial.get(name)
    if ref is None or own is None or own.size != ref.size:
        return None
    return ref.reshape(own.shape)


@readings
def unsummed(trials: Sequence[Trial], name: str) -> Iterator[Reading]:
    """Read a quantity of another shape as torch's before (or after) a sum or mean."""
    ref, own = trials[0].theirs.get(name), trials[0].get(name)
    if ref is None or own is None or own.shape == ref.shape:
        return
    for axis in range(own.ndim):
        for how, reduce in (("sum", np.sum), ("mean", np.mean)):
            for keep in (False, True):
                what = "batch" if axis == 0 else f"axis {axis}"
                text = f"{{q}} still has one entry a sample: the {how} over the {what} is missing"
                yield Reading(
                    f"{'batch' if axis == 0 else 'axis'}_not_reduced",
                    text,
                    lambda t, q: t.theirs.get(q),
                    partial(_reduced, reduce, axis, keep),
                )
    for axis in range(ref.ndim):
        for how, reduce in (("summed", np.sum), ("averaged", np.mean)):
            for keep in (False, True):
                yield Reading(
                    "reduced_too_far",
                    f"{{q}} is torch's {how} over axis {axis}, which torch keeps",
                    _of_theirs(partial(_reduced_theirs, reduce, axis, keep)),
                )
    for how, reduce in (("sum", np.sum), ("mean", np.mean)):
        yield Reading(
            f"{how}_missing" if own.size > 1 else "reduced_too_far",
            f"{{q}} is not reduced: its {how} is torch's"
            if own.size > 1
            else f"{{q}} is the {how} of torch's",
            (lambda t, q: t.theirs.get(q)) if own.size > 1 else _of_theirs(reduce),
            partial(_reduced, reduce, None, False) if own.size > 1 else None,
        )


def _reduced_theirs(reduce: Any, axis: int, keep: bool, theirs: Array) -> Array:
    return np.asarray(reduce(theirs, axis=axis, keepdims=keep))


def _reduced(reduce: Any, axis: int | None, keep: bool, trial: Trial, own: Array) -> Array:
    return np.asarray(reduce(own, axis=axis, keepdims=keep))


def _held(other: str, trial: Trial, name: str) -> Array | None:
    return trial.theirs.get(other)


@readings
def another(trials: Sequence[Trial], name: str) -> Iterator[Reading]:
    """Read a quantity as another one of torch's, as an input, a parameter or the upstream."""
    for other in trials[0].theirs:
        if other == name or trials[0].theirs[other] is None:
            continue
        both = {name.partition("_")[0], other.partition("_")[0]}
        cause = "quantities_swapped"
        if both == {"grad"} and not any("input" in n for n in (name, other)):
            cause = "gradients_swapped"
        elif both == {"buffer"}:
            cause = "buffers_swapped"
        text = f"{{q}} holds what torch has in {words(other)}"
        yield Reading(cause, text, partial(_held, other))
    if name.startswith("grad_input"):
        yield Reading(
            "upstream_passed_through",
            "{q} is the upstream gradient unchanged: the layer's own derivative is missing",
            lambda t, q: t.upstream,
        )
    if name == "forward":
        yield Reading("input_returned", "{q} is the input unchanged", lambda t, q: t.x)
    rates = set(trials[0].pair.reference.dropouts)
    if name == "grad_input0" and len(rates) == 1 and trials[0].pair.reference.lone:
        yield Reading(
            "mask_drawn_again",
            "{q} is scaled and dropped as it should be, but by another mask than the output: "
            "backward draws again",
            partial(_dropped, 1 / (1 - rates.pop())),
        )
    if name.startswith("buffer_"):
        buffer = name.removeprefix("buffer_")
        yield Reading(
            "buffer_not_updated",
            "{q} is not updated: it keeps its old value",
            lambda t, q: t.draw.buffers.get(buffer),
        )


def _dropped(scale: float, trial: Trial, name: str) -> Array | None:
    """The upstream gradient dropped where mine is zero, which says which mask was taken."""
    own, g = trial.get(name), trial.upstream
    if own is None or g is None or not trial.draw.training or own.shape != g.shape:
        return trial.theirs.get(name)
    return np.where(own == 0, 0.0, g * scale)


@readings
def rounded(trials: Sequence[Trial], name: str) -> Iterator[Reading]:
    """Read a float64 quantity as torch's, but holding only numbers of a narrower type."""
    for label, narrow in (("float16", _float16), ("bfloat16", _bfloat16), ("float32", _float32)):
        if all(_holds_only(t, name, narrow) for t in trials):
            yield Reading(
                f"rounded_through_{label}",
                f"{{q}} holds only numbers that {label} has: it was rounded through {label}",
                lambda t, q: t.get(q),
            )


def _float16(array: Array) -> Array:
    return array.astype(np.float16).astype(np.float64)


def _float32(array: Array) -> Array:
    return array.astype(np.float32).astype(np.float64)


def _bfloat16(array: Array) -> Array:
    # round to nearest even on the upper half of a float32
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    kept = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(
        0xFFFF0000
    )
    return kept.view(np.float32).astype(np.float64)


def _holds_only(trial: Trial, name: str, narrow: Change) -> bool:
    own, ref = trial.get(name), trial.theirs.get(name)
    if own is None or ref is None or own.shape != ref.shape or own.dtype.kind != "f":
        return ref is None
    if not own.size or not np.isfinite(own).all() or not np.isfinite(ref).all():
        return not own.size
    nearness: dict[Change, float] = {_float32: ROUNDED, _float16: 2.0**-9, _bfloat16: 2.0**-6}
    near = nearness[narrow]
    if not (np.abs(own - ref) <= near * np.abs(ref).max()).all():
        return False
    return bool(np.array_equal(narrow(own), own))
