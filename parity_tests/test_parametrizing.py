"""Rows of a table as tests: which check a finding belongs to, what is no row, lists of seeds."""

import numpy as np
import pytest
import torch

import parity
from parity.findings import Finding, Report, UsageError, Verdict
from parity.parametrizing import Check, home

LAYERS_CHECKED = ("forward", "grad_input0", "grad_weight", "grad_bias", "layouts", "step")


@pytest.mark.parametrize(
    ("quantity", "evidence", "expected"),
    [
        ("grad_weight", {}, "grad_weight"),
        ("grad_weight", {"probe": "strided arrays"}, "layouts"),
        ("grad_weight", {"probe": "batch of 1"}, "grad_weight"),
        ("backward", {}, "grad_input0"),
        ("forward1", {}, "forward"),
        ("both", {}, "forward"),
        ("something new", {}, "forward"),
    ],
)
def test_every_finding_has_one_home(quantity, evidence, expected):
    assert home(Finding("case", quantity, evidence=evidence), LAYERS_CHECKED) == expected


def test_nothing_to_compare_is_a_skip():
    report = Report("c", (Finding("c", "forward", verdict=Verdict.ERROR),))
    check = Check("grad_weight", LAYERS_CHECKED)
    with pytest.raises(Exception, match="not judged: forward is a ERROR") as caught:
        check.skip(check.part(report), report)
    assert type(caught.value).__name__ == "SkipTest"


@pytest.mark.parametrize(
    ("cases", "says"),
    [
        ([], "got no cases"),
        (3, "got int; give a list"),
        ("abc", "got str; give a list"),
        ([1], r"case 0 is int; a row is parity.Case"),
        ([("a", int, int, (1,)), ("a", int, int, (1,))], "two cases have the id 'a'"),
        ([{"id": "a", "min": 1}], "case 0: .*unexpected keyword argument 'min'"),
        (
            [parity.Case("a", int, torch.nn.ReLU, ((2,),), options={"sede": 1})],
            "case 'a': unknown option 'sede', did you mean 'seed'",
        ),
    ],
)
def test_rows_that_are_no_cases(cases, says):
    with pytest.raises(UsageError, match=says):
        parity.parametrize(cases)


def test_seeds_as_a_list():
    mine, theirs = (lambda: torch.nn.Linear(4, 3)), torch.nn.Linear(4, 3)
    report = parity.check(mine, theirs, (8, 4), seeds=[7, 2], rungs=["float64"])
    assert [f.seed for f in report.of("grad_weight")] == [7, 2]
    with pytest.raises(UsageError, match="seeds is empty"):
        parity.check(mine, theirs, (8, 4), seeds=[])
    with pytest.raises(UsageError, match="seed is nan"):
        parity.check(mine, theirs, (8, 4), seeds=[np.nan])
