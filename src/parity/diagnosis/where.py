"""Where two arrays differ: only the border, one channel, one sample, x = 0, tiny values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from parity.diagnosis.axes import axes, timed
from parity.diagnosis.registry import words
from parity.diagnosis.sizes import by_size
from parity.ends import IGNORED
from parity.ends import LABEL as ENDS
from parity.findings import Verdict
from parity.judged import Judged
from parity.ladder import differences, nonfinite_differs
from parity.outcomes import Array
from parity.pair import LOUD, QUIET

if TYPE_CHECKING:
    from parity.diagnosis.scene import Scene
    from parity.diagnosis.trials import Trial

IMAGE = {-1: "column", -2: "row"}
SAME = 1e-9  # relative: two elements that are this near are alike
BARELY = 1e-6
HALF = 0.5
DUST = 1e-14  # of the largest element: what is below it is not looked at


def differing(judged: Judged) -> Array | None:
    """Return the mask of elements that differ by more than is allowed."""
    own, ref = judged.mine, judged.theirs
    if own is None or ref is None or own.shape != ref.shape or judged.judgement is None:
        return None
    allowed = judged.judgement.allowance
    return np.asarray((differences(own, ref) > allowed) | nonfinite_differs(own, ref))


def where(judged: Judged, trials: Sequence[Trial] = ()) -> str:
    """Return "only in the last row", "only where x < 0" …, or nothing where it is everywhere.

    What one draw alone shows may be chance: it has to hold in every trial that differs.
    """
    mask = differing(judged)
    if mask is None or not mask.any() or mask.all() or mask.size < 3:
        return ""
    name, training = judged.quantity, judged.draw.training
    alike = [t for t in trials if t.draw.training == training and _comparable(t, name)]
    text = _by_value(judged, alike)
    if text:
        return text
    kinds = _kinds(judged, trials)
    text = _by_place(mask, name, kinds)
    if not text:
        return ""
    special = judged.draw.label in FEATURED
    others = [
        _by_place(_unlike(t.get(name), t.theirs.get(name)), name, kinds)
        for t in alike
        if (t.draw.label in FEATURED) == special and t.differs(name)
    ]
    return text if (len(others) > 1 and set(others) == {text}) or not trials else ""


def _comparable(trial: Trial, name: str) -> bool:
    own, ref = trial.get(name), trial.theirs.get(name)
    return own is not None and ref is not None and own.shape == ref.shape


def _unlike(own: Array | None, ref: Array | None) -> Array:
    """Return where two arrays differ, each element by its own size."""
    assert own is not None
    assert ref is not None
    off = differences(own, ref)
    finite = np.abs(ref[np.isfinite(ref)])
    dust = DUST * float(finite.max(initial=0.0))
    return np.asarray(((off > SAME * np.abs(ref)) & (off > dust)) | nonfinite_differs(own, ref))


def _kinds(judged: Judged, trials: Sequence[Trial]) -> tuple[str, ...]:
    """Return what the axes of an output or of an input's gradient hold, as far as is known."""
    if not trials or not judged.draw.inputs:
        return ()
    pair, inputs, name = trials[0].pair, judged.draw.inputs, judged.quantity
    kinds = axes(pair, inputs)
    if name in ("forward", "grad_input0"):
        return kinds
    # a state that is handed on has its layers first
    states = any(timed(layer) for layer in pair.reference.original.modules())
    return () if states else kinds[:1]


def _by_value(judged: Judged, trials: Sequence[Trial]) -> str:
    """Return what the inputs have in common where the answers differ, and nowhere else."""
    name = judged.quantity
    given = [(judged.mine, judged.theirs, judged.draw.inputs[0])] if judged.draw.inputs else []
    given += [(t.get(name), t.theirs.get(name), t.x) for t in trials]
    wrong, right = [], []
    for own, ref, x in given:
        if own is None or ref is None or x.shape != ref.shape[: x.ndim]:
            return ""
        mask, agrees = _unlike(own, ref), differences(own, ref) <= SAME * np.abs(ref)
        if x.dtype.kind in "iu":  # an index stands for a whole row
            rest_of = tuple(range(x.ndim, ref.ndim))
            mask = np.asarray(mask.any(axis=rest_of))
            agrees = np.asarray(agrees.all(axis=rest_of))
        elif x.shape != ref.shape:
            return ""
        wrong.append(x[mask])
        right.append(x[agrees & ~mask])
    held, rest = np.concatenate(wrong or [np.zeros(0)]), np.concatenate(right or [np.zeros(0)])
    if not held.size or not rest.size:
        return ""
    told = held.size > 1 or held[0] == 0  # any single place has some x of its own
    if told and (held == held[0]).all() and not (rest == held[0]).any():
        return f"only where {'x =' if held.dtype.kind == 'f' else 'the index is'} {held[0]:g}"
    if held.dtype.kind != "f":
        return ""
    far = rest[(np.abs(rest) >= BARELY) | (rest == 0)]  # next to 0 a wrong slope hardly shows
    for text, region in (
        ("x < 0", lambda x: x < 0),
        ("x > 0", lambda x: x > 0),
        ("x ≤ 0", lambda x: x <= 0),
        ("x ≥ 0", lambda x: x >= 0),
    ):
        if region(held).all() and not region(far).any():
            return f"only where {text}"
    for shown, least, most in (
        ("|x|", np.abs(held), np.abs(rest)),
        ("x", held, rest),
    ):
        if least.min() > most.max():
            return f"only where {shown} is at least {least.min():.3g}"
        if least.max() < most.min():
            return f"only where {shown} is at most {least.max():.3g}"
    return ""


def _by_place(mask: Array, quantity: str, kinds: Sequence[str]) -> str:
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
        kind = kinds[axis] if axis < len(kinds) and len(kinds) in (1, mask.ndim) else ""
        if kind == "position" and mask.ndim == 4:
            kind = IMAGE[axis - mask.ndim]
        if parameter:
            kind = "output row" if axis == 0 else ""
        at = int(hit[0])
        which = {0: "first", mask.shape[axis] - 1: "last"}.get(at)
        if which is None and mask.take(at, axis).mean() < HALF:
            continue  # chance may put a few elements there
        if not kind:
            return f"only in {f'the {which} entry' if which else f'entry {at}'} of axis {axis}"
        return f"only in the {which} {kind}" if which else f"only in {kind} {at}"
    return ""


FEATURED = {"integers": "small integers (zeros, ties, corners)", "magnitudes": "",
            "extreme": "large values", "large": "large values", LOUD: "large upstream gradients",
            QUIET: "tiny upstream gradients", ENDS: "inputs at the ends of their domain",
            IGNORED: "labels that torch ignores"}  # fmt: skip


def _by_draws(scene: Scene, name: str) -> list[str]:
    """Return "only for large values" …, where the usual draws show nothing of the fault."""
    wrong = [t for t in scene.trials if t.differs(name)]
    labels = {t.draw.label for t in wrong}
    calm = {t.draw.label for t in scene.trials} - labels
    if not labels or not calm or not labels <= set(FEATURED):
        return []
    told = [FEATURED[label] or _sizes_of(wrong, name) for label in sorted(labels)]
    return ["only for " + " and ".join(dict.fromkeys(told))] if all(told) else []


def _sizes_of(wrong: Sequence[Trial], name: str) -> str:
    """Return whether it is tiny or large values that differ, on draws that mix all sizes."""
    far = []
    for trial in wrong:
        if trial.draw.label == "magnitudes" and _comparable(trial, name):
            mask = _unlike(trial.get(name), trial.theirs.get(name))
            if mask.shape == trial.x.shape:
                far.append(np.abs(trial.x[mask]))
    sizes = np.concatenate(far) if far else np.zeros(0)
    if not sizes.size:
        return ""
    if sizes.max() < 1:
        return "tiny values"
    return f"|x| from {sizes.min():.2g} to {sizes.max():.2g}" if sizes.min() > 1 else ""


def hint(scene: Scene, judged: Judged, place: str, consistent: str | None) -> str:
    """Return what is known where no cause fits: facts alone, no guess."""
    facts = []
    failing = {f.quantity for f in scene.exam.findings if f.verdict is Verdict.MISMATCH}
    forward_wrong = any(name.startswith("forward") for name in failing)
    if place:
        facts.append(f"{words(judged.quantity)} differs {place}")
    facts += [] if "where" in place else _by_draws(scene, judged.quantity)
    # rare values are met in larger draws: it may be their size that decides
    asked = [judged, *(j for j in scene.open.values() if j.quantity == judged.quantity)]
    size = by_size(scene, next((j for j in asked if j.draw.label not in FEATURED), judged))
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
