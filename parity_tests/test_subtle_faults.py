"""Faults that show in one place only: at a kink, beside a threshold, in one size, late, far out."""

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity

SMALL = (2, 3)  # few elements: chance alone would not put one of them on a kink


class KinkAtZero:
    """ReLU whose gradient at exactly zero is 1."""

    def forward(self, x):
        self.x = x
        return np.maximum(x, 0)

    def backward(self, grad):
        return grad * (self.x >= 0)


class EvenPool:
    """Average pooling by 2 that is wrong where the image is not square, and takes even sizes."""

    def forward(self, x):
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
        return y if h == w else y[..., ::-1]

    def backward(self, grad):
        return np.repeat(np.repeat(grad, 2, 2), 2, 3) / 4


class ClippedLinear(impl.Linear):
    """Clips its output, far out."""

    def forward(self, x):
        return np.clip(super().forward(x), -1e3, 1e3)


class ClippedGradient(impl.Linear):
    """Clips the gradient it hands on."""

    def backward(self, grad_output):
        return np.clip(super().backward(grad_output), -50, 50)


class OtherDelta:
    """Huber's loss whose backward turns at 0.999 in place of 1."""

    def forward(self, x, target):
        self.d = x - target
        a = np.abs(self.d)
        return np.where(a <= 1, self.d**2 / 2, a - 0.5).mean()

    def backward(self, grad=1.0):
        bent = np.where(np.abs(self.d) < 0.999, self.d, np.sign(self.d))
        return grad * bent / self.d.size


class Tires(impl.Linear):
    """Right three times, and a little off from the fourth pass on."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 if self.calls < 4 else 1 + 1e-6)


class OneGradient:
    """A product that hands back the gradient of its first factor alone."""

    def forward(self, a, b):
        self.b = b
        return a * b

    def backward(self, grad):
        return grad * self.b


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("mine", "theirs", "inputs"),
    [
        (KinkAtZero, nn.ReLU(), (SMALL,)),
        (EvenPool, nn.AvgPool2d(2), ((2, 3, 4, 4),)),
        (lambda: ClippedLinear(4, 3), nn.Linear(4, 3), ((5, 4),)),
        (lambda: ClippedGradient(4, 3), nn.Linear(4, 3), ((5, 4),)),
        (OtherDelta, nn.HuberLoss(), ((6, 4), (6, 4))),
        (lambda: Tires(4, 3), nn.Linear(4, 3), ((5, 4),)),
        (OneGradient, torch.mul, ((5, 4), (5, 4))),
    ],
    ids=["kink", "not-square", "clipped", "clipped-gradient", "threshold", "late", "one-gradient"],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_fault_in_one_place_is_caught(mine, theirs, inputs, seed):
    assert not parity.check(mine, theirs, *inputs, seed=seed).passed


def test_a_pass_that_changes_late_is_called_so():
    report = parity.check(lambda: Tires(4, 3), nn.Linear(4, 3), (5, 4))
    causes = {f.cause.name for f in report.findings if f.failed and f.cause}
    assert "not_repeatable" in causes
    assert "a later pass" in str(report)


def test_a_gradient_that_is_missing_is_told_from_one_that_is_declined():
    class Declines(OneGradient):
        def backward(self, grad):
            return super().backward(grad), None

    assert parity.check(Declines, torch.mul, (5, 4), (5, 4)).passed
    text = str(parity.check(OneGradient, torch.mul, (5, 4), (5, 4)))
    assert "with None for an input that has none on purpose" in text


def test_a_sound_layer_of_even_sizes_is_seen_on_other_sizes_too():
    class Sound(EvenPool):
        def forward(self, x):
            n, c, h, w = x.shape
            return x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))

    report = parity.check(Sound, nn.AvgPool2d(2), (2, 3, 4, 4), strict=False)
    assert report.passed
    assert {"size (2, 3, 4, 8)", "size (2, 3, 8, 4)"} <= set(report.covers)
