"""Reference losses that torch.nn does not have."""

import torch
from torch import nn


class UnstableNLLLoss(nn.Module):
    """Negative log-likelihood -w_y·log p_y of probabilities p, with no safeguard at 0.

    prediction (C,), (N, C) or (N, C, d1, …), target of labels (), (N,) or (N, d1, …);
    weight (C,), ignore_index and reduction as in torch.nn.NLLLoss.
    """

    def __init__(self, weight=None, ignore_index=-100, reduction="mean"):
        super().__init__()
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"{reduction} is not a valid value for reduction")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, prediction, target):
        """Return the loss; picking before the logarithm keeps other classes' gradient at 0."""
        shape = prediction.shape[:1] + prediction.shape[2:] if prediction.ndim > 1 else ()
        if not prediction.ndim or target.shape != shape:  # gather would take a shorter target
            raise ValueError(
                f"UnstableNLLLoss got a target {tuple(target.shape)} for {tuple(prediction.shape)}"
            )
        valid = target != self.ignore_index
        labels = torch.where(valid, target, 0)
        axis = 1 if prediction.ndim > 1 else 0
        picked = prediction.gather(axis, labels.unsqueeze(axis)).squeeze(axis)
        # An ignored label's probability may be 0: log(1) in its place keeps NaN out of backward.
        log = torch.where(valid, picked, 1).log()
        weight = torch.ones_like(log) if self.weight is None else self.weight[labels]
        weight = torch.where(valid, weight, 0)
        values = torch.where(valid, -weight * log, 0)
        if self.reduction == "none":
            return values
        return values.sum() / weight.sum() if self.reduction == "mean" else values.sum()
