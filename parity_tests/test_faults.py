"""Faults that usual comparisons let through are caught, and correct layers are not called wrong."""

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity
from fixtures.population_numpy import OnePass
from parity import Verdict

BATCH = (6, 3, 5, 5)


class ZeroBackward(impl.BatchNorm2d):
    """A backward that returns zeros: invisible under an all-ones upstream gradient."""

    def backward(self, grad_output):
        return super().backward(grad_output) * 0


class BiasedRunningVariance(impl.BatchNorm2d):
    """Tracks the biased variance: short of torch's by n / (n - 1)."""

    def _track(self, mean, variance, count):
        super()._track(mean, variance * ((count - 1) / count), count)


class AveragedBias(impl.Linear):
    """Averages the bias gradient over the batch, which belongs to the loss."""

    def _accumulate(self, name, array):
        super()._accumulate(name, array / 8 if name == "bias" else array)


class Overwrites(impl.Linear):
    """Overwrites gradients in place of adding to them."""

    def backward(self, grad_output):
        self.grads.clear()
        return super().backward(grad_output)


class CastsInput(impl.Linear):
    """Rounds its input through float32, which float32 data would hide."""

    def forward(self, x):
        return super().forward(x.astype(np.float32).astype(x.dtype))


class LastTie:
    """Max pooling by 2 whose gradient goes to the last of equal elements."""

    def forward(self, x):
        n, c, h, w = x.shape
        self.windows = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5)
        return self.windows.max(axis=(-1, -2))

    def backward(self, grad):
        n, c, h, w = grad.shape
        flat = self.windows.reshape(n, c, h, w, 4)
        last = 3 - flat[..., ::-1].argmax(axis=-1)
        spread = (np.arange(4) == last[..., None]) * grad[..., None]
        rows = spread.reshape(n, c, h, w, 2, 2).transpose(0, 1, 2, 4, 3, 5)
        return rows.reshape(n, c, 2 * h, 2 * w)


class OneAtZero(impl.ReLU):
    """Takes 1 for the derivative at 0."""

    def forward(self, x):
        self.x = x
        return super().forward(x)

    def backward(self, grad_output):
        return grad_output * (self.x >= 0)


class RoughELU(impl.ELU):
    """exp(x) - 1 where expm1 belongs."""

    def forward(self, x):
        super().forward(x)
        return np.maximum(x, 0) + np.exp(np.minimum(x, 0)) - 1


FAULTS = {
    "batchnorm-backward-zero": (ZeroBackward(3), nn.BatchNorm2d(3), BATCH, "grad_input0"),
    "biased-running-variance": (
        BiasedRunningVariance(3),
        nn.BatchNorm2d(3),
        BATCH,
        "buffer_running_var",
    ),
    "momentum-swapped": (
        impl.BatchNorm2d(3, momentum=0.9),
        nn.BatchNorm2d(3),
        BATCH,
        "buffer_running_mean",
    ),
    "bias-averaged": (AveragedBias(4, 3), nn.Linear(4, 3), (8, 4), "grad_bias"),
    "gradient-overwritten": (Overwrites(4, 3), nn.Linear(4, 3), (8, 4), "accumulate"),
    "float32-cast-inside": (CastsInput(4, 3), nn.Linear(4, 3), (8, 4), "forward"),
    "last-tie": (LastTie(), nn.MaxPool2d(2), (2, 3, 6, 6), "grad_input0"),
    "relu-one-at-zero": (OneAtZero(), nn.ReLU(), (5, 7), "grad_input0"),
    "elu-without-expm1": (RoughELU(), nn.ELU(), (5, 7), "forward"),
}


@pytest.mark.parametrize(("mine", "theirs", "shape", "quantity"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_caught(mine, theirs, shape, quantity):
    """The finding is a MISMATCH of the quantity that is wrong."""
    report = parity.check(mine, theirs, shape)
    assert not report.passed
    assert Verdict.MISMATCH in {f.verdict for f in report.of(quantity)}, str(report)


class A2(impl.Sequential):
    """A2's net on its own images, with a chosen eps."""

    def __init__(self, eps):
        super().__init__(
            impl.Conv2d(1, 4, 3),
            impl.BatchNorm2d(4, eps=eps),
            impl.ReLU(),
            impl.AvgPool2d(2, stride=2),
            impl.Flatten(),
            impl.Linear(4, 2),
        )


def a2_reference():
    """Return A2's net in torch."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2, stride=2),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def test_eps_of_the_skeleton_is_caught():
    """eps = 1e-20 passes a tolerance of 1e-3; it must not pass here, and 1e-5 must."""
    wrong = parity.check(A2(1e-20), a2_reference(), (4, 1, 5, 5), diagnose=False)
    assert not wrong.passed
    assert parity.check(A2(1e-5), a2_reference(), (4, 1, 5, 5)).passed


class NaiveSum:
    """One running sum over a vector."""

    def forward(self, x):
        self.shape = x.shape
        return np.cumsum(x)[-1]

    def backward(self, grad):
        return np.full(self.shape, grad)


@pytest.mark.slow
def test_one_pass_variance_far_from_zero_is_inaccurate():
    """Mean 1e3: rounding, only rougher, in float64 and float32; never a MISMATCH."""

    def far(rng):
        return rng.standard_normal((512, 3)) + 1e3

    report = parity.check(OnePass(3), nn.BatchNorm1d(3), far)
    verdicts = {f.verdict for f in report.findings}
    assert Verdict.INACCURATE in verdicts
    assert Verdict.MISMATCH not in verdicts, str(report)
    assert report.passed
    strict = parity.check(OnePass(3), nn.BatchNorm1d(3), far, strict=True, diagnose=False)
    assert not strict.passed


@pytest.mark.slow
def test_a_naive_sum_of_a_million_terms_is_inaccurate():
    """The report gives the measured ratio to torch's own error."""
    report = parity.check(NaiveSum(), torch.sum, lambda rng: rng.random(1_000_000))
    (finding,) = [f for f in report.of("forward") if f.dtype == "float32"]
    assert finding.verdict is Verdict.INACCURATE
    assert finding.evidence["ratio_to_torch"] > 4
    assert report.passed, str(report)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("seed", range(4))
def test_a_bias_before_batchnorm_is_zero_by_construction(seed):
    """Both sides are rounding noise in the bias's gradient: said so, neither vacuous nor wrong."""
    mine = impl.Sequential(impl.Conv2d(2, 3, 3), impl.BatchNorm2d(3))
    theirs = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    report = parity.check(mine, theirs, (4, 2, 6, 6), seed=seed)
    assert report.passed, str(report)
    assert all(f.verdict is Verdict.MATCH for f in report.of("grad_0.bias"))
    assert any("zero by construction" in note for note in report.notes)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("seed", range(6))
def test_batchnorm_of_two_is_right(seed):
    """N = 2 amplifies rounding by thousands; it is no fault."""
    report = parity.check(impl.BatchNorm1d(5), nn.BatchNorm1d(5), (2, 5), seed=seed, strict=True)
    assert not report.failures, str(report)


def test_dead_units_are_a_correct_case_where_the_row_says_so():
    """All ReLUs dead: every gradient before them is zero, and the row says that it is meant."""

    def nets(library):
        return library.Sequential(library.Linear(4, 3), library.ReLU())

    weights = {"0.weight": np.zeros((3, 4)), "0.bias": -np.ones(3)}
    silent = parity.check(nets(impl), nets(nn), (8, 4), weights=weights)
    assert Verdict.VACUOUS in {f.verdict for f in silent.findings}
    said = parity.check(nets(impl), nets(nn), (8, 4), weights=weights, expects_zero=True)
    assert said.passed, str(said)


def test_a_step_function_is_right():
    """torch.heaviside has no derivative; the hand-written one returns zeros."""

    def step(x):
        return torch.heaviside(x, torch.zeros((), dtype=x.dtype))

    assert parity.check(impl.Heaviside(0.0), step, (5, 7)).passed
