"""Gated units, pixel shuffles and padding with one step of their formula changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parity.diagnosis.variants import Lambda, variant


@variant(nn.GLU, "halves_swapped", "the first half is the gate, in torch the second")
def _gate_first(layer: Any) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        first, second = x.chunk(2, layer.dim)
        return second * torch.sigmoid(first)

    return Lambda(layer, forward)


@variant(nn.PixelShuffle, "channel_order", "the channels hold the offsets first, in torch last")
def _depth_last(layer: Any) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        *lead, c, h, w = x.shape
        r = layer.upscale_factor
        parts = x.reshape(-1, r, r, c // r**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(*lead, c // r**2, h * r, w * r)

    return Lambda(layer, forward)


@variant(nn.PixelShuffle, "channel_order", "rows and columns of the offsets are exchanged")
def _columns_first(layer: Any) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        *lead, c, h, w = x.shape
        r = layer.upscale_factor
        parts = x.reshape(-1, c // r**2, r, r, h, w).permute(0, 1, 4, 3, 5, 2)
        return parts.reshape(*lead, c // r**2, h * r, w * r)

    return Lambda(layer, forward)


@variant(
    (nn.ReflectionPad1d, nn.ReflectionPad2d),
    "wrong_padding_mode",
    "the border is mirrored with its edge repeated (symmetric), in torch without",
)
def _symmetric(layer: Any) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        for place in range(len(layer.padding) // 2):
            before, after = layer.padding[2 * place : 2 * place + 2]
            axis, n = -1 - place, x.shape[-1 - place]
            order = [*range(before - 1, -1, -1), *range(n), *range(n - 1, n - 1 - after, -1)]
            x = x.index_select(axis, torch.tensor(order))
        return x

    return Lambda(layer, forward)
