"""Recurrent cells with one step of their formula changed, alone and run over a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from parity.diagnosis.variants import Lambda, variant

# (layer, the end of its parameters' names, x, states) → the new states
Step = Callable[[Any, str, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _gates(m: Any, end: str, x: Tensor, h: Tensor, count: int) -> tuple[Any, Any]:
    """Return what x and h give to each gate."""
    given, kept = (
        linear(array, getattr(m, f"weight_{of}{end}"), getattr(m, f"bias_{of}{end}", None))
        for array, of in ((x, "ih"), (h, "hh"))
    )
    return given.chunk(count, -1), kept.chunk(count, -1)


def _gru(swapped: bool = False, early: bool = False) -> Step:
    def step(m: Any, end: str, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = states
        given, kept = _gates(m, end, x, h, 3)
        r, z = torch.sigmoid(given[0] + kept[0]), torch.sigmoid(given[1] + kept[1])
        back = r * kept[2]
        if early:
            bias = getattr(m, f"bias_hh{end}", None)
            weight = getattr(m, f"weight_hh{end}").chunk(3)[2]
            back = linear(r * h, weight, None if bias is None else bias.chunk(3)[2])
        n = torch.tanh(given[2] + back)
        return (z * n + (1 - z) * h if swapped else (1 - z) * n + z * h,)

    return step


def _lstm(forget: float = 0.0, squash: bool = True, candidate: Any = torch.tanh) -> Step:
    def step(m: Any, end: str, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = states
        given, kept = _gates(m, end, x, h, 4)
        i, f, g, o = (a + b for a, b in zip(given, kept, strict=True))
        c = torch.sigmoid(f + forget) * c + torch.sigmoid(i) * candidate(g)
        return torch.sigmoid(o) * (torch.tanh(c) if squash else c), c

    return step


def _cell(step: Step) -> Callable[[Any], nn.Module]:
    def make(layer: Any) -> nn.Module:
        def forward(m: Any, x: Tensor, given: Any = None) -> Any:
            zero = x.new_zeros(*x.shape[:-1], layer.hidden_size)
            pair = isinstance(layer, nn.LSTMCell)
            states = given if pair and given is not None else (zero if given is None else given,)
            made = step(m, "", x, states if len(states) > 1 or not pair else (zero, zero))
            return made if pair else made[0]

        return Lambda(layer, forward)

    return make


def _sequence(step: Step) -> Callable[[Any], nn.Module]:
    def make(layer: Any) -> nn.Module:
        if layer.num_layers > 1 or layer.bidirectional or layer.proj_size:
            raise ValueError("one layer in one direction alone is written out")

        def forward(m: Any, x: Tensor, given: Any = None) -> tuple[Tensor, Any]:
            single, pair = x.ndim == 2, isinstance(layer, nn.LSTM)
            time = x.unsqueeze(1) if single else x.transpose(0, 1) if layer.batch_first else x
            zero = x.new_zeros(time.shape[1], layer.hidden_size)
            held = given if pair else (given,)
            states = (zero,) * (2 if pair else 1)
            if given is not None:
                states = tuple(h.expand_as(zero) if single else h[0] for h in held)
            steps = []
            for item in time:
                states = step(m, "_l0", item, states)
                steps.append(states[0])
            out = torch.stack(steps)
            last = tuple(h if single else h.unsqueeze(0) for h in states)
            out = out.squeeze(1) if single else out.transpose(0, 1) if layer.batch_first else out
            return out, last if pair else last[0]

        return Lambda(layer, forward)

    return make


CHANGES: tuple[tuple[Any, Any, str, str, Step], ...] = (
    (nn.GRU, nn.GRUCell, "gates_swapped",
     "z weighs the new state and 1 - z the old, in torch z the old", _gru(swapped=True)),
    (nn.GRU, nn.GRUCell, "reset_before_product",
     "r scales the state before the product, in torch what it gives", _gru(early=True)),
    (nn.LSTM, nn.LSTMCell, "forget_bias_added",
     "1 is added to the forget gate, as TensorFlow's forget_bias does", _lstm(forget=1.0)),
    (nn.LSTM, nn.LSTMCell, "output_tanh_missing",
     "the output is o · c, in torch o · tanh(c)", _lstm(squash=False)),
    (nn.LSTM, nn.LSTMCell, "candidate_by_sigmoid",
     "the candidate g goes through a sigmoid, in torch through tanh",
     _lstm(candidate=torch.sigmoid)),
)  # fmt: skip
for _whole, _alone, _name, _text, _step in CHANGES:
    variant(_whole, _name, _text)(_sequence(_step))
    variant(_alone, _name, _text)(_cell(_step))
