"""Slots of arrays that an object keeps in dicts, in lists, or behind getters and setters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from parity.adapters.slots import (
    GRAD_STORES,
    Slot,
    describe,
    grad_names,
    grad_of,
    hint_of,
    is_numbers,
    is_parameter,
    parameter_slot,
)
from parity.findings import UsageError
from parity.outcomes import LayerError


def dict_slots(owner: Any, store: str = "params") -> list[Slot]:
    """Return the slots of a dict of arrays or Parameter objects; ``store`` may be a method."""
    found = []
    entries = current(owner, store)
    for key, value in entries.items():
        if is_parameter(value):
            found.append(parameter_slot(value, str(key)))
            continue
        if not is_numbers(value):
            raise UsageError(
                f"{type(owner).__name__}.{store}[{key!r}] is {describe(value)}; it must be a "
                "floating NumPy array (np.array(…, dtype=float)), a tensor, or an object with "
                ".value and .grad"
            )
        found.append(_entry(owner, store, key))
    return found


def _entry(owner: Any, store: str, key: Any) -> Slot:
    name = str(key)
    hint, group = hint_of(name)

    def read() -> Any:
        return current(owner, store)[key]

    def assign(value: Any) -> None:
        entries = current(owner, store)
        setter = getattr(owner, "set_params", None)
        if callable(getattr(owner, store)) and callable(setter):
            setter({**entries, key: value})
        else:
            entries[key] = value

    def grad() -> Any:
        for getter in ("get_grads", "get_gradients", "get_grad_params", "gradients"):
            found = getattr(owner, getter, None)
            if callable(found):
                entries = found()
                for text in (name, *grad_names(name)):
                    if isinstance(entries, Mapping) and text in entries:
                        return entries[text]
        return grad_of(owner, name, read())

    return Slot(name, read, assign, grad, hint, group)


def current(owner: Any, store: str) -> Any:
    """Return attribute ``store``, called where it is a method."""
    found = getattr(owner, store, None)
    return found() if callable(found) else found


def list_slots(
    read_all: Callable[[], Any],
    read_grads: Callable[[], Any],
    label: str,
    replace: Callable[[int, Any], None] | None = None,
) -> list[Slot]:
    """Return the slots of nested lists of arrays (or Parameter objects), written in place."""
    found = []
    for k, item in enumerate(flat(read_all())):
        name = f"{label}[{k}]"
        if is_parameter(item):
            found.append(parameter_slot(item, name))
        elif is_numbers(item):
            found.append(_listed(read_all, read_grads, name, k, replace))
        else:
            raise UsageError(
                f"{label} holds {describe(item)} at {k}; every entry must be a floating array, a "
                "tensor, or an object with .value and .grad"
            )
    return found


def _listed(
    read_all: Callable[[], Any],
    read_grads: Callable[[], Any],
    name: str,
    k: int,
    replace: Callable[[int, Any], None] | None,
) -> Slot:
    def grad() -> Any:
        grads = flat(read_grads())
        return grads[k] if k < len(grads) else None

    def assign(value: Any) -> None:
        if replace is not None:
            replace(k, value)
            return
        held = flat(read_all())[k]
        raise LayerError(
            f"{name} is {describe(held)} and cannot be written in place for an array of shape "
            f"{value.shape} and dtype {value.dtype}; hand out the layer's own arrays, in the dtype "
            "that it computes in, rather than copies",
            "weights",
        )

    return Slot(name, lambda: flat(read_all())[k], assign, grad)


def flat(value: Any) -> list[Any]:
    """Return the leaves of nested lists and tuples in order; an array is a leaf, None is none."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in flat(item)]
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in flat(item)]
    if hasattr(value, "__next__"):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def plain_slots(owner: Any) -> list[Slot]:
    """Return the slots of ``params`` and ``buffers`` where they are dicts or lists, else none."""
    held = current(owner, "params") if not _takes_arguments(owner) else None
    slots: list[Slot] = []
    if isinstance(held, Mapping):
        slots = dict_slots(owner)
    elif isinstance(held, (list, tuple)) or hasattr(held, "__next__"):

        def replace(k: int, value: Any) -> None:
            held = owner.params
            if not isinstance(held, list):
                raise LayerError(
                    f"params is {describe(held)}, whose entries cannot be replaced; make it a list "
                    "of arrays of the dtype that the layer computes in",
                    "weights",
                )
            held[k] = value

        grads = next((g for g in GRAD_STORES if hasattr(owner, g)), "grads")
        slots = list_slots(
            lambda: current(owner, "params"), lambda: current(owner, grads), "params", replace
        )
    if isinstance(getattr(owner, "buffers", None), Mapping):
        slots += [_buffer(slot) for slot in dict_slots(owner, "buffers")]
    return slots


def _buffer(slot: Slot) -> Slot:
    slot.kind = "buffers"
    return slot


def _takes_arguments(owner: Any) -> bool:
    held = getattr(owner, "params", None)
    try:
        return callable(held) and bool(inspect.signature(held).parameters)
    except (TypeError, ValueError):
        return False
