"""The dropout mask's test: every wrong mask is caught, no right one is."""

import json
import math

import numpy as np
import pytest
import torch

from parity.statistics import check_dropout_mask

SHAPE = (20, 8, 4, 6, 6)  # calls, N, C, H, W


def draw(rng, p, shape=SHAPE):
    return rng.random(shape) >= p


def share(rng, p, *axes):
    """Masks that are equal along the given axes."""
    shape = [1 if axis in axes else size for axis, size in enumerate(SHAPE)]
    return np.broadcast_to(draw(rng, p, shape), SHAPE)


def exact_count(rng, p):
    ordered = np.arange(144) >= round(144 * p)
    return rng.permuted(np.tile(ordered, (160, 1)), axis=1).reshape(SHAPE)


def pool(rng, p):
    return draw(rng, p)[np.arange(20) % 5]


def periodic(rng, p):
    step = round(1 / min(p, 1 - p))
    few = (np.arange(math.prod(SHAPE)) % step == 0).reshape(SHAPE)
    return few if p > 0.5 else ~few


WRONG_MASKS = {
    "every-call": (lambda rng, p: share(rng, p, 0), "the mask is the same at every call"),
    "batch": (lambda rng, p: share(rng, p, 1), "the mask is shared along its axis 0"),
    "across-channels": (lambda rng, p: share(rng, p, 2), "the mask is shared along its axis 1"),
    "column": (lambda rng, p: share(rng, p, 3), "the mask is shared along its axis 2"),
    "row": (lambda rng, p: share(rng, p, 4), "the mask is shared along its axis 3"),
    "dropout2d": (lambda rng, p: share(rng, p, 3, 4), "the mask is shared along its axis 2"),
    "pool": (pool, None),
    "exact-count": (exact_count, None),
    "periodic": (periodic, None),
    "frozen": (lambda rng, p: draw(rng, p)[np.minimum(np.arange(20), 6)], None),
    "all-kept": (lambda rng, p: np.ones(SHAPE), "every element is kept"),
}


@pytest.mark.parametrize("p", [0.5, 0.2, 0.9])
@pytest.mark.parametrize("fault", WRONG_MASKS)
def test_wrong_masks_are_caught(fault, p):
    make, pattern = WRONG_MASKS[fault]
    result = check_dropout_mask(make(np.random.default_rng(3), p), p)
    assert not result.passed()
    assert result.failures()
    assert pattern is None or pattern in result.patterns
    assert str(result).startswith("dropout mask: wrong (kept ")


@pytest.mark.parametrize("p", [0.1, 0.4, 0.8])
def test_keeping_with_p_is_caught_and_named(p):
    result = check_dropout_mask(draw(np.random.default_rng(4), 1 - p), p)
    assert "kept fraction" in result.failures()
    assert result.patterns == ("elements are kept with probability p, not 1 - p",)


def test_alternating_masks_of_one_half():
    board = np.indices((16, 16)).sum(axis=0) % 2
    assert not check_dropout_mask(board[None], 0.5).passed()
    first = draw(np.random.default_rng(5), 0.5, (8, 16))
    assert not check_dropout_mask([first, ~first] * 4, 0.5).passed()


@pytest.mark.slow
def test_right_masks_raise_no_alarm():
    """Small, long, flat and extreme masks: at level 0.01 fewer than one in a hundred fails."""
    rng = np.random.default_rng(6)
    shapes = [(20, 8, 16), (4, 4, 3, 8, 8), (64,), (10, 7), (3, 2, 50), (1, 100), (200, 1, 1)]
    results = [
        check_dropout_mask(draw(rng, p, shape), p)
        for shape in shapes
        for p in (0.5, 0.1, 0.01, 0.9)
        for _ in range(6)
    ]
    assert all(result.passed() for result in results)
    assert np.mean([not result.passed(0.01) for result in results]) < 0.01


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_torch_masks_pass(p):
    torch.manual_seed(0)
    layer = torch.nn.Dropout(p)
    masks = [layer(torch.ones(16, 4, 5)) for _ in range(10)]  # scaled by 1 / (1 - p)
    result = check_dropout_mask(masks, p)
    assert result.passed()
    assert (result.calls, result.shape, result.total) == (10, (16, 4, 5), 3200)
    assert str(result).startswith("dropout mask: as it should be (kept ")
    assert json.loads(json.dumps(result.to_dict()))["patterns"] == []


def test_a_torch_dropout2d_is_no_dropout():
    torch.manual_seed(0)
    assert not check_dropout_mask(
        torch.nn.Dropout2d(0.5)(torch.ones(8, 8, 6, 6))[None], 0.5
    ).passed()


def test_nothing_or_everything_dropped():
    ones = np.ones((4, 50))
    assert check_dropout_mask(ones, 0).passed()
    assert check_dropout_mask(0 * ones, 1).passed()
    assert not check_dropout_mask(ones, 1).passed()
    ones[0, 0] = 0
    assert not check_dropout_mask(ones, 0).passed()


@pytest.mark.parametrize(
    ("masks", "p", "error", "message"),
    [
        (np.ones((2, 3)), 0.5, ValueError, r"masks has 6 elements, shape \(2, 3\); below 64"),
        (np.ones((10, 10)), 1.5, ValueError, "p is 1.5; give the dropout probability"),
        (np.ones((10, 10)), "0.5", ValueError, "p is '0.5'; give"),
        (np.full((10, 10), np.nan), 0.5, ValueError, "masks has 100 NaN"),
        (
            [np.ones(90), np.ones(91)],
            0.5,
            ValueError,
            r"masks differ in shape, \(90,\) and \(91,\)",
        ),
        (["a"] * 80, 0.5, TypeError, "masks holds strings"),
    ],
)
def test_masks_that_cannot_be_judged(masks, p, error, message):
    with pytest.raises(error, match=message):
        check_dropout_mask(masks, p)
