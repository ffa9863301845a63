"""Torch's own overflow: numbers at which it answers NaN are outside the domain of its formula."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parity.draws import FAR, Draw
from parity.outcomes import Array
from parity.pair import Pair

WILD = ("magnitudes", *FAR)  # draws of numbers that a formula may not be made for
UNMEASURED = "where its answer is not finite, it is no measure"
Quantities = Mapping[str, Array | None]


def leaves_domain(pair: Pair, draw: Draw, theirs: Quantities) -> bool:
    """Whether torch answers NaN to ``draw`` for its numbers' size: inf - inf, or inf / inf.

    An infinity alone is an answer: a logarithm at 0, an exponential too large for any formula. NaN
    where usual numbers give it as well is an answer too. Raises LayerError.
    """
    if draw.label not in WILD or not _nan(theirs):
        return False
    shapes = [a.shape for a in draw.inputs]
    return not _nan(pair.theirs(pair.draw(draw.seed, draw.training, "generic", shapes)).quantities)


def no_measure(mine: Quantities, theirs: Quantities) -> dict[str, Array | None]:
    """Return ``mine`` with torch's infinities and NaN where torch has them; the rest stays mine."""
    found = dict(mine)
    for name, ref in theirs.items():
        own = found.get(name)
        if ref is None or own is None or own.shape != ref.shape:
            continue
        if ref.dtype.kind == own.dtype.kind == "f":
            found[name] = np.where(np.isfinite(ref), own, ref)
    return found


def _nan(quantities: Quantities) -> bool:
    return any(
        array is not None and array.dtype.kind == "f" and bool(np.isnan(array).any())
        for array in quantities.values()
    )
