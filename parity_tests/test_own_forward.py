"""Where torch's own gradient contradicts its forward pass, the right one is no fault."""

import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity import Verdict
from parity.quirks import holds
from parity_tests.several import seeds


class Hardsigmoid:
    """Its bounds, and by how much its gradient is off, are told."""

    def __init__(self, bound=3.0, off=0.0, edge=0.0):
        self.bound, self.off, self.edge = bound, off, edge

    def forward(self, x):
        self.x = x
        return np.clip(x / (2 * self.bound) + 0.5, 0, 1)

    def backward(self, grad):
        inside = (self.x > -self.bound) & (self.x < self.bound)
        slope = (1 + self.off) * inside / (2 * self.bound)
        return (grad * (slope + self.edge * (np.abs(self.x) > 1) * inside)).astype(grad.dtype)


class CELU:
    """With alpha 0.7; by how much the exponential in its gradient is off is told."""

    def __init__(self, off=0.0):
        self.off = off

    def forward(self, x):
        self.x = x
        return np.maximum(x, 0) + 0.7 * np.expm1(np.minimum(x, 0) / 0.7)

    def backward(self, grad):
        below = np.exp(np.minimum(self.x, 0) / 0.7)
        return grad * np.where(self.x > 0, 1, below + self.off).astype(grad.dtype)


class Clamped(nn.Module):
    """A net with the same function by torch's clamp, whose gradient is exact."""

    def __init__(self, off=0.0):
        super().__init__()
        self.a, self.b, self.off = nn.Linear(5, 8), nn.Linear(8, 3), off

    def forward(self, x):
        h = self.a(x)
        y = torch.clamp(h / 6 + 0.5, 0, 1)
        return self.b(y + self.off * (y - y.detach()))  # another gradient, the same value


def net():
    return nn.Sequential(nn.Linear(5, 8), nn.Hardsigmoid(), nn.Linear(8, 3))


NAMES = {"a.weight": "0.weight", "a.bias": "0.bias", "b.weight": "2.weight", "b.bias": "2.bias"}
ROWS = (
    (Hardsigmoid, nn.Hardsigmoid, (8, 4), {}),
    (Hardsigmoid, nn.Hardsigmoid, (3, 20, 7), {}),
    *(() if holds("elu_cancels") else (  # there torch's forward pass is wrong as well
        (CELU, lambda: nn.CELU(0.7), (8, 4), {}),
        (CELU, lambda: nn.CELU(0.7), (3, 20, 7), {}),
    )),
    (Clamped, net, (6, 5), {"weights": NAMES}),
)  # fmt: skip


@pytest.mark.one_in(8)
@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize(("mine", "theirs", "shape", "options"), ROWS)
def test_the_right_gradient_passes_and_torchs_error_is_said(mine, theirs, shape, options, seed):
    report = parity.check(mine(), theirs(), shape, seed=seed, strict=True, **options)
    assert report.passed, str(report)
    assert any("torch's own float64 grad" in note and "e-08" in note for note in report.notes)


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    ("seed", "off"), [(0, 1e-8), pytest.param(1, -6e-8, marks=pytest.mark.slow), (2, 3e-7)]
)
@pytest.mark.parametrize(("mine", "theirs", "shape", "options"), ROWS)
def test_an_error_of_that_size_in_mine_stays_a_fault(mine, theirs, shape, options, off, seed):
    report = parity.check(mine(off=off), theirs(), shape, seed=seed, **options)
    assert Verdict.MISMATCH in {f.verdict for f in report.findings}, str(report)


@pytest.mark.parametrize("seed", seeds(3))
def test_where_torch_is_exact_a_constant_rounded_to_float32_is_a_fault(seed):
    class Tanh:
        def forward(self, x):
            self.y = np.tanh(x)
            return self.y

        def backward(self, grad):
            return (grad * (1 - self.y**2) * np.float64(np.float32(1 / 3)) * 3).astype(grad.dtype)

    report = parity.check(Tanh(), nn.Tanh(), (8, 4), seed=seed)
    assert report.of("grad_input0")[0].verdict is Verdict.MISMATCH
    assert not any("torch's own" in note for note in report.notes)


def test_wrong_bounds_and_a_piece_that_is_wrong_are_caught():
    wrong = parity.check(Hardsigmoid(bound=2.5), nn.Hardsigmoid(), (8, 4))
    assert wrong.of("forward")[0].verdict is Verdict.MISMATCH
    assert wrong.of("grad_input0")[0].verdict is Verdict.MISMATCH
    piece = parity.check(Hardsigmoid(edge=2e-8), nn.Hardsigmoid(), (8, 4))
    assert piece.of("grad_input0")[0].verdict is Verdict.MISMATCH


@pytest.mark.one_in(3)
@pytest.mark.skipif(holds("elu_cancels"), reason="torch's forward pass is wrong there as well")
@pytest.mark.parametrize("shape", [(5, 7), (1, 1)], ids=["beside-a-register", "one-element"])
@pytest.mark.parametrize("seed", [2, 4, 6])
def test_a_right_gradient_passes_on_the_kink_too(shape, seed):
    assert parity.check(CELU(), nn.CELU(0.7), shape, seed=seed).passed
