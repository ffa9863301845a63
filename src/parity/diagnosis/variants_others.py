"""Gated units, GELU, pixel shuffles and GRUs with one step of their formula changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parity.diagnosis.variants import Lambda, variant

QUICK = 1.702  # the sigmoid that stands for the normal distribution function


@variant(nn.GELU, "gelu_by_sigmoid", "it computes x·sigmoid(1.702 x), the quick GELU")
def _quick(layer: Any) -> nn.Module:
    return Lambda(layer, lambda m, x: x * torch.sigmoid(QUICK * x))


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


def _gru(swapped: bool = False, early: bool = False) -> Callable[[Any], nn.Module]:
    """Return what makes a GRU with z and 1 - z exchanged, or with r before the product."""

    def make(layer: Any) -> nn.Module:
        if layer.num_layers > 1 or layer.bidirectional:
            raise ValueError("one layer in one direction alone is written out")

        def forward(m: Any, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
            single = x.ndim == 2
            time = x.unsqueeze(1) if single else x.transpose(0, 1) if layer.batch_first else x
            zero = x.new_zeros(time.shape[1], layer.hidden_size)
            state = zero if h is None else h[0].expand_as(zero)
            steps = []
            for item in time:
                state = _gru_step(m, item, state, swapped, early)
                steps.append(state)
            out = torch.stack(steps)
            if single:
                return out.squeeze(1), state
            return out.transpose(0, 1) if layer.batch_first else out, state.unsqueeze(0)

        return Lambda(layer, forward)

    return make


def _gru_step(m: Any, x: Tensor, h: Tensor, swapped: bool, early: bool) -> Tensor:
    b_ih, b_hh = getattr(m, "bias_ih_l0", None), getattr(m, "bias_hh_l0", None)
    given = nn.functional.linear(x, m.weight_ih_l0, b_ih).chunk(3, -1)
    kept = nn.functional.linear(h, m.weight_hh_l0, b_hh).chunk(3, -1)
    r, z = torch.sigmoid(given[0] + kept[0]), torch.sigmoid(given[1] + kept[1])
    back = r * kept[2]
    if early:
        bias = None if b_hh is None else b_hh.chunk(3)[2]
        back = nn.functional.linear(r * h, m.weight_hh_l0.chunk(3)[2], bias)
    n = torch.tanh(given[2] + back)
    return z * n + (1 - z) * h if swapped else (1 - z) * n + z * h


variant(nn.GRU, "gates_swapped", "z weighs the new state and 1 - z the old, in torch z the old")(
    _gru(swapped=True)
)
variant(
    nn.GRU, "reset_before_product", "r scales the state before the product, in torch what it gives"
)(_gru(early=True))
