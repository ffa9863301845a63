"""Blocks that fit the processor's cache, and what makes elementwise formulas fast in them."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

BLOCK = 1 << 16  # elements: 256 KiB of float32; smaller ones cost more calls than they spare


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices that cover `rows` rows of `width` elements, about BLOCK elements each."""
    step = max(BLOCK // max(width, 1), 1)
    for start in range(0, rows, step):
        yield slice(start, start + step)


def blockwise(function, *arrays: np.ndarray) -> None:
    """Call function(*blocks) on matching flat blocks of the arrays, which are of one shape.

    The function writes into the blocks of some of them; those arrays must be contiguous. Each
    pass of a formula then reads from the cache, and no temporary is larger than a block.
    """
    flat = [array.reshape(-1) for array in arrays]
    if arrays[0].size <= BLOCK:
        function(*flat)
        return
    for part in blocks(arrays[0].size, 1):
        function(*(array[part] for array in flat))


def constant(value: float, like: np.ndarray) -> np.ndarray:
    """Return as many copies of `value` as the block `like` has elements, not to be written to.

    np.maximum, for one, takes three times as long with a number as with an array.
    """
    return _filled(value, like.dtype)[: like.size]


@lru_cache(maxsize=16)
def _filled(value: float, dtype: np.dtype) -> np.ndarray:
    array = np.full(BLOCK, value, dtype)
    array.flags.writeable = False
    return array


def log1p(z: np.ndarray, out: np.ndarray) -> None:
    """Write log(1 + z) for a block of finite z >= 0; np.log1p is not vectorised, log is.

    log(w) + (z - (w - 1)) / w with w = fl(1 + z) is right to first order in w's rounding.
    """
    w = z + 1
    np.log(w, out=out)
    rest = 1 - w  # exact
    rest += z
    rest /= w
    out += rest
