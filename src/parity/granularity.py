"""How finely torch's own elementwise formula resolves its output near an input."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from parity.draws import Draw
from parity.ladder import ELEMENT64, EPS64
from parity.outcomes import Array, LayerError

if TYPE_CHECKING:
    from parity.pair import Pair

REACH = 2.0**-28  # a smooth function bends by less than one rounding over it
PLACES = np.linspace(-0.9, 0.97, 14)  # in it, and not symmetric: roundings might cancel
DOUBLINGS = 64  # from an input at which nothing is left, outwards


def granularity(pair: Pair, draw: Draw) -> Array | None:
    """Return how coarse torch's output is near each input; None where it refuses them.

    exp(x) - 1 is a multiple of the last bit of 1 for small x, whatever the true value is: who
    writes expm1 is right there, and torch's ELU before 2.9 was not. Moving x by an ulp does not
    show that, but the distance from a secant does, which a smooth function hardly leaves over so
    short a reach. Where nothing is left at all, what is left a little further out counts.
    """
    x = draw.inputs[0]

    def at(values: Array) -> Array:
        return pair.theirs(replace(draw, inputs=(values,), upstream=())).outputs[0]

    with np.errstate(all="ignore"):
        try:
            here = at(x)
            if here.shape != x.shape:
                return None
            away = np.minimum(np.abs(x), REACH)
            low, high = at(x - away), at(x + away)
            found = np.zeros(x.shape)
            for place in PLACES:
                off = np.abs(at(x + place * away) - (low + high) / 2 - place * (high - low) / 2)
                found = np.maximum(found, np.where(np.isfinite(off), off, 0.0))
            lost, value = (here == 0) & (x != 0), x
            for _ in range(DOUBLINGS):
                if not lost.any():
                    break
                value = np.where(lost, 2 * value, value)
                left = np.abs(at(value))
                # a jump, as at the edge of a dead zone, is no rounding
                fine = (left > 0) & (left <= ELEMENT64 * EPS64)
                found = np.where(lost & fine, left, found)
                lost &= left == 0
        except LayerError:
            return None
    return found
