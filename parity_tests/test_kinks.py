"""Ties, zeros and infinities in given arrays are decided: torch's side of a kink, or a mismatch."""

import numpy as np
import pytest
from torch import nn

import impl
import parity
from fixtures.cases.inputs import NOT_FINITE, ON_MARGIN, SIGNED_ZEROS


class PassesAtZero(impl.ReLU):
    def forward(self, x):
        self.x = x
        return super().forward(x)

    def backward(self, grad):
        return np.where(self.x >= 0, grad, 0)


class ClosedThreshold(impl.Threshold):
    def forward(self, x):
        super().forward(x)
        return np.where(x < self.threshold, self.value, x).astype(x.dtype)


class PullsOnTheMargin(impl.MultiMarginLoss):
    def _gradient(self, grad):
        self._excess[self._excess == 0] = np.finfo(self._excess.dtype).tiny
        return super()._gradient(grad)


FAULTS = (
    (PassesAtZero(), nn.ReLU(), (SIGNED_ZEROS,), "grad_input0"),
    (PassesAtZero(), nn.ReLU(), (NOT_FINITE,), "grad_input0"),
    (ClosedThreshold(1.0, 7.0), nn.Threshold(1.0, 7.0), (SIGNED_ZEROS,), "forward"),
    (PullsOnTheMargin(), nn.MultiMarginLoss(), (ON_MARGIN, np.array([0, 1, 0, 2])), "grad_input0"),
)


@pytest.mark.parametrize(("mine", "theirs", "inputs", "quantity"), FAULTS)
def test_the_wrong_side_of_a_kink_is_a_mismatch(mine, theirs, inputs, quantity):
    report = parity.check(mine, theirs, *inputs, diagnose=False)
    assert parity.Verdict.MISMATCH in {f.verdict for f in report.of(quantity)}, str(report)


@pytest.mark.parametrize("inputs", [SIGNED_ZEROS, NOT_FINITE], ids=["zeros", "not finite"])
def test_the_right_side_is_a_match_and_not_left_open(inputs):
    report = parity.check(impl.ReLU(), nn.ReLU(), inputs, strict=True)
    assert report.passed, str(report)
