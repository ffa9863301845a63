"""A numeric option that is on no list of likely values: fitted to one draw, tried on the others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from parity.diagnosis.registry import Hypothesis
from parity.diagnosis.settings import Change, hypothesis, numeric, rebuilt, replaced
from parity.diagnosis.trials import Trial
from parity.outcomes import Array
from parity.pair import Pair

STEPS = 12
GOOD = 1e-6  # a fit leaves less than this share of what was to be explained


def fitted(pair: Pair, trial: Trial, names: list[str]) -> Iterator[Hypothesis]:
    """Yield the hypothesis of each numeric option with the value that fits ``trial`` best."""
    for root, layer, change in numeric(pair):
        for name in names:
            value = _solve(trial, name, root, layer, change)
            if value is None:
                continue
            made = hypothesis(root, layer, Change(change.path, change.option, value,
                                                  change.default, change.given))  # fmt: skip
            if made is not None:
                yield made
                break


def _solve(
    trial: Trial, name: str, root: nn.Module, layer: nn.Module, change: Change
) -> float | None:
    """Find the option's value by secant steps on the residual, projected on its own response."""
    own = trial.get(name)
    given = float(change.value)

    def predicted(value: float) -> Array | None:
        made = rebuilt(layer, change.option, value)
        found = None if made is None else trial.run(replaced(root, change.path, made))
        array = (found or {}).get(name)
        return array if own is not None and array is not None and array.shape == own.shape else None

    base = predicted(given)
    if base is None or own is None:
        return None
    low, high = given, given * 1.01 + (1e-3 if given == 0 else 0.0)
    at_low, at_high = base - own, predicted(high)
    size = float(np.abs(at_low).max())
    if at_high is None or not np.isfinite(size) or size == 0:
        return None
    at_high = at_high - own
    for _ in range(STEPS):
        slope = at_high - at_low
        norm = float((slope * slope).sum())
        if norm == 0 or not np.isfinite(norm):
            return None
        step = -float((at_high * slope).sum()) / norm * (high - low)
        following = high + step
        if not np.isfinite(following) or following == high:
            break
        if change.option == "eps" and following < 0:
            following = high / 10
        array = predicted(following)
        if array is None:
            return None
        low, high, at_low, at_high = high, following, at_high, array - own
        if float(np.abs(at_high).max()) <= 1e-14 * size:
            break
    return _tidy(high) if float(np.abs(at_high).max()) <= GOOD * size else None


def _tidy(value: float) -> float:
    """Return the shortest number that the fit may have meant: 0.3 rather than 0.30000000012."""
    short = float(f"{value:.6g}")
    return short if abs(short - value) <= 1e-7 * abs(value) else value
