"""Examinations in a process of their own: the same report, limits kept, nothing left behind."""

import contextlib
import math
import os
import signal
import textwrap
import time

import numpy as np
import pytest
import torch

import impl
import parity
from parity.findings import Cause, Finding, Report, Verdict, Worst
from parity.isolation import report_from
from parity.processes import Fault, answers
from parity_tests.processes import python

PAIR = (5, 4)


class Doubled(impl.Linear):
    """A wrong gradient, to see that findings come back whole."""

    def backward(self, grad_output):
        return super().backward(grad_output) * 2


def sides(layer=impl.Linear):
    return layer(4, 3), torch.nn.Linear(4, 3)


def plain(report):
    return report.to_dict()


@pytest.mark.parametrize("layer", [impl.Linear, Doubled])
def test_the_report_is_the_one_of_this_process(layer):
    mine, theirs = sides(layer)
    options = {"seeds": 2, "diagnose": False}
    here = parity.check(mine, theirs, PAIR, **options)
    apart = parity.check(mine, theirs, PAIR, isolate=True, **options)
    assert plain(apart) == plain(here)
    assert str(apart) == str(here)
    assert apart.passed == (layer is impl.Linear)


def test_numbers_that_json_lacks_come_back():
    finding = Finding(
        "case", "forward", layer="0", step=2, seed=3, dtype="float32", verdict=Verdict.MISMATCH,
        allowance=math.inf, worst=Worst((0, 1), math.nan, 1.0, math.inf),
        cause=Cause("name", "why"), evidence={"usage": math.inf, "size": 2},
    )  # fmt: skip
    report = Report("case", (finding,), notes=("a",), strict=True, versions={"numpy": "2"})
    back = report_from(report.to_dict())
    assert back.to_dict() == report.to_dict()
    assert math.isnan(back.findings[0].worst.mine)
    assert back.findings[0].worst.index == (0, 1)
    assert back.findings[0].evidence["usage"] == math.inf


def test_a_layer_without_an_importable_name_can_be_isolated():
    class Local(impl.Linear):
        shift = staticmethod(lambda y: y)

        def forward(self, x):
            return self.shift(super().forward(x))

    assert parity.check(Local(4, 3), torch.nn.Linear(4, 3), PAIR, isolate=True).passed


def test_usage_errors_are_raised_here():
    with pytest.raises(parity.UsageError, match="input 0 is a list"):
        parity.check(*sides(), [5, 4], isolate=True)
    with pytest.raises(parity.UsageError, match="timeout is 0; it must be a positive number"):
        parity.check(*sides(), PAIR, isolate=True, timeout=0)


@pytest.mark.slow
def test_a_time_out_says_where_the_layer_was():
    class Stuck(impl.Linear):
        def forward(self, x):
            while True:
                self.calls = 1

    report = parity.check(Stuck(4, 3), torch.nn.Linear(4, 3), PAIR, isolate=True, timeout=1)
    (finding,) = report.failures
    assert finding.cause.name == "timed_out"
    assert "after 1 s" in finding.cause.sentence
    assert "in forward" in finding.evidence["traceback"]


def test_the_caller_is_not_changed():
    class Changes(impl.Linear):
        def forward(self, x):
            os.environ["PARITY_TEST"] = "1"
            type(self).seen = True
            return super().forward(x)

    assert parity.check(Changes(4, 3), torch.nn.Linear(4, 3), PAIR, isolate=True).passed
    assert "PARITY_TEST" not in os.environ
    assert not hasattr(Changes, "seen")


def test_tasks_go_on_in_a_fresh_process_after_a_crash():
    done = []

    def task(n):
        def run():
            done.append(n)
            if n == 2:
                os.abort()
            return [n, len(done)]

        return run

    found = list(answers([task(n) for n in range(5)], timeout=20))
    assert [a if isinstance(a, Fault) else a[0] for a in found[:2]] == [0, 1]
    assert found[2].name == "crashed"
    # the crashed one was run again, first in its process; the next ones start afresh
    assert found[3:] == [[3, 1], [4, 2]]


@pytest.mark.slow
def test_a_task_is_not_blamed_for_what_another_left_behind():
    held = []

    def hog():
        held.append(np.ones(18_000_000))
        return len(held)

    # 137 MiB each: three of them in one process are too much, one alone never is
    assert set(answers([hog] * 4, timeout=30, memory=300)) <= {1, 2}


def test_a_thread_pool_of_the_parent_does_not_hang_the_child():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.ones(300, 300) @ torch.ones(300, 300)
        torch.ones(1_000_000).exp().sum()

        def child():
            torch.ones(1_000_000).exp().sum()
            return torch.get_num_threads()

        assert list(answers([child], timeout=20)) == [1]
    finally:
        torch.set_num_threads(before)


SCRIPT = """
    import os, sys, time, torch, impl, parity

    class Stuck(impl.Linear):
        def forward(self, x):
            if os.fork() == 0:
                time.sleep(1000)
            print("in", flush=True)
            open(sys.argv[1], "w").write(str(os.getpid()))
            time.sleep(1000)

    parity.check(Stuck(4, 3), torch.nn.Linear(4, 3), (5, 4), isolate=True, timeout=500)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_parent_leaves_no_child(number, tmp_path):
    process = python("-c", textwrap.dedent(SCRIPT), tmp_path / "pid")
    child = int(waited(lambda: (tmp_path / "pid").read_text()))
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in errors
    assert waited(lambda: gone(child))


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_the_midst_of_a_fork_is_not_forgotten(monkeypatch):
    fork, children = os.fork, []

    def interrupted():
        pid = fork()
        if pid:
            children.append(pid)
            signal.raise_signal(signal.SIGINT)
        return pid

    monkeypatch.setattr(os, "fork", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(answers([lambda: 1]))
    with pytest.raises(ChildProcessError):
        os.waitpid(children[0], os.WNOHANG)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def waited(look, seconds=60):
    """What ``look`` gives once it gives something."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if found := look():
                return found
        time.sleep(0.02)
    raise AssertionError("it never came")


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize(("wait", "name"), [(0.0, "crashed"), (0.95, "timed_out")])
def test_a_crash_after_the_stack_was_written_down_is_a_time_out(wait, name):
    """Writing down the stack of what runs on may itself crash: the limit was all but reached."""

    class Falls(impl.Linear):
        def forward(self, x):
            time.sleep(wait)
            os.kill(os.getpid(), signal.SIGSEGV)

    report = parity.check(Falls(4, 3), torch.nn.Linear(4, 3), PAIR, isolate=True, timeout=1)
    assert report.cause.name == name
