"""Passes with a history: a few steps of gradient descent on one object, each a trial."""

from __future__ import annotations

from dataclasses import replace

from parity.diagnosis.trials import Trial
from parity.pair import Pair
from parity.promises import RATE, STEPS
from parity.sizes import probe_shapes


def walked(pair: Pair, seed: int, steps: int) -> list[Trial]:
    """Walk steps of gradient descent on one object; each pass becomes a trial, one more follows."""
    shapes = probe_shapes(pair)
    runner = pair.subject.spawn("float64")
    params = buffers = None
    trials: list[Trial] = []
    for k in range(steps + 1):
        training = k < STEPS  # three steps are followed by an evaluation
        draw = pair.draw(seed, training, f"step{k}" if training else "after-training", shapes)
        if params is not None and buffers is not None:
            draw = replace(draw, params=params, buffers=buffers)
        mine = pair.mine(draw, "float64", runner)
        draw = pair.masked(draw, mine)
        trial = Trial(pair, draw, dict(mine.quantities), earlier=list(trials))
        trials.append(trial)
        # both sides go on from torch's numbers: each pass is judged on its own
        params, buffers = dict(draw.params), dict(draw.buffers)
        for name in params:
            gradient = trial.theirs.get(f"grad_{name}")
            if training and gradient is not None:
                params[name] = params[name] - RATE * gradient
        for name in buffers:
            left = trial.theirs.get(f"buffer_{name}")
            buffers[name] = buffers[name] if left is None else left
    return trials
