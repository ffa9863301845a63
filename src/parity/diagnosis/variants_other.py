"""Another of torch's own functions in the reference's place: right, only not the one asked for."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from parity.diagnosis.registry import Hypothesis, hypotheses
from parity.diagnosis.settings import root_of, runner
from parity.pair import Pair

ACTIVATIONS = (
    "Identity ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Sigmoid LogSigmoid Tanh Softplus "
    "Softsign Tanhshrink Softshrink Hardshrink Hardtanh Hardsigmoid Hardswish"
).split()
LOSSES = (
    "MSELoss L1Loss SmoothL1Loss HuberLoss BCELoss BCEWithLogitsLoss PoissonNLLLoss SoftMarginLoss "
    "CrossEntropyLoss NLLLoss MultiMarginLoss"
).split()


@hypotheses
def other_functions(pair: Pair) -> Iterator[Hypothesis]:
    """Other activations beside an activation, other losses of the same reduction beside a loss."""
    root = root_of(pair)
    made: list[nn.Module] = []
    if pair.elementary:
        made = [getattr(nn, name)() for name in ACTIVATIONS if hasattr(nn, name)]
        if not isinstance(root, (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)):
            made += [nn.Softmax(-1), nn.LogSoftmax(-1)]
    elif len(pair.specs) == 2 and not pair.reference.params:
        reduction = getattr(root, "reduction", "mean")
        if reduction not in ("mean", "sum", "none"):
            return
        made = [getattr(nn, name)(reduction=reduction) for name in LOSSES]
    for module in made:
        if type(module) is not type(root):
            text = f"behaves exactly like {type(module).__name__}, which is another function"
            yield Hypothesis("another_function", text, runner(module), module)
