"""Conv2d's two ways, by a table for small batches and by blocks for large ones, are one layer."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given

import impl
from fixtures.cases import LAYERS
from impl import correlation, small_correlation
from parity.draws import small_integers
from parity_tests.test_properties import SHORT, convolutions

CONVOLUTIONS = [case for case in LAYERS if case.mine is impl.Conv2d]


@pytest.fixture
def by_blocks(monkeypatch):
    monkeypatch.setattr(small_correlation, "LARGEST", 0)


def passes(layer, x, g, largest):
    """Return the output and all gradients with small batches of up to ``largest`` elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_correlation, "LARGEST", largest)
        layer._geometries.clear()
        layer.zero_grad()
        y = layer(x)
        assert (layer._cache[-1] is None) is (largest == 0)
        dx = layer.backward(np.resize(g, y.shape))
    return [y, dx, *(layer.grads[name].copy() for name in layer.params)]


AXES = list(itertools.product(range(1, 5), range(1, 6), range(1, 4)))  # stride, kernel, dilation


@pytest.mark.parametrize("block_bytes", [1, 2000, 2 << 20])
def test_planes_and_blocks_of_rows_are_right_for_all_strides(block_bytes, by_blocks, monkeypatch):
    """Rows by one, columns by another of the options; on small integers, to the last bit."""
    monkeypatch.setattr(correlation, "BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(0)
    for number, down in enumerate(AXES):
        stride, kernel, dilation = zip(down, AXES[number * 7 % len(AXES)], strict=True)
        options = {"stride": stride, "padding": number % 3, "dilation": dilation, "groups": 2}
        layer = impl.Conv2d(2, 4, kernel, **options, dtype=np.float64, rng=0)
        for name, array in layer.params.items():
            layer.params[name] = small_integers(array.shape, rng)
        sizes = (d * (k - 1) + 1 + number % 5 for k, d in zip(kernel, dilation, strict=True))
        x = torch.from_numpy(small_integers((3, 2, *sizes), rng)).requires_grad_()
        weights = [torch.from_numpy(a).requires_grad_() for a in layer.params.values()]
        y = torch.nn.functional.conv2d(x, *weights, **options)
        upstream = small_integers(tuple(y.shape), rng)
        y.backward(torch.from_numpy(upstream))
        assert np.array_equal(layer(x.detach().numpy()), y.detach().numpy()), options
        assert np.array_equal(layer.backward(upstream), x.grad.numpy()), options
        for name, weight in zip(layer.params, weights, strict=True):
            assert np.array_equal(layer.grads[name], weight.grad.numpy()), (options, name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: case.id)
def test_by_blocks_every_case_matches_too(case, by_blocks):
    report = case.report()
    assert report.passed, str(report)


@SHORT
@given(convolutions())
def test_both_ways_give_the_same(case):
    """On small integers, whose sums are exact in any order: to the last bit."""
    config, shape = case
    rng = np.random.default_rng(0)
    layer = impl.Conv2d(**config, dtype=np.float64, rng=0)
    for name, array in layer.params.items():
        layer.params[name] = small_integers(array.shape, rng)
    x, g = small_integers(shape, rng), small_integers((4096,), rng)
    small, large = (passes(layer, x, g, largest) for largest in (1 << 30, 0))
    for one, other in zip(small, large, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_every_dtype_is_kept(dtype):
    layer = impl.Conv2d(2, 4, 3, padding=1, dtype=dtype, rng=0)
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 5)).astype(dtype)
    y = layer(x)
    dx = layer.backward(np.random.default_rng(1).standard_normal(y.shape).astype(dtype))
    found = [y, dx, *layer.grads.values()]
    assert all(array.dtype == dtype for array in found)
    assert (layer._cache[-1] is None) is (dtype is np.longdouble and np.finfo(dtype).bits > 64)


def test_evaluation_keeps_no_columns_and_has_the_same_gradients():
    layer = impl.Conv2d(2, 4, 3, rng=0)
    x = np.random.default_rng(0).standard_normal((3, 2, 6, 6)).astype(np.float32)
    g = np.random.default_rng(1).standard_normal(layer(x).shape).astype(np.float32)
    trained = layer.backward(g), *(layer.grads[name].copy() for name in layer.params)
    layer.zero_grad()
    layer.eval()(x)
    assert layer._cache[-2] is None
    evaluated = layer.backward(g), *(layer.grads[name] for name in layer.params)
    assert all(np.array_equal(one, other) for one, other in zip(trained, evaluated, strict=True))


def test_few_tables_are_held_whatever_the_batches():
    layer = impl.Conv2d(1, 2, 3, rng=0)
    for batch in range(1, 40):
        layer(np.ones((batch, 1, 5, 5), np.float32))
    (geometry,) = layer._geometries.values()
    assert 0 < len(geometry.tables) <= small_correlation.MOST_TABLES
