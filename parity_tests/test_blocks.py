"""What a check saves - blocks, runs that are read once, numbers drawn once - changes no verdict."""

import numpy as np
import pytest
from torch import nn

import impl
from parity import ladder
from parity.checking import make_pair
from parity.draws import BLOCK, Draw
from parity.ladder import farthest, judge64, response
from parity.options import make_options


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_many_values_move_by_one_step_each(dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2 * BLOCK + 5, 1)).astype(dtype)
    draw = Draw((x,))
    first, second = (draw.nudged(rng, dtype).inputs[0] for _ in range(2))
    up, down = np.nextafter(x, dtype(np.inf)), np.nextafter(x, dtype(-np.inf))
    assert first.dtype == dtype
    assert ((first == up) | (first == down)).all()
    assert 0.4 < (first == up).mean() < 0.6
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("odd", [None, np.nan, np.inf])
def test_blocks_are_judged_as_the_whole_is(axis, odd, monkeypatch):
    rng = np.random.default_rng(1)
    theirs = rng.standard_normal((50, 3, 23, 29))
    moved = [theirs * (1 + 1e-15 * rng.standard_normal(theirs.shape)) for _ in range(2)]
    mine = theirs * (1 + 1e-13 * rng.standard_normal(theirs.shape))
    mine[30, 1, 2, 3] += 1e-9
    if odd is not None:
        mine[40], moved[0][40], theirs[41, :, 2] = odd, odd, odd
    found = []
    for size in (ladder.BLOCK, theirs.size):
        monkeypatch.setattr(ladder, "BLOCK", size)
        noise = response(theirs, moved)
        found.append((judge64(mine, theirs, noise, axis=axis), farthest(mine, theirs)))
    judged, _ = found[0]
    assert repr(found[0]) == repr(found[1])  # NaN is not equal to itself
    assert judged.nonfinite == (odd is not None)
    assert judged.worst.index[0] == (30 if odd is None else 40)


def spoils(x):
    """Return 2 x and leave nothing of x."""
    y = 2 * x
    x.detach().zero_()
    return y


@pytest.mark.parametrize("inputs", [True, False])
def test_a_perturbed_run_may_write_into_its_own_numbers_alone(inputs):
    pair = make_pair(impl.ReLU(), spoils, ((30, 100),), make_options({}))
    draw = pair.draw()
    kept = draw.inputs[0].copy()
    runs = [run["forward"] / 2 for run in pair.perturbed(draw, "float64", 2, inputs)]
    assert all((np.abs(run - kept) <= np.spacing(np.abs(kept))).all() for run in runs)
    assert np.array_equal(draw.inputs[0], kept)


def test_evaluation_is_given_the_numbers_of_training():
    shape = (8, 3, 4, 4)
    first, second = (
        make_pair(impl.BatchNorm2d(3), nn.BatchNorm2d(3), (shape,), make_options({}))
        for _ in range(2)
    )
    training, evaluation = first.draw(training=True), first.draw(training=False)
    again = second.draw(training=False)
    assert not evaluation.training
    for one, other in ((training, evaluation), (again, evaluation)):
        assert np.array_equal(one.inputs[0], other.inputs[0])
        assert np.array_equal(one.upstream[0], other.upstream[0])
        assert np.array_equal(one.params["weight"], other.params["weight"])
