"""Losses with one term too few or too many, or a constant in the wrong place."""

from __future__ import annotations

import copy
import math
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
        axis = 1 if x.ndim > 1 else 0
        each = (x.softmax(axis).detach() * x).sum(axis)  # its gradient, accurate for any scores
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
    def forward(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        axis = 1 if x.ndim > 1 else 0
        asked = functional.one_hot(y.clamp(min=0), x.shape[axis]).movedim(-1, axis).bool()
        # of the others the loss takes nothing: zero times an infinite derivative is none
        value: torch.Tensor = layer(torch.where(asked, x, torch.ones_like(x)).log(), y)
        return value

    return Lambda(layer, forward)


def _over_kept(layer: Any, normalised: bool) -> nn.Module:
    """Return the weighted sum by the number of labels kept, of weights with mean 1 if asked."""
    if layer.weight is None or layer.reduction != "mean":
        raise ValueError("without weights the number is right")
    inner = copy.copy(layer)
    inner.reduction = "sum"
    size = layer.weight.mean() if normalised else 1
    return Lambda(layer, lambda m, x, y: inner(x, y) / size / (y != layer.ignore_index).sum())


@variant(
    (nn.CrossEntropyLoss, nn.NLLLoss),
    "mean_divides_by_count",
    "the mean divides by the number of labels that are not ignored, torch by their weights",
)
def _by_kept(layer: Any) -> nn.Module:
    return _over_kept(layer, normalised=False)


@variant(
    (nn.CrossEntropyLoss, nn.NLLLoss),
    "weights_normalised",
    "the weights are divided by their mean, and the sum by the number of targets; torch divides by "
    "the weights of the targets",
)
def _by_mean_weight(layer: Any) -> nn.Module:
    return _over_kept(layer, normalised=True)


@variant(
    nn.CrossEntropyLoss,
    "smoothing_over_other_classes",
    "the smoothing is spread over the C - 1 other classes, in torch over all C",
)
def _over_others(layer: Any) -> nn.Module:
    if not layer.label_smoothing:
        raise ValueError("there is no smoothing")

    def forward(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        count = x.shape[1 if x.ndim > 1 else 0]
        inner = copy.copy(layer)
        inner.label_smoothing = layer.label_smoothing * count / (count - 1)
        value: torch.Tensor = inner(x, y)
        return value

    return Lambda(layer, forward)


@variant(
    nn.CTCLoss,
    "target_lengths_not_divided",
    "the mean is that over the batch alone: torch divides each loss by the length of its target",
)
def _over_batch(layer: Any) -> nn.Module:
    inner = copy.copy(layer)
    inner.reduction = "none"
    if layer.reduction != "mean":
        raise ValueError("only the mean divides")
    return Lambda(layer, lambda m, *given: inner(*given).mean())


def _reduced(layer: Any, each: torch.Tensor) -> torch.Tensor:
    if layer.reduction == "batchmean":
        return each.sum() / each.shape[0]
    return each if layer.reduction == "none" else getattr(each, layer.reduction)()


def _as_logs(layer: Any, y: torch.Tensor) -> torch.Tensor:
    return y if layer.log_target else y.log()


@variant(nn.KLDivLoss, "divergence_reversed", "it is the divergence of the target from the input")
def _reversed(layer: Any) -> nn.Module:
    return Lambda(layer, lambda m, x, y: _reduced(layer, x.exp() * (x - _as_logs(layer, y))))


@variant(nn.KLDivLoss, "entropy_missing", "the target's own entropy is left out: cross-entropy")
def _without_entropy(layer: Any) -> nn.Module:
    return Lambda(layer, lambda m, x, y: _reduced(
        layer, -(y.exp() if layer.log_target else y) * x))  # fmt: skip


@variant(
    nn.BCELoss,
    "derivative_of_logits",
    "backward is p - y, the gradient for logits: that for p is divided by p(1 - p) as well",
)
def _for_logits(layer: Any) -> nn.Module:
    def forward(m: Any, p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        each = (p - y).detach() * p
        moving = _reduced(layer, each if layer.weight is None else each * layer.weight)
        value: torch.Tensor = layer(p, y).detach()
        return value + moving - moving.detach()

    return Lambda(layer, forward)


EPSILONS = (1e-7, 1e-8, 1e-12, 1e-15, 1e-10, 1e-16, 1e-6, 1e-5, 1e-9)


def _cross_entropy(layer: Any, p: torch.Tensor, q: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of y by log p and log q, weighed and reduced as ``layer`` does."""
    each = -(y * p.log() + (1 - y) * q.log())
    each = each if layer.weight is None else each * layer.weight
    return each if layer.reduction == "none" else getattr(each, layer.reduction)()


def _guarded_classes(eps: float) -> None:
    """Register the same two guards of a softmax's logarithm."""
    for name, text, guard in (
        ("epsilon_in_logarithm", f"it takes log(p + {eps:g}); torch's log-softmax needs no guard",
         lambda p: p + eps),
        ("probabilities_clipped", f"it clips p to [{eps:g}, 1 - {eps:g}]; torch needs no guard",
         lambda p: p.clamp(eps, 1 - eps)),
    ):  # fmt: skip

        @variant(nn.CrossEntropyLoss, name, text)
        def _of_classes(layer: Any, guard: Any = guard) -> nn.Module:
            if layer.label_smoothing:
                raise ValueError("only labels without smoothing")
            options = {"ignore_index": layer.ignore_index, "reduction": layer.reduction}
            return Lambda(layer, lambda m, x, y: functional.nll_loss(
                guard(x.softmax(1 if x.ndim > 1 else 0)).log(), y, layer.weight, **options
            ))  # fmt: skip


def _guarded(eps: float) -> None:
    """Register the two usual guards of the logarithm that torch does not use."""

    @variant(
        nn.BCELoss,
        "epsilon_in_logarithm",
        f"it takes log(p + {eps:g}); torch takes log p, and no less than -100",
    )
    def _added(layer: Any) -> nn.Module:
        return Lambda(layer, lambda m, p, y: _cross_entropy(layer, p + eps, 1 - p + eps, y))

    @variant(
        nn.BCELoss,
        "probabilities_clipped",
        f"it clips p to [{eps:g}, 1 - {eps:g}]; torch's log p is no less than -100",
    )
    def _clipped(layer: Any) -> nn.Module:
        def forward(m: Any, p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            p = p.clamp(eps, 1 - eps)
            return _cross_entropy(layer, p, 1 - p, y)

        return Lambda(layer, forward)


for _eps in EPSILONS:
    _guarded(_eps)
    _guarded_classes(_eps)


def _pieces(layer: Any, inner: Any, outer: Any) -> nn.Module:
    """A loss of |x - y| by ``inner`` below the threshold and ``outer`` beyond, then reduced."""
    threshold = layer.beta if isinstance(layer, nn.SmoothL1Loss) else layer.delta

    def forward(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        off = (x - y).abs()
        each = torch.where(off < threshold, inner(off, threshold), outer(off, threshold))
        return each if layer.reduction == "none" else getattr(each, layer.reduction)()

    return Lambda(layer, forward)


@variant(nn.SmoothL1Loss, "beta_not_divided", "the quadratic part is not divided by beta")
def _no_beta(layer: Any) -> nn.Module:
    return _pieces(layer, lambda d, b: 0.5 * d * d, lambda d, b: d - 0.5 * b)


@variant(nn.SmoothL1Loss, "half_missing", "the quadratic part lacks its factor ½")
def _no_half(layer: Any) -> nn.Module:
    return _pieces(layer, lambda d, b: d * d / b, lambda d, b: d - 0.5 * b)


@variant(nn.SmoothL1Loss, "offset_missing", "the linear part is |x - y| without its offset")
def _no_offset(layer: Any) -> nn.Module:
    return _pieces(layer, lambda d, b: 0.5 * d * d / b, lambda d, b: d)


@variant(nn.HuberLoss, "delta_not_multiplied", "the linear part is not multiplied by delta")
def _no_delta(layer: Any) -> nn.Module:
    return _pieces(layer, lambda d, b: 0.5 * d * d, lambda d, b: d - 0.5 * b)


@variant(nn.HuberLoss, "half_missing", "the quadratic part lacks its factor ½")
def _no_half_either(layer: Any) -> nn.Module:
    return _pieces(layer, lambda d, b: d * d, lambda d, b: b * (d - 0.5 * b))


@variant(nn.GaussianNLLLoss, "half_missing", "the logarithm of the variance lacks its factor ½")
def _log_variance(layer: Any) -> nn.Module:
    return _gaussian(layer, lambda off, v: v.log() + 0.5 * off * off / v)


@variant(nn.GaussianNLLLoss, "half_missing", "the squared error lacks its factor ½")
def _squared_error(layer: Any) -> nn.Module:
    return _gaussian(layer, lambda off, v: 0.5 * v.log() + off * off / v)


@variant(nn.GaussianNLLLoss, "deviation_for_variance", "it takes the variance for a deviation")
def _deviation(layer: Any) -> nn.Module:
    return _gaussian(layer, lambda off, v: v.log() + 0.5 * (off / v) ** 2)


def _gaussian(layer: Any, value: Any) -> nn.Module:
    def forward(m: Any, x: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # the floor is torch's, and no gradient sees it
        floored = v + (v.detach().clamp(min=layer.eps) - v.detach())
        each = value(x - y, floored)
        each = each + 0.5 * math.log(2 * math.pi) if layer.full else each
        return each if layer.reduction == "none" else getattr(each, layer.reduction)()

    return Lambda(layer, forward)
