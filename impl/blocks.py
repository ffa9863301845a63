"""Blocks of rows that fit the processor's cache, for formulas of several passes."""

from collections.abc import Iterator

import numpy as np

BLOCK = 1 << 16  # elements: 256 KiB of float32; smaller ones cost more calls than they spare


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices that cover `rows` rows of `width` elements, about BLOCK elements each."""
    step = max(BLOCK // max(width, 1), 1)
    for start in range(0, rows, step):
        yield slice(start, start + step)


def blockwise(function, *arrays: np.ndarray) -> np.ndarray:
    """Return function(*arrays) for an elementwise `function`, a block at a time.

    The arrays are of one shape. Each pass of a formula then reads from the cache, and no
    temporary is larger than a block.
    """
    if arrays[0].size <= 2 * BLOCK:
        return function(*arrays)
    flat = [array.reshape(-1) for array in arrays]
    out = np.empty(arrays[0].shape, arrays[-1].dtype)
    rows = out.reshape(-1)
    for part in blocks(rows.size, 1):
        rows[part] = function(*(array[part] for array in flat))
    return out
