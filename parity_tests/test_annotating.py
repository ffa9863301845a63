"""Annotations: where a failure is shown, what is escaped, and that nothing is said elsewhere."""

import re
from types import SimpleNamespace

import pytest

# Runs inside this process must find these loaded: pytester forgets what a run itself imported.
import parity.checking
import parity.examining
import parity.probes
import parity.promises  # noqa: F401
from parity.annotating import MOST, Annotations, command

pytest_plugins = ["pytester"]

TESTS = """
import numpy as np
import torch

class Half:
    def __init__(self):
        self.params, self.grads = {}, {}
    def forward(self, x):
        self.x = x
        return np.tanh(x)
    def backward(self, g):
        return g * (1 - np.tanh(self.x) ** 2) / 2

def test_half(parity):
    parity(Half(), torch.nn.Tanh(), (4, 3))

def test_plain():
    value = 1
    assert value == 2, "a%b\\nc"

def test_good():
    pass
"""


def run(pytester, monkeypatch, actions="true"):
    pytester.makepyfile(test_some=TESTS)
    monkeypatch.setenv("GITHUB_ACTIONS", actions)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path.parent))
    plain = ("-p", "parity.plugin", "-p", "no:cacheprovider", "-p", "no:randomly")
    done = pytester.runpytest_inprocess(*plain)
    return [line for line in done.outlines if line.startswith("::")]


def line_of(text):
    return next(i for i, line in enumerate(TESTS.strip().splitlines(), 1) if text in line)


def test_failures_are_shown_on_their_lines(pytester, monkeypatch):
    lines = run(pytester, monkeypatch)
    assert len(lines) == 2
    folder = pytester.path.name
    found = [re.match(r"::error file=(.+?),line=(\d+),title=(.+?)::(.*)", line) for line in lines]
    assert [m[1] for m in found] == [f"{folder}/test_some.py"] * 2
    assert int(found[0][2]) == line_of("parity(Half()")
    assert int(found[1][2]) == line_of("assert value == 2")
    assert found[0][3] == "test_some.py%3A%3Atest_half"
    assert "grad of input" in found[0][4]
    assert "a%25b%0A" in found[1][4]


def test_nothing_is_said_elsewhere(pytester, monkeypatch):
    assert run(pytester, monkeypatch, actions="false") == []


def failed(name, text="E", path="tests/test_x.py", when="call", outcome="failed"):
    return SimpleNamespace(
        nodeid=name, outcome=outcome, when=when, location=(path, 3, name), longrepr=text
    )


@pytest.fixture
def annotations(tmp_path):
    return Annotations(tmp_path, {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(tmp_path)})


def test_at_most_ten_and_the_last_counts_the_others(annotations):
    for i in range(25):
        annotations.pytest_runtest_logreport(failed(f"t{i:02}"))
    lines = list(annotations.lines())
    assert len(lines) == MOST
    assert "16 more tests failed" in lines[-1]


def test_a_rerun_that_passes_takes_its_failure_back(annotations):
    annotations.pytest_runtest_logreport(failed("t"))
    annotations.pytest_runtest_logreport(failed("t", when="setup", outcome="passed"))
    assert list(annotations.lines()) == []


def test_hostile_names_stay_inside_their_line(annotations):
    text = "x\n::add-mask::secret\r::stop-commands::t\x1b[31m\u2028::error::"
    annotations.pytest_runtest_logreport(failed("a,line=1::error::\n::b", text, "we,ird:name.py"))
    [line] = annotations.lines()
    assert len(line.splitlines()) == 1
    head, _, tail = line.removeprefix("::").partition("::")
    assert head.count(",") == 2
    assert "::" not in head
    assert "\x1b" not in tail
    assert command("warning", "a\tb") == "::warning::a\tb"
