"""Both sides one code: said where nothing differs that makes them act, and nowhere else."""

from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity
from parity.findings import Verdict
from parity.likeness import same_code
from parity.vacuity import look_for_one_code

QUICK = {"rungs": ["float64"], "diagnose": False}


class Attention(nn.Module):
    """Two ways to one answer, chosen by an attribute that no repr shows."""

    def __init__(self, flash, settings=None):
        super().__init__()
        self.qkv, self.flash, self.settings = nn.Linear(4, 12), flash, settings

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.flash:
            return nn.functional.scaled_dot_product_attention(q, k, v)
        return torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v


def patched(function):
    """Return a linear layer with a forward of its own."""
    layer = nn.Linear(4, 3)
    layer.forward = MethodType(function, layer)
    return layer


def hooked():
    layer = nn.Linear(4, 3)
    layer.register_forward_hook(lambda module, given, result: 1.5 * result)
    return layer


def rewritten(self, x):
    return torch.einsum("ni,oi->no", x, self.weight) + self.bias


class Renamed(nn.Linear):
    """torch's, with another name."""


class Initialised(Renamed):
    """Torch's, made in another way, with notes that nothing reads."""

    purpose: str = "head"

    def __init__(self):
        super().__init__(4, 3)
        self.note = "mine"
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.zeros_(self.weight)

    def extra_repr(self):
        return "mine"

    def helper(self):
        return self.note


class Rewritten(Renamed):
    def forward(self, x):
        return rewritten(self, x)


class Below(Rewritten):
    """Overrides nothing of a class that does."""


class Slotted(nn.LayerNorm):
    """Reads a constant of its own where torch reads what it was given."""

    eps = property(lambda self: 0.5, lambda self, value: None)


class Holding(nn.Module):
    """A layer that calls torch's in a forward of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return self.inner(x)


class Silenced(nn.Sequential):
    def forward(self, x):
        return 0 * super().forward(x)


def hooked_sequence():
    layer = nn.Sequential(nn.Linear(4, 3))
    layer.register_forward_hook(lambda module, given, result: 2 * result)
    return layer


def linear():
    return nn.Linear(4, 3)


DISGUISED = {
    "renamed": (lambda: Renamed(4, 3), linear),
    "initialised": (Initialised, linear),
    "both": (lambda: Renamed(4, 3), Initialised),
    "alone": (lambda: nn.Sequential(linear()), linear),
    "nested": (lambda: nn.Sequential(nn.Sequential(Renamed(4, 3)), nn.Identity()), linear),
    "grouped": (
        lambda: nn.Sequential(linear(), nn.Sequential(nn.ReLU(), nn.Linear(3, 2))),
        lambda: nn.Sequential(linear(), nn.ReLU(), nn.Linear(3, 2)),
    ),
    "inside": (lambda: nn.Sequential(Renamed(4, 3), nn.ReLU()),
               lambda: nn.Sequential(linear(), nn.ReLU())),
}  # fmt: skip
OWN = {
    "forward": (lambda: Rewritten(4, 3), linear),
    "inherited": (lambda: Below(4, 3), linear),
    "property": (lambda: Slotted(4), lambda: nn.LayerNorm(4)),
    "holding": (Holding, linear),
    "sequence": (lambda: Silenced(linear()), linear),
    "hooked": (hooked_sequence, linear),
    "patched": (lambda: nn.Sequential(patched(rewritten)), linear),
    "layout": (
        lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
        lambda: nn.Conv2d(3, 4, 3),
    ),
    "more": (lambda: nn.Sequential(linear(), nn.ReLU()), linear),
    "option": (lambda: nn.Sequential(nn.LayerNorm(4, eps=0.1)), lambda: nn.LayerNorm(4)),
}


@pytest.mark.parametrize(("mine", "theirs"), DISGUISED.values(), ids=DISGUISED)
def test_torchs_code_under_another_name_is_torchs(mine, theirs):
    assert same_code(mine(), theirs())
    assert same_code(theirs(), mine())


@pytest.mark.parametrize(("mine", "theirs"), OWN.values(), ids=OWN)
def test_code_of_ones_own_is_ones_own(mine, theirs):
    assert not same_code(mine(), theirs())
    assert not same_code(theirs(), mine())


ALIKE = {
    "lstm": lambda: nn.LSTM(3, 4, 2),
    "tree": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    "attributes": lambda: Attention(True, {"scale": np.ones(2), "limits": (0, float("nan"))}),
    "own-forward": lambda: patched(rewritten),
    "hooks": hooked,
    "inside": lambda: nn.Sequential(Attention(True)),
}
DIFFERENT = {
    "attribute": (lambda: Attention(True), lambda: Attention(False)),
    "container": (lambda: Attention(True, {"scale": 1}), lambda: Attention(True, {"scale": 2})),
    "array": (lambda: Attention(True, np.ones(2)), lambda: Attention(True, np.zeros(2))),
    "own-forward": (lambda: patched(rewritten), lambda: nn.Linear(4, 3)),
    "two-forwards": (
        lambda: patched(rewritten),
        lambda: patched(lambda self, x: nn.functional.linear(x, self.weight, self.bias)),
    ),
    "hooks": (hooked, lambda: nn.Linear(4, 3)),
    "inside": (
        lambda: nn.Sequential(Attention(True)),
        lambda: nn.Sequential(Attention(False)),
    ),
    "sizes": (lambda: nn.Linear(4, 3), lambda: nn.Linear(4, 3, bias=False)),
    "class": (lambda: nn.Tanh(), lambda: nn.ReLU()),
    "plain": (lambda: impl.ReLU(), lambda: nn.ReLU()),
}


@pytest.mark.parametrize("make", ALIKE.values(), ids=ALIKE)
def test_one_code_built_alike(make):
    assert same_code(make(), make())


@pytest.mark.parametrize(("mine", "theirs"), DIFFERENT.values(), ids=DIFFERENT)
def test_what_makes_instances_act_differently_is_seen(mine, theirs):
    assert not same_code(mine(), theirs())


def test_an_attribute_that_cannot_be_compared_is_one_that_may_differ():
    class Odd:
        def __eq__(self, other):
            raise ZeroDivisionError

        __slots__ = ()
        __hash__ = None

    assert not same_code(Attention(True, [object()]), Attention(True, [object()]))
    odd = SimpleNamespace(it=Odd())
    assert same_code(Attention(True, odd), Attention(True, odd))
    assert not same_code(Attention(True, Odd()), Attention(True, Odd()))


def verdicts(mine, theirs, *inputs):
    return {f.quantity: f.verdict for f in parity.check(mine, theirs, *inputs, **QUICK).findings}


def test_a_check_of_one_code_is_vacuous():
    assert verdicts(nn.Linear(4, 3), nn.Linear(4, 3), (8, 4))["both"] is Verdict.VACUOUS
    assert verdicts(Renamed(4, 3), nn.Linear(4, 3), (8, 4))["both"] is Verdict.VACUOUS
    assert "both" not in verdicts(Rewritten(4, 3), nn.Linear(4, 3), (8, 4))
    assert "both" not in verdicts(Attention(True), Attention(False), (2, 5, 4))
    assert "both" not in verdicts(patched(rewritten), nn.Linear(4, 3), (8, 4))


@pytest.mark.parametrize("verdict", Verdict)
def test_one_code_is_not_claimed_beside_a_difference(verdict):
    added = []
    findings = [SimpleNamespace(verdict=verdict)]
    exam = SimpleNamespace(findings=findings, add=added.append)
    layer = nn.Linear(4, 3)
    look_for_one_code(exam, nn.Linear(4, 3), layer)
    assert len(added) == (verdict is not Verdict.MISMATCH)
    look_for_one_code(exam, layer, layer)  # one object: no name for a difference is as good
    assert added[-1].quantity == "both"


# ---- training: everything that was given, on either side ---------------------------------------

BATCHES = [(np.ones((2, 4)), np.arange(6.0).reshape(2, 3)), (np.eye(4)[:2], np.zeros((2, 3)))]


class MySGD(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad


class SameSGD(torch.optim.SGD):
    """torch's, with another name."""


class MyLoss(nn.Module):
    def forward(self, prediction, target):
        return ((prediction - target) ** 2).mean()


class SummedLoss(nn.Module):
    def forward(self, prediction, target):
        return ((prediction - target) ** 2).sum() / len(target)


SCHEDULERS = torch.optim.lr_scheduler
BASE = getattr(SCHEDULERS, "LRScheduler", None) or SCHEDULERS._LRScheduler  # until torch 2.0


class Halving(BASE):
    def get_lr(self):
        return [base * 0.5**self.last_epoch for base in self.base_lrs]


def steps(kind=torch.optim.SGD, **options):
    options = {"lr": 0.05} | options
    return (
        lambda model: kind(model.parameters(), **options),
        lambda params: torch.optim.SGD(params, lr=0.05),
    )


def rate(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


def run(mine=None, theirs=None, **given):
    options = {"loss": (nn.MSELoss(), nn.MSELoss()), "optimizer": steps()} | given
    return parity.check_training(
        mine or linear(), theirs or linear(), batches=BATCHES, epochs=2, **options
    )


VACUOUS = {
    "all": {},
    "factory": {"mine": linear},
    "renamed-optimizer": {"optimizer": steps(SameSGD)},
    "renamed-model": {"mine": Renamed(4, 3)},
    "scheduler": {"scheduler": (rate, rate)},
    "schedulers": {"scheduler": (lambda optimizer: rate(optimizer), rate)},
}
COMPARED = {
    "model": {"mine": patched(rewritten)},
    "optimizer": {"optimizer": steps(MySGD)},
    "path": {"optimizer": steps(foreach=True)},
    "loss": {"loss": (MyLoss(), nn.MSELoss())},
    "scheduler": {"scheduler": (Halving, rate)},
}


@pytest.mark.parametrize("name", VACUOUS)
def test_a_training_run_of_one_code_is_vacuous(name):
    report = run(**VACUOUS[name])
    assert [f.quantity for f in report.failures] == ["both"], report
    assert report.failures[0].verdict is Verdict.VACUOUS


@pytest.mark.parametrize("name", COMPARED)
def test_a_training_run_with_anything_of_ones_own_is_a_comparison(name):
    report = run(**COMPARED[name])
    assert report.passed, report


def test_one_model_object_may_be_trained_by_two_optimizers():
    layer = linear()
    assert run(layer, layer, optimizer=steps(MySGD)).passed
    assert not run(layer, layer).passed


def test_what_is_ones_own_and_wrong_is_named():
    report = run(optimizer=steps(MySGD, lr=0.1))
    assert report.cause.sentence == "the learning rate is 0.1, 2 × torch's"
    report = run(loss=(SummedLoss(), nn.MSELoss()))
    assert report.cause.sentence == "all gradients are 3 × torch's"
