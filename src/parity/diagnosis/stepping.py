"""Findings of the three steps: the same search on passes that have a history."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parity.diagnosis.scene import OPEN, Scene
from parity.diagnosis.trials import Trial
from parity.examination import Examination
from parity.findings import Cause
from parity.ladder import EPS64
from parity.outcomes import Array, LayerError
from parity.pair import Pair
from parity.probes import probe_shapes
from parity.promises import RATE, STEPS


def step_scene(exam: Examination) -> Scene | None:
    """Return the scene of the findings ``step``; None where there is none without a cause."""
    found = {}
    for index, judged in exam.failed.items():
        finding = exam.findings[index]
        if judged.quantity == "step" and finding.verdict in OPEN and finding.cause is None:
            found[index] = replace(judged, quantity=str(finding.evidence.get("of", "forward")))
    if not found:
        return None
    scene = Scene(exam, found)
    for seed in (exam.pair.options.seed, exam.pair.options.seed + 101):
        try:
            scene.trials += walked(exam.pair, seed)
        except LayerError:
            continue
    scene.trials.sort(key=lambda t: not any(t.differs(n) for n in t.names))
    return scene


def walked(pair: Pair, seed: int) -> list[Trial]:
    """Walk a few steps of gradient descent on one object; each pass becomes a trial."""
    shapes = probe_shapes(pair)
    runner = pair.subject.spawn("float64")
    params = buffers = None
    trials: list[Trial] = []
    for k in range(STEPS + 1):
        training = k < STEPS
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


def repeated_cause(exam: Examination) -> Cause | None:
    """Return why a second pass over the same numbers differs, where zeroing is at fault."""
    pair = exam.pair
    runner = pair.subject.spawn("float64")
    try:
        draw = pair.draw(pair.options.seed, True, "generic", probe_shapes(pair))
        first = dict(pair.mine(draw, "float64", runner).quantities)
        kept = {n: None if a is None else np.array(a) for n, a in first.items()}
        second = pair.mine(draw, "float64", runner).quantities
    except LayerError:
        return None
    grads = [n for n in kept if n.startswith("grad_") and not n.startswith("grad_input")]
    rest = [n for n in kept if n not in grads]
    same = all(_equal(second.get(n), kept[n], 1.0) for n in rest)
    if same and grads and all(_equal(second.get(n), kept[n], 2.0) for n in grads):
        text = "gradients of earlier passes are still in it: zeroing does not reach them"
        return Cause("gradient_not_zeroed", text)
    return None


def _equal(array: Array | None, other: Array | None, k: float) -> bool:
    if array is None or other is None or array.shape != other.shape:
        return array is other
    room = 8 * EPS64 * np.abs(other).max(initial=0.0)
    return bool((np.abs(array - k * other) <= room).all())
