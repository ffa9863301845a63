"""Factors: mine = k × theirs, with k one of the numbers that a layer has reason to multiply by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from parity.diagnosis.registry import Reading, multiple, readings, second_axis
from parity.diagnosis.trials import Trial
from parity.outcomes import Array

CLOSE = 1e-9  # how near a measured factor must come to a known number to be tried as it


@dataclass(frozen=True)
class Factor:
    """One known number: its value on a trial, and what it means that it is there."""

    name: str
    value: Callable[[Trial], float | None]
    meaning: str
    inverse: bool = False

    def of(self, trial: Trial) -> float | None:
        """Return the factor on ``trial``, None where it does not exist."""
        value = self.value(trial)
        if value is None or not math.isfinite(value) or value == 0:
            return None
        return 1 / value if self.inverse else value


def batch(trial: Trial) -> float | None:
    """N, the size of axis 0."""
    return float(trial.x.shape[0]) if trial.x.ndim else None


def channels(trial: Trial) -> float | None:
    """C, the size of axis 1."""
    return float(trial.x.shape[1]) if trial.x.ndim > 1 else None


def positions(trial: Trial) -> float | None:
    """H·W, the number of positions of an image (or of the axes beyond 1)."""
    return float(math.prod(trial.x.shape[2:])) if trial.x.ndim > 2 else None


def _product(*parts: Callable[[Trial], float | None]) -> Callable[[Trial], float | None]:
    def value(trial: Trial) -> float | None:
        found = [part(trial) for part in parts]
        return None if None in found else math.prod(f for f in found if f is not None)

    return value


def _out(axes: slice) -> Callable[[Trial], float | None]:
    def value(trial: Trial) -> float | None:
        out = trial.theirs.get("forward")
        sizes = () if out is None else out.shape[axes]
        return float(math.prod(sizes)) if sizes else None

    return value


def _setting(name: str, change: Callable[[Any], float] = float) -> Callable[[Trial], float | None]:
    def value(trial: Trial) -> float | None:
        given = getattr(trial.pair.reference.original, name, None)
        if given is None or isinstance(given, (bool, str)):
            return None
        return float(change(given))

    return value


def _area(kernel: Any) -> float:
    return float(math.prod(kernel)) if isinstance(kernel, (tuple, list)) else float(kernel**2)


def _keep(trial: Trial) -> float | None:
    rates = set(trial.pair.reference.dropouts)
    return 1 - rates.pop() if len(rates) == 1 else None


def _count(trial: Trial) -> float | None:
    return None if trial.x.ndim < 2 else trial.x.size / trial.x.shape[1]


def _bessel(trial: Trial) -> float | None:
    n = _count(trial)
    return None if n is None or n < 2 else n / (n - 1)


def _others(trial: Trial) -> float | None:
    c = channels(trial)
    return None if c is None or c < 2 else (c - 1) / c


def _upstream(trial: Trial) -> float | None:
    g = trial.upstream
    return float(g.reshape(())) if g is not None and g.size == 1 else None


def _ignore(trial: Trial) -> float | None:
    """Share of labels that count, where some are to be ignored."""
    ignored = getattr(trial.pair.reference.original, "ignore_index", None)
    if ignored is None or len(trial.draw.inputs) < 2 or trial.draw.inputs[1].dtype.kind == "f":
        return None
    target = trial.draw.inputs[1]
    kept = int((target != ignored).sum())
    return kept / target.size if 0 < kept < target.size else None


N = "the batch size is {n:g}"
FACTORS: tuple[Factor, ...] = (
    Factor("sign_flipped", lambda t: -1.0, "the sign is flipped"),
    Factor("batch_sum_not_averaged", batch, N + ": the batch sum was not averaged"),
    Factor("averaged_over_batch", batch, N + ": it was averaged where torch sums", True),
    Factor("dropout_not_scaled", _keep, "1 - p is {n:g}: what is kept is not scaled by 1/(1 - p)"),
    Factor("dropout_scaled_twice", _keep, "1 - p is {n:g}: 1/(1 - p) is applied twice", True),
    Factor("ignored_labels_counted", _ignore, "{n:g} of the labels count: the mean divides by all"),
    Factor("positions_sum_not_averaged", positions, "an image has {n:g} positions: not averaged"),
    Factor("averaged_over_positions", positions, "an image has {n:g} positions: averaged", True),
    Factor("positions_sum_not_averaged", _out(slice(2, None)), "the output has {n:g} positions"),
    Factor("averaged_over_positions", _out(slice(2, None)), "the output has {n:g} positions", True),
    Factor("channels_sum_not_averaged", channels, "there are {n:g} {axis}: not averaged"),
    Factor("averaged_over_channels", channels, "there are {n:g} {axis}: averaged", True),
    Factor(
        "batch_and_positions_sum_not_averaged",
        _product(batch, positions),
        "batch times positions is {n:g}: the sum over both was not averaged",
    ),
    Factor(
        "averaged_over_batch_and_positions",
        _product(batch, positions),
        "batch times positions is {n:g}: it was averaged where torch sums",
        True,
    ),
    Factor(
        "averaged_over_batch_and_positions",
        _product(batch, _out(slice(2, None))),
        "batch times output positions is {n:g}: it was averaged where torch sums",
        True,
    ),
    Factor(
        "elements_sum_not_averaged",
        lambda t: float(t.x.size),
        "the input has {n:g} elements: the sum was not averaged",
    ),
    Factor(
        "averaged_over_elements",
        lambda t: float(t.x.size),
        "the input has {n:g} elements: it was averaged where torch sums",
        True,
    ),
    Factor("doubled", lambda t: 2.0, "it is counted twice"),
    Factor("halved", lambda t: 0.5, "a factor of 2 is missing"),
    Factor(
        "window_sum_not_averaged",
        _setting("kernel_size", _area),
        "the window has {n:g} elements: their sum was not averaged",
    ),
    Factor(
        "averaged_over_window",
        _setting("kernel_size", _area),
        "the window has {n:g} elements: it was averaged once more",
        True,
    ),
    Factor("averaged_over_outputs", _out(slice(1, 2)), "there are {n:g} outputs: averaged", True),
    Factor("multiplied_by_outputs", _out(slice(1, 2)), "there are {n:g} outputs: not averaged"),
    Factor("unbiased_not_biased", _bessel, "n/(n - 1) is {n:g}: unbiased where torch is biased"),
    Factor("biased_not_unbiased", _bessel, "n/(n - 1) is {n:g}: biased, torch is unbiased", True),
    Factor("divided_by_other_classes", _others, "(C - 1)/C is {n:g}: divided by C - 1", True),
    Factor("divided_by_all_classes", _others, "(C - 1)/C is {n:g}: divided by C, not C - 1"),
    Factor(
        "upstream_ignored", _upstream, "the upstream gradient is {n:g}: backward ignores it", True
    ),
    Factor("upstream_applied_twice", _upstream, "the upstream gradient is {n:g}: applied twice"),
)
SETTINGS = ("momentum", "alpha", "beta", "negative_slope", "p", "margin", "groups", "eps", "scale")


def known(trial: Trial) -> list[Factor]:
    """Return the factors, with one pair for each of the reference's own numeric settings."""
    found = []
    for name in SETTINGS:
        value = _setting(name)
        if value(trial) not in (None, 0.0, 1.0):
            found.append(
                Factor(f"multiplied_by_{name}", value, f"{name} is {{n:g}}: once too often")
            )
            found.append(
                Factor(
                    f"divided_by_{name}", value, f"{name} is {{n:g}}: that factor is missing", True
                )
            )
    return found + list(FACTORS)


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
            names = {factors[i].name for i in chosen}
            if len(names) < order and names != {"doubled"}:
                continue
            if all(
                math.isnan(k) or _equal(k, [values[i][at] for i in chosen])
                for at, k in enumerate(ks)
            ):
                picked = tuple(factors[i] for i in chosen)
                yield picked, partial(_value, picked)


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
    axis = second_axis(trial.draw.inputs)
    meanings = [f.meaning.format(n=f.value(trial) or math.nan, axis=axis) for f in factors]
    return f"{multiple(k)} × torch's, and " + ", and ".join(meanings)


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
