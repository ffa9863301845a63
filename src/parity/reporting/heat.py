"""The error over a tensor as a small grid, so that a report can show where it sits."""

from __future__ import annotations

import math
import sys
from typing import Any

SIDE = 24  # cells along an edge; larger tensors are shown by the largest error of each block
DECADES = 6


def error_map(mine: Any, theirs: Any) -> dict[str, Any] | None:
    """Return {"cells", "shape"} of |mine - theirs|, None where the two cannot be laid over.

    The last axis (or the last two, of images) runs across; what is in front is folded. NaN and
    infinities on one side only count as infinite, and are written as text.
    """
    import numpy as np

    from parity.reporting.sections import plain

    if mine is None or theirs is None or mine.shape != theirs.shape or mine.size == 0:
        return None
    if mine.dtype.kind not in "fiub" or theirs.dtype.kind not in "fiub":
        return None
    a, b = mine.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(all="ignore"):
        error = np.asarray(np.abs(a - b))
    error[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    error[np.isnan(error)] = np.inf
    across = error.shape[-1] if error.ndim else 1
    grid = error.reshape(-1, across)
    for axis in (0, 1):
        edges = np.linspace(0, grid.shape[axis], min(SIDE, grid.shape[axis]) + 1).astype(int)[:-1]
        grid = np.maximum.reduceat(grid, edges, axis=axis)
    cells = [[float(f"{value:.2e}") for value in row] for row in grid.tolist()]
    return {"cells": plain(cells), "shape": list(mine.shape)}


def svg(heat: Any) -> str:
    """Return a grid as an SVG picture: the darker, the larger, on a log scale of six decades.

    Empty for data that is no grid: reports come from files.
    """
    from parity.reporting.sections import number

    cells = heat.get("cells") if isinstance(heat, dict) else None
    if not isinstance(cells, list) or not 0 < len(cells) <= SIDE:
        return ""
    if not all(isinstance(row, list) and 0 < len(row) <= SIDE for row in cells):
        return ""
    values = [[number(value) for value in row] for row in cells]
    finite = [v for row in values for v in row if 0 < v < math.inf]
    largest = max(finite, default=1.0)
    levels: dict[int, list[str]] = {}
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            levels.setdefault(_level(value, largest), []).append(f"M{x} {y}h1v1h-1z")
    wide, high = max(map(len, values)), len(values)
    paths = "".join(
        f'<path class="heat{level}" d="{"".join(places)}"/>'
        for level, places in sorted(levels.items())
    )
    return (
        f'<svg class="heat" viewBox="0 0 {wide} {high}" width="{16 * wide}" height="{16 * high}" '
        f'role="img" aria-label="Where the error is: {len(finite)} of {wide * high} cells differ, '
        f'the largest by {largest if finite else 0:.2g}" shape-rendering="crispEdges">{paths}</svg>'
    )


def _level(value: float, largest: float) -> int:
    """0 for no error, then 1 to DECADES; not finite is DECADES too."""
    if value == 0.0:
        return 0
    if not value < math.inf:
        return DECADES
    share = max(value / largest, sys.float_info.min)  # the quotient of extremes is 0
    return max(1, DECADES + math.floor(math.log10(share)))
