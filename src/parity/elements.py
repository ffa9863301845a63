"""Bounds for each element by itself, where the reference is one function of its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from parity.draws import Draw
from parity.ladder import (
    ELEMENT64,
    EPS32,
    EPS64,
    SCALE_GAP,
    SLIGHT,
    differences,
    element_allowance,
    largest,
)
from parity.outcomes import Array, LayerError, Outcome

if TYPE_CHECKING:
    from parity.pair import Pair

VECTOR_ULPS = 4.0  # between two ways in which a processor computes one function
TAIL = 256  # numbers from 1 to 100 on either side of 0


def element_allowances(
    pair: Pair, draw: Draw, theirs: Outcome, noise: Mapping[str, Array]
) -> dict[str, Array]:
    """Return per-element bounds where the reference is a lone function of one input."""
    if draw.label not in ("magnitudes",) or not pair.elementary:
        return {}
    if not pair.elementwise and homogeneous(pair):
        return {}
    narrow = draw.rounded(np.float32)
    r32, r64 = pair.theirs(narrow, "float32").quantities, pair.theirs(narrow).quantities
    found = {}
    for name in ("forward", "grad_input0") if pair.elementwise else ("forward",):
        ref = theirs.quantities.get(name)
        if ref is None or r32.get(name) is None:
            continue
        a32, a64 = r32[name], r64[name]
        assert a32 is not None
        assert a64 is not None
        floor: Array | float = pair.absolute_loss * SCALE_GAP if not pair.elementwise else 0.0
        if pair.elementwise:
            floor = tail_loss(pair, draw, name)
        if name == "grad_input0" and draw.upstream[0] is not None:
            # 1 - y² and its like saturate: their rounding is that of the upstream value
            floor = np.abs(draw.upstream[0]) * (EPS64 + floor)
        # a sum of n terms is rounded n times, and these errors add up like √n
        terms = 1.0 if pair.elementwise else float(np.sqrt(max(ref.shape, default=1)))
        found[name] = terms * element_allowance(ref, noise[name], differences(a32, a64), floor)
    return found


def tail_loss(pair: Pair, draw: Draw, name: str) -> Array | float:
    """Return what torch's own formula has lost by cancellation on the way out to each input.

    GELU as x·(1 + erf) / 2 is made of the last bits of 1 far below 0: who writes erfc is right
    there, and torch is not; so it is with its derivative. Measured in float32, from 1 outwards on
    either side of 0, for ``name`` and an upstream gradient of 1.
    """
    far = 10.0 ** np.linspace(0, 2, TAIL)
    x = draw.inputs[0]
    found = np.zeros(x.shape)
    for sign in (-1.0, 1.0):
        grid = replace(draw, inputs=((sign * far).astype(np.float32).astype(np.float64),))
        grid = replace(grid, upstream=() if name == "forward" else (np.ones(far.shape),))
        try:
            r64, r32 = (
                pair.theirs(grid, dtype).quantities.get(name) for dtype in ("float64", "float32")
            )
        except LayerError:  # wants inputs of its own shape
            return 0.0
        if r64 is None or r32 is None or r64.shape != far.shape:
            return 0.0
        lost = np.maximum(differences(r32, r64) - ELEMENT64 * EPS32 * np.abs(r64), 0.0)
        lost[~np.isfinite(lost)] = 0.0
        reached = np.searchsorted(far, sign * x, side="right")
        found = np.maximum(found, np.append(0.0, np.maximum.accumulate(lost))[reached])
    return found * SCALE_GAP


def saturation(pair: Pair, draw: Draw, name: str) -> float:
    """The derivative of a lone function may saturate (1 - y²): it rounds as upstream does."""
    if not name.startswith("grad_input") or not pair.reference.lone or pair.reference.params:
        return 0.0
    scale = max((largest(g) for g in draw.upstream if g is not None), default=0.0)
    # a mean hands each of its elements a share of one upstream value
    alone = all(g is None or g.size == 1 for g in draw.upstream)
    return scale / max(1, draw.inputs[0].size) if alone and draw.upstream else scale


def open_scales(pair: Pair, draw: Draw) -> dict[str, float]:
    """Return how large each gradient would be if nothing inside the reference saturated.

    Where a gate or an activation is saturated, its derivative s·(1 - s) is made of the last bits of
    s: two right formulas differ there by rounding at the scale of what goes through an open one,
    however small the gradient itself has become. So the reference is run on the same draw with its
    inputs scaled down; a parameter's gradient is granted the inputs' own scale besides.
    """
    peak = max((largest(a) for a in draw.inputs if a.dtype.kind == "f"), default=0.0)
    found: dict[str, float] = {}
    for size in (1.0, 1e-3):
        factor = min(1.0, size / peak) if peak else 1.0
        inputs = tuple(a * factor if a.dtype.kind == "f" else a for a in draw.inputs)
        try:
            quantities = pair.theirs(replace(draw, inputs=inputs)).quantities
        except LayerError:  # a domain that is not to be scaled
            continue
        for name, array in quantities.items():
            if name.startswith("grad_") and array is not None:
                given = 1.0 if name.startswith("grad_input") else max(1.0, peak)
                found[name] = max(found.get(name, 0.0), given * largest(array))
    return found


def permutes(pair: Pair) -> bool:
    """Whether moving elements of the input moves those of the output alike, and no others."""
    draw = pair.draw(label="permutation")
    x = draw.inputs[0]
    order = np.random.default_rng(1).permutation(x.size)
    y = pair.theirs(draw).outputs[0]
    moved = replace(draw, inputs=(x.reshape(-1)[order].reshape(x.shape),))
    z = pair.theirs(moved).outputs[0]
    if y.shape != x.shape:
        return False
    # the last elements of an array go through other code than those that fill a vector register
    here, there = y.reshape(-1)[order], z.reshape(-1)
    if not (np.abs(here - there) <= VECTOR_ULPS * np.spacing(np.abs(here))).all():
        return False
    other = x.copy()  # softmax of a vector permutes too, but every element moves all of it
    other.reshape(-1)[:1] += 1.0
    w = pair.theirs(replace(draw, inputs=(other,))).outputs[0]
    return np.array_equal(w.reshape(-1)[1:], y.reshape(-1)[1:])


def homogeneous(pair: Pair) -> bool:
    """Whether the function has no scale of its own: f(4x) - f(0) is 4 times f(x) - f(0).

    Averages, sums, filters: each element of theirs may be what is left of larger ones, by prefix
    sums or a Fourier transform as by windows, so that rounding has the scale of the whole input. A
    function that is not has tails, which rounding does not explain (softmax).
    """
    draw = pair.draw(label="permutation")
    at = [replace(draw, inputs=(factor * draw.inputs[0],)) for factor in (0.0, 1.0, 4.0)]
    try:
        zero, one, four = (pair.theirs(item).outputs[0] for item in at)
    except LayerError:
        return False
    with np.errstate(all="ignore"):
        apart = differences(four - zero, 4 * (one - zero))
    finite = all(np.isfinite(answer).all() for answer in (zero, one, four))
    return finite and largest(apart) <= SLIGHT * largest(four)
