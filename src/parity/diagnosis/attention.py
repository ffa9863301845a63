"""Scaled dot products with one step of their formula changed, in a function and in many heads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.diagnosis.registry import Hypothesis, hypotheses
from parity.diagnosis.settings import root_of, runner
from parity.diagnosis.trials import Quantities, Trial
from parity.pair import Pair

NEAR = 1e-9  # relative: a reference that is attention agrees to rounding


@dataclass(frozen=True)
class Rule:
    """Attention of (q, k, v) as torch computes it, but for what is set here."""

    causal: bool = False
    ahead: int = 0  # steps that a query sees beyond its own
    turned: bool = False
    masking: str = "before"  # the softmax; "after" it, or by "zeros" in front of it
    axis: int = -1
    by_length: bool = False

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return the weighted values."""
        size = q.shape[-2] if self.by_length else q.shape[-1]
        scores = q @ k.transpose(-1, -2) / math.sqrt(size)
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(self.ahead)
        seen = seen.T if self.turned else seen
        if self.causal and self.masking != "after":
            scores = scores.masked_fill(~seen, 0.0 if self.masking == "zeros" else -math.inf)
        weights = scores.softmax(self.axis)
        return (weights * seen if self.causal and self.masking == "after" else weights) @ v


class Attention(nn.Module):
    """A rule in the reference's place."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return the rule's answer."""
        return self.rule(q, k, v)


@hypotheses
def other_attention(pair: Pair) -> Iterator[Hypothesis]:
    """Another mask, axis or scale, where the reference is attention of its three inputs."""
    causal = _is_attention(pair)
    if causal is None:
        return
    for name, text, rule in _rules(causal):
        module = Attention(rule)
        yield Hypothesis(name, text, runner(module), module)


def _is_attention(pair: Pair) -> bool | None:
    """Return whether the reference is causal attention; None where it is no attention."""
    specs = pair.specs
    if len(specs) != 3 or any(s.integral or len(s.shape) < 2 for s in specs):
        return None
    if pair.reference.params or pair.reference.dropouts:
        return None
    inputs = pair.draw(pair.options.seed).inputs
    tensors = [torch.from_numpy(np.array(a, dtype=np.float64)) for a in inputs]
    with torch.no_grad():
        given = root_of(pair)(*tensors)
        for causal in (False, True):
            made = Rule(causal)(*tensors)
            if isinstance(given, torch.Tensor) and given.shape == made.shape:
                if bool((given - made).abs().max() <= NEAR * made.abs().max()):
                    return causal
    return None


def _rules(causal: bool) -> Iterator[tuple[str, str, Rule]]:
    text = "the softmax runs over the queries, torch's over the keys"
    yield "softmax_over_wrong_axis", text, Rule(causal, axis=-2)
    text = "the scores are divided by the root of the number of queries, in torch of the last axis"
    yield "scaled_by_length", text, Rule(causal, by_length=True)
    if not causal:
        yield "causal_mask_added", "a query sees no later key, in torch all", Rule(True)
        return
    yield "causal_mask_missing", "there is no causal mask: a query sees later keys too", Rule()
    text = "the causal mask is transposed: a query sees later keys, not earlier ones"
    yield "causal_mask_transposed", text, Rule(True, turned=True)
    text = "the causal mask leaves the next key in sight"
    yield "causal_mask_off_by_one", text, Rule(True, ahead=1)
    text = "the mask comes after the softmax: the weights of a query do not add up to 1"
    yield "masked_after_softmax", text, Rule(True, masking="after")
    text = "masked scores are 0, in torch -inf: they keep a weight in the softmax"
    yield "masked_with_zero", text, Rule(True, masking="zeros")


@hypotheses
def other_heads(pair: Pair) -> Iterator[Hypothesis]:
    """Scores of several heads that are scaled by another size than that of a head."""
    for path, layer in root_of(pair).named_modules():
        if not isinstance(layer, nn.MultiheadAttention) or layer.in_proj_weight is None:
            continue
        head, whole = layer.embed_dim // layer.num_heads, layer.embed_dim
        where = f" in layer {path!r}" if path else ""
        for name, text, factor in (
            (
                "scaled_by_embed_dim",
                "1/√embed_dim, torch's by 1/√head_dim",
                math.sqrt(head / whole),
            ),
            ("scale_missing", "nothing, torch's by 1/√head_dim", math.sqrt(head)),
            ("scale_applied_twice", "1/head_dim, torch's by 1/√head_dim", 1 / math.sqrt(head)),
        ):
            if factor != 1:
                start = f"{path}." if path else ""
                predict = partial(_scaled_queries, start, whole, factor)
                yield Hypothesis(name, f"the scores are scaled by {text}{where}", predict)


def _scaled_queries(start: str, rows: int, factor: float, trial: Trial) -> Quantities | None:
    """Predict a pass whose queries, and so its scores, are ``factor`` times torch's."""
    names = [
        n for n in (f"{start}in_proj_weight", f"{start}in_proj_bias") if n in trial.draw.params
    ]

    def scaled(array: Any) -> Any:
        return np.concatenate([factor * array[:rows], array[rows:]])

    held = trial.draw.params
    found = trial.run(params={**held, **{n: scaled(held[n]) for n in names}})
    if found is None:
        return None
    grads = {f"grad_{n}": found.get(f"grad_{n}") for n in names}
    return {**found, **{n: None if a is None else scaled(a) for n, a in grads.items()}}
