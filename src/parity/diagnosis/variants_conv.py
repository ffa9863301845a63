"""Convolution with one step of its formula changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from parity.diagnosis.variants import Custom, Lambda, variant
from parity.diagnosis.windows import window_index, written

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


@variant(CONV, "padding_on_the_other_side", "'same' padding has its odd row on the top and left")
def _same_side(layer: Any) -> nn.Module:
    if layer.padding != "same":
        raise ValueError("only padding='same'")
    totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    high, wide = totals
    pads = [wide - wide // 2, wide // 2, high - high // 2, high // 2]
    return _conv(layer, lambda h, w: pads)


CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _spread(layer: Any, pads: Callable[[Any, tuple[int, ...]], list[tuple[int, int]]]) -> nn.Module:
    """Return ``layer`` with another padding (front, behind) of each axis, by the input's size."""
    if isinstance(layer.padding, str) or not any(layer.padding) or layer.padding_mode != "zeros":
        raise ValueError("only numbers of zeros")
    convolve = getattr(functional, f"conv{len(layer.kernel_size)}d")

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        sides = pads(layer, tuple(x.shape[-len(layer.kernel_size) :]))
        x = functional.pad(x, [n for side in reversed(sides) for n in side])
        bias = getattr(m, "bias", None)
        return convolve(x, m.weight, bias, layer.stride, 0, layer.dilation, layer.groups)

    return Lambda(layer, forward)


@variant(
    CONVS,
    "padding_as_in_tensorflow",
    "it pads as TensorFlow's SAME does: by the input's size, the odd one behind",
)
def _tensorflow(layer: Any) -> nn.Module:
    def pads(layer: Any, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        found = []
        for n, k, s, d in zip(sizes, layer.kernel_size, layer.stride, layer.dilation, strict=True):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            found.append((total // 2, total - total // 2))
        return found

    return _spread(layer, pads)


@variant(nn.Conv1d, "padding_one_sided", "all padding stands in front: a causal convolution")
def _causal(layer: Any) -> nn.Module:
    return _spread(layer, lambda layer, sizes: [(2 * p, 0) for p in layer.padding])


@variant(nn.Conv1d, "padding_one_sided", "all padding stands behind")
def _behind(layer: Any) -> nn.Module:
    return _spread(layer, lambda layer, sizes: [(0, 2 * p) for p in layer.padding])


@variant(CONVS, "padding_one_sided", "it pads behind alone, and not twice as much")
def _behind_once(layer: Any) -> nn.Module:
    return _spread(layer, lambda layer, sizes: [(0, p) for p in layer.padding])


class Cropped(torch.autograd.Function):
    """Padding whose gradient is cut out at another place."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, pads: tuple[int, int], at: tuple[int, int]) -> Any:
        """Return x (N, C, H, W) with zeros around it."""
        ctx.shape, ctx.at = x.shape, at
        return functional.pad(x, [pads[1], pads[1], pads[0], pads[0]])

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        """Return the gradient, cut at ``at``."""
        (i, j), (h, w) = ctx.at, ctx.shape[2:]
        return g[:, :, i : i + h, j : j + w], None, None


@variant(CONV, "gradient_cropped_wrongly", "the padded gradient is cut from the top and left")
def _crop_start(layer: Any) -> nn.Module:
    return _cropped(layer, 0)


@variant(CONV, "gradient_cropped_wrongly", "the padded gradient is cut from the bottom and right")
def _crop_end(layer: Any) -> nn.Module:
    return _cropped(layer, 2)


def _cropped(layer: Any, times: int) -> nn.Module:
    pads = _pads(layer)
    if pads == (0, 0):
        raise ValueError("only padded convolutions")

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = Cropped.apply(x, pads, (times * pads[0], times * pads[1]))
        return functional.conv2d(
            x, m.weight, getattr(m, "bias", None), layer.stride, 0, layer.dilation, layer.groups
        )

    return Lambda(layer, forward)


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
        index = window_index(x, layer.kernel_size, layer.stride, (ph, pw), layer.dilation)
        return written(columns, index, x, (ph, pw))

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


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@variant(TRANSPOSED, "output_padding_in_front", "output_padding stands in front, torch's behind")
def _in_front(layer: Any) -> nn.Module:
    if not any(layer.output_padding):
        raise ValueError("there is no output_padding")
    spread = getattr(functional, f"conv_transpose{len(layer.kernel_size)}d")

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = layer_of(m, x)
        size = layer(x).shape
        for axis, (p, o) in enumerate(zip(layer.padding, layer.output_padding, strict=True), 2):
            y = y.narrow(axis, p - o, size[axis])  # a start in front of the output is refused
        return y

    def layer_of(m: Any, x: torch.Tensor) -> torch.Tensor:
        bias = getattr(m, "bias", None)
        return spread(x, m.weight, bias, layer.stride, 0, 0, layer.groups, layer.dilation)

    return Lambda(layer, forward)
