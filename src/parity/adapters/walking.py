"""Slots of arrays that an object keeps as attributes, its children's included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from parity.adapters.slots import (
    BUFFERS,
    Slot,
    grad_names,
    grad_of,
    held,
    hint_of,
    is_numbers,
    is_parameter,
    is_tensor,
    parameter_slot,
)
from parity.adapters.stores import plain_slots


def attribute_slots(root: Any) -> list[Slot]:
    """Return the slots of arrays kept as attributes, children included, in order of definition."""
    return list(_walk(root, "", set()))


def _walk(owner: Any, path: str, seen: set[int]) -> Iterator[Slot]:
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if path and not callable(getattr(owner, "params", None)):  # a child that keeps dicts or lists
        for slot in plain_slots(owner):
            seen.add(id(slot.read()))
            slot.name = f"{path}{slot.name}"
            yield slot
    for name, value in attributes_of(owner):
        full = f"{path}{name}"
        if id(value) in seen and not isinstance(value, (np.floating, type(None))):
            continue
        if is_parameter(value):
            if id(value) not in seen:
                seen.add(id(value))
                yield parameter_slot(value, full)
        elif is_numbers(value) or value is None:
            made = _attribute(owner, name, full, value)
            if made is not None:
                seen.add(id(value))
                yield made
        elif isinstance(value, (list, tuple, dict)):
            yield from _within(value, full, seen)
        elif is_layer(value):
            yield from _walk(value, f"{full}.", seen)


def _within(value: Any, path: str, seen: set[int]) -> Iterator[Slot]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if is_parameter(item):
            if id(item) not in seen:
                seen.add(id(item))
                yield parameter_slot(item, f"{path}.{key}")
        elif is_layer(item):
            yield from _walk(item, f"{path}.{key}.", seen)
        elif isinstance(item, (list, tuple, dict)):
            yield from _within(item, f"{path}.{key}", seen)


def attributes_of(owner: Any) -> list[tuple[str, Any]]:
    """Return (name, value) of what an object keeps, slots of ``__slots__`` included."""
    found = dict(vars(owner)) if isinstance(getattr(owner, "__dict__", None), dict) else {}
    for cls in type(owner).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(owner, name):
                found.setdefault(name, getattr(owner, name))
    return list(found.items())


def is_layer(value: Any) -> bool:
    """Whether ``value`` is an object of somebody's own class that computes something."""
    if isinstance(value, type) or is_tensor(value):
        return False
    return any(callable(getattr(value, name, None)) for name in ("forward", "updateOutput"))


def _attribute(owner: Any, name: str, full: str, value: Any) -> Slot | None:
    hint, group = hint_of(name)
    if value is None and hint not in BUFFERS:
        return None
    paired = any(is_numbers(held(owner, text)) for text in grad_names(name)[:11])
    if not hint and not paired:
        return None
    return attribute_slot(owner, name, full, hint, group)


def attribute_slot(
    owner: Any,
    name: str,
    full: str | None = None,
    hint: str = "",
    group: int = 0,
    grad: str | None = None,
) -> Slot:
    """Return the slot of attribute ``name``, with its gradient at ``grad`` or looked for."""
    return Slot(
        full or name,
        lambda: getattr(owner, name),
        lambda value: setattr(owner, name, value),
        lambda: getattr(owner, grad, None) if grad else grad_of(owner, name, getattr(owner, name)),
        hint,
        group,
        "buffers" if hint in BUFFERS else "params",
    )
