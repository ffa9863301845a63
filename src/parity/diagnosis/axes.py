"""What the axes of the first input hold: batch, steps, channels, classes, features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from parity.diagnosis.registry import second_axis
from parity.diagnosis.trials import Trial
from parity.outcomes import Array
from parity.pair import Pair

# the last axis of their input holds the features, what stands between are positions
LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RNNBase, nn.MultiheadAttention,
        nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)  # fmt: skip
MANY = {"class": "classes", "entry of a bag": "entries of a bag"}


def axes(pair: Pair, inputs: Sequence[Array]) -> tuple[str, ...]:
    """Return what each axis of the first input holds, in the singular."""
    layer: Any = pair.reference.original
    ndim = inputs[0].ndim if inputs else 0
    if ndim < 2:
        return ("sample",) * ndim
    if isinstance(layer, nn.CTCLoss):
        return ("step", "sample", "class")[:ndim] if ndim > 2 else ("step", "class")
    if isinstance(layer, LAST):
        if timed(layer) and ndim == 3 and not layer.batch_first:
            return ("step", "sample", "feature")
        return ("sample", *["position"] * (ndim - 2), "feature")
    if inputs[0].dtype.kind in "iu":
        inside = "entry of a bag" if isinstance(layer, nn.EmbeddingBag) else "position"
        return ("sample", *[inside] * (ndim - 1))
    return ("sample", singular(second_axis(inputs)), *["position"] * (ndim - 2))


def timed(layer: Any) -> bool:
    """Whether a layer runs over steps, which come first unless it is told otherwise."""
    return isinstance(layer, nn.Module) and hasattr(layer, "batch_first")


def labelled(pair: Pair) -> bool:
    """Whether the reference compares scores of classes with labels."""
    return any(spec.integral for spec in pair.specs[1:]) and not pair.reference.params


def size(trial: Trial, *kinds: str) -> float | None:
    """Return how many of ``kinds`` the axes of a trial's first input hold; None without any."""
    named = axes(trial.pair, trial.draw.inputs)
    held = [n for n, kind in zip(trial.x.shape, named, strict=True) if kind in kinds]
    return float(math.prod(held)) if held else None


def several(kind: str) -> str:
    """Return the plural of what an axis holds."""
    return MANY.get(kind, f"{kind}s")


def singular(kinds: str) -> str:
    """Return one of several."""
    return next((one for one, many in MANY.items() if many == kinds), kinds.removesuffix("s"))
