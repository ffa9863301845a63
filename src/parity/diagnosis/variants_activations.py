"""Activations with another constant, slope, axis or argument in their formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from parity.diagnosis.registry import Hypothesis, hypotheses
from parity.diagnosis.settings import replaced, root_of, runner
from parity.diagnosis.variants import Lambda, variant, with_rule
from parity.pair import Pair

QUICK = 1.702  # the sigmoid that stands for the normal distribution function


@variant(nn.GELU, "gelu_by_sigmoid", "it computes x·sigmoid(1.702 x), the quick GELU")
def _quick(layer: Any) -> nn.Module:
    return Lambda(layer, lambda m, x: x * torch.sigmoid(QUICK * x))


@variant(nn.SiLU, "derivative_incomplete", "backward takes s(x), without x · s(x)(1 - s(x))")
def _silu_first(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * torch.sigmoid(x))


@variant(nn.SiLU, "derivative_incomplete", "backward takes x · s(x)(1 - s(x)), without s(x)")
def _silu_second(layer: Any) -> nn.Module:
    return with_rule(layer, lambda x, y, g: g * x * torch.sigmoid(x) * torch.sigmoid(-x))


@variant(nn.GELU, "root_of_two_missing", "it takes erf(x), not erf(x/√2)")
def _unscaled_erf(layer: Any) -> nn.Module:
    if layer.approximate != "none":
        raise ValueError("the approximation has no erf")
    return Lambda(layer, lambda m, x: 0.5 * x * (1 + torch.erf(x)))


def _over(axis: int, what: str) -> None:
    """Register the softmax of an image that runs over another axis than the channels."""
    text = f"its softmax runs over {what} (axis {axis}), torch's over the channels (axis 1)"

    @variant(nn.Softmax2d, "softmax_over_wrong_axis", text)
    def _elsewhere(layer: Any) -> nn.Module:
        return nn.Softmax(axis)


for _axis_of_image, _what in ((3, "the width"), (2, "the height"), (0, "the batch")):
    _over(_axis_of_image, _what)


@variant(nn.LeakyReLU, "larger_of_both", "it takes the larger of x and negative_slope · x")
def _larger(layer: Any) -> nn.Module:
    if layer.negative_slope <= 1:
        raise ValueError("that is the same up to a slope of 1")
    return Lambda(layer, lambda m, x: torch.maximum(x, layer.negative_slope * x))


def _one_slope(end: str) -> None:
    """Register a randomised slope that is one end of its range in evaluation."""
    text = f"in evaluation the slope is {end}, in torch the mean of lower and upper"

    @variant(nn.RReLU, "slope_not_the_mean", text)
    def _at_the_end(layer: Any) -> nn.Module:
        slope = getattr(layer, end)
        return Lambda(layer, lambda m, x: layer(x) if m.training else torch.where(
            x >= 0, x, slope * x))  # fmt: skip


for _end in ("lower", "upper"):
    _one_slope(_end)

# what papers and blogs give of SELU's two constants: alpha, scale
ALPHA, SCALE = 1.6732632423543772848, 1.0507009873554804934
SHORT = (
    *((alpha, scale) for alpha in (1.67326, 1.6733, 1.673, 1.67, 1.6732632, 1.67326324, ALPHA)
      for scale in (1.0507, 1.051, 1.05, 1.050701, 1.0507010, 1.05070098, SCALE)),
)[:-1]  # fmt: skip


def _truncated(alpha: float, scale: float) -> None:
    """Register a SELU with constants of fewer digits."""
    text = f"its constants are truncated: alpha {alpha:.8g}, scale {scale:.8g}"

    @variant(nn.SELU, "constants_truncated", text)
    def _short(layer: Any) -> nn.Module:
        return Lambda(layer, lambda m, x: scale * torch.where(
            x > 0, x, alpha * x.clamp(max=0).expm1()))  # fmt: skip


for _alpha, _scale in SHORT:
    _truncated(_alpha, _scale)


@variant(nn.CELU, "alpha_not_divided", "its exponential takes x, not x / alpha: ELU's formula")
def _as_elu(layer: Any) -> nn.Module:
    if layer.alpha == 1:
        raise ValueError("that is the same for alpha 1")
    return nn.ELU(layer.alpha)


@hypotheses
def no_linear_part(pair: Pair) -> Iterator[Hypothesis]:
    """A softplus without its threshold: before others, of which any large one looks the same."""
    root = root_of(pair)
    for path, layer in root.named_modules():
        if isinstance(layer, nn.Softplus):
            module = replaced(root, path, Lambda(layer, _curved(layer.beta)))
            where = f" in layer {path!r}" if path else ""
            text = f"it has no linear part beyond the threshold{where}"
            yield Hypothesis("threshold_ignored", text, runner(module), module)


def _curved(beta: float) -> Callable[..., torch.Tensor]:
    return lambda m, x: torch.logaddexp(x * beta, torch.zeros_like(x)) / beta
