"""Which form an object is written in, found by looking at it; and what to say where none fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from parity.adapters.calling import backward_style, required, takes_target
from parity.adapters.forms import Form, FormSubject
from parity.adapters.slots import Slot, is_numbers, is_parameter, torch_named
from parity.adapters.stores import current, dict_slots, plain_slots
from parity.adapters.torch7 import FORM as TORCH7
from parity.adapters.torch7 import Torch7Subject, listed, looks_like_torch7
from parity.adapters.walking import attribute_slots
from parity.findings import UsageError
from parity.subjects import PlainSubject, Subject

LOSS_PAIRS = (
    ("forward", "gradient"),
    ("forward", "grad"),
    ("loss", "gradient"),
    ("loss", "grad"),
    ("loss", "prime"),
    ("loss", "derivative"),
    ("loss", "backward"),
    ("value", "gradient"),
    ("value", "grad"),
    ("calculate", "gradient"),
    ("compute", "gradient"),
)
WITH_GRADIENT = ("get", "get_loss", "loss_and_grad", "loss_and_gradient", "evaluate_loss")
OBVIOUS = ("get", "loss", "get_loss", "loss_and_grad", "loss_and_gradient")
FORWARDS = ("fprop", "forward_pass", "forward_propagation", "feedforward", "forward_prop", "fwd")
BACKWARDS = (
    "bprop",
    "backprop",
    "backward_pass",
    "backward_propagation",
    "back_propagation",
    "back_prop",
    "bwd",
)


def recognise(item: Any, factory: Callable[[], Any] | None = None) -> Subject | None:
    """Return the subject for ``item``, an object in a known form; None where no form fits.

    Raises UsageError where a form fits except for what the message names.
    """
    if looks_like_torch7(item):
        return Torch7Subject(item, TORCH7, factory)
    if callable(getattr(item, "forward", None)) and callable(getattr(item, "backward", None)):
        return _layer(item, factory)
    for name in WITH_GRADIENT:
        if not isinstance(item, Mapping) and takes_target_method(item, name):
            return FormSubject(item, Form("loss", no_slots, name, None, "with forward"), factory)
    for forward, backward in LOSS_PAIRS:
        if takes_target_method(item, forward) and callable(getattr(item, backward, None)):
            return FormSubject(item, Form("loss", no_slots, forward, backward, "again"), factory)
    return _called(item, factory) if forward_name(item) and has_backward(item) else None


def forward_name(item: Any) -> str | None:
    """Return the method that runs ``item`` forward: forward, else its class's own __call__."""
    if callable(getattr(item, "forward", None)):
        return "forward"
    own = any("__call__" in vars(owner) for owner in type(item).__mro__)
    no_layer = (type, FunctionType, BuiltinFunctionType, MethodType, partial)
    return "__call__" if own and not isinstance(item, no_layer) else None


def has_backward(item: Any) -> bool:
    """Whether ``item`` has a method ``backward``."""
    return callable(getattr(item, "backward", None))


def takes_target_method(item: Any, name: str) -> bool:
    """Whether method ``name`` exists and takes a prediction and a target."""
    method = getattr(item, name, None)
    if not callable(method):
        return False
    names = required(method)
    return takes_target(method) or (names is not None and len(names) == 2 and name in OBVIOUS)


def _layer(item: Any, factory: Callable[[], Any] | None) -> Subject:
    style = backward_style(item.forward, item.backward)
    found = _slots_of(item)
    if found is None and style == "upstream" and not _knows_torch(item):
        return PlainSubject(item if factory is None else None, factory)
    name, slots = found or ("object", plain_slots)
    # where nothing is known of tensors, arrays are tried first, tensors when those are refused
    subject = FormSubject(item, Form(name, slots, style=style), factory)
    if found is None and _declares(item):
        subject.widens = False  # the plain contract, which answers in the dtype of what it is given
    return subject


def _declares(item: Any) -> bool:
    """Whether ``item`` says by its dicts, empty ones too, that it keeps the plain contract."""
    return all(isinstance(getattr(item, name, None), Mapping) for name in ("params", "grads"))


def _called(item: Any, factory: Callable[[], Any] | None) -> Subject:
    """Return the subject of a layer whose ``__call__`` is its forward."""
    style = backward_style(item.__call__, item.backward)
    name, slots = _slots_of(item) or ("dict form", plain_slots)
    return FormSubject(item, Form(name, slots, "__call__", style=style), factory)


def _knows_torch(item: Any) -> bool:
    """Whether a layer without numbers of its own may compute on tensors: its module has torch."""
    if any(getattr(item, name, None) for name in ("params", "buffers", "grads")):
        return False
    names = getattr(getattr(type(item), "forward", None), "__globals__", {})
    return any(getattr(value, "__name__", "") == "torch" for value in list(names.values()))


def _slots_of(item: Any) -> tuple[str, Callable[[Any], list[Slot]]] | None:
    """Return (name, finder) of where ``item`` keeps its numbers; None for the plain contract."""
    held = getattr(item, "params", None)
    if isinstance(held, Mapping) and held:
        _refuse_lists(item, held)
        known = all(torch_named(str(name)) for name in held)
        arrays = all(not is_parameter(value) and not _tensor(value) for value in held.values())
        grads = getattr(item, "grads", None)
        alike = isinstance(grads, Mapping) and all(key in held for key in grads)
        if known and arrays and alike:
            return None
        return "dict form", _dicts
    if isinstance(held, Mapping) and getattr(item, "grads", None) is not None:
        return None if not attribute_params(item) else ("attributes", attribute_slots)
    if isinstance(held, (list, tuple)) and held:
        return "list form", _dicts
    if _is_tree(item):
        return "get_params form", lambda owner: dict_slots(owner, "get_params")
    if attribute_params(item):
        return "attributes", _attributes_or_list
    if listed(item):
        return "list form", lambda owner: listed(owner) + _buffers(owner)
    if callable(held) and plain_slots(item):
        return "list form", _dicts
    return None if not any(map(_tensor, vars_of(item))) else ("tensor class", attribute_slots)


def _attributes_or_list(owner: Any) -> list[Slot]:
    found, lists = attribute_slots(owner), listed(owner)
    params = [slot for slot in found if slot.kind == "params"]
    return found if len(lists) <= len(params) else lists + _buffers(owner)


def _dicts(owner: Any) -> list[Slot]:
    found = plain_slots(owner)
    named = {slot.name for slot in found}
    return found + [slot for slot in _buffers(owner) if slot.name not in named]


def _buffers(owner: Any) -> list[Slot]:
    return [slot for slot in attribute_slots(owner) if slot.kind == "buffers"]


def attribute_params(item: Any) -> list[Slot]:
    """Return the slots of parameters kept as attributes."""
    return [slot for slot in attribute_slots(item) if slot.kind == "params"]


def no_slots(item: Any) -> list[Slot]:
    """Return the slots of a loss: none."""
    return []


def _is_tree(item: Any) -> bool:
    if not callable(getattr(item, "set_params", None)) or not callable(
        getattr(item, "get_params", None)
    ):
        return False
    held = current(item, "get_params")
    return isinstance(held, Mapping) and bool(held) and all(map(is_numbers, held.values()))


def _refuse_lists(item: Any, held: Mapping[str, Any]) -> None:
    for name, value in held.items():
        if isinstance(value, (list, tuple, str)) or isinstance(value, (int, bool)):
            raise UsageError(
                f"{type(item).__name__}.params[{name!r}] is {value!r:.60}, a "
                f"{type(value).__name__}; it must be a floating NumPy array: "
                f"np.array({name}, dtype=float)"
            )


def _tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def vars_of(item: Any) -> list[Any]:
    """Return the attribute values of ``item``."""
    return list(getattr(item, "__dict__", {}).values())


def unknown(item: Any) -> str:
    """Return the sentence for an object that no adapter takes: what was looked for, what to do."""
    kind = type(item).__name__
    return (
        f"mine is {kind}, which no adapter takes{_shortest_way(item, kind)}. Looked for: the plain "
        "contract (forward and backward methods, with params, grads and buffers dicts); arrays or "
        "tensors as attributes (W and dW, gamma and dgamma …) or in lists (params and grads); "
        "updateOutput and updateGradInput (Torch7); get(prediction, target) returning (loss, "
        "gradient); get_params and set_params; a torch.nn.Module; a pair of functions, "
        "parity.functions(forward, backward); a JAX function, parity.jax(fn, params); a factory. "
        "Shortest way: give the class a forward(*inputs) and a backward(grad_output), or name "
        "its own: parity.attributes(layer, forward='…', backward='…')"
    )


def _shortest_way(item: Any, kind: str) -> str:
    if isinstance(item, (list, tuple)):
        return " (a sequence of layers needs an object with forward and backward around it)"
    names = [name for name in dir(type(item)) if not name.startswith("__")]
    forward = next((n for n in ("forward", *FORWARDS) if n in names), None)
    backward = next((n for n in ("backward", *BACKWARDS) if n in names), None)
    if forward and backward:
        return (
            f": it has {forward} and {backward}; say so with "
            f"parity.attributes(layer, forward={forward!r}, backward={backward!r})"
        )
    if forward:
        return f": it has {forward}, yet no backward"
    if backward:
        return f": it has {backward}, yet no forward"
    if callable(item) and not isinstance(item, type):
        return ": it can be called, yet has no backward"
    return ""
