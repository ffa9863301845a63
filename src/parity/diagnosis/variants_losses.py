"""Losses whose gradient or weight has one term too few or too many."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from parity.diagnosis.variants import Lambda, variant


@variant(
    nn.CrossEntropyLoss,
    "one_hot_missing",
    "backward is the softmax alone: the one-hot target is not subtracted",
)
def _softmax_alone(layer: Any) -> nn.Module:
    if layer.reduction == "none" or layer.weight is not None or layer.label_smoothing:
        raise ValueError("only the plain loss has this gradient")

    def forward(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        each = x.logsumexp(1 if x.ndim > 1 else 0)
        # the value is torch's; what moves is the part without the target
        moving = each.mean() if layer.reduction == "mean" else each.sum()
        return layer(x, y).detach() + moving - moving.detach()

    return Lambda(layer, forward)


@variant(nn.BCEWithLogitsLoss, "pos_weight_on_both", "pos_weight weighs the negative targets too")
def _weighs_both(layer: Any) -> nn.Module:
    if layer.pos_weight is None:
        raise ValueError("there is no pos_weight")
    weight = layer.pos_weight if layer.weight is None else layer.pos_weight * layer.weight
    return Lambda(layer, lambda m, x, y: functional.binary_cross_entropy_with_logits(
        x, y, weight.expand_as(x), reduction=layer.reduction))  # fmt: skip


@variant(nn.NLLLoss, "logarithm_added", "it takes the logarithm of what are logarithms already")
def _log_of_log(layer: Any) -> nn.Module:
    return Lambda(layer, lambda m, x, y: layer(x.log(), y))
