"""Changed layers: how a layer with one step of its formula changed is registered and built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from parity.diagnosis.registry import Hypothesis, hypotheses
from parity.diagnosis.settings import replaced, root_of, runner
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
                try:
                    module = replaced(root, path, make(layer))
                except ValueError:  # the change does not apply to these options
                    continue
                yield Hypothesis(name, text + where, runner(module), module)


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
