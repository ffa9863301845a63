"""Where torch's one-step formula is coarse near 0, who computes finely is right all the same."""

import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity import Verdict
from parity_tests.several import seeds


class _Coarse(torch.autograd.Function):
    """exp(x) - 1 in one operation, as torch's ELU was before 2.9: no other shows its rounding."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.asarray(np.exp(x.detach().numpy()) - 1))

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.exp()


class Coarse(nn.Module):
    def forward(self, x):
        return _Coarse.apply(x)


class Fine:
    """expm1; a share of x and a bound below which it answers 0 make it wrong."""

    def __init__(self, off=0.0, dead=0.0):
        self.off, self.dead = off, dead

    def forward(self, x):
        self.x = x
        y = np.expm1(x) + (self.off * x).astype(x.dtype)
        return np.where(np.abs(x) < self.dead, x.dtype.type(0), y)

    def backward(self, grad):
        return grad * np.exp(self.x)


@pytest.mark.parametrize("seed", seeds(6))
def test_finer_than_torch_is_no_fault(seed):
    report = parity.check(Fine(), Coarse(), (8, 4), seed=seed)
    assert report.passed, str(report)


@pytest.mark.parametrize("wrong", [{"off": 1e-9}, {"dead": 1e-9}])
@pytest.mark.parametrize("seed", seeds(4))
def test_what_is_coarser_than_torch_is_a_fault(wrong, seed):
    report = parity.check(Fine(**wrong), Coarse(), (8, 4), seed=seed)
    assert Verdict.MISMATCH in {f.verdict for f in report.of("forward")}


@pytest.mark.parametrize("seed", seeds(4))
def test_a_dead_zone_grants_nothing(seed):
    class Leaky:
        def forward(self, x):
            self.x = x
            return np.where(np.abs(x) > 0.5, x, x * x.dtype.type(1e-9))

        def backward(self, grad):
            return np.where(np.abs(self.x) > 0.5, grad, grad * grad.dtype.type(1e-9))

    report = parity.check(Leaky(), nn.Hardshrink(0.5), (8, 4), seed=seed)
    assert Verdict.MISMATCH in {f.verdict for f in report.of("forward")}
