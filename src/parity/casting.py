"""A copy of somebody's object, every floating array cast: the object is never touched."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from parity.findings import UsageError

SMALL = 2**20  # bytes of an object that is kept as a pickle, beside itself
_ATOMS = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type(None),
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
    np.dtype,
    np.ufunc,
)


def walk(root: Any) -> Iterator[Any]:
    """Yield every object that ``root`` holds, each once, in order of definition."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        item = stack.pop()
        # np.float64 is a float, yet it carries a dtype that has to be cast
        atom = isinstance(item, _ATOMS) and not isinstance(item, np.floating)
        if id(item) in seen or (atom and item is not root):
            continue
        seen.add(id(item))
        yield item
        stack.extend(reversed(list(_held(item))))


def _held(item: Any) -> Iterator[Any]:
    if isinstance(item, np.ndarray):
        if item.dtype == object:
            yield from item.flat
        return
    if isinstance(item, (list, tuple, set, frozenset)):
        yield from item
        return
    if isinstance(item, dict):
        yield from item.values()
    elif isinstance(item, types.MethodType):
        yield item.__self__
    if isinstance(getattr(item, "__dict__", None), dict):
        yield from vars(item).values()
    for owner in type(item).__mro__:
        slots = owner.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(item, slot):
                yield getattr(item, slot)


def arrays_of(root: Any) -> list[np.ndarray]:
    """Return the floating arrays that ``root`` holds, in order of definition."""
    return [item for item in walk(root) if isinstance(item, np.ndarray) and item.dtype.kind == "f"]


def cast_copy(item: Any, dtype: Any, follow_views: bool = False) -> Any:
    """Return a deep copy of ``item`` with floating arrays, scalars and tensors cast to ``dtype``.

    The object's own ``astype(dtype)`` is used on a plain deep copy where there is one. Otherwise
    the copy's memo already maps every array to its cast twin, so ``self.W is params["weight"]``
    stays true in the copy.

    Raises UsageError where arrays share memory without being one object (views into a flat
    buffer; ``follow_views`` makes them views into one cast buffer instead), or where the object
    cannot be copied: a factory is the way then.
    """
    dtype = np.dtype(dtype)
    if callable(getattr(item, "astype", None)) and not isinstance(item, np.ndarray):
        clone = _deepcopy(item, {})
        result = clone.astype(dtype)
        return clone if result is None else result
    arrays = arrays_of(item)
    if not follow_views:
        _refuse_views(item, arrays)
    roots: dict[int, np.ndarray] = {}
    # deepcopy looks an object up in the memo by its id and takes what is there for its copy
    memo: dict[int, Any] = {}
    kept: list[Any] = []
    for found in walk(item):
        if isinstance(found, np.ndarray) and found.dtype.kind == "f":
            memo[id(found)] = _twin(found, dtype, roots)
        elif isinstance(found, np.floating):
            memo[id(found)] = dtype.type(found)
        elif _is_tensor(found):
            memo[id(found)] = _cast_tensor(found, dtype)
        else:
            continue
        kept.append(found)
    return _deepcopy(item, memo)


def copies(item: Any, dtype: Any) -> Callable[[], Any]:
    """Return what makes deep copies of ``item``, which is in ``dtype`` already.

    From its pickle where that gives what ``copy.deepcopy`` gives: a check makes some forty copies,
    and pickle is a tenth of the time for each.
    """
    kept = _pickled(item)
    return partial(cast_copy, item, dtype) if kept is None else partial(pickle.loads, kept)


def _pickled(item: Any) -> bytes | None:
    """Return the pickle of a small object of which nothing wants to be copied in another way."""
    for found in walk(item):
        if isinstance(found, np.ndarray):
            if found.nbytes > SMALL or not (found.flags.c_contiguous or found.flags.f_contiguous):
                return None
        elif hasattr(found, "__deepcopy__") and not isinstance(found, np.generic):
            return None
    try:
        kept = pickle.dumps(item, protocol=5)
        pickle.loads(kept)
    except Exception:  # lambdas, classes within functions, and whatever somebody's object raises
        return None
    return kept if len(kept) <= SMALL else None


def cast_made(item: Any, dtype: Any) -> Any:
    """Return what a factory has just made, cast: nobody else holds it, so views are followed."""
    try:
        return cast_copy(item, dtype, follow_views=True)
    except UsageError:
        return item  # it cannot be copied, and need not be: its arrays are written one by one


def _twin(array: np.ndarray, dtype: np.dtype, roots: dict[int, np.ndarray]) -> np.ndarray:
    """Cast an array; views into one buffer become views into its one twin."""
    root = _root(array)
    if root.dtype != array.dtype:
        return np.array(array, dtype=dtype, order="K")
    if id(root) not in roots:
        roots[id(root)] = np.array(root, dtype=dtype, order="K")
    twin = roots[id(root)]
    if root is array:
        return twin
    scale = dtype.itemsize
    start = (array.ctypes.data - root.ctypes.data) // root.itemsize
    strides = tuple(step // root.itemsize * scale for step in array.strides)
    flat = twin.ravel(order="K")
    return np.lib.stride_tricks.as_strided(flat[start:], array.shape, strides)


def _root(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _deepcopy(item: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(item, memo)
    except Exception as error:
        raise UsageError(
            f"{type(item).__name__} cannot be copied ({type(error).__name__}: {error}); "
            f"give a factory instead: lambda: {type(item).__name__}(…)"
        ) from error


def _refuse_views(item: Any, arrays: list[np.ndarray]) -> None:
    owners: dict[int, np.ndarray] = {}
    for array in arrays:
        other = owners.setdefault(id(_root(array)), array)
        if other is not array and np.may_share_memory(other, array):
            raise UsageError(
                f"{type(item).__name__} holds arrays that share memory (views into one buffer), "
                "which a cast copy would tear apart; "
                f"give a factory instead: lambda: {type(item).__name__}(…)"
            )


def _is_tensor(item: Any) -> bool:
    return type(item).__module__.partition(".")[0] == "torch" and hasattr(item, "detach")


def _cast_tensor(tensor: Any, dtype: np.dtype) -> Any:
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    import torch

    twin = tensor.detach().clone().to(getattr(torch, dtype.name))
    return twin.requires_grad_(tensor.requires_grad)


def plain_mapping(value: Any) -> Mapping[str, Any]:
    """Return ``value`` as a mapping: absent or None is an empty one."""
    return value if isinstance(value, Mapping) else {}
