"""Convolution, pooling, softmax and losses with one step of their formula changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from parity.diagnosis.registry import Hypothesis, hypotheses
from parity.diagnosis.settings import replaced, root_of
from parity.pair import Pair

Make = Callable[[Any], nn.Module]
VARIANTS: list[tuple[type | tuple[type, ...], str, str, Make]] = []


def variant(kind: Any, name: str, text: str) -> Callable[[Make], Make]:
    """Register a changed version of the layers that are instances of ``kind``."""

    def keep(make: Make) -> Make:
        VARIANTS.append((kind, name, text, make))
        return make

    return keep


@hypotheses
def changed_layers(pair: Pair) -> Iterator[Hypothesis]:
    """Every layer of the reference with every registered change of its kind."""
    root = root_of(pair)
    for path, layer in root.named_modules():
        where = f" in layer {path!r}" if path else ""
        for kind, name, text, make in VARIANTS:
            if isinstance(layer, kind):
                module = replaced(root, path, make(layer))
                yield Hypothesis(name, text + where, lambda t, m=module: t.run(m), module)


class Lambda(nn.Module):
    """A function of (layer, \\*inputs) that holds the layer's parameters under their names."""

    def __init__(self, layer: nn.Module, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        for name, parameter in layer.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, buffer.clone())

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the function of the inputs."""
        return self.function(self, *inputs)


class Custom(torch.autograd.Function):
    """``forward(x)`` with a derivative of one's own: ``backward(x, y, g)`` gives that of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, forward: Any, backward: Any) -> torch.Tensor:
        """Return forward(x)."""
        y = forward(x.detach())
        ctx.save_for_backward(x, y)
        ctx.rule = backward
        return y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        """Return the rule's gradient."""
        x, y = ctx.saved_tensors
        return ctx.rule(x, y, g), None, None


def with_rule(layer: nn.Module, rule: Callable[..., torch.Tensor]) -> nn.Module:
    """Return ``layer`` with another backward rule for its one input."""
    return Lambda(layer, lambda m, x: Custom.apply(x, layer, rule))


# ---- convolution ---------------------------------------------------------------------------------

CONV = nn.Conv2d


def _pads(layer: Any) -> tuple[int, int]:
    return (0, 0) if isinstance(layer.padding, str) else layer.padding


def _conv(layer: Any, pads: Callable[[int, int], list[int]]) -> nn.Module:
    ph, pw = _pads(layer)

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = functional.pad(x, pads(ph, pw))
        return functional.conv2d(
            x, m.weight, getattr(m, "bias", None), layer.stride, 0, layer.dilation, layer.groups
        )

    return Lambda(layer, forward)


@variant(CONV, "padding_one_sided", "all padding stands on the top and left")
def _top_left(layer: Any) -> nn.Module:
    return _conv(layer, lambda h, w: [2 * w, 0, 2 * h, 0])


@variant(CONV, "padding_one_sided", "all padding stands on the bottom and right")
def _bottom_right(layer: Any) -> nn.Module:
    return _conv(layer, lambda h, w: [0, 2 * w, 0, 2 * h])


@variant(CONV, "groups_ignored", "groups are ignored: every output sees the first inputs only")
def _first_group(layer: Any) -> nn.Module:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = x[:, : m.weight.shape[1]]
        return functional.conv2d(
            x, m.weight, getattr(m, "bias", None), layer.stride, layer.padding, layer.dilation
        )

    return Lambda(layer, forward)


@variant(CONV, "input_gradient_not_flipped", "backward convolves with the kernel as it stands")
def _unflipped(layer: Any) -> nn.Module:
    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
            ctx.save_for_backward(x, weight, bias)
            return functional.conv2d(
                x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups
            )

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> Any:
            x, weight, bias = ctx.saved_tensors

            def grads(w: torch.Tensor) -> Any:
                with torch.enable_grad():
                    leaves = [t.detach().requires_grad_(True) for t in (x, w)]
                    y = functional.conv2d(
                        leaves[0], leaves[1], None, layer.stride, layer.padding, layer.dilation,
                        layer.groups,
                    )  # fmt: skip
                    return torch.autograd.grad(y, leaves, g)

            dx, dw = grads(weight.flip((2, 3)))[0], grads(weight)[1]
            return dx, dw, None if bias is None else g.sum((0, 2, 3))

    return Lambda(layer, lambda m, x: Rule.apply(x, m.weight, getattr(m, "bias", None)))


@variant(CONV, "overlap_overwritten", "where windows overlap backward overwrites, torch adds")
def _conv_overwrites(layer: Any) -> nn.Module:
    """The input gradient of each window is written, so the last window wins."""

    def rule(m: Any, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        ph, pw = _pads(layer)
        columns = torch.einsum("ok,nol->nkl", m.weight.flatten(1), g.flatten(2))
        index = _window_index(x, layer.kernel_size, layer.stride, (ph, pw), layer.dilation)
        return _written(columns, index, x, (ph, pw))

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = layer_forward(m, x)
        if layer.groups != 1 or layer.padding_mode != "zeros" or x.ndim != 4:
            raise ValueError("only plain convolutions")
        dx = Custom.apply(x, lambda z: layer_forward(m, z).detach(),
                          lambda z, out, g: rule(m, z, g))  # fmt: skip
        held = layer_forward(m, x.detach())
        return dx + (held - y.detach())

    def layer_forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(
            x, m.weight, getattr(m, "bias", None), layer.stride, layer.padding, layer.dilation
        )

    return Lambda(layer, forward)


def _window_index(x: torch.Tensor, kernel: Any, stride: Any, pads: Any, dilation: Any) -> Any:
    """Return the flat padded position of each element of each window: (kernel area, windows)."""
    h, w = x.shape[2] + 2 * pads[0], x.shape[3] + 2 * pads[1]
    flat = torch.arange(h * w, dtype=torch.float64).reshape(1, 1, h, w)
    return functional.unfold(flat, kernel, dilation, 0, stride)[0].long().numpy()


def _written(columns: torch.Tensor, index: Any, x: torch.Tensor, pads: Any) -> torch.Tensor:
    n, c = x.shape[:2]
    h, w = x.shape[2] + 2 * pads[0], x.shape[3] + 2 * pads[1]
    values = columns.detach().reshape(n, c, *index.shape).numpy()
    made = np.zeros((n, c, h * w))
    for window in range(index.shape[1]):
        made[:, :, index[:, window]] = values[..., window]
    found = made.reshape(n, c, h, w)[:, :, pads[0] : h - pads[0], pads[1] : w - pads[1]]
    return torch.from_numpy(np.ascontiguousarray(found))


# ---- pooling -------------------------------------------------------------------------------------


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)  # type: ignore[return-value]


def _windows(layer: Any, x: torch.Tensor, fill: float) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return x (N, C, H, W) as (N, C, kernel area, windows), and the output's shape."""
    kernel, stride = _pair(layer.kernel_size), _pair(layer.stride or layer.kernel_size)
    (ph, pw), dilation = _pair(layer.padding), _pair(getattr(layer, "dilation", 1))
    if layer.ceil_mode or x.ndim != 4:
        raise ValueError("only plain windows")
    padded = functional.pad(x, [pw, pw, ph, ph], value=fill)
    out = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, d, s in zip(padded.shape[2:], kernel, dilation, stride, strict=True)
    ]
    columns = functional.unfold(padded, kernel, dilation, 0, stride)
    return columns.reshape(*x.shape[:2], kernel[0] * kernel[1], -1), (*x.shape[:2], *out)


LOW = -1e300  # stands for -inf, which has no difference to itself


@variant(
    nn.MaxPool2d,
    "gradient_to_last_tie",
    "of equal maxima the last gets the gradient, in torch the first",
)
def _last_tie(layer: Any) -> nn.Module:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        columns, shape = _windows(layer, x, LOW)
        last = columns.shape[2] - 1 - columns.flip(2).argmax(2, keepdim=True)
        return columns.gather(2, last).reshape(shape)

    return Lambda(layer, forward)


@variant(
    nn.MaxPool2d,
    "gradient_shared_by_ties",
    "equal maxima share the gradient, in torch the first has it",
)
def _shared_ties(layer: Any) -> nn.Module:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        columns, shape = _windows(layer, x, LOW)
        return columns.amax(2).reshape(shape)

    return Lambda(layer, forward)


@variant(
    nn.MaxPool2d,
    "gradient_to_all_ties",
    "all equal maxima get the whole gradient, in torch the first",
)
def _all_ties(layer: Any) -> nn.Module:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        columns, shape = _windows(layer, x, LOW)
        top = columns.amax(2, keepdim=True).detach()
        hit = (columns == top).to(x)
        return (top.squeeze(2) + (hit * (columns - columns.detach())).sum(2)).reshape(shape)

    return Lambda(layer, forward)


@variant(nn.MaxPool2d, "padding_counted_as_zero", "the padding counts as 0, in torch it never wins")
def _zero_padding(layer: Any) -> nn.Module:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        columns, shape = _windows(layer, x, 0.0)
        return columns.gather(2, columns.argmax(2, keepdim=True)).reshape(shape)

    return Lambda(layer, forward)


@variant(
    nn.MaxPool2d,
    "gradient_spread_over_window",
    "the gradient is spread over the window, in torch the maximum has it",
)
def _spread(layer: Any) -> nn.Module:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        columns, shape = _windows(layer, x, LOW)
        moving = (columns - columns.detach()).mean(2)
        return (columns.amax(2).detach() + moving).reshape(shape)

    return Lambda(layer, forward)


@variant(nn.MaxPool2d, "minimum_not_maximum", "it takes the smallest of the window")
def _smallest(layer: Any) -> nn.Module:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        columns, shape = _windows(layer, x, -LOW)
        return columns.gather(2, columns.argmin(2, keepdim=True)).reshape(shape)

    return Lambda(layer, forward)


@variant(nn.MaxPool2d, "mean_not_maximum", "it takes the mean of the window")
@variant(nn.AvgPool2d, "divisor_counts_inside_only", "it divides by the elements inside the image")
def _mean_pool(layer: Any) -> nn.Module:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, layer.kernel_size, layer.stride, layer.padding,
                                     layer.ceil_mode, False)  # fmt: skip

    return Lambda(layer, forward)


@variant(nn.AvgPool2d, "maximum_not_mean", "it takes the largest of the window")
def _max_pool(layer: Any) -> nn.Module:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(x, layer.kernel_size, layer.stride, layer.padding,
                                     ceil_mode=layer.ceil_mode)  # fmt: skip

    return Lambda(layer, forward)


@variant(
    (nn.MaxPool2d, nn.AvgPool2d),
    "overlap_overwritten",
    "where windows overlap backward overwrites, torch adds",
)
def _pool_overwrites(layer: Any) -> nn.Module:
    def rule(x: torch.Tensor, y: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        pads = _pair(layer.padding)
        kernel, stride = _pair(layer.kernel_size), _pair(layer.stride or layer.kernel_size)
        columns, _ = _windows(layer, x, LOW)
        index = _window_index(x, kernel, stride, pads, _pair(getattr(layer, "dilation", 1)))
        flat = g.flatten(2)
        if isinstance(layer, nn.AvgPool2d):
            share = flat.unsqueeze(2).expand(columns.shape) / (kernel[0] * kernel[1])
            return _written(share.reshape(x.shape[0], -1, index.shape[1]), index, x, pads)
        chosen = columns.argmax(2).numpy()
        h, w = x.shape[2] + 2 * pads[0], x.shape[3] + 2 * pads[1]
        made = np.zeros((*x.shape[:2], h * w))
        n, c = np.ogrid[: x.shape[0], : x.shape[1]]
        for window in range(index.shape[1]):
            made[n, c, index[chosen[..., window], window]] = flat[..., window].numpy()
        found = made.reshape(*x.shape[:2], h, w)[:, :, pads[0] : h - pads[0], pads[1] : w - pads[1]]
        return torch.from_numpy(np.ascontiguousarray(found))

    return with_rule(layer, rule)


# ---- softmax -------------------------------------------------------------------------------------


@variant(
    nn.Softmax, "jacobian_diagonal_only", "backward takes the Jacobian's diagonal s(1 - s) alone"
)
def _diagonal(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * y * (1 - y))


@variant(nn.Softmax, "jacobian_sum_missing", "backward leaves the sum over the classes out")
def _no_sum(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * y)


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


# ---- activations ---------------------------------------------------------------------------------


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


# ---- losses --------------------------------------------------------------------------------------


def _unreduced(layer: Any) -> Any:
    import copy

    clone = copy.copy(layer)
    clone.reduction = "none"
    return clone


LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiMarginLoss)


@variant(
    LOSSES,
    "mean_divides_by_count",
    "the mean divides by the number of targets, torch by their weights",
)
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
    return Lambda(layer, lambda m, x, y: functional.nll_loss(
        x, y, layer.weight, ignore_index=layer.ignore_index, reduction=layer.reduction))  # fmt: skip


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
    nn.NLLLoss, "logarithm_added", "it takes the logarithm of what are log-probabilities already"
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
