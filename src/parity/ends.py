"""The ends of an input's domain, where formulas break: probabilities 0 and 1, the last label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from parity.ladder import EPS32
from parity.outcomes import Array
from parity.specs import Spec

LABEL = "ends of the domain"
IGNORED = "ignored labels"  # the draw that holds torch's usual ignore_index
FAR_BELOW = -700.0  # the logarithm of a probability that is still a number
USUAL_IGNORE_INDEX = -100
GUARDED = 1e6  # a gradient above this was divided by what keeps it finite


def bounded(spec: Spec) -> bool:
    """Whether the domain of ``spec`` has ends that its usual draws are likely to miss."""
    if spec.kind not in _ENDS or not spec.shape:
        return False
    if not spec.integral:
        return True
    options = dict(spec.options)
    choices = options.get("classes") or options["high"] - options["low"]
    return bool(choices > np.prod(spec.shape))


def sentinel(reference: Any) -> int | None:
    """Return the label that a loss was told to ignore; None for torch's usual one, or none."""
    ignored = getattr(reference, "ignore_index", None)
    return None if not isinstance(ignored, int) or ignored == USUAL_IGNORE_INDEX else ignored


def at_ends(spec: Spec, rng: np.random.Generator, ignored: int | None = None) -> Array:
    """Draw ``spec`` with half of its values (or rows) exactly at the ends of its domain.

    The ends are low and high of ``uniform``, 0 and 1 of ``probabilities``, the first and the last
    label or integer; ``ignored`` is a label that stands for none. A logarithm of probabilities
    ends at 0 and far below, not at -inf.
    """
    values = spec.draw(rng)
    if spec.kind not in _ENDS or not values.size:
        return values
    values = _ENDS[spec.kind](values, rng, **dict(spec.options))
    if spec.kind == "labels" and ignored is not None and values.size > 2:
        values = np.where(rng.random(values.shape) < 0.25, ignored, values)
        values.flat[-1] = ignored
        values.flat[0] = int(ignored == 0)  # a mean over nothing is NaN
    return values


def unasked(
    mine: Mapping[str, Array | None], theirs: Mapping[str, Array | None]
) -> dict[str, Array | None]:
    """Return ``mine`` with NaN where torch's own gradient is NaN (zero times infinity).

    Infinities and NaN belong where torch has them, but there it has no answer: any is taken. What
    is divided by a guard such as 1e-12 is torch's as well where float32 makes the difference:
    torch holds its guards in that.
    """
    found = dict(mine)
    for name, ref in theirs.items():
        own = found.get(name)
        if not name.startswith("grad_") or ref is None or own is None or own.shape != ref.shape:
            continue
        if ref.dtype.kind == own.dtype.kind == "f":
            with np.errstate(all="ignore"):
                guarded = (np.abs(ref) > GUARDED) & (np.abs(own - ref) <= EPS32 / 2 * np.abs(ref))
            found[name] = np.where(np.isnan(ref) | guarded, ref, own)
    return found


def _spread(values: Array, rng: np.random.Generator, low: float, high: float) -> Array:
    ends = np.where(rng.random(values.shape) < 0.5, low, high).astype(values.dtype)
    chosen = rng.random(values.shape) < 0.5
    few = min(2, values.size)
    chosen.flat[:few], ends.flat[:few] = True, [low, high][:few]  # a small draw holds both as well
    return np.where(chosen, ends, values)


def _integers(values: Array, rng: np.random.Generator, low: int, high: int) -> Array:
    return _spread(values, rng, low, high - 1)


def _labels(values: Array, rng: np.random.Generator, classes: int) -> Array:
    return _spread(values, rng, 0, classes - 1)


def _certain(values: Array, rng: np.random.Generator, axis: int) -> Array:
    moved = np.array(np.moveaxis(values, axis, -1))
    rows = moved.reshape(-1, moved.shape[-1])
    chosen = rng.random(len(rows)) < 0.5
    chosen[:1] = True
    rows[chosen] = np.eye(rows.shape[1])[rng.integers(0, rows.shape[1], int(chosen.sum()))]
    return np.moveaxis(rows.reshape(moved.shape), -1, axis)


def _log_certain(values: Array, rng: np.random.Generator, axis: int) -> Array:
    with np.errstate(divide="ignore"):
        # 0·(-inf) is NaN in many a right formula: what softmax can give is finite
        return np.maximum(np.log(_certain(np.exp(values), rng, axis)), FAR_BELOW)


_ENDS: dict[str, Callable[..., Array]] = {
    "uniform": _spread,
    "integers": _integers,
    "labels": _labels,
    "probabilities": _certain,
    "log_probabilities": _log_certain,
}
