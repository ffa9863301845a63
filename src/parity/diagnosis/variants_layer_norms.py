"""Layer, group, instance and RMS normalisation with one step of their formula changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import nn

from parity.diagnosis.registry import Hypothesis, hypotheses
from parity.diagnosis.settings import replaced, root_of, runner
from parity.diagnosis.variants import Lambda
from parity.pair import Pair

INSTANCE = nn.modules.instancenorm._InstanceNorm
RMS = getattr(nn, "RMSNorm", ())  # torch has it since 2.4


@dataclass(frozen=True)
class Rule:
    """How x is standardised: over which axes of which view of it, and by what."""

    axes: Callable[[int], tuple[int, ...]]
    eps: float
    centred: bool = True
    unbiased: bool = False
    outside: bool = False
    squared: bool = False
    constant: bool = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the standardised x."""
        axes = list(self.axes(x.ndim))
        centred = x
        if self.centred:
            mean = x.mean(axes, keepdim=True)
            centred = x - (mean.detach() if self.constant else mean)
        count = centred.numel() / centred.sum(axes, keepdim=True).numel()
        var = centred.square().sum(axes, keepdim=True) / (count - 1 if self.unbiased else count)
        var = var.detach() if self.constant else var
        if self.squared:
            return centred / (var + self.eps)
        return centred / (var.sqrt() + self.eps if self.outside else (var + self.eps).sqrt())


CHANGES: tuple[tuple[str, str, dict[str, bool]], ...] = (
    ("normalised_by_unbiased_variance", "it normalises by the unbiased variance",
     {"unbiased": True}),
    ("eps_outside_sqrt", "eps is added to the standard deviation, not to the variance",
     {"outside": True}),
    ("eps_outside_sqrt", "it divides by the unbiased standard deviation plus eps",
     {"outside": True, "unbiased": True}),
    ("divided_by_variance", "it divides by the variance, not by its square root",
     {"squared": True}),
    ("statistics_treated_as_constant", "backward treats mean and variance as constants",
     {"constant": True}),
)  # fmt: skip


ANNOTATED = 1e-6  # of the Annotated Transformer, whose formula many have copied


def _eps(layer: Any) -> float:
    return torch.finfo(torch.float64).eps if layer.eps is None else float(layer.eps)


def _last(count: int) -> Callable[[int], tuple[int, ...]]:
    return lambda ndim: tuple(range(ndim - count, ndim))


def _rule(layer: Any) -> Rule:
    """Return torch's own rule for ``layer``; a group is an axis of its own in front."""
    if isinstance(layer, nn.GroupNorm):
        return Rule(lambda ndim: tuple(range(2, ndim)), _eps(layer))
    if isinstance(layer, INSTANCE):
        return Rule(lambda ndim: tuple(range(2, ndim)), _eps(layer))
    centred = isinstance(layer, nn.LayerNorm)
    return Rule(_last(len(layer.normalized_shape)), _eps(layer), centred)


def _rules(layer: Any) -> Iterator[tuple[str, str, Rule]]:
    own = _rule(layer)
    for name, text, change in CHANGES:
        yield name, text, replace(own, **change)  # type: ignore[arg-type]
    text = f"it divides by the unbiased standard deviation plus {ANNOTATED:g}"
    yield "eps_outside_sqrt", text, replace(own, unbiased=True, outside=True, eps=ANNOTATED)
    if own.centred:
        yield "mean_not_subtracted", "the mean is not subtracted", replace(own, centred=False)
    else:
        yield "mean_subtracted", "the mean is subtracted, as in LayerNorm", replace(
            own, centred=True
        )  # fmt: skip
    for axes in (a for n in (1, 2, 3, 4) for a in combinations(range(4), n)):
        text = f"mean and variance are taken over the axes {axes}"

        def chosen(ndim: int, axes: tuple[int, ...] = axes) -> tuple[int, ...]:
            if max(axes) >= ndim:
                raise ValueError("there is no such axis")
            return axes

        if not isinstance(layer, nn.GroupNorm):  # whose own axes are those of another view
            yield "statistics_over_wrong_axes", text, replace(own, axes=chosen)


def _made(layer: Any, rule: Rule, interleaved: bool = False) -> nn.Module:
    grouped = isinstance(layer, nn.GroupNorm)
    along = grouped or isinstance(layer, INSTANCE)

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = _in_groups(layer.num_groups, rule, interleaved, x) if grouped else rule(x)
        shape = (-1, *[1] * (x.ndim - 2))  # of what belongs to the channels
        for name, apply in (("weight", torch.mul), ("bias", torch.add)):
            held = getattr(m, name, None)
            if held is not None:
                y = apply(y, held.reshape(shape) if along else held)
        return y

    return Lambda(layer, forward)


def _in_groups(groups: int, rule: Rule, interleaved: bool, x: torch.Tensor) -> torch.Tensor:
    n, c, *rest = x.shape
    if interleaved:
        parts = x.reshape(n, c // groups, groups, *rest).transpose(1, 2)
        return rule(parts).transpose(1, 2).reshape(x.shape)
    return rule(x.reshape(n, groups, c // groups, *rest)).reshape(x.shape)


@hypotheses
def layer_norms(pair: Pair) -> Iterator[Hypothesis]:
    """Every such layer of the reference with every known change of its formula."""
    root = root_of(pair)
    kinds = (nn.LayerNorm, nn.GroupNorm, INSTANCE, *([RMS] if RMS else []))
    for path, layer in root.named_modules():
        if not isinstance(layer, kinds):
            continue
        if getattr(layer, "track_running_stats", False):
            continue  # their evaluation is BatchNorm's
        where = f" in layer {path!r}" if path else ""
        made = [(name, text, _made(layer, rule)) for name, text, rule in _rules(layer)]
        if isinstance(layer, nn.GroupNorm):
            text = "the groups are interleaved: channel c belongs to group c mod G"
            made.append(("groups_interleaved", text, _made(layer, _rule(layer), True)))
        for name, text, module in made:
            changed = replaced(root, path, module)
            yield Hypothesis(name, text + where, runner(changed), changed)
