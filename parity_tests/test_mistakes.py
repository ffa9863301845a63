"""What a user mistypes gets one line: what was given, what is possible, how to mend it."""

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity

SIZE = (5, 4)


def linear(**options):
    """Check a linear layer."""
    return parity.check(lambda: impl.Linear(4, 3), nn.Linear(4, 3), SIZE, **options)


def fails():
    """Make a layer, in vain."""
    raise ZeroDivisionError("no layer today")


MISTAKES = {
    "option": (lambda: linear(seeed=1), "unknown option 'seeed', did you mean 'seed'?"),
    "list": (
        lambda: parity.check(impl.Linear(4, 3), nn.Linear(4, 3), [5, 4]),
        "input 0 is a list; each input is a shape tuple such as (8, 4)",
    ),
    "negative": (
        lambda: parity.check(impl.Linear(4, 3), nn.Linear(4, 3), (-5, 4)),
        "got the size -5; sizes are non-negative integers",
    ),
    "class": (
        lambda: parity.check(impl.Linear(4, 3), nn.Linear, SIZE),
        "theirs is the class Linear; give an instance: Linear(…)",
    ),
    "seeds": (lambda: linear(seeds=-1), "seeds is -1; it must be a non-negative integer"),
    "strict": (lambda: linear(strict="no"), "strict is 'no'; it must be True or False"),
    "isolate": (lambda: linear(isolate="yes"), "isolate is 'yes'; it must be True or False"),
    "expects-zero": (lambda: linear(expects_zero=3), "expects_zero is 3; it must be True, a"),
    "gap": (
        lambda: linear(gaps={"grad_weight": None}),
        "gaps['grad_weight'] is None; say why: {quantity: reason}",
    ),
    "weights-name": (
        lambda: linear(weights={"weight": "wieght"}),
        "weights names 'wieght', did you mean 'weight'?; the reference has: weight, bias",
    ),
    "weights-array-name": (
        lambda: linear(weights={"wieght": np.ones((3, 4))}),
        "weights names 'wieght', did you mean 'weight'?; the reference has: weight, bias",
    ),
    "weights-shape": (
        lambda: linear(weights={"weight": np.ones((4, 3))}),
        "weights['weight'] has shape (4, 3); the reference's has (3, 4)",
    ),
    "weights-axes": (
        lambda: linear(weights={"weight": ("weight", (0, 3))}),
        "weights['weight'] has the axis order (0, 3); 'weight' has shape (3, 4), so it must be an "
        "order of (0, 1)",
    ),
    "weights-nan": (
        lambda: linear(weights={"weight": np.full((3, 4), np.nan)}),
        "weights['weight'] holds NaN or infinity, which would hide every difference",
    ),
    "factory": (
        lambda: parity.check(fails, nn.Linear(4, 3), SIZE),
        "mine is fails, which raised ZeroDivisionError: no layer today; it must make the layer",
    ),
    "input-function": (
        lambda: parity.check(impl.Linear(4, 3), nn.Linear(4, 3), lambda: np.ones(SIZE)),
        "it is given a NumPy Generator and returns an array: lambda rng:",
    ),
    "scale": (
        lambda: parity.normal(5, 4, scale="a"),
        "parity.normal got scale='a'; it must be a finite number",
    ),
    "low": (
        lambda: parity.uniform(5, low="a"),
        "parity.uniform got low='a'; it must be a finite number",
    ),
    "axis": (
        lambda: parity.probabilities(5, 4, axis=7),
        "axis=7 is none of shape (5, 4); it has 2 axes",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_one_line(name):
    mistake, words = MISTAKES[name]
    with pytest.raises(parity.UsageError) as answer:
        mistake()
    text = str(answer.value)
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize("dtypes", [np.float64, "float64", [torch.float64], np.dtype("float64")])
def test_dtype_objects_are_as_good_as_their_names(dtypes):
    assert linear(dtypes=dtypes).passed


def test_numbers_that_are_nan_throughout_prove_nothing():
    report = parity.check(impl.Linear(4, 3), nn.Linear(4, 3), np.full(SIZE, np.nan))
    assert not report.passed
    assert "the reference's output is NaN throughout" in str(report)
