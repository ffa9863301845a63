"""How one array of a hand-written layer is laid out, against torch's array of the same numbers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import prod

import numpy as np

from parity.outcomes import Array

Shape = tuple[int, ...]

# what people keep most often comes first: as torch, (in, out), HWIO, OHWI, IOHW
_HABITS: tuple[tuple[int, ...], ...] = (
    (1, 0),
    (2, 3, 1, 0),
    (0, 2, 3, 1),
    (1, 0, 2, 3),
    (1, 2, 3, 0),
    (0, 1, 3, 2),
    (2, 1, 0),
)


@dataclass(frozen=True)
class Layout:
    """Torch's shape, the axis order (of ``folded`` if given), and the hand-written shape."""

    theirs: Shape
    mine: Shape
    axes: tuple[int, ...] | None = None
    folded: Shape | None = None

    def to_mine(self, array: Array) -> Array:
        """Return torch's array as the hand-written layer keeps it."""
        array = array.reshape(self.folded or self.theirs)
        if self.axes is not None:
            array = array.transpose(self.axes)
        return np.ascontiguousarray(array).reshape(self.mine)

    def to_theirs(self, array: Array) -> Array:
        """Return a hand-written array as torch keeps it; another size is left as it is."""
        if array.shape != self.mine:
            return array
        inner = self.folded or self.theirs
        if self.axes is not None:
            turned = array.reshape([inner[axis] for axis in self.axes])
            array = turned.transpose(np.argsort(self.axes))
        return array.reshape(self.theirs)

    @property
    def plain(self) -> bool:
        """Whether both sides keep the array alike, ones in the shape aside."""
        return self.axes is None

    def describe(self) -> str:
        """Return the layout in words."""
        if self.axes == (1, 0) and self.folded is None:
            return "(in, out)"
        turned = "" if self.axes is None else f" with axes {self.axes}"
        return f"{self.mine}{turned} for torch's {self.theirs}"


def layouts(mine: Shape, theirs: Shape) -> list[Layout]:
    """Return every way in which an array of shape ``mine`` may hold torch's, likeliest first."""
    mine, theirs = tuple(mine), tuple(theirs)
    if prod(mine) != prod(theirs):
        return []
    found = [Layout(theirs, mine)] if _squeezed(mine) == _squeezed(theirs) else []
    if len(mine) == len(theirs) and 1 < len(mine) <= 5 and sum(n > 1 for n in theirs) > 1:
        orders = [a for a in _HABITS if len(a) == len(mine)]
        orders += [a for a in permutations(range(len(mine))) if a not in orders]
        for axes in orders:
            if axes != tuple(range(len(mine))) and tuple(theirs[a] for a in axes) == mine:
                found.append(Layout(theirs, mine, axes))
    if len(mine) == 2 and len(theirs) > 2:  # kernels folded into a matrix, as im2col wants them
        folded = (theirs[0], prod(theirs[1:]))
        if mine == folded:
            found.append(Layout(theirs, mine))
        if mine == folded[::-1]:
            found.append(Layout(theirs, mine, (1, 0), folded))
    return list(dict.fromkeys(found))


def free_layouts(theirs: Shape) -> list[Layout]:
    """Return the layouts to try where a pair of functions says nothing about its shapes."""
    theirs = tuple(theirs)
    orders = [a for a in _HABITS if len(a) == len(theirs)]
    turned = [Layout(theirs, tuple(theirs[a] for a in axes), axes) for axes in orders[:3]]
    return [Layout(theirs, theirs), *turned]


def _squeezed(shape: Shape) -> Shape:
    return tuple(n for n in shape if n != 1)
