"""Misbehaving layers end as findings, one after the other in one run, and leave nothing behind."""

import contextlib
import os
import random
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import parity
from fixtures.zoo import SHAPE, ZOO

pytestmark = pytest.mark.slow  # with the slow tests: the quick run stays under three minutes

MEMORY = 150  # MiB beyond what this process holds
GRACE = 8  # seconds beyond a creature's limit: a fork on a busy machine


def settings():
    return (
        np.geterr(),
        repr(np.get_printoptions()),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        warnings.warn,
        np.sum,
        sys.stdout,
        sys.getrecursionlimit(),
        os.getcwd(),
        dict(os.environ),
    )


def random_states():
    return (
        torch.default_generator.get_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    )


def examine(creature):
    """(seconds, report) of one misbehaving layer; global random generators stay as they are."""
    options = {"diagnose": False}
    if creature.isolate:
        options |= {"isolate": True, "timeout": creature.limit, "memory": MEMORY}
    sides = creature.sides()
    drawn, started = random_states(), time.monotonic()
    report = parity.check(*sides, SHAPE, case=creature.name, **options)
    seconds = time.monotonic() - started
    assert random_states() == drawn, creature.name
    return seconds, report


def problem(creature, seconds, report):
    """What is wrong with how a creature ended, or nothing."""
    causes = {f.cause.name for f in report.failures if f.cause}
    if report.passed or not report.failures:
        return f"{creature.name} passed"
    if creature.cause is not None and creature.cause not in causes:
        return f"{creature.name} ended as {causes or report.failures}"
    if creature.isolate and seconds > creature.limit + GRACE:
        return f"{creature.name} took {seconds:.1f} s"
    if any(finding.case != creature.name for finding in report.findings):
        return f"{creature.name} lost its case"
    return None


def test_every_misbehaviour_is_one_finding_and_the_others_go_on():
    before, children = settings(), running_children()
    problems = [problem(creature, *examine(creature)) for creature in ZOO]
    assert len(ZOO) >= 40
    assert [p for p in problems if p] == []
    assert settings() == before
    assert running_children().keys() <= children.keys()


def running_children():
    """{process: its command} of what this process started and goes on; the ended are left out.

    Sweeps that ran before leave joblib's and Python's resource trackers: they are no creature's.
    """
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found[int(status.parent.name)] = (status.parent / "cmdline").read_bytes()
    return found


def test_names_are_unique_and_reports_can_be_printed():
    assert len({creature.name for creature in ZOO}) == len(ZOO)
    unreadable = next(c for c in ZOO if c.name == "raises-unreadable")
    _, report = examine(unreadable)
    assert "its message cannot be read" in str(report)
    assert report.to_dict()["passed"] is False
