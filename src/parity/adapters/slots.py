"""Where a hand-written object keeps its numbers: attributes, dicts, lists, Parameter objects."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.findings import UsageError
from parity.outcomes import Array, LayerError

# torch's name -> what courses and books call it, in lower case
ALIASES: Mapping[str, frozenset[str]] = {
    "weight": frozenset(
        "weight weights w kernel kernels filters filter gamma gammas scale".split()
    ),
    "bias": frozenset("bias biases b beta betas shift offset".split()),
    "running_mean": frozenset(
        ("running_mean", "moving_mean", "run_mean", "running_mu", "moving_avg_mean")
    ),
    "running_var": frozenset(
        ("running_var", "running_variance", "moving_var", "moving_variance", "run_var")
    ),
}
BUFFERS = ("running_mean", "running_var")
GRAD_STORES = ("grads", "gradients", "grad", "dparams", "gradParams")
VALUES = ("value", "data", "array", "tensor")
LISTS = (
    ("getParameters", ("getGradParameters",)),
    ("get_parameters", ("get_grad_parameters", "get_grad_params", "get_gradients", "get_grads")),
    ("get_params_list", ("get_grads_list",)),
)
_NUMBERED = re.compile(r"^(.*?)_?(\d+)$")


@dataclass
class Slot:
    """One array of a hand-written object: how it is read and written, and where its gradient is."""

    name: str
    read: Callable[[], Any]
    assign: Callable[[Any], None]
    grad: Callable[[], Any]
    hint: str = ""
    group: int = 0
    kind: str = "params"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as it is now; () where nothing is there yet."""
        return tuple(np.shape(array(self.read())))

    def write(self, value: Array) -> None:
        """Write in place where it can be, so that aliases follow; read back to be sure.

        Raises LayerError where what was written cannot be read again.
        """
        current = self.read()
        put(current, value, self.assign)
        if not np.array_equal(array(self.read()), value, equal_nan=True):
            raise LayerError(
                f"{self.name} was written, yet reads back as something else: it is handed out as a "
                "copy; return the layer's own array, or give the layer a setter",
                "weights",
            )


def put(current: Any, value: Array, assign: Callable[[Any], None]) -> None:
    """Set an array or tensor in place where shape, dtype and flags allow it, else replace it."""
    if is_tensor(current):
        fresh = tensor_like(value, current)
        if tuple(current.shape) == value.shape:
            current.detach().copy_(fresh)
        else:
            assign(fresh)
    elif (
        isinstance(current, np.ndarray)
        and (current.shape, current.dtype) == (value.shape, value.dtype)
        and current.flags.writeable
    ):
        current[...] = value
    elif isinstance(current, (float, np.floating)) and value.ndim == 0:
        assign(value.dtype.type(value))
    else:
        assign(value.copy())


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a torch tensor, without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def tensor_like(value: Array, other: Any = None) -> Any:
    """Return a fresh CPU tensor of ``value``, with the dtype and device of ``other`` if given."""
    import torch

    made = torch.from_numpy(np.array(value, order="C"))
    return made if other is None else made.to(dtype=other.dtype, device=other.device)


def array(value: Any) -> Array:
    """Return an array of whatever holds the numbers: array, tensor, scalar."""
    return np.asarray(value.detach().cpu() if is_tensor(value) else value)


def is_numbers(value: Any) -> bool:
    """Whether ``value`` is a floating array, tensor or NumPy scalar."""
    if is_tensor(value):
        return bool(value.is_floating_point())
    return isinstance(value, (np.ndarray, np.floating)) and value.dtype.kind == "f"


def hint_of(name: str) -> tuple[str, int]:
    """Return (torch's name, number) that ``name`` stands for: ``W2`` is ("weight", 2)."""
    leaf = name.rpartition(".")[2]
    numbered = _NUMBERED.match(leaf)
    for text, group in ((leaf, 0), *([(numbered[1], int(numbered[2]))] if numbered else [])):
        for hint, names in ALIASES.items():
            if text.lower().rstrip("_") in names:
                return hint, group
    return "", 0


def grad_names(name: str) -> list[str]:
    """Return the names under which people keep the gradient of ``name``."""
    title = name[:1].upper() + name[1:]
    hint, _ = hint_of(name)
    found = []
    for text in dict.fromkeys((name, title, hint, hint.title())):
        if text:
            found += [f"d{text}", f"d_{text}", f"grad_{text}", f"{text}_grad", f"grad{text}"]
            found += [f"{text}_gradient", f"gradient_{text}", f"g{text}", f"{text}Grad"]
            found += [f"delta_{text}", f"{text}grad"]
    return list(dict.fromkeys(found))


def grad_of(owner: Any, name: str, value: Any) -> Any:
    """Return the gradient that ``owner`` keeps for ``name``: an attribute or a dict entry."""
    for text in grad_names(name):
        found = getattr(owner, text, None)
        if is_numbers(found) or isinstance(found, float):
            return found
    for store in GRAD_STORES:
        entries = getattr(owner, store, None)
        if isinstance(entries, Mapping):
            for key in (name, *grad_names(name), hint_of(name)[0]):
                if key in entries:
                    return entries[key]
    return value.grad if is_tensor(value) else None


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


def is_parameter(value: Any) -> bool:
    """Whether ``value`` is an object with an array and its gradient (``.value``, ``.grad``)."""
    if is_tensor(value) or isinstance(value, (np.ndarray, np.generic, type, Mapping)):
        return False
    return hasattr(value, "grad") and any(is_numbers(getattr(value, v, None)) for v in VALUES)


def parameter_slot(parameter: Any, name: str) -> Slot:
    """Return the slot of a Parameter object."""
    leaf = next(v for v in VALUES if is_numbers(getattr(parameter, v, None)))
    hint, group = hint_of(name)
    return Slot(
        name,
        lambda: getattr(parameter, leaf),
        lambda value: setattr(parameter, leaf, value),
        lambda: parameter.grad,
        hint,
        group,
    )


def _attribute(owner: Any, name: str, full: str, value: Any) -> Slot | None:
    hint, group = hint_of(name)
    if value is None and hint not in BUFFERS:
        return None
    paired = any(is_numbers(getattr(owner, text, None)) for text in grad_names(name)[:11])
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
            f"{value.shape} and dtype {value.dtype}",
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


def describe(value: Any) -> str:
    """Return what a value is, in a few words for an error message."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    article = "an" if type(value).__name__[:1].lower() in "aeiou" else "a"
    return f"{article} {type(value).__name__}"


def in_order(slots: Sequence[Slot]) -> list[Slot]:
    """Return numbered slots (W1, b1, W2, …) by number, the others as they were defined."""
    return sorted(slots, key=lambda slot: slot.group)


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
