"""The reference's own rounding, measured by moving what its operations answer by one ulp."""

import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity import Verdict, wobble
from parity.draws import Draw
from parity.torch_side import TorchSide
from parity_tests.several import seeds


class Tanhshrink:
    """Torch's own formula; a share of x³ and a bound below which it answers 0 make it wrong."""

    def __init__(self, off=0.0, dead=0.0):
        self.off, self.dead = off, dead

    def forward(self, x):
        self.t = np.tanh(x)
        y = x - self.t + self.off * x.dtype.type(1) * x**3
        return np.where(np.abs(x) < self.dead, 0, y).astype(x.dtype)

    def backward(self, grad):
        return grad * self.t**2


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("shape", [(8, 4), (3, 20, 7)])
def test_cancellation_inside_of_torchs_formula_is_no_fault(shape, seed):
    report = parity.check(Tanhshrink(), nn.Tanhshrink(), shape, seed=seed, strict=True)
    assert report.passed, str(report)


@pytest.mark.parametrize("wrong", [{"off": 1e-6}, {"dead": 1e-3}])
@pytest.mark.parametrize("seed", seeds(3))
def test_what_is_no_rounding_is_a_fault_still(wrong, seed):
    report = parity.check(Tanhshrink(**wrong), nn.Tanhshrink(), (8, 4), seed=seed)
    assert Verdict.MISMATCH in {f.verdict for f in report.of("forward")}


@pytest.mark.parametrize("seed", seeds(3))
def test_digits_lost_where_torch_loses_none_are_a_fault_still(seed):
    class ELU:
        def forward(self, x):
            self.x = x
            return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)

        def backward(self, grad):
            return grad * np.where(self.x > 0, 1, np.exp(np.minimum(self.x, 0)))

    exact = type("Exact", (nn.Module,), {"forward": lambda self, x: torch.where(
        x > 0, x, torch.expm1(torch.clamp(x, max=0.0)))})  # fmt: skip
    assert not parity.check(ELU(), exact(), (8, 4), seed=seed, strict=True).passed


class Busy(nn.Module):
    """Views, writes, integers, random numbers, factories; and what it was given, left alone."""

    def forward(self, x):
        kept = x.clone()
        flat = kept.view(-1)
        flat.mul_(1.0)
        order = flat.argsort()
        with torch.no_grad():
            self.drawn = torch.rand(3, dtype=x.dtype)
            self.made = torch.full((3,), 0.1, dtype=x.dtype)
        self.order, self.shared = order, flat
        self.exact = torch.relu(torch.cat([kept, -kept])) * 0
        return torch.tanh(kept) + self.exact[: len(kept)]


def test_only_what_was_rounded_is_moved():
    side = TorchSide(Busy())
    x = np.random.default_rng(0).standard_normal((4, 3))
    draw = Draw((x,), upstream=(np.ones((4, 3)),))
    plain = side.run(draw)
    module = side.copy("float64")
    before = module.order.clone(), module.drawn.clone(), module.made.clone()
    state = torch.get_rng_state()
    runs = wobble.wobbled(side, draw)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(runs) == wobble.RUNS
    for now, then in zip((module.order, module.drawn, module.made), before, strict=True):
        assert torch.equal(now, then)
    assert np.array_equal(module.shared.detach().numpy().reshape(4, 3), x)
    moved = np.abs([run["forward"] - plain.outputs[0] for run in runs])
    assert (moved.max(0) > 0).all()
    assert (moved <= 2 * np.spacing(np.abs(plain.outputs[0]))).all()
    gradient = plain.quantities["grad_input0"]
    assert all(
        (np.abs(run["grad_input0"] - gradient) <= 8 * np.spacing(np.abs(gradient))).all()
        for run in runs
    )
    assert any((run["grad_input0"] != gradient).any() for run in runs)
    again = side.run(draw)
    assert np.array_equal(again.outputs[0], plain.outputs[0])  # the mode is gone


def test_a_module_that_refuses_the_mode_measures_nothing(monkeypatch):
    class Refuses(nn.Module):
        def forward(self, x):
            raise RuntimeError("no mode here")

    draw = Draw((np.ones(3),), upstream=(np.ones(3),))
    assert wobble.wobbled(TorchSide(Refuses()), draw) == []
    monkeypatch.setattr(wobble, "TorchDispatchMode", None)  # as in a torch without it
    assert wobble.wobbled(TorchSide(nn.Tanh()), draw) == []
