"""Which array of a hand-written object is which of torch's: by name, habit, order and shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parity.adapters.layouts import Layout, layouts
from parity.adapters.slots import Slot, in_order
from parity.outcomes import Array

Pairs = dict[str, tuple[Slot, list[Layout]]]


def match(theirs: Mapping[str, Array], slots: Sequence[Slot]) -> Pairs:
    """Return torch's name → (slot, possible layouts); what has no partner is left out.

    First equal names, then for each of weight, bias, running_mean … the n-th with the n-th, then
    what is left in order, then by a shape that only one of them has.
    """
    found: Pairs = {}
    left = list(in_order(slots))
    _take(found, left, _by_name(theirs, left), theirs)
    by_hint: dict[str, Slot] = {}
    for hint in dict.fromkeys(slot.hint for slot in left):
        names = [n for n in theirs if n not in found and n.rpartition(".")[2] == hint]
        chosen = [slot for slot in left if slot.hint == hint]
        if hint and len(names) == len(chosen):
            by_hint |= dict(zip(names, chosen, strict=True))
    _take(found, left, by_hint, theirs)
    names = [n for n in theirs if n not in found]
    if len(names) == len(left):
        _take(found, left, dict(zip(names, left, strict=True)), theirs, together=True)
    _take(found, left, _by_order(theirs, found, left), theirs)
    return found


def _by_name(theirs: Mapping[str, Array], slots: Sequence[Slot]) -> dict[str, Slot]:
    own = {}
    for slot in slots:
        stem = slot.name.rpartition(".")[0]
        own[slot.name] = slot
        if slot.hint:
            own.setdefault(f"{stem}.{slot.hint}" if stem else slot.hint, slot)
    return {name: own[name] for name in theirs if name in own}


def _by_order(
    theirs: Mapping[str, Array], found: Mapping[str, Any], slots: Sequence[Slot]
) -> dict[str, Slot]:
    """Pair what is left by shape where nothing else could be meant."""
    chosen = {}
    names = [n for n in theirs if n not in found]
    for name in names:
        fitting = [s for s in slots if layouts(s.shape, theirs[name].shape)]
        if len(fitting) == 1:
            rivals = [n for n in names if layouts(fitting[0].shape, theirs[n].shape)]
            if rivals == [name]:
                chosen[name] = fitting[0]
    return chosen


def _take(
    found: Pairs,
    left: list[Slot],
    chosen: Mapping[str, Slot],
    theirs: Mapping[str, Array],
    together: bool = False,
) -> None:
    """Keep the pairs whose shapes fit; ``together`` keeps all or none."""
    fitting: Pairs = {}
    for name, slot in chosen.items():
        shape, empty = theirs[name].shape, slot.read() is None
        possible = [Layout(tuple(shape), tuple(shape))] if empty else layouts(slot.shape, shape)
        if possible:
            fitting[name] = (slot, possible)
    if together and len(fitting) < len(chosen):
        return
    found.update(fitting)
    taken = {id(slot) for slot, _ in fitting.values()}
    left[:] = [slot for slot in left if id(slot) not in taken]
