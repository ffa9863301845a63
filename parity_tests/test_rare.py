"""Numbers that usual draws do not hold: every fault they show is caught, and no right layer."""

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity
from fixtures.mutants.rare import MUTANTS
from fixtures.mutants.row import tried
from fixtures.recurrent import GRU

SEEDS = range(20, 23)
N = (8, 4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_a_fault_that_rare_numbers_show_is_caught_and_named(mutant, seed):
    trial = tried(mutant, seed=seed)
    assert trial.killed
    assert trial.named, trial.names


class Clipping(torch.autograd.Function):
    """Hands its input on, and back a gradient that is clipped on purpose."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-5, 5)


class Clips:
    def forward(self, x):
        return x.copy()

    def backward(self, grad):
        return np.clip(grad, -5, 5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("mine", "theirs", "inputs"),
    [
        (Clips, Clipping.apply, (N,)),
        (lambda: GRU(3, 4, batch_first=True), nn.GRU(3, 4, batch_first=True), ((2, 5, 3),)),
        (lambda: impl.Dropout(0.5), nn.Dropout(0.5), (N,)),
        (impl.BCELoss, nn.BCELoss(), (parity.uniform(*N, low=0.1, high=0.9), parity.uniform(*N))),
    ],
    ids=["clips-as-torch-does", "gru", "dropout", "loss"],
)
def test_large_gradients_accuse_no_right_layer(mine, theirs, inputs, seed):
    report = parity.check(mine(), theirs, *inputs, seed=seed, strict=False)
    assert report.passed, report
    assert "large gradients" in report.covers
