"""Outputs in nested tuples, as recurrent layers return them: (output, (hidden, cell))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def leaves(value: Any) -> list[Any]:
    """Return the leaves of nested tuples and lists in order; anything else is one leaf."""
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def arranged(returned: Any, upstream: Sequence[Any], takes: int) -> list[Any]:
    """Return what backward is handed: one gradient an output, nested as forward returned them.

    They are handed flat to a backward that takes as many as there are arrays, and where an output
    (an integer one) has no gradient.
    """
    single = not isinstance(returned, (tuple, list))
    if single or takes == len(upstream) or len(leaves(returned)) != len(upstream):
        return list(upstream)
    queue = list(upstream)
    return [_like(item, queue) for item in returned]


def _like(item: Any, queue: list[Any]) -> Any:
    if isinstance(item, (tuple, list)):
        return tuple(_like(each, queue) for each in item)
    return queue.pop(0)


def first(returned: Sequence[Any], count: int) -> int:
    """Return how many leading items of ``returned`` hold ``count`` leaves."""
    held = 0
    for place, item in enumerate(returned):
        held += len(leaves(item))
        if held >= count:
            return place + 1
    return len(returned)
