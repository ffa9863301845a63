"""Batch normalisation with one step of its formula changed, forward and backward by autograd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from parity.diagnosis.registry import Hypothesis, hypotheses
from parity.diagnosis.settings import replaced, root_of, runner
from parity.pair import Pair

VARIANTS: tuple[tuple[str, str], ...] = (
    ("running_var_biased", "running_var averages the biased variance, torch the unbiased one"),
    ("normalised_by_unbiased_variance", "it normalises by the unbiased variance"),
    ("statistics_treated_as_constant", "backward treats the batch mean and variance as constants"),
    ("mean_treated_as_constant", "backward treats the batch mean as a constant"),
    ("variance_treated_as_constant", "backward treats the batch variance as a constant"),
    ("eps_outside_sqrt", "eps is added to the standard deviation, not to the variance"),
    ("divided_by_variance", "it divides by the variance, not by its square root"),
    ("mean_not_subtracted", "the mean is not subtracted"),
    ("running_std_not_variance", "running_var averages the standard deviation"),
    ("running_std_not_variance: biased", "running_var averages the biased standard deviation"),
    ("running_std_not_variance: corrected",
     "running_var averages the standard deviation, times n/(n - 1)"),
    ("running_var_with_eps", "running_var averages the variance with eps added"),
    ("running_var_of_mean", "running_var is updated with the mean"),
    ("running_statistics_not_updated", "the running statistics are not updated in training"),
    ("running_statistics_updated_in_evaluation", "the running statistics change in evaluation"),
    ("running_statistics_updated_in_evaluation: first",
     "the running statistics change in evaluation, before it normalises by them"),
    ("training_backward_in_evaluation",
     "in evaluation backward takes training's formula, as if the statistics were the batch's"),
    ("batch_statistics_in_evaluation", "in evaluation it normalises by the batch"),
    ("running_statistics_in_training", "in training it normalises by running statistics"),
    ("running_statistics_used_after_update",
     "in training it normalises by the running statistics just updated"),
    ("statistics_per_sample", "mean and variance are taken per sample, not over the batch"),
    ("statistics_over_all_channels", "one mean and variance for all channels together"),
    ("running_var_around_running_mean", "running_var is taken around the running mean"),
    ("running_var_wrong_count", "running_var is corrected by N/(N - 1): positions are not counted"),
    ("weight_gradient_of_raw_input", "weight.grad sums the gradient times x, not normalised x"),
    ("running_var_unbiased_twice", "running_var is corrected by n/(n - 1) twice"),
)  # fmt: skip


TEXTBOOK = frozenset({"normalised_by_unbiased_variance", "eps_outside_sqrt", "divided_by_variance",
                      "mean_not_subtracted", "statistics_per_sample",
                      "statistics_over_all_channels"})  # fmt: skip


class Textbook(torch.autograd.Function):
    """A changed forward pass under the unchanged formula dx = (g - mean g - x̂·mean(g·x̂)) / σ."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, hat: torch.Tensor, inverse: torch.Tensor, axes: Any
    ) -> Any:
        """Return x̂ as it was computed."""
        ctx.save_for_backward(hat, inverse)
        ctx.axes = axes
        return hat.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        """Return the formula's gradient for x."""
        hat, inverse = ctx.saved_tensors
        mean = g.mean(ctx.axes, keepdim=True)
        slope = (g * hat).mean(ctx.axes, keepdim=True)
        return (g - mean - hat * slope) * inverse, None, None, None


class BatchNormVariant(nn.Module):
    """torch's batch normalisation of x (N, C, \\*) with the change that ``kind`` names."""

    def __init__(self, given: nn.Module, kind: str, textbook: bool = False) -> None:
        super().__init__()
        self.kind, self.eps, self.momentum = kind, given.eps, given.momentum
        self.textbook = textbook
        for name in ("weight", "bias"):
            held = getattr(given, name)
            copied = None if held is None else nn.Parameter(held.detach().clone())
            self.register_parameter(name, copied)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            held = getattr(given, name)
            self.register_buffer(name, None if held is None else held.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised x (N, C, \\*)."""
        kind = self.kind
        axes = [i for i in range(x.ndim) if i != 1]
        if kind == "statistics_per_sample":
            axes = axes[1:]
        elif kind == "statistics_over_all_channels":
            axes = list(range(x.ndim))
        tracked = self.running_mean is not None
        by_batch = self.training or not tracked
        by_batch |= kind == "batch_statistics_in_evaluation"
        by_batch &= not (kind == "running_statistics_in_training" and tracked)
        mean, var = self._batch(x, axes)
        old = self._running(x) if tracked else (mean, var)
        updating = self.training or kind.startswith("running_statistics_updated_in_evaluation")
        if tracked and updating and kind != "running_statistics_not_updated":
            self._track(x, axes)
        if kind == "running_statistics_used_after_update" and tracked:
            old, by_batch = self._running(x), False
        if kind == "running_statistics_updated_in_evaluation: first" and tracked:
            old = self._running(x)
        if not by_batch:
            mean, var = old
        y = self._normalise(x, mean, var)
        late = kind == "training_backward_in_evaluation" and not by_batch
        if late or (self.textbook and by_batch):
            inverse = self._normalise(torch.ones_like(mean), torch.zeros_like(mean), var)
            y = Textbook.apply(x, y.detach(), inverse.detach(), axes)
        if kind == "weight_gradient_of_raw_input" and self.weight is not None:
            shape = (1, -1) + (1,) * (x.ndim - 2)
            moving = (self.weight - self.weight.detach()).reshape(shape)  # zero, with a gradient
            return self._affine(y, x.ndim, self.weight.detach()) + moving * x.detach()
        return self._affine(y, x.ndim)

    def _batch(self, x: torch.Tensor, axes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        mean = x.mean(axes, keepdim=True)
        unbiased = self.kind == "normalised_by_unbiased_variance"
        constant = self.kind.endswith("treated_as_constant")
        held = mean.detach() if constant and not self.kind.startswith("variance") else mean
        # the variance's own dependence on the mean sums to zero: only the centring matters
        centred = x - mean
        count = centred.numel() / mean.numel()
        var = (centred * centred).sum(axes, keepdim=True) / (count - 1 if unbiased else count)
        if constant and not self.kind.startswith("mean"):
            var = var.detach()
        return held, var

    def _running(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return self.running_mean.clone().reshape(shape), self.running_var.clone().reshape(shape)

    @torch.no_grad()
    def _track(self, x: torch.Tensor, axes: list[int]) -> None:
        kind = self.kind
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        m = self.momentum
        if m is None and self.num_batches_tracked is not None:
            m = 1.0 / self.num_batches_tracked.item()
        mean = x.mean(axes)
        n = x.numel() / mean.numel() if mean.numel() else 1
        biased = x.var(axes, unbiased=False)
        if kind == "statistics_per_sample":
            mean, biased = mean.mean(0), biased.mean(0)
        if kind == "running_var_around_running_mean":
            shape = (1, -1) + (1,) * (x.ndim - 2)
            biased = (x - self.running_mean.reshape(shape)).square().mean(axes)
        unbiased = biased * n / (n - 1)
        tracked = {
            "running_var_biased": biased,
            "running_std_not_variance": unbiased.sqrt(),
            "running_std_not_variance: biased": biased.sqrt(),
            "running_std_not_variance: corrected": biased.sqrt() * n / (n - 1),
            "running_var_with_eps": unbiased + self.eps,
            "running_var_of_mean": mean,
            "running_var_wrong_count": biased * (len(x) / max(len(x) - 1, 1)),
            "running_var_unbiased_twice": unbiased * n / (n - 1),
        }.get(kind, unbiased)
        self.running_mean.mul_(1 - m).add_(m * mean)
        self.running_var.mul_(1 - m).add_(m * tracked)

    def _normalise(self, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
        if self.kind == "mean_not_subtracted":
            mean = torch.zeros_like(mean)
        if self.kind == "eps_outside_sqrt":
            return (x - mean) / (var.sqrt() + self.eps)
        if self.kind == "divided_by_variance":
            return (x - mean) / (var + self.eps)
        return (x - mean) / (var + self.eps).sqrt()

    def _affine(self, y: torch.Tensor, ndim: int, weight: Any = None) -> torch.Tensor:
        shape = (1, -1) + (1,) * (ndim - 2)
        weight = self.weight if weight is None else weight
        if weight is not None:
            y = y * weight.reshape(shape)
        return y if self.bias is None else y + self.bias.reshape(shape)


@hypotheses
def batch_norms(pair: Pair) -> Iterator[Hypothesis]:
    """Every BatchNorm of the reference with every known change of its formula."""
    root = root_of(pair)
    for path, layer in root.named_modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        where = f" in layer {path!r}" if path else ""
        for kind, text in VARIANTS:
            for textbook in (False, True) if kind in TEXTBOOK else (False,):
                module = replaced(root, path, BatchNormVariant(layer, kind, textbook))
                yield Hypothesis(kind.partition(":")[0], text + where, runner(module), module)
