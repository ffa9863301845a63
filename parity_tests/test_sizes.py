"""Sizes, labels and gradients that nobody asked for: what is wrong at those alone is caught."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import impl
import parity
from parity.checking import make_pair
from parity.options import Options
from parity.sizes import MANY, batches, other_sizes

IMAGE, LABELS = (2, 3, 6, 6), parity.labels(8, classes=5)
PIXELS = parity.labels(2, 5, 5, classes=4)


def pair(theirs, *inputs):
    return make_pair(theirs, theirs, inputs, Options())


def sizes(theirs, *inputs):
    return {shapes[0] for shapes, _ in other_sizes(pair(theirs, *inputs))}


class Odd(nn.Module):
    """Right, but where ``when`` says so of the input."""

    def __init__(self, right, when):
        super().__init__()
        self.right, self.when = right, when

    def forward(self, x, *others):
        y = self.right(x, *others)
        if not self.when(x):
            return y
        return tuple(2 * part for part in y) if isinstance(y, tuple) else 2 * y


def check(theirs, when, *inputs):
    names = {f"right.{name}": name for name, _ in theirs.named_parameters()}
    return parity.check(Odd(theirs, when), theirs, *inputs, weights=names, diagnose=False)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("theirs", "when", "inputs"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), lambda x: min(x.shape[2:]) < 5, [IMAGE]),
        (nn.Conv2d(3, 4, 3, padding=1), lambda x: x.shape[2] > x.shape[3], [(2, 3, 4, 7)]),
        (nn.Conv2d(3, 4, 3, padding=1), lambda x: x.shape[2] < x.shape[3], [(2, 3, 7, 4)]),
        (nn.Conv2d(3, 4, 3), lambda x: x.shape[2] > 16, [IMAGE]),
        (nn.AdaptiveAvgPool1d(5), lambda x: 1 < x.shape[2] < 5, [(2, 3, 7)]),
        (nn.Linear(4, 3), lambda x: x.shape[1] == 1, [(5, 6, 4)]),
        (nn.Linear(4, 3), lambda x: len(x) > 64, [(8, 4)]),
        (nn.Linear(4, 3), lambda x: len(x) == 2, [(8, 4)]),
        (nn.Softmax(1), lambda x: x.shape[1] > 32, [(8, 4)]),
        (nn.RNN(3, 4), lambda x: x.shape[0] > 6, [(5, 2, 3)]),
        (nn.RNN(3, 4, batch_first=True), lambda x: x.shape[1] < 4, [(2, 5, 3)]),
        (nn.MSELoss(), lambda x: x.shape[1] > 8, [(8, 4), (8, 4)]),
        (nn.CrossEntropyLoss(), lambda x: x.shape[2] > 8, [(2, 4, 5, 5), PIXELS]),
    ],
    ids=["small", "tall", "wide", "long", "stretched", "one-step", "blocks", "two", "classes",
         "sequence", "short-sequence", "features", "pixels"],
)  # fmt: skip
def test_a_fault_at_another_size_alone_is_caught(theirs, when, inputs):
    assert check(theirs, lambda x: False, *inputs).passed
    assert not check(theirs, when, *inputs).passed


def test_what_the_reference_lets_change_is_changed_and_nothing_else():
    assert sizes(nn.Linear(4, 3), (8, 4)) == set()
    assert {shape[-1] for shape in sizes(nn.Linear(4, 3), (2, 5, 4))} == {4}
    assert {shape[1] for shape in sizes(nn.Conv2d(3, 4, 3), IMAGE)} == {3}
    assert {shape[2] for shape in sizes(nn.Conv2d(3, 4, 3), IMAGE)} >= {3, 6, 33}
    attention = nn.MultiheadAttention(4, 2)
    found = [shapes for shapes, _ in other_sizes(pair(attention, (5, 2, 4), (6, 2, 4), (6, 2, 4)))]
    assert found
    assert all(q[1:] == k[1:] and k == v for q, k, v in found)


def test_batches_are_few_and_many_within_a_budget():
    assert batches(pair(nn.Linear(4, 3), (8, 4))) == [1, 0, 2, 9, MANY]
    assert max(batches(pair(nn.Conv2d(3, 4, 3), (2, 3, 40, 40)))) == 3
    assert batches(pair(nn.Linear(4, 3), np.ones((8, 4)))) == []


@pytest.mark.parametrize("ignored", [255, 5, 0, -1])
def test_a_label_that_is_ignored_is_drawn(ignored):
    theirs = nn.CrossEntropyLoss(ignore_index=ignored)

    def counts_all(x, y):
        return F.cross_entropy(x, y, ignore_index=ignored, reduction="sum") / len(y)

    assert parity.check(impl.CrossEntropyLoss(ignore_index=ignored), theirs, (8, 5), LABELS).passed
    assert not parity.check(counts_all, theirs, (8, 5), LABELS, diagnose=False).passed


def test_the_usual_ignored_label_is_no_fault_and_not_passed_over():
    def knows_classes_alone(x, y):
        return F.cross_entropy(x, y.clamp(min=0))

    right = parity.check(impl.CrossEntropyLoss(), nn.CrossEntropyLoss(), (8, 5), LABELS)
    assert "ignored labels" in right.covers
    report = parity.check(knows_classes_alone, nn.CrossEntropyLoss(), (8, 5), LABELS)
    assert report.passed
    assert any("labels of -100" in line for line in report.not_covered)


class Masked(torch.autograd.Function):
    """A product whose backward is wrong where ``wrong`` says so of the upstream gradient."""

    @staticmethod
    def forward(ctx, x, weight, wrong):
        ctx.save_for_backward(x, weight)
        ctx.wrong = wrong
        return x @ weight.T

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return ctx.wrong(g) @ weight, g.T @ x, None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda g: g * (g.abs() > 1e-8),
        lambda g: g + (g == 0).all(1, keepdim=True) * g.abs().max(),
        lambda g: g / g.norm(dim=1, keepdim=True) * g.norm(dim=1, keepdim=True),
    ],
    ids=["dropped", "row-of-zeros", "nan-of-zeros"],
)
def test_small_gradients_and_rows_of_zeros_are_handed_to_backward(wrong):
    class Mine(nn.Linear):
        def forward(self, x):
            return Masked.apply(x, self.weight, self.wrong)

    theirs, mine = nn.Linear(4, 3, bias=False), Mine(4, 3, bias=False)
    mine.wrong = lambda g: g
    report = parity.check(mine, theirs, (8, 4))
    assert report.passed
    assert "small gradients" in report.covers
    mine.wrong = wrong
    assert not parity.check(mine, theirs, (8, 4), diagnose=False).passed


@pytest.mark.parametrize("low", [0.3, 4.0, 12.0, 30.0])
@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU])
def test_a_band_of_a_function_is_not_missed(kind, low):
    class Off(nn.Module):
        def forward(self, x):
            band = (x > low) & (x < 1.3 * low)
            return kind()(x) * (1 + 1e-3 * band)

    assert not parity.check(Off(), kind(), (8, 4), diagnose=False).passed


def test_a_threshold_below_which_all_counts_as_zero_is_seen():
    class Coarse(nn.Linear):
        def forward(self, x):
            return super().forward(x * (x.abs() > 1e-6))

    assert not parity.check(Coarse(4, 3), nn.Linear(4, 3), (8, 4), diagnose=False).passed


def test_what_vanishes_at_a_size_is_measured_by_usual_numbers():
    """Large values, whose gradients are 1e8 times as large, are no measure of a batch of one."""

    class Shared:
        def __init__(self):
            self.params, self.grads = {"weight": np.zeros(3)}, {}

        def forward(self, x):
            self.x, self.slope = x, self.params["weight"].reshape(1, -1, 1, 1)
            return np.where(x > 0, x, self.slope * x)

        def backward(self, grad):
            moved = grad * np.minimum(self.x, 0)
            total = moved.sum((0, 2, 3)) if len(moved) > 1 else np.full(3, moved.sum())
            self.grads["weight"] = self.grads.get("weight", 0) + total.astype(grad.dtype)
            return grad * np.where(self.x > 0, 1, self.slope).astype(grad.dtype)

    report = parity.check(Shared(), nn.PReLU(3), (2, 3, 4, 4), diagnose=False)
    assert [f.evidence["probe"] for f in report.failures] == ["batch of 1"]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("seed", range(3))
def test_two_elements_of_a_group_leave_rounding_alone(seed):
    class Norm(nn.GroupNorm):
        def forward(self, x):
            rows = x.reshape(len(x), self.num_groups, -1)
            off = rows - rows.mean(2, keepdim=True)
            hat = off * (off.square().mean(2, keepdim=True) + self.eps).pow(-0.5)
            shape = (1, -1, *[1] * (x.ndim - 2))
            return hat.reshape(x.shape) * self.weight.reshape(shape) + self.bias.reshape(shape)

    assert parity.check(Norm(3, 3), nn.GroupNorm(3, 3), (2, 3, 4, 4), seed=seed).passed
    assert parity.check(Norm(1, 2), nn.GroupNorm(1, 2), (2, 2, 5), seed=seed).passed
