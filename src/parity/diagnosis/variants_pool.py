"""Pooling with one step of its formula changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from parity.diagnosis.variants import Lambda, variant, with_rule
from parity.diagnosis.windows import window_index, written


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


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


@variant(nn.AvgPool2d, "overhang_counted", "windows that hang over divide by their whole size")
def _whole_windows(layer: Any) -> nn.Module:
    rows, columns = _pair(layer.kernel_size)
    return Lambda(layer, lambda m, x: functional.avg_pool2d(
        x, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode,
        divisor_override=rows * columns))  # fmt: skip


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
        index = window_index(x, kernel, stride, pads, _pair(getattr(layer, "dilation", 1)))
        flat = g.flatten(2)
        if isinstance(layer, nn.AvgPool2d):
            share = flat.unsqueeze(2).expand(columns.shape) / (kernel[0] * kernel[1])
            return written(share.reshape(x.shape[0], -1, index.shape[1]), index, x, pads)
        chosen = columns.argmax(2).numpy()
        h, w = x.shape[2] + 2 * pads[0], x.shape[3] + 2 * pads[1]
        made = np.zeros((*x.shape[:2], h * w))
        n, c = np.ogrid[: x.shape[0], : x.shape[1]]
        for window in range(index.shape[1]):
            made[n, c, index[chosen[..., window], window]] = flat[..., window].numpy()
        found = made.reshape(*x.shape[:2], h, w)[:, :, pads[0] : h - pads[0], pads[1] : w - pads[1]]
        return torch.from_numpy(np.ascontiguousarray(found))

    return with_rule(layer, rule)
