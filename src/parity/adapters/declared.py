"""Forms that the user names: attributes by a small dict, presets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parity.adapters.calling import required
from parity.adapters.forms import Form, FormSubject
from parity.adapters.recognise import no_slots, recognise
from parity.adapters.slots import Slot, describe, hint_of, is_numbers
from parity.adapters.stores import plain_slots
from parity.adapters.torch7 import FORM as TORCH7
from parity.adapters.torch7 import Torch7Subject, looks_like_torch7
from parity.adapters.walking import attribute_slot, attribute_slots, attributes_of
from parity.findings import UsageError
from parity.options import nearest


def attributes(
    layer: Any,
    params: Mapping[str, Any] | None = None,
    *,
    buffers: Mapping[str, str] | None = None,
    forward: str = "forward",
    backward: str = "backward",
    transpose: Mapping[str, Sequence[int]] | None = None,
) -> FormSubject:
    """Adapt a layer whose arrays are attributes, NumPy's or torch's, for :func:`parity.check`.

    ``params`` maps torch's name to the attribute, or to (attribute, gradient's attribute):
    ``{"weight": ("W", "dW"), "bias": ("b", "db")}``; without it, names are read by habit.
    ``buffers`` maps torch's name to an attribute; dots lead into children (``"fc1.W"``).
    ``forward`` and ``backward`` name the methods. ``transpose`` maps torch's name to the axis
    order of the attribute, (1, 0) for weights kept as (in, out); undeclared, shapes and a trial
    tell. ``layer`` may be a factory.

    Raises UsageError for an attribute or a method that is not there.
    """
    factory, item = _made(layer)
    for role, name in (("forward", forward), ("backward", backward)):
        if not callable(getattr(item, name, None)):
            methods = [n for n in dir(item) if not n.startswith("_") and callable_at(item, n)]
            raise UsageError(
                f"{type(item).__name__} has no method {name!r}{nearest(name, methods)}; give "
                f"{role}='…' among: {', '.join(methods) or 'none'}"
            )
    chosen: dict[str, tuple[str, str | None, str]] = {}
    for kind, given in (("params", params or {}), ("buffers", buffers or {})):
        if not isinstance(given, Mapping):
            raise UsageError(
                f"attributes got {kind}={given!r}; give torch's names: {{'weight': 'W'}}"
            )
        for name, value in given.items():
            path, grad = _named(name, value)
            _find(item, path)
            chosen[name] = (path, grad, kind)
    orders = {name: tuple(order) for name, order in (transpose or {}).items()}

    def slots(owner: Any) -> list[Slot]:
        if not chosen:
            return plain_slots(owner) or attribute_slots(owner)
        return [_slot(owner, name, *spec) for name, spec in chosen.items()]

    form = Form("attributes", slots, forward, backward, transpose=orders)
    return FormSubject(item, form, factory)


def callable_at(item: Any, name: str) -> bool:
    """Whether ``item`` has a method ``name``; a property that raises is none."""
    try:
        return callable(getattr(item, name))
    except Exception:
        return False


def _made(layer: Any) -> tuple[Callable[[], Any] | None, Any]:
    factory = layer if isinstance(layer, type) or _is_function(layer) else None
    if factory is None:
        return None, layer
    needed = required(factory)
    if needed:
        raise UsageError(
            f"{getattr(factory, '__name__', 'the factory')} needs {', '.join(needed)}; give an "
            "instance, or a factory without arguments: lambda: MyLayer(…)"
        )
    return factory, factory()


def _is_function(item: Any) -> bool:
    return callable(item) and hasattr(item, "__code__")


def _named(name: str, value: Any) -> tuple[str, str | None]:
    if isinstance(value, str):
        return value, None
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(
        isinstance(part, str) for part in value
    ):  # fmt: skip
        return value[0], value[1]
    raise UsageError(
        f"{name!r} is mapped to {value!r}; give the attribute's name, or a pair (attribute, "
        "attribute of its gradient) such as ('W', 'dW')"
    )


def _find(item: Any, path: str) -> Any:
    owner, leaf = _owner(item, path)
    if owner is None or not hasattr(owner, leaf):
        held = [n for n, v in attributes_of(item) if is_numbers(v)]
        raise UsageError(
            f"{type(item).__name__} has no attribute {path!r}{nearest(path, held)}; arrays: "
            f"{', '.join(held) or 'none'}"
        )
    value = getattr(owner, leaf)
    if value is not None and not is_numbers(value) and not isinstance(value, float):
        raise UsageError(
            f"{type(item).__name__}.{path} is {describe(value)}; it must be a floating array or "
            "tensor"
        )
    return value


def _owner(item: Any, path: str) -> tuple[Any, str]:
    *way, leaf = path.split(".")
    for step in way:
        if step.isdigit() and isinstance(item, Sequence):
            item = item[int(step)] if int(step) < len(item) else None
        else:
            item = getattr(item, step, None)
    return item, leaf


def _slot(owner: Any, name: str, path: str, grad: str | None, kind: str) -> Slot:
    holder, leaf = _owner(owner, path)
    made = attribute_slot(holder, leaf, name, hint_of(name)[0])
    made.kind, made.path = kind, path
    if grad is not None:
        made.grad_path = grad
        made.grad = lambda: getattr(*_owner(owner, grad), None)
    return made


PRESETS = ("attributes", "cs231n", "lists", "plain", "tensors", "torch7")


def preset(name: str, layer: Any, backward: Any = None) -> Any:
    """Adapt ``layer`` in a form named rather than recognised.

    ``torch7``: updateOutput and updateGradInput. ``cs231n``: a pair of functions,
    ``preset("cs231n", forward, backward)``. ``lists``: ``params`` and ``grads`` are lists.
    ``attributes``: W, b, dW, db. ``tensors``: torch tensors in, tensors out, gradients by hand.
    ``plain``: the contract's dicts.

    Raises UsageError for an unknown name, or an object that is not in that form.
    """
    from parity.adapters.functional import FunctionSubject, functions
    from parity.subjects import PlainSubject

    if name not in PRESETS:
        raise UsageError(
            f"unknown preset {name!r}{nearest(str(name), PRESETS)}; presets: {', '.join(PRESETS)}"
        )
    if name == "cs231n":
        pair = layer if isinstance(layer, tuple) else (layer, backward)
        if len(pair) != 2:
            raise UsageError(
                f"preset('cs231n') got {len(pair)} functions; give (forward, backward)"
            )
        return FunctionSubject(functions(*pair))
    factory, item = _made(layer)
    if name == "torch7":
        if not looks_like_torch7(item):
            raise UsageError(
                f"{type(item).__name__} is not in Torch7's form: it needs updateOutput(input) and "
                "updateGradInput(input, gradOutput)"
            )
        return Torch7Subject(item, TORCH7, factory)
    if not callable_at(item, "forward") or not callable_at(item, "backward"):
        raise UsageError(
            f"{type(item).__name__} has no forward and backward; name its own with "
            "parity.attributes(layer, forward='…', backward='…')"
        )
    if name == "plain":
        return PlainSubject(item, factory)
    found = recognise(item, factory)
    form = found.form if isinstance(found, FormSubject) else Form(name, no_slots)
    if name == "lists":
        form = Form("list form", plain_slots)
    elif name == "attributes":
        form = Form("attributes", attribute_slots)
    elif name == "tensors":
        form = replace(form, tensors=True)
    return FormSubject(item, form, factory)
