"""Data that no draw holds by itself: the ends of a domain, other sizes; and what is said of it."""

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity
from parity.diagnosis.registry import multiple, second_axis
from parity.ends import at_ends, bounded, sentinel, unasked

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        (parity.uniform(6, 5), 0.0, 1.0),
        (parity.uniform(3, low=-2.0, high=0.5), -2.0, 0.5),
        (parity.probabilities(6, 5), 0.0, 1.0),
        (parity.log_probabilities(6, 5), -700.0, 0.0),
        (parity.labels(4, classes=9), 0, 8),
        (parity.integers(3, 4, low=2, high=90), 2, 89),
    ],
    ids=repr,
)
def test_both_ends_are_drawn(spec, low, high):
    assert bounded(spec)
    for seed in range(5):
        drawn = at_ends(spec, np.random.default_rng(seed))
        assert drawn.shape == spec.shape
        assert drawn.dtype == spec.draw(RNG).dtype
        assert (drawn.min(), drawn.max()) == (low, high)


def test_rows_still_add_to_one():
    drawn = at_ends(parity.probabilities(4, 3, 5), RNG)
    np.testing.assert_allclose(drawn.sum(axis=1), 1.0)


def test_what_has_no_ends_is_drawn_as_ever():
    assert not bounded(parity.normal(8, 4))
    assert not bounded(parity.one_hot(8, 4))
    assert not bounded(parity.labels(8, classes=4))  # any draw holds the first and the last
    assert at_ends(parity.normal(8, 4), RNG).shape == (8, 4)
    assert at_ends(parity.uniform(0, 4), RNG).shape == (0, 4)


def test_an_ignored_label_outside_the_classes_is_drawn():
    assert sentinel(nn.CrossEntropyLoss()) is None
    assert [sentinel(nn.NLLLoss(ignore_index=k)) for k in (-1, 0, 255)] == [-1, 0, 255]
    drawn = at_ends(parity.labels(8, classes=4), RNG, -1)
    assert -1 in drawn
    assert drawn.max() < 4
    inputs = (8, 4), parity.labels(8, classes=4)
    theirs = nn.CrossEntropyLoss(ignore_index=-1)
    assert parity.check(impl.CrossEntropyLoss(ignore_index=-1), theirs, *inputs).passed

    class Ignores(nn.Module):
        def forward(self, x, y):  # the last class in place of nothing
            return nn.functional.cross_entropy(x, y % 4)

    assert not parity.check(Ignores(), theirs, *inputs).passed


class Naive:
    """Binary cross-entropy as the formula stands in the book."""

    def forward(self, p, y):
        self.p, self.y = p, y
        return -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()

    def backward(self, g=1.0):
        return g * (self.p - self.y) / (self.p * (1 - self.p)) / self.p.size


def test_certain_predictions_are_tried_unasked():
    report = parity.check(Naive(), nn.BCELoss(), parity.uniform(6, 5), parity.uniform(6, 5))
    assert {f.evidence["draw"] for f in report.failures} == {"ends of the domain"}
    assert report.cause.name == "boundary_not_guarded"
    assert "exactly 0 or 1" in report.cause.sentence


def test_where_torch_has_no_gradient_any_is_taken():
    """0·log 0: torch's derivative of x·log(x) at 0 is -inf, of a product with 0 it is NaN."""
    mine = {"grad_a": np.array([0.0, 2.0]), "forward": np.array([1.0, 2.0])}
    theirs = {"grad_a": np.array([np.nan, 2.0]), "forward": np.array([np.nan, 2.0])}
    found = unasked(mine, theirs)
    np.testing.assert_array_equal(found["grad_a"], theirs["grad_a"])
    np.testing.assert_array_equal(found["forward"], mine["forward"])


class Only(nn.Conv2d):
    """Wrong at some sizes alone."""

    def forward(self, x):
        y = super().forward(x)
        return y * 1.001 if self.wrong(x) else y


@pytest.mark.parametrize(
    ("wrong", "shape"),
    [
        (lambda x: len(x) >= 3, (1, 3, 7, 7)),
        (lambda x: len(x) >= 3, (2, 3, 7, 7)),
        (lambda x: x.shape[2] % 2 == 0, (2, 3, 7, 8)),
        (lambda x: x.shape[2] % 2 == 1, (2, 3, 8, 8)),
        (lambda x: x.shape[3] % 2 == 0, (1, 3, 9, 9)),
    ],
)
def test_sizes_that_were_not_asked_for(wrong, shape):
    mine = Only(3, 4, 3)
    mine.wrong = wrong
    assert not parity.check(mine, nn.Conv2d(3, 4, 3), shape, diagnose=False).passed


def test_a_sequence_of_another_length():
    class Even(nn.Conv1d):
        def forward(self, x):
            y = super().forward(x)
            return y * 1.001 if x.shape[-1] % 2 == 0 else y

    theirs = nn.Conv1d(3, 4, 3)
    assert not parity.check(Even(3, 4, 3), theirs, (2, 3, 7), diagnose=False).passed


@pytest.mark.parametrize("seed", [0, 18, 84])  # at 18 torch's own gradients are subnormal
def test_overflow_within_a_model_is_named(seed):
    torch.manual_seed(seed)

    class Scores(nn.Module):
        def forward(self, x):
            return torch.exp(x) / torch.exp(x).sum(1, keepdim=True)

    def net(last):
        return nn.Sequential(nn.Linear(4, 3), last)

    report = parity.check(net(Scores()), net(nn.Softmax(1)), (6, 4))
    assert report.cause.name == "overflow"


def test_factors_are_shown_as_they_are():
    shown = {k: multiple(k) for k in (1 + 1e-9, 1 - 1e-9, 8.0, 0.125, -1.0, -1 - 1e-9)}
    assert list(shown.values()) == [
        "(1 + 1e-09)", "(1 - 1e-09)", "8", "1/8", "-1", "-(1 + 1e-09)",
    ]  # fmt: skip


def test_axis_one_has_its_own_name():
    assert second_axis((np.zeros((2, 3, 4, 4)),)) == "channels"
    assert second_axis((np.zeros((2, 3)), np.zeros(2, np.int64))) == "classes"
    assert second_axis((np.zeros((2, 3)), np.zeros((2, 3)))) == "features"


def test_a_guard_that_torch_holds_in_float32_is_no_fault():
    class Loss:
        """The formula of torch's page, guard included."""

        def __init__(self, guard):
            self.guard = guard

        def forward(self, p, t):
            self.p, self.t = p, t
            logs = np.log(np.maximum(p, 1e-300)), np.log(np.maximum(1 - p, 1e-300))
            first, second = (np.maximum(log, -100) for log in logs)
            return -np.mean(t * first + (1 - t) * second)

        def backward(self, g):
            p = self.p
            return g * (p - self.t) / np.maximum(p * (1 - p), self.guard) / p.size

    inputs = parity.uniform(8, 4), parity.uniform(8, 4)
    assert parity.check(Loss(1e-12), nn.BCELoss(), *inputs).passed
    assert not parity.check(Loss(1e-11), nn.BCELoss(), *inputs, diagnose=False).passed
