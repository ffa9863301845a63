"""Factors: mine = k × theirs, with k one of the numbers that a layer has reason to multiply by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from parity.diagnosis.axes import axes, several
from parity.diagnosis.known_factors import Factor, known
from parity.diagnosis.registry import Reading, multiple, readings
from parity.diagnosis.trials import Trial
from parity.outcomes import Array

CLOSE = 1e-9  # how near a measured factor must come to a known number to be tried as it


def ratio(own: Array, theirs: Array) -> float | None:
    """Return k of own = k × theirs, read where theirs is large; None where it has no such k.

    NaN says that the two have no number to compare: infinities at the same places alone.
    """
    if own.shape != theirs.shape or not theirs.size or theirs.dtype.kind != "f":
        return None
    finite = np.isfinite(theirs)
    if not np.array_equal(finite, np.isfinite(own)):
        return None
    own, theirs = own[finite], theirs[finite]
    if not theirs.any():
        return None if own.any() else math.nan
    peak = np.abs(theirs).max()
    big = np.abs(theirs) >= 0.01 * peak
    k = float(np.median(own[big] / theirs[big]))
    if not math.isfinite(k) or np.abs(own - k * theirs).max() > CLOSE * abs(k) * peak:
        return None
    return k


def measured(trials: Sequence[Trial], name: str, base: Any = None) -> list[float] | None:
    """Return k on every trial that shows one; None where a trial contradicts a factor."""
    found: list[float] = []
    for trial in trials:
        ref = trial.theirs.get(name) if base is None else base(trial).get(name)
        own = trial.get(name)
        if ref is None or own is None:
            found.append(math.nan)
            continue
        k = ratio(own, ref)  # zero is k times zero for every k
        if k is None:
            return None
        found.append(k)
    return None if all(math.isnan(k) for k in found) else found


def matching(
    trials: Sequence[Trial], ks: Sequence[float]
) -> Iterator[tuple[tuple[Factor, ...], Callable[[Trial], float]]]:
    """Yield the known factors, then products of two, that equal ``ks`` on every trial."""
    if all(math.isnan(k) or k == 1 for k in ks):
        return  # a number and its inverse would make 1 of nothing
    factors = known(trials[0])
    values = [[factor.of(trial) for trial in trials] for factor in factors]
    for order in (1, 2):
        for chosen in combinations_with_replacement(range(len(factors)), order):
            if order > 1 and not _telling([(factors[i], values[i]) for i in chosen]):
                continue
            if all(
                math.isnan(k) or _equal(k, [values[i][at] for i in chosen])
                for at, k in enumerate(ks)
            ):
                picked = tuple(factors[i] for i in chosen)
                yield picked, partial(_value, picked)


def _telling(chosen: Sequence[tuple[Factor, list[float | None]]]) -> bool:
    """Whether a product of two factors is more than two numbers that chance offers.

    A sign is none of them. Of the others one at most may be the same on every trial, and the
    product may not be: by two numbers at choice nearly any third one can be made.
    """
    if len({factor.name for factor, _ in chosen}) < len(chosen):
        return False
    sizes = [held for factor, held in chosen if factor.name != "sign_flipped"]
    if len(sizes) < len(chosen):
        return True
    products = [math.prod(v or 0.0 for v in held) for held in zip(*sizes, strict=True)]
    return sum(_constant(held) for held in sizes) <= 1 and not _constant(products)


def _constant(values: Sequence[float | None]) -> bool:
    seen = [v for v in values if v is not None]
    return not seen or max(seen) - min(seen) <= CLOSE * max(map(abs, seen))


def _value(factors: Sequence[Factor], trial: Trial) -> float:
    return math.prod(factor.of(trial) or math.nan for factor in factors)


def _equal(k: float, values: Sequence[float | None]) -> bool:
    product = 1.0
    for value in values:
        if value is None:
            return False
        product *= value
    return abs(k - product) <= CLOSE * abs(product)


def describe(factors: Sequence[Factor], trial: Trial, k: float) -> str:
    """Return "8 × torch's, and the batch size is 8: the batch sum was not averaged"."""
    rest = ("sample", "position", "step")
    held = [kind for kind in axes(trial.pair, trial.draw.inputs) if kind not in rest]
    axis = several(held[-1]) if held else "features"
    meanings = [f.meaning.format(n=f.value(trial) or math.nan, axis=axis) for f in factors]
    told = "{n" in factors[0].meaning  # a number that is worth its own "and"
    return f"{multiple(k)} × torch's{', and' if told else ':'} " + ", and ".join(meanings)


@readings
def factor_readings(trials: Sequence[Trial], name: str) -> Iterator[Reading]:
    """Read a quantity as a known multiple of torch's, else as one constant multiple."""
    ks = measured(trials, name)
    if ks is None:
        return
    differing = (i for i, k in enumerate(ks) if not math.isnan(k) and trials[i].differs(name))
    at = next(differing, 0)
    if ks[at] == 1 or math.isnan(ks[at]):
        return
    for factors, value in matching(trials, ks):
        label = "+".join(dict.fromkeys(f.name for f in factors))
        text = "{q} is " + describe(factors, trials[at], ks[at]).replace("{", "").replace("}", "")
        yield Reading(label, text, partial(_times, value))
    seen = [k for k in ks if not math.isnan(k)]
    if len(seen) > 1 and max(seen) - min(seen) <= CLOSE * abs(seen[0]) and seen[0]:
        text = "{q} is " + f"{multiple(seen[0])} × torch's on every draw"
        yield Reading("constant_factor", text, partial(_times, lambda t: seen[0]))


def _times(value: Callable[[Trial], float], trial: Trial, name: str) -> Array | None:
    ref = trial.theirs.get(name)
    return None if ref is None else value(trial) * ref
