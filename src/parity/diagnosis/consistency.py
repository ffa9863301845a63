"""Self-consistency: the slope of mine against my own backward, the reference not asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parity.diagnosis.trials import Trial
from parity.draws import Draw
from parity.outcomes import Array, LayerError
from parity.pair import Pair

STEP = 1e-4
TRUSTED = 1e-3  # a slope whose two estimates differ by more of it says nothing (a kink)
PARTS = 30.0  # a contradiction is this many times the measured error of the slope


def consistency(pair: Pair, trial: Trial) -> str | None:
    """Return ``consistent``, ``backward_contradicts_forward``, or None where it cannot be told.

    Two central differences give the slope along a random direction and its error; the fourth-order
    term cancels between them (Richardson).
    """
    draw = trial.draw
    if pair.reference.dropouts or trial.upstream is None or draw.label in ("extreme", "magnitudes"):
        return None
    if draw.label == "integers":
        draw = pair.draw(pair.options.seed, draw.training)
        trial = Trial(pair, draw, pair.mine(draw).quantities)
    rng = np.random.default_rng([draw.seed, 17])
    verdicts = set()
    for name in trial.own:
        if not name.startswith("grad_"):
            continue
        gradient = trial.own[name]
        if gradient is None or gradient.dtype.kind != "f":
            continue
        given = _given(draw, name)
        if given is None or given.shape != gradient.shape:
            continue
        verdicts.add(_one(pair, draw, name, gradient, rng.standard_normal(given.shape)))
    if False in verdicts:
        return "backward_contradicts_forward"
    return "consistent" if True in verdicts else None


def _given(draw: Draw, name: str) -> Array | None:
    if name.startswith("grad_input"):
        at = int(name.removeprefix("grad_input"))
        return draw.inputs[at] if at < len(draw.inputs) else None
    return draw.params.get(name.removeprefix("grad_"))


def _one(pair: Pair, draw: Draw, name: str, gradient: Array, way: Array) -> bool | None:
    """Whether one gradient is the slope of the forward pass; None where the slope is unsteady."""
    given = _given(draw, name)
    assert given is not None

    def value(by: float) -> float:
        moved = given + by * way
        if name.startswith("grad_input"):
            at = int(name.removeprefix("grad_input"))
            changed = replace(
                draw, inputs=tuple(moved if i == at else a for i, a in enumerate(draw.inputs))
            )
        else:
            changed = replace(draw, params={**draw.params, name.removeprefix("grad_"): moved})
        outputs = pair.mine(changed).outputs
        return sum(
            float((np.asarray(y, dtype=np.float64) * g).sum())
            for y, g in zip(outputs, draw.upstream, strict=False)
            if g is not None and y.shape == g.shape
        )

    try:
        wide = (value(STEP) - value(-STEP)) / (2 * STEP)
        near = (value(STEP / 2) - value(-STEP / 2)) / STEP
    except LayerError:
        return None
    slope = (4 * near - wide) / 3
    own = float((gradient * way).sum())
    error = abs(near - wide) + 1e-9 * abs(slope) + 1e-11
    if not np.isfinite(slope) or error > TRUSTED * max(abs(slope), abs(own)):
        return None
    return abs(slope - own) <= PARTS * error
