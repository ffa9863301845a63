"""Whether two objects are one piece of code built alike: nothing that makes them act differs."""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from parity.adapting import is_torch_module

# what the harness sets itself on both sides, whatever it was
SET_ALIKE = frozenset({"training"})
# what a subclass says of itself or does when it is made: what it holds then is compared
INERT = frozenset(
    "__abstractmethods__ __annotate__ __annotate_func__ __annotations__ __annotations_cache__"
    " __constants__ __dict__ __doc__ __firstlineno__ __init__ __module__ __new__ __orig_bases__"
    " __parameters__ __qualname__ __repr__ __slotnames__ __static_attributes__ __str__"
    " __weakref__ _abc_impl _get_name _reset_parameters extra_repr reset_parameters".split()
)
NAMED = frozenset({"_zero_grad_profile_name"})  # where an optimizer keeps its class's name
MISSING = object()


def same_code(mine: Any, theirs: Any) -> bool:
    """Return whether both sides are one object, or torch modules of one code that act alike.

    The values of parameters and buffers may differ, for both sides are given the same; everything
    else that an instance holds must not: its own ``forward``, plain attributes, hooks, submodules.
    A subclass of torch's that leaves alone all that torch's class runs is torch's code, and so is
    a Sequential of it alone.
    """
    if mine is theirs:
        return True
    return is_torch_module(mine) and is_torch_module(theirs) and alike(mine, theirs)


def alike(mine: Any, theirs: Any) -> bool:
    """Return whether two objects are of one code and hold alike things."""
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
        if is_torch_module(a) and is_torch_module(b):
            chains = _chain(a), _chain(b)
            if chains != ([a], [b]):
                return len(chains[0]) == len(chains[1]) and all(map(self.alike, *chains))
        kind = type(a)
        if kind is not type(b):
            kind = _acting(a)
            if kind is not _acting(b):
                return False
        self.met.add((id(a), id(b)))
        self.kept += (a, b)
        if is_torch_module(a):
            return self._modules(a, b, kind)
        if hasattr(a, "requires_grad") and hasattr(a, "detach"):
            return _tensors(a, b)
        if isinstance(a, (np.ndarray, np.generic, float, complex)):
            nan = np.asarray(a).dtype.kind in "fc"
            return bool(np.array_equal(a, b, equal_nan=nan))
        if type(a) is not type(b):
            return self._held(a, b, kind)
        own, other = _parts(a), _parts(b)
        if own is None or other is None:
            return bool(a == b)
        return len(own) == len(other) and all(map(self.alike, own, other))

    def _held(self, a: Any, b: Any, kind: type) -> bool:
        """Return whether what objects of two classes hold, and ``kind`` reads, is alike."""
        own, other = _read(a, b, kind)
        return own.keys() == other.keys() and all(self.alike(own[n], other[n]) for n in own)

    def _modules(self, a: Any, b: Any, kind: type) -> bool:
        """Return whether modules differ in the values of parameters and buffers at most."""
        own, other = _read(a, b, kind)
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


def _acting(item: Any) -> type:
    """Return the class whose code an object runs: torch's, where its own overrides none of it."""
    kind = type(item)
    at = next((i for i, c in enumerate(kind.__mro__) if c.__module__.startswith("torch.")), 0)
    base, known = kind.__mro__[at], _known(kind.__mro__[at]) | set(getattr(item, "__dict__", ()))
    for store in ("_parameters", "_buffers", "_modules"):
        known |= set(getattr(item, "__dict__", {}).get(store, ()))
    for owner in kind.__mro__[:at]:
        for name in (vars(owner).keys() & known) - INERT:
            # torch wraps the step of every class of optimizers, also where it is inherited
            if _unwrapped(vars(owner)[name]) is not _unwrapped(getattr(base, name, MISSING)):
                return kind
    return base


def _unwrapped(item: Any) -> Any:
    return inspect.unwrap(item) if callable(item) else item


def _known(kind: type) -> set[str]:
    """Return the names that the code of a class may ask its instances for."""
    declared = (getattr(owner, "__annotations__", {}) for owner in kind.__mro__)
    return set(dir(kind)).union(*declared)


def _read(a: Any, b: Any, kind: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what both hold, less what only one of two classes holds and ``kind`` never reads."""
    own, other = ({k: v for k, v in vars(m).items() if k not in SET_ALIKE} for m in (a, b))
    if type(a) is not type(b):
        dead = (own.keys() ^ other.keys()) - _known(kind) | NAMED
        own, other = ({k: v for k, v in held.items() if k not in dead} for held in (own, other))
    return own, other


def _chain(module: Any) -> list[Any]:
    """Return what a module runs in turn: the parts of a plain Sequential, else itself."""
    held = vars(module)
    hooked = any(isinstance(v, Mapping) and v for n, v in held.items() if "_hooks" in n)
    if hooked or "forward" in held:
        return [module]
    kind = _acting(module)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name == "torch.nn.modules.linear.Identity":
        return []
    if name == "torch.nn.modules.container.Sequential":
        return [part for item in module._modules.values() for part in _chain(item)]
    return [module]


def _tensors(a: Any, b: Any) -> bool:
    """Return whether tensors are alike: a weight by its shape, any other by its values."""
    if a.shape != b.shape or a.dtype != b.dtype or a.requires_grad != b.requires_grad:
        return False
    return a.requires_grad or bool((a == b).all())


def _stores(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether two dicts of parameters or buffers have the same names, shapes and layouts.

    Weights kept channels last take another way through torch.
    """
    kinds = [
        {n: None if t is None else (t.shape, t.dtype, _stride(t)) for n, t in store.items()}
        for store in (a, b)
    ]
    return kinds[0] == kinds[1]


def _stride(tensor: Any) -> Any:
    """Return the stride; nothing where there is none, as of a sparse or a lazy tensor."""
    try:
        return tensor.stride()
    except Exception:
        return None


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
