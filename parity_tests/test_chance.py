"""A side that is random beyond the masks it can share is said to be so, and never compared."""

import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity import Verdict
from parity_tests.several import seeds

F = nn.functional
NAMES = {"a.weight": "0.weight", "a.bias": "0.bias", "b.weight": "3.weight", "b.bias": "3.bias"}


class Net(nn.Module):
    """Two layers with a dropout that is no module; a flag makes the second layer wrong."""

    def __init__(self, factor=1.0, p=0.5, always=False):
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)
        self.factor, self.p, self.always = factor, p, always

    def forward(self, x):
        x = F.dropout(torch.relu(self.a(x)), self.p, self.always or self.training)
        return self.factor * self.b(x)


class Masked(Net):
    """The same, drawing its masks in another way than torch's function does."""

    def forward(self, x):
        x = torch.relu(self.a(x))
        if self.always or self.training:
            x = x * (torch.rand(16, len(x)) >= self.p).T / (1 - self.p)
        return self.factor * self.b(x)


class Alike(Masked):
    """The same in another class: what torch's seed gives the one it gives the other."""


def modules(p=0.5):
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 3))


class RReLU:
    """Draws its slopes from NumPy in training, and takes their mean else."""

    training = True

    def __init__(self, mean=(1 / 8 + 1 / 3) / 2):
        self.mean = mean

    def forward(self, x):
        a = np.random.uniform(1 / 8, 1 / 3, x.shape) if self.training else self.mean
        self.slope = np.where(x > 0, 1.0, a).astype(x.dtype)
        return x * self.slope

    def backward(self, grad):
        return grad * self.slope


def only_randomness(report):
    """The one finding of a report that has no other."""
    bad = [f for f in report.findings if f.verdict not in (Verdict.MATCH, Verdict.SKIPPED)]
    assert [f.quantity for f in bad] == ["randomness"], str(report)
    assert bad[0].verdict is Verdict.VACUOUS
    assert bad[0].cause.name == "random_beyond_dropout"
    return bad[0].cause.sentence


@pytest.mark.one_in(3)
@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize(
    ("mine", "theirs", "options", "side"),
    [
        (Net, modules, {"weights": NAMES}, "mine"),
        (Masked, Net, {}, "the reference"),
        (Masked, lambda: Net(p=0.01), {}, "the reference"),
        (RReLU, nn.RReLU, {}, "the reference"),
        (lambda: nn.Linear(4, 3), lambda: nn.Sequential(nn.Linear(4, 3), nn.AlphaDropout(0.5)),
         {"weights": {"weight": "0.weight", "bias": "0.bias"}}, "the reference"),
    ],
)  # fmt: skip
def test_training_is_not_compared_and_evaluation_is(mine, theirs, options, side, seed):
    report = parity.check(mine(), theirs(), (8, 4), seed=seed, **options)
    sentence = only_randomness(report)
    assert sentence.startswith(f"{side} is random in training")
    assert "modes='eval'" in sentence
    assert not report.passed  # what was not compared never passes by itself
    assert {f.evidence["mode"] for f in report.findings if f.verdict is Verdict.MATCH} == {"eval"}
    assert report.covers[0] == "modes eval"
    asked = parity.check(mine(), theirs(), (8, 4), seed=seed, modes="eval", strict=True, **options)
    assert asked.passed, str(asked)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(2))
def test_randomness_hides_no_fault_of_evaluation(seed):
    for mine, theirs, options in (
        (Net(factor=1.001), modules(), {"weights": NAMES}),
        (Masked(factor=1.001), Net(), {}),
        (RReLU(mean=0.2), nn.RReLU(), {}),
        (Net(always=True), modules(), {"weights": NAMES}),
    ):
        report = parity.check(mine, theirs, (8, 4), seed=seed, **options)
        assert Verdict.MISMATCH in {f.verdict for f in report.of("forward")}, str(report)


@pytest.mark.slow
def test_sides_that_draw_alike_are_compared():
    report = parity.check(Net(factor=1.0), Net(factor=2.0), (8, 4))
    assert not report.passed
    assert not parity.check(Alike(factor=2.0), Masked(), (8, 4)).passed
    report = parity.check(Alike(), Masked(), (8, 4), strict=True)
    assert report.passed, str(report)


def test_dropout_that_is_wrong_or_nowhere_in_the_reference_is_a_fault():
    class Unscaled(nn.Module):
        def forward(self, x):
            return x * (torch.rand_like(x) > 0.5) if self.training else x

    for mine, theirs in ((Unscaled(), nn.Dropout(0.5)), (Unscaled(), nn.Identity())):
        report = parity.check(mine, theirs, (8, 4))
        assert Verdict.MISMATCH in {f.verdict for f in report.of("forward")}
        assert not report.of("randomness")


@pytest.mark.slow
def test_where_no_mode_can_be_compared_nothing_passes():
    report = parity.check(Masked(always=True), Net(always=True), (8, 4))
    assert {f.verdict for f in report.findings} == {Verdict.VACUOUS}
    assert [f.evidence["mode"] for f in report.findings] == ["train", "eval"]
    asked = parity.check(Masked(), Net(), (8, 4), modes="train")
    only_randomness(asked)
    assert not asked.passed


class Counting(nn.Module):
    """A reference that counts its calls."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change, self.calls = nn.Linear(4, 3), change, 0

    def forward(self, x):
        self.calls += 1
        return self.change(self.calls) * self.inner(x)


@pytest.mark.parametrize(
    "change",
    [lambda n: 1 + n, lambda n: 1 + 1e-6 * n, lambda n: (-1) ** n],
    ids=["much", "little", "sign"],
)
def test_a_reference_that_counts_its_calls_is_no_measure(change):
    mine, names = nn.Linear(4, 3), {"weight": "inner.weight", "bias": "inner.bias"}
    report = parity.check(mine, Counting(change), (8, 4), weights=names)
    sentences = {f.cause.sentence for f in report.failures if f.cause}
    assert not report.passed
    assert any("answers the same numbers otherwise the next time" in s for s in sentences)


def test_a_parameter_that_does_nothing_is_no_sign_of_chance():
    mine = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))  # whose bias has no gradient

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.b(self.a(x))

    names = {f"{a}.{n}": f"{i}.{n}" for i, a in enumerate("ab")
             for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
             if i or n in ("weight", "bias")}  # fmt: skip
    report = parity.check(Twin(), mine, (8, 4), weights=names)
    assert report.passed
    assert any("zero by construction" in note for note in report.notes)
