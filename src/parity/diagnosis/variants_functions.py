"""Softmax, activations and losses with one step of their formula changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from parity.diagnosis.variants import Lambda, variant, with_rule


@variant(
    nn.Softmax, "jacobian_diagonal_only", "backward takes the Jacobian's diagonal s(1 - s) alone"
)
def _diagonal(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * y * (1 - y))


@variant(nn.Softmax, "jacobian_sum_missing", "backward leaves the sum over the classes out")
def _no_sum(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * y)


@variant(nn.Softmax, "jacobian_sum_sign", "backward adds the sum over the classes")
def _sum_added(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: y * (g + (g * y).sum(_axis(layer, x), keepdim=True)))


@variant(nn.Softmax, "jacobian_sum_over_wrong_axis", "backward sums over another axis")
def _sum_elsewhere(layer: Any) -> nn.Module:
    def rule(x: torch.Tensor, y: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        other = 0 if _axis(layer, x) % x.ndim else -1
        return y * (g - (g * y).sum(other, keepdim=True))

    return with_rule(layer, rule)


def _axis(layer: Any, x: torch.Tensor) -> int:
    return 1 if layer.dim is None else int(layer.dim)


@variant(nn.Softmax, "logarithm_added", "it returns the logarithm: log-softmax")
def _logarithm(layer: Any) -> nn.Module:
    return nn.LogSoftmax(layer.dim)


@variant(nn.LogSoftmax, "logarithm_missing", "it returns softmax, without the logarithm")
def _no_logarithm(layer: Any) -> nn.Module:
    return nn.Softmax(layer.dim)


@variant(nn.LogSoftmax, "jacobian_sum_missing", "backward leaves the softmax times the sum out")
def _identity(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g)


@variant(
    nn.LogSoftmax, "upstream_sum_missing", "backward subtracts softmax, not softmax times the sum"
)
def _unsummed(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g - y.exp())


@variant(
    nn.LogSoftmax, "jacobian_diagonal_only", "backward takes the Jacobian's diagonal 1 - s alone"
)
def _log_diagonal(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * (1 - y.exp()))


@variant(nn.Sigmoid, "derivative_of_input", "backward takes x(1 - x) for s(1 - s)")
def _sigmoid_of_input(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * x * (1 - x))


@variant(nn.Sigmoid, "derivative_incomplete", "backward takes s for s(1 - s)")
def _sigmoid_incomplete(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * y)


@variant(nn.Sigmoid, "derivative_incomplete", "backward takes 1 - s for s(1 - s)")
def _sigmoid_other(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * (1 - y))


@variant(nn.Tanh, "derivative_of_input", "backward takes 1 - x² for 1 - tanh²(x)")
def _tanh_of_input(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * (1 - x * x))


@variant(nn.Tanh, "derivative_incomplete", "backward takes 1 - tanh(x), without the square")
def _tanh_incomplete(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * (1 - y))


@variant(nn.Tanh, "derivative_incomplete", "backward takes 1 + tanh²(x)")
def _tanh_sign(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * (1 + y * y))


@variant(
    nn.ELU, "derivative_incomplete", "backward takes the output for x < 0, without adding alpha"
)
def _elu_output(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: torch.where(x > 0, g, g * y))


@variant(
    (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Threshold),
    "derivative_one_everywhere",
    "backward passes the gradient everywhere",
)
def _everywhere(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g)


@variant(
    (nn.ReLU, nn.LeakyReLU, nn.ELU),
    "masked_by_gradient",
    "backward masks by the sign of the gradient, torch by that of x",
)
def _by_gradient(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: torch.where(g > 0, g, torch.zeros_like(g)))


@variant(
    (nn.ReLU, nn.LeakyReLU, nn.ELU),
    "masked_by_gradient",
    "backward masks by the sign of the gradient as well as by that of x",
)
def _guided(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: torch.where((g > 0) & (x > 0), g, torch.zeros_like(g)))


def _unreduced(layer: Any) -> Any:
    import copy

    clone = copy.copy(layer)
    clone.reduction = "none"
    return clone


LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiMarginLoss)


@variant(
    (nn.CrossEntropyLoss, nn.NLLLoss),
    "mean_divides_by_count",
    "the mean divides by the number of all targets, torch by those that are not ignored",
)
def _by_all(layer: Any) -> nn.Module:
    if layer.weight is not None:
        raise ValueError("torch's mean divides by the weights")
    return _by_count(layer)


@variant(
    LOSSES,
    "mean_divides_by_count",
    "the mean divides by the number of targets, torch by their weights",
)
def _by_weights(layer: Any) -> nn.Module:
    if layer.weight is None:
        raise ValueError("there are no weights")
    return _by_count(layer)


def _by_count(layer: Any) -> nn.Module:
    inner = _unreduced(layer)
    return Lambda(layer, lambda m, x, y: inner(x, y).mean())


@variant(
    (nn.CrossEntropyLoss, nn.NLLLoss),
    "mean_divides_by_batch",
    "the mean divides by the batch size alone",
)
def _by_batch(layer: Any) -> nn.Module:
    inner = _unreduced(layer)
    return Lambda(layer, lambda m, x, y: inner(x, y).sum() / x.shape[0])


@variant(nn.MSELoss, "mean_divides_by_batch", "the mean divides by the batch size alone")
@variant(nn.L1Loss, "mean_divides_by_batch", "the mean divides by the batch size alone")
def _mse_by_batch(layer: Any) -> nn.Module:
    inner = _unreduced(layer)
    return Lambda(layer, lambda m, x, y: inner(x, y).sum() / x.shape[0])


@variant(
    nn.CrossEntropyLoss, "softmax_missing", "it takes scores for log-probabilities: no log-softmax"
)
def _no_softmax(layer: Any) -> nn.Module:
    options = {"ignore_index": layer.ignore_index, "reduction": layer.reduction}
    return Lambda(layer, lambda m, x, y: functional.nll_loss(x, y, layer.weight, **options))


@variant(
    nn.CrossEntropyLoss,
    "softmax_over_wrong_axis",
    "its softmax runs over the batch, torch's over the classes",
)
def _wrong_axis(layer: Any) -> nn.Module:
    return Lambda(layer, lambda m, x, y: functional.nll_loss(
        x.log_softmax(0), y, layer.weight, ignore_index=layer.ignore_index,
        reduction=layer.reduction))  # fmt: skip


@variant(
    nn.CrossEntropyLoss,
    "softmax_applied_twice",
    "softmax is applied before the loss applies it again",
)
def _twice(layer: Any) -> nn.Module:
    return Lambda(layer, lambda m, x, y: layer(x.softmax(1 if x.ndim > 1 else 0), y))


@variant(
    nn.NLLLoss, "logarithm_added", "it takes the log-softmax of what are log-probabilities already"
)
def _log_again(layer: Any) -> nn.Module:
    return Lambda(layer, lambda m, x, y: layer(x.log_softmax(1 if x.ndim > 1 else 0), y))


@variant(nn.BCEWithLogitsLoss, "sigmoid_missing", "it takes logits for probabilities: no sigmoid")
def _no_sigmoid(layer: Any) -> nn.Module:
    return Lambda(layer, lambda m, x, y: functional.binary_cross_entropy(
        x.clamp(0, 1), y, reduction=layer.reduction))  # fmt: skip


@variant(nn.MultiMarginLoss, "target_class_counted", "the target's own margin is counted as well")
def _target_counted(layer: Any) -> nn.Module:
    inner = _unreduced(layer)
    own = layer.margin**layer.p

    def forward(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        weight = 1.0 if layer.weight is None else layer.weight[y]
        each = inner(x, y) + own * weight / x.shape[-1]
        return each if layer.reduction == "none" else getattr(each, layer.reduction)()

    return Lambda(layer, forward)


@variant(nn.Embedding, "overlap_overwritten", "of a row that occurs twice the last gradient stays")
def _last_row(layer: Any) -> nn.Module:
    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, weight: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(weight, index)
            return weight[index]

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> Any:
            weight, index = ctx.saved_tensors
            made = torch.zeros_like(weight)
            for at, row in zip(index.flatten(), g.reshape(-1, g.shape[-1]), strict=True):
                made[at] = row
            return made, None

    return Lambda(layer, lambda m, index: Rule.apply(m.weight, index))
