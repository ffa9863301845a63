"""Messages that no other test sees: what was given, what is possible, how to mend it."""

import json
import re

import numpy as np
import pytest
from torch import nn

import impl
import parity
from parity import cli
from parity.settings import read_settings
from parity.sweeping.plan import Plan, _space
from parity.sweeping.results import Results

LINEAR = nn.Linear(4, 3)


class Product(nn.Linear):
    """A Linear by another name."""


class Wrapped(nn.Module):
    """Its layers have other names than a Sequential's, and are another number."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return self.second(self.first(x))


def check(*inputs, **options):
    return parity.check(impl.Linear(4, 3), LINEAR, *inputs, **options)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: check((8, "4")), r"input 0 is the tuple \(8, '4'\), not a shape; each input is"),
        (lambda: check(np.array(["a"])), r"input 0 is an array of dtype <U1; each input is"),
        (lambda: check(8), r"input 0 is int 8; .*stands in brackets of its own: \(\(8, 4\),\)"),
        (lambda: check((8, 4), seeds=10**9), r"seeds is 1000000000; the most is \d+"),
        (
            lambda: parity.integers(3, low=2, high=2),
            "parity.integers got low=2, high=2; low must be below high",
        ),
        (
            lambda: parity.check_training(
                impl.Linear(4, 3),
                LINEAR,
                loss=(impl.MSELoss(), nn.MSELoss()),
                optimizer=(lambda m: impl.SGD(m, lr=0.1), lambda p: 3),
                batches=[(np.ones((2, 4)), np.ones((2, 3)))],
            ),
            r"optimizer\[1\] made int; ",
        ),
        (
            lambda: parity.localise(
                impl.Sequential(impl.Linear(4, 3)), Wrapped(nn.Identity(), Product(4, 3)), (5, 4)
            ),
            r"no layer of mine \(0\) has a partner among first, second; declare layers=",
        ),
        (
            lambda: _space(None, "numpy:pi", "torch.nn:Linear"),
            "numpy:pi is float; a sweep needs its class",
        ),
    ],
)
def test_calls(wrong, says):
    with pytest.raises(parity.UsageError, match=says):
        wrong()


def test_the_command_line_without_a_command(capsys):
    assert cli.main(["--"]) == 2
    said = capsys.readouterr().err  # Python from 3.12 on takes the dashes away
    assert re.search("(unrecognized arguments: --|no command is given); see parity --help", said)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"device": "gpu"}, r"gpu.*; it must be a torch device such as cpu, cuda, cuda:1 or mps"),
        ({"report": ""}, "it must be the name of a folder"),
    ],
)
def test_settings(tmp_path, given, says):
    with pytest.raises(parity.UsageError, match=says):
        read_settings(given, tmp_path, tmp_path)


PLAN = Plan(layers=("relu",))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: change(d, format=1), "has format 1; this version reads"),
        (lambda d: change(d, plan={}), "holds a sweep with another .*; resume with the same"),
        (lambda d: (d / "results.jsonl").write_text("[]\n"), "a line that is no result: '\\[\\]'"),
        (lambda d: (d / "results.jsonl").write_text('{"id": "relu:-9"}\n'), "a line that is no"),
        (lambda d: (d / "results.jsonl").write_text(f'{{"id": "relu:{10**30}"}}\n'), "no result"),
        (lambda d: (d / "sweep.json").unlink(), "is there without sweep.json; choose another"),
    ],
)
def test_a_sweep_that_cannot_go_on(tmp_path, spoil, says):
    Results(tmp_path, PLAN, resume=False).close()
    (tmp_path / "results.jsonl").touch()
    spoil(tmp_path)
    with pytest.raises(parity.UsageError, match=says):
        Results(tmp_path, PLAN, resume=True)


def change(folder, **values):
    manifest = folder / "sweep.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | values))
