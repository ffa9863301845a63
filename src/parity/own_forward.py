"""Torch's own forward pass as a witness, where its gradient and mine differ slightly.

Some of torch's backward passes hold a constant in float32 (Hardsigmoid, CELU): in float64 they are
off by 3e-8, which no rounding explains, and the right gradient would be called wrong.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parity.draws import Draw
from parity.ladder import EPS32, EPS64, largest
from parity.outcomes import Array, LayerError
from parity.pair import Pair

STEPS = 2.0 ** -np.arange(2, 41, 3)  # large ones lose less to rounding, small ones cross no kink
CERTAIN = 1 / 32  # of what is between the two gradients: two step sizes agree so well
CLEAR = 1 / 8  # of the same: torch's forward is so near to one of them
ALIKE = 2.0  # times what torch was seen to be off by: what cannot be asked is the same error
GRID = 4.0 * np.sqrt(2) * np.linspace(-1, 1, 32)  # where a function is asked, no kink among them


def torchs_error(
    pair: Pair, draw: Draw, name: str, own: Array, ref: Array, allowed: Array | float
) -> float | None:
    """Return the share by which torch's gradient is off, where that and nothing else is the error.

    ``allowed`` is what rounding explains: elements inside of it are not asked about.

    None unless torch's own forward pass, differentiated numerically, clearly says what mine says.
    Where the two are too near for that, no more is excused than twice what torch was off by
    elsewhere; where mine is the one that is wrong, nothing.
    """
    if not (np.isfinite(own).all() and np.isfinite(ref).all()):
        return None
    known = pair.torch_errors.get(name, 0.0)
    try:
        if pair.elementwise:
            return _each_element(pair, draw, name, own, ref, allowed, known)
        return _along_the_gap(pair, draw, name, own, ref, known)
    except LayerError:  # moved out of the reference's domain
        return None


def _along_the_gap(
    pair: Pair, draw: Draw, name: str, own: Array, ref: Array, known: float
) -> float | None:
    """Ask for the derivative in the direction in which the two gradients differ most."""
    gap = own - ref
    direction = gap / largest(gap)
    slopes, floors = [], []
    for h in STEPS:
        pairs = _changes(pair, draw, name, h * direction)
        slopes.append(sum(float((g * change).sum()) for g, change, _ in pairs) / h)
        lost = sum(float(np.abs(g * y)[change != 0].sum()) for g, change, y in pairs)
        lost += float(np.abs(own * _asked(draw, name))[direction != 0].sum())
        floors.append(EPS64 * lost / h)
    apart = float((gap * direction).sum())
    slope, doubt = _settled(np.array(slopes), np.array(floors))
    share = largest(gap) / largest(ref)
    if doubt > CERTAIN * apart:
        return share if share <= ALIKE * known else None
    return share if abs(slope - (own * direction).sum()) <= CLEAR * apart else None


def _each_element(
    pair: Pair,
    draw: Draw,
    name: str,
    own: Array,
    ref: Array,
    allowed: Array | float,
    known: float,
) -> float | None:
    """Ask for each element's own derivative, all at once: none depends on another's input.

    Shares are counted by 1 + |x|: a constant inside of exp(c·x) moves the answer by a share that
    grows with x.
    """
    x = _asked(draw, name)
    slope, doubt = _own_slopes(pair, draw, name, own)
    gap = np.abs(own - ref)
    with np.errstate(all="ignore"):
        share = np.where(gap > allowed, gap / np.abs(ref), 0.0) / (1 + np.abs(x))
    certain = (share > 0) & (doubt <= CERTAIN * gap)
    if (np.abs(slope - own) > CLEAR * gap)[certain].any():
        return None
    seen = float(share[certain].max(initial=known))
    if 0 < share.max() <= ALIKE * seen:
        return seen
    # On a kink, and near 0, nothing can be asked. A constant in float32 shows elsewhere, and may be
    # off by so much: parts of its error cancel in one place and not in another.
    constant = _constant(pair, name)
    return constant if constant and 0 < share.max() <= EPS32 / 2 else None


def _constant(pair: Pair, name: str) -> float:
    """Return by what share torch's gradient is off on a grid, where that is a float32 constant."""
    draw = replace(pair.draw(label="permutation"), inputs=(GRID,), upstream=(np.ones(GRID.size),))
    ref = pair.theirs(draw).quantities.get(name)
    if ref is None or ref.shape != GRID.shape:
        return 0.0
    slope, doubt = _own_slopes(pair, draw, name, ref)
    gap = np.abs(slope - ref)
    with np.errstate(all="ignore"):
        share = gap / np.abs(ref) / (1 + np.abs(GRID))
    seen = float(share[(doubt <= CERTAIN * gap) & (share <= EPS32)].max(initial=0.0))
    return seen if seen >= EPS32 / 128 else 0.0


def _own_slopes(pair: Pair, draw: Draw, name: str, gradient: Array) -> tuple[Array, Array]:
    """Return each element's own derivative of torch's forward, and how much it may be off.

    ``gradient`` is what it is held against: it says how much a rounded input moves the output.
    """
    x = _asked(draw, name)
    slopes, floors = [], []
    for h in STEPS:
        ((g, change, y),) = _changes(pair, draw, name, np.full(gradient.shape, h))
        slopes.append(g * change / h)
        floors.append(EPS64 * (np.abs(g * y) + np.abs(gradient * x)) / h)
    return _settled(np.array(slopes), np.array(floors))


def _changes(pair: Pair, draw: Draw, name: str, step: Array) -> list[tuple[Array, Array, Array]]:
    """Return (upstream, the output's change, the output) for ``step``, of the fourth order."""
    asked = _asked(draw, name)
    sides = [
        pair.theirs(_with(draw, name, asked + by * step)).outputs for by in (1.0, -1.0, 2.0, -2.0)
    ]
    return [
        (g, (8 * (up - down) - (far_up - far_down)) / 12, up)
        for g, up, down, far_up, far_down in zip(draw.upstream, *sides, strict=False)
        if g is not None
    ]


def _asked(draw: Draw, name: str) -> Array:
    """Return the input or parameter whose gradient is called ``name``."""
    key = name.removeprefix("grad_")
    return draw.params[key] if key in draw.params else draw.inputs[int(key.removeprefix("input"))]


def _with(draw: Draw, name: str, array: Array) -> Draw:
    """Return the draw with ``array`` in the place that :func:`_asked` tells of."""
    key = name.removeprefix("grad_")
    if key in draw.params:
        return replace(draw, params={**draw.params, key: array})
    which = int(key.removeprefix("input"))
    inputs = tuple(array if i == which else a for i, a in enumerate(draw.inputs))
    return replace(draw, inputs=inputs)


def _settled(slopes: Array, floors: Array) -> tuple[Array, Array]:
    """Return the slope at the step size where it is surest, and how much it may be off there.

    That is what it changes by to the next smaller step, and what rounding does to that one.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        doubts = np.abs(np.diff(slopes, axis=0)) + floors[1:]
    doubts[np.isnan(doubts)] = np.inf
    best = doubts.argmin(axis=0)[None]
    return (
        np.take_along_axis(slopes, best, axis=0)[0],
        np.take_along_axis(doubts, best, axis=0)[0],
    )
