"""The small picture of where the error sits in a tensor."""

import numpy as np
import pytest
import torch

import parity
from parity.reporting.heat import SIDE, error_map, svg


def test_error_map_shows_where_the_error_is():
    theirs = np.zeros((2, 3, 40, 60))
    mine = theirs.copy()
    mine[1, 2, 39, 59] = 5.0
    found = error_map(mine, theirs)
    cells = np.array(found["cells"])
    assert cells.shape == (SIDE, SIDE)
    assert np.flatnonzero(cells).tolist() == [SIDE * SIDE - 1]
    assert cells[-1, -1] == 5.0
    assert found["shape"] == [2, 3, 40, 60]
    assert "1 of 576 cells differ, the largest by 5" in svg(found)


def test_error_map_of_numbers_that_are_none():
    found = error_map(np.array([np.nan, np.inf, np.nan, 1.0]), np.array([0.0, np.inf, np.nan, 1.0]))
    assert found["cells"] == [["inf", 0.0, 0.0, 0.0]]
    assert "heat6" in svg(found)
    assert error_map(np.ones(2), np.ones(3)) is None
    assert error_map(np.ones(0), np.ones(0)) is None
    assert error_map(None, np.ones(1)) is None
    assert error_map(np.float64(2.0), np.float64(1.0))["cells"] == [[1.0]]


def test_error_map_of_errors_as_far_apart_as_numbers_can_be():
    found = error_map(np.array([5e-324, 1e300]), np.zeros(2))
    assert 'class="heat1"' in svg(found)
    assert 'class="heat6"' in svg(found)


@pytest.mark.parametrize("bad", [None, 3, {}, {"cells": 3}, {"cells": []}, {"cells": [[]]}])
def test_a_map_from_a_file_may_be_anything(bad):
    assert svg(bad) == ""


def test_findings_that_fail_carry_a_map():
    reference = torch.nn.Linear(4, 3)
    other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Hardtanh(-0.1, 0.1))
    names = {"0.weight": "weight", "0.bias": "bias"}
    report = parity.check(other, reference, (8, 4), weights=names, diagnose=False)
    maps = [f.evidence["heat"] for f in report.of("forward") if "heat" in f.evidence]
    assert len(maps) == 1
    assert np.array(maps[0]["cells"]).shape == (8, 3)
