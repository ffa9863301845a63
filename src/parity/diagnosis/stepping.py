"""Findings of the three steps: the same search on passes that have a history."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parity.diagnosis.scene import OPEN, Scene
from parity.diagnosis.walking import walked
from parity.examination import Examination
from parity.findings import Cause
from parity.ladder import EPS64
from parity.outcomes import Array, LayerError
from parity.promises import STEPS
from parity.sizes import probe_shapes


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
            scene.trials += walked(exam.pair, seed, STEPS)
        except LayerError:
            continue
    scene.trials.sort(key=lambda t: not any(t.differs(n) for n in t.names))
    return scene


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
