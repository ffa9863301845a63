"""Whether two objects are one piece of code built alike: nothing that makes them act differs."""

from __future__ import annotations

import types
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from parity.adapting import is_torch_module

# what the harness sets itself on both sides, whatever it was
SET_ALIKE = frozenset({"training"})
MISSING = object()


def same_code(mine: Any, theirs: Any) -> bool:
    """Return whether both sides are one object, or torch modules of one class that act alike.

    The values of parameters and buffers may differ, for both sides are given the same; everything
    else that an instance holds must not: its own ``forward``, plain attributes, hooks, submodules.
    """
    if mine is theirs:
        return True
    if not is_torch_module(mine) or type(mine) is not type(theirs):
        return False
    try:
        return _Likeness().alike(mine, theirs)
    except Exception:  # an attribute that cannot be compared may be one that differs
        return False


class _Likeness:
    """One comparison: pairs that were met already are not entered again."""

    def __init__(self) -> None:
        self.met: set[tuple[int, int]] = set()
        self.kept: list[Any] = []  # an id is nobody else's while its object lives

    def alike(self, a: Any, b: Any) -> bool:
        """Return whether two values are one thing, or hold alike things."""
        if a is b or (id(a), id(b)) in self.met:
            return True
        if type(a) is not type(b):
            return False
        self.met.add((id(a), id(b)))
        self.kept += (a, b)
        if is_torch_module(a):
            return self._modules(a, b)
        if hasattr(a, "requires_grad") and hasattr(a, "detach"):
            return _tensors(a, b)
        if isinstance(a, (np.ndarray, np.generic, float, complex)):
            nan = np.asarray(a).dtype.kind in "fc"
            return bool(np.array_equal(a, b, equal_nan=nan))
        own, other = _parts(a), _parts(b)
        if own is None or other is None:
            return bool(a == b)
        return len(own) == len(other) and all(map(self.alike, own, other))

    def _modules(self, a: Any, b: Any) -> bool:
        """Return whether modules differ in the values of parameters and buffers at most."""
        own, other = ({k: v for k, v in vars(m).items() if k not in SET_ALIKE} for m in (a, b))
        if own.keys() != other.keys():
            return False
        stores = {"_parameters", "_buffers"}
        return all(
            _stores(value, other[name])
            if name in stores
            # the keys of hooks count the hooks of a whole process
            else self.alike(list(value.values()), list(other[name].values()))
            if "_hooks" in name and isinstance(value, Mapping)
            else self.alike(value, other[name])
            for name, value in own.items()
        )


def _tensors(a: Any, b: Any) -> bool:
    """Return whether tensors are alike: a weight by its shape, any other by its values."""
    if a.shape != b.shape or a.dtype != b.dtype or a.requires_grad != b.requires_grad:
        return False
    return a.requires_grad or bool((a == b).all())


def _stores(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether two dicts of parameters or buffers have the same names and shapes."""
    shapes = [{n: None if t is None else (t.shape, t.dtype) for n, t in s.items()} for s in (a, b)]
    return shapes[0] == shapes[1]


def _parts(item: Any) -> list[Any] | None:
    """Return what a container, function or object consists of; None for what has no parts."""
    if isinstance(item, types.FunctionType):
        cells = [cell.cell_contents for cell in item.__closure__ or ()]
        made = id(item.__code__), id(item.__globals__)
        return [made, item.__defaults__, item.__kwdefaults__, cells]
    if isinstance(item, types.MethodType):
        return [item.__func__, item.__self__]
    if isinstance(item, partial):
        return [item.func, item.args, item.keywords, vars(item)]
    if isinstance(item, weakref.ref):
        return [item()]
    if isinstance(item, Mapping):
        return [list(item.keys()), list(item.values())]
    if isinstance(item, Sequence) and not isinstance(item, (str, bytes, range)):
        return list(item)
    held = getattr(item, "__dict__", None)
    if isinstance(held, dict) and not isinstance(item, (type, types.ModuleType)):
        slots = [getattr(item, name, MISSING) for name in _slots(type(item))]
        return [held, *slots]
    return None


def _slots(kind: type) -> list[str]:
    """Return the names of the slots of a class and its bases."""
    found: list[str] = []
    for owner in kind.__mro__:
        slots = owner.__dict__.get("__slots__", ())
        found += (slots,) if isinstance(slots, str) else slots
    return [name for name in found if name not in ("__dict__", "__weakref__")]
