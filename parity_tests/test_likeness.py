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


def run(mine, theirs):
    return parity.check_training(
        mine, theirs, loss=(nn.MSELoss(), nn.MSELoss()),
        optimizer=(lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
                   lambda params: torch.optim.SGD(params, lr=0.1)),
        batches=[(np.ones((2, 4)), np.ones((2, 3)))],
    )  # fmt: skip


def test_a_training_run_of_one_code_is_vacuous():
    assert run(nn.Linear(4, 3), nn.Linear(4, 3)).findings[0].verdict is Verdict.VACUOUS
    report = run(patched(rewritten), nn.Linear(4, 3))
    assert report.passed, report
