"""What torch's own formula loses by cancellation, where moving the inputs does not show it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parity.ladder import EPS32, differences, response
from parity.pair import Pair

DRAWS = 12
SPREADS = (16.0, 64.0, 4.0)  # one value leads: sums near 1, where cancellation shows most
ENOUGH = 8  # elements that show it: one alone may be right by luck
UNEXPLAINED = 16.0  # errors beyond this many responses to one ulp come from inside the formula


def absolute_loss(pair: Pair) -> float:
    """Return the largest error of torch's float32 output that its inputs' rounding leaves open.

    log_softmax near 0 is the logarithm of a sum near 1: wrong by the rounding of 1, although the
    function itself is well-conditioned there. Another order of summation rounds that sum to
    another neighbour, on either side. softmax has no such loss, and its tails stay sharp.
    """
    found: list[float] = []
    for number in range(DRAWS):
        rng = np.random.default_rng([number, 31])
        draw = pair.draw(number, True, "magnitudes")
        inputs = (rng.standard_normal(draw.inputs[0].shape) * SPREADS[number % 3],)
        draw = replace(draw, inputs=inputs).rounded(np.float32)
        exact = pair.theirs(draw).outputs[0]
        moved = [pair.theirs(draw.nudged(rng, np.float32)).outputs[0] for _ in range(2)]
        with np.errstate(all="ignore"):
            explained = response(exact, moved) + EPS32 * np.abs(exact)
        error = differences(pair.theirs(draw, "float32").outputs[0], exact)
        found += error[error > UNEXPLAINED * explained].tolist()
        if len(found) >= ENOUGH:
            break
    return max(found, default=0.0)
