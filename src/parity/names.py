"""Names, axis orders and blocks that differ between the two sides: what ``weights=`` declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.findings import UsageError
from parity.options import nearest
from parity.outcomes import Array


@dataclass(frozen=True)
class NameMap:
    """Names and axis orders that differ between the two sides, declared by the user.

    ``names`` maps a hand-written name to torch's; ``axes`` maps torch's name to the axis order
    that turns torch's array into the hand-written one (``(1, 0)`` for a transposed Linear);
    ``blocks`` maps torch's name to the order in which the hand-written array has the equal blocks
    of torch's first axis (``(0, 1, 3, 2)`` for an LSTM that keeps its gates as i, f, o, g).
    ``shapes`` is found, not declared: torch's name → the shapes, on either side, of arrays that
    differ in axes of length 1 alone, such as a bias kept as a row, (1, O).
    """

    names: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    blocks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def theirs(self, name: str) -> str:
        """Return torch's name for a hand-written one."""
        return self.names.get(name, name)

    def mine(self, name: str) -> str:
        """Return the hand-written name for one of torch's."""
        for own, other in self.names.items():
            if other == name:
                return own
        return name

    def to_mine(self, name: str, array: Array) -> Array:
        """Reorder torch's array ``name`` for the hand-written side."""
        if name in self.blocks:
            array = in_blocks(array, self.blocks[name])
        axes = self.axes.get(name)
        if axes is not None:
            array = np.ascontiguousarray(array.transpose(axes))
        own, theirs = self.shapes.get(name, (None, None))
        return array.reshape(own) if own is not None and array.shape == theirs else array

    def to_theirs(self, name: str, array: Array) -> Array:
        """Reorder a hand-written array for comparison under torch's ``name``."""
        own, theirs = self.shapes.get(name, (None, None))
        if theirs is not None and array.shape == own:
            array = array.reshape(theirs)
        axes = self.axes.get(name)
        if axes is not None and array.ndim == len(axes):
            array = array.transpose(np.argsort(axes))
        if name in self.blocks:
            array = in_blocks(array, np.argsort(self.blocks[name]))
        return array

    def fitted(self, own: Mapping[str, Array], theirs: Mapping[str, Array]) -> NameMap:
        """Return the same names where arrays of the two sides may differ in axes of length 1."""
        shapes = {}
        for name, array in theirs.items():
            held, turned = (
                np.shape(own.get(self.mine(name), array)),
                self.to_mine(name, array).shape,
            )
            if held != turned and _long(held) == _long(turned):
                shapes[name] = held, turned
        return replace(self, shapes=shapes) if shapes else self

    def declared(self, mine: str, name: str) -> Any:
        """Return what ``weights=`` says of ``mine``: torch's ``name``, and what turns it."""
        turns: list[tuple[Any, ...]] = []
        if name in self.blocks:
            turns.append(("blocks", *self.blocks[name]))
        if name in self.axes:
            turns.append(self.axes[name])
        if mine == name and len(turns) == 1 and name in self.blocks:
            return turns[0]
        return (name, *turns) if turns else name


def _long(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]


def in_blocks(array: Array, order: Iterable[int]) -> Array:
    """Return ``array`` with the equal blocks of its first axis in another order, if it has them."""
    order = list(order)
    if not array.ndim or len(array) % len(order):
        return array
    parts = np.split(array, len(order))
    return np.concatenate([parts[place] for place in order])


def fitting(
    weights: Mapping[str, Any], fixed: Mapping[str, Array], theirs: Mapping[str, Array]
) -> None:
    """Raise UsageError where ``weights`` names or shapes what the reference does not have."""
    for mine, value in weights.items():
        declared = None if mine in fixed else _declared(mine, value)
        name = mine if declared is None else declared[0]
        if name not in theirs:
            have = ", ".join(theirs) or "none"
            raise UsageError(
                f"weights names {name!r}{nearest(name, theirs)}; the reference has: {have}"
            )
        shape = theirs[name].shape
        if declared is None:
            _fits_fixed(mine, fixed[mine], shape)
            continue
        _, axes, blocks = declared
        if axes is not None and sorted(axes) != list(range(len(shape))):
            raise UsageError(
                f"weights[{mine!r}] has the axis order {tuple(axes)}; {name!r} has shape {shape}, "
                f"so it must be an order of {tuple(range(len(shape)))}"
            )
        if blocks is not None and (not shape or shape[0] % len(blocks)):
            raise UsageError(
                f"weights[{mine!r}] has {len(blocks)} blocks; {name!r} has shape {shape}, whose "
                f"first axis does not fall into {len(blocks)} equal ones"
            )


def _fits_fixed(mine: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise UsageError(f"weights[{mine!r}] has shape {array.shape}; the reference's has {shape}")
    if not np.isfinite(array).all():
        raise UsageError(
            f"weights[{mine!r}] holds NaN or infinity, which would hide every difference"
        )


def _numbers(mine: str, value: Any) -> Array:
    """Return an array that ``weights`` gives. Raises UsageError where it holds no real numbers."""
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (ValueError, TypeError) as error:  # rows of several lengths
        raise UsageError(f"weights[{mine!r}] is no array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise UsageError(
            f"weights[{mine!r}] is an array of dtype {array.dtype}; it must hold real numbers"
        )
    return np.array(array, dtype=np.float64)


Declared = tuple[str, "tuple[int, ...] | None", "tuple[int, ...] | None"]


def _declared(mine: str, value: Any) -> Declared | None:
    """Return (torch's name, axis order, order of blocks) of an entry; None where it is no such."""
    if isinstance(value, str):
        return value, None, None
    if not isinstance(value, tuple) or not value or not isinstance(value[0], str):
        return None
    name, turns = value[0], value[1:]
    if name == "blocks" and all(isinstance(turn, (int, np.integer)) for turn in turns):
        name, turns = mine, (value,)
    found: dict[bool, tuple[int, ...]] = {}
    for turn in turns:
        if not isinstance(turn, (tuple, list)) or not turn:
            return None
        blocks = turn[0] == "blocks"
        order = tuple(turn[1:] if blocks else turn)
        if blocks in found or not all(isinstance(place, (int, np.integer)) for place in order):
            return None
        found[blocks] = tuple(map(int, order))
    blocks_order = found.get(True)
    if not turns or (blocks_order is not None and _no_order(blocks_order)):
        return None
    return name, found.get(False), blocks_order


def _no_order(order: tuple[int, ...]) -> bool:
    return len(order) < 2 or sorted(order) != list(range(len(order)))


def name_map(subject: Any, weights: Mapping[str, Any]) -> tuple[NameMap, dict[str, Array]]:
    """Return (names, axis orders and orders of blocks, fixed arrays) of a ``weights`` mapping.

    A value may be torch's name, (torch's name, axis order), (torch's name, ("blocks", order …)),
    both of these together, ("blocks", order …) for an array of the same name, or an array for
    torch's name. Raises UsageError for anything else.
    """
    names: dict[str, str] = {}
    axes: dict[str, tuple[int, ...]] = {}
    blocks: dict[str, tuple[int, ...]] = {}
    fixed: dict[str, Array] = {}
    names |= getattr(subject, "renamed", {})
    for mine, value in weights.items():
        declared = _declared(mine, value)
        if declared is not None:
            name, order, places = declared
            names[mine] = name
            axes |= {} if order is None else {name: order}
            blocks |= {} if places is None else {name: places}
        elif hasattr(value, "__array__") or isinstance(value, (list, float, int)):
            fixed[mine] = _numbers(mine, value)
        else:
            raise UsageError(
                f"weights[{mine!r}] is {value!r}; it must be torch's name, a pair (torch's name, "
                "axis order) such as ('weight', (1, 0)), blocks of the first axis in your order "
                "such as ('weight_ih_l0', ('blocks', 0, 1, 3, 2)), or an array"
            )
    return NameMap(names, axes, blocks), fixed
