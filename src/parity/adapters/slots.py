"""Where a hand-written object keeps its numbers: attributes, dicts, lists, Parameter objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.outcomes import Array, LayerError, alike

# torch's name -> what courses and books call it, in lower case
ALIASES: Mapping[str, frozenset[str]] = {
    "weight": frozenset(
        "weight weights w kernel kernels filters filter gamma gammas scale "
        "w_ih w_hh wih whh wx wh wxh w_x w_h recurrent_kernel".split()
    ),
    "bias": frozenset(
        "bias biases b beta betas shift offset b_ih b_hh bih bhh bx bh b_x b_h".split()
    ),
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
# what torch itself calls the parameters of its recurrent layers and cells
_RECURRENT = re.compile(r"^(weight|bias)_(?:ih|hh|hr)(?:_l(\d+)(?:_reverse)?)?$")


@dataclass
class Slot:
    """One array of a hand-written object: how it is read and written, and where its gradient is.

    ``path`` and ``grad_path`` lead to the two attributes where a user has named them; empty, the
    array is where ``name`` says, and the gradient is looked for.
    """

    name: str
    read: Callable[[], Any]
    assign: Callable[[Any], None]
    grad: Callable[[], Any]
    hint: str = ""
    group: int = 0
    kind: str = "params"
    path: str = ""
    grad_path: str = ""

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
        if not alike(array(self.read()), value):
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
    recurrent = _RECURRENT.match(leaf)
    if recurrent:
        return recurrent[1], int(recurrent[2] or 0)
    numbered = _NUMBERED.match(leaf)
    for text, group in ((leaf, 0), *([(numbered[1], int(numbered[2]))] if numbered else [])):
        for hint, names in ALIASES.items():
            if text.lower().rstrip("_") in names:
                return hint, group
    return "", 0


def torch_named(name: str) -> bool:
    """Whether ``name`` is torch's own, or no habit's: nothing has to be translated."""
    leaf = name.rpartition(".")[2]
    return hint_of(name)[0] in ("", leaf) or _RECURRENT.match(leaf) is not None


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


def held(owner: Any, name: str) -> Any:
    """Return an attribute; None where reading it fails, as a gradient's may before backward."""
    try:
        return getattr(owner, name, None)
    except Exception:
        return None


def grad_of(owner: Any, name: str, value: Any) -> Any:
    """Return the gradient that ``owner`` keeps for ``name``: an attribute or a dict entry."""
    for text in grad_names(name):
        found = held(owner, text)
        if is_numbers(found) or isinstance(found, float):
            return found
    for store in GRAD_STORES:
        entries = getattr(owner, store, None)
        if isinstance(entries, Mapping):
            for key in (name, *grad_names(name), hint_of(name)[0]):
                if key in entries:
                    return entries[key]
    return value.grad if is_tensor(value) else None


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


def describe(value: Any) -> str:
    """Return what a value is, in a few words for an error message."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    article = "an" if type(value).__name__[:1].lower() in "aeiou" else "a"
    return f"{article} {type(value).__name__}"


def in_order(slots: Sequence[Slot]) -> list[Slot]:
    """Return numbered slots (W1, b1, W2, …) by number, the others as they were defined."""
    return sorted(slots, key=lambda slot: slot.group)
