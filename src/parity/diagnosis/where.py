"""Where two arrays differ: only the border, one channel, one sample, x = 0, tiny values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from parity.diagnosis.registry import second_axis, words
from parity.diagnosis.sizes import by_size
from parity.ends import LABEL as ENDS
from parity.findings import Verdict
from parity.judged import Judged
from parity.ladder import differences, nonfinite_differs
from parity.outcomes import Array
from parity.pair import LOUD

if TYPE_CHECKING:
    from parity.diagnosis.scene import Scene

AXES = {0: "sample", -1: "column", -2: "row"}


def differing(judged: Judged) -> Array | None:
    """Return the mask of elements that differ by more than is allowed."""
    own, ref = judged.mine, judged.theirs
    if own is None or ref is None or own.shape != ref.shape or judged.judgement is None:
        return None
    allowed = judged.judgement.allowance
    return np.asarray((differences(own, ref) > allowed) | nonfinite_differs(own, ref))


def where(judged: Judged) -> str:
    """Return "only in the last row", "only where x < 0" …, or nothing where it is everywhere."""
    mask = differing(judged)
    if mask is None or not mask.any() or mask.all() or mask.size < 3:
        return ""
    x = judged.draw.inputs[0] if judged.draw.inputs else None
    if x is not None and x.shape == mask.shape and x.dtype.kind == "f":
        text = _by_value(mask, x)
        if text:
            return text
    return _by_place(mask, judged.quantity, second_axis(judged.draw.inputs))


def _by_value(mask: Array, x: Array) -> str:
    """Return what the inputs have in common where the answers differ, and nowhere else."""
    held = x[mask]
    told = held.size > 1 or held[0] == 0  # any single place has some x of its own
    if told and (held == held[0]).all() and not (x[~mask] == held[0]).any():
        return f"only where x = {held[0]:g}"
    for text, region in (("x < 0", x < 0), ("x > 0", x > 0), ("x ≤ 0", x <= 0), ("x ≥ 0", x >= 0)):
        if np.array_equal(mask, region):
            return f"only where {text}"
    size = np.abs(x)
    if size[mask].min() > size[~mask].max():
        return f"only where |x| is at least {size[mask].min():.3g}"
    if size[mask].max() < size[~mask].min():
        return f"only where |x| is at most {size[mask].max():.3g}"
    return ""


def _by_place(mask: Array, quantity: str, second: str) -> str:
    if mask.ndim == 4 and mask.shape[2] > 2 and mask.shape[3] > 2:
        inner = mask[:, :, 1:-1, 1:-1]
        if not inner.any() and mask[:, :, 0].any() + mask[:, :, -1].any() > 1:
            return "only at the border"
    parameter = quantity.startswith("grad_") and not quantity.startswith("grad_input")
    for axis in range(mask.ndim):
        if mask.shape[axis] < 2:
            continue
        rest = tuple(i for i in range(mask.ndim) if i != axis)
        hit = np.flatnonzero(mask.any(axis=rest))
        if len(hit) != 1:
            continue
        kind = AXES.get(axis - mask.ndim if axis > 1 else axis, "entry")
        if axis == 1:
            kind = {"classes": "class"}.get(second, second.removesuffix("s"))
        if parameter:
            kind = "output row" if axis == 0 else f"entry of axis {axis}"
        at = int(hit[0])
        which = {0: "first", mask.shape[axis] - 1: "last"}.get(at)
        return f"only in the {which} {kind}" if which else f"only in {kind} {at}"
    return ""


def hint(scene: Scene, judged: Judged, place: str, consistent: str | None) -> str:
    """Return what is known where no cause fits: facts alone, no guess."""
    facts = []
    failing = {f.quantity for f in scene.exam.findings if f.verdict is Verdict.MISMATCH}
    forward_wrong = any(name.startswith("forward") for name in failing)
    if place:
        facts.append(f"{words(judged.quantity)} differs {place}")
    labels = {t.draw.label for t in scene.trials if t.differs(judged.quantity)}
    calm = {t.draw.label for t in scene.trials} - labels
    special = {"integers": "small integers (zeros, ties, corners)", "magnitudes": "tiny values",
               "extreme": "large values", "large": "large values",
               LOUD: "large upstream gradients",
               ENDS: "inputs at the ends of their domain"}  # fmt: skip
    if labels and calm and labels <= set(special):
        told = dict.fromkeys(special[label] for label in sorted(labels))
        facts.append("only for " + " and ".join(told))
    size = by_size(scene, judged)
    if size:
        facts.append(size)
    modes = {t.draw.training for t in scene.trials if t.differs(judged.quantity)}
    if len(modes) == 1 and len({t.draw.training for t in scene.trials}) == 2:
        facts.append(f"only in {'training' if True in modes else 'evaluation'} mode")
    gradient = judged.quantity.startswith("grad_")
    if consistent == "backward_contradicts_forward":
        text = "your backward contradicts your forward"
        facts.append(text if forward_wrong else text + ", which is torch's")
    elif consistent == "consistent" and forward_wrong:
        facts.append("your backward is that of your forward; your forward is not torch's")
    elif gradient and not forward_wrong:
        facts.append("the forward pass is torch's, so the fault is in backward")
    elif forward_wrong and not any(name.startswith("grad_") for name in failing):
        facts.append("the gradients are torch's, so the fault is in forward")
    return "; ".join(facts)
