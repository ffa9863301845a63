"""Forms that the user names: attributes by a small dict, presets, one-hot targets, axis orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from parity.adapters.calling import required
from parity.adapters.forms import Form, FormSubject
from parity.adapters.recognise import no_slots, recognise
from parity.adapters.slots import (
    Slot,
    array,
    attribute_slots,
    attributes_of,
    describe,
    hint_of,
    is_numbers,
    plain_slots,
)
from parity.adapters.torch7 import FORM as TORCH7
from parity.adapters.torch7 import Torch7Subject, looks_like_torch7
from parity.findings import UsageError
from parity.options import nearest
from parity.outcomes import Array

Orders = Sequence[Any] | None


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
    from parity.adapters.slots import attribute_slot

    holder, leaf = _owner(owner, path)
    made = attribute_slot(holder, leaf, name, hint_of(name)[0])
    made.kind = kind
    if grad is not None:
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


class Wrapped:
    """A subject around another: everything that it does not change is handed on."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.title = inner.title

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "__setstate__", "__deepcopy__"):
            raise AttributeError(name)
        return getattr(self.inner, name)


class OneHotSubject(Wrapped):
    """A loss that takes one-hot targets, checked against one that takes labels."""

    def __init__(self, inner: Any, classes: int | None, axis: int) -> None:
        super().__init__(inner)
        self.classes = classes
        self.axis = axis

    def spawn(self, dtype: str) -> OneHotRunner:
        """Return a runner whose labels become one-hot rows on the way in."""
        return OneHotRunner(self.inner.spawn(dtype), self)


class OneHotRunner(Wrapped):
    """Turns integer targets into one-hot arrays (N, C) of the prediction's dtype."""

    def __init__(self, inner: Any, subject: OneHotSubject) -> None:
        self.inner = inner
        self.subject = subject

    def forward(self, *inputs: Array) -> Any:
        """Hand the prediction on as it is, labels as one-hot rows."""
        prediction, *rest = inputs
        return self.inner.forward(prediction, *(self._one_hot(a, prediction) for a in rest))

    def _one_hot(self, target: Array, prediction: Array) -> Array:
        if target.dtype.kind == "f":
            return target
        axis = self.subject.axis
        classes = self.subject.classes or prediction.shape[axis]
        if target.size and not 0 <= target.min() <= target.max() < classes:
            raise ValueError(
                f"labels reach from {target.min()} to {target.max()}, not from 0 to {classes - 1}"
            )
        made = np.eye(classes, dtype=prediction.dtype)[target]
        return np.ascontiguousarray(np.moveaxis(made, -1, axis))


def one_hot_targets(loss: Any, classes: int | None = None, axis: int = -1) -> OneHotSubject:
    """Adapt a loss that wants one-hot targets to a reference that wants labels.

    ``loss`` in any form that :func:`parity.check` takes; labels (N, \\*) become (N, \\*, C), or
    have C on ``axis``. ``classes`` is the prediction's own C unless given.

    Raises UsageError for ``classes`` that is no positive integer.
    """
    from parity.adapting import adapt

    bad = isinstance(classes, bool) or not isinstance(classes, (int, np.integer, type(None)))
    if bad or (classes is not None and classes < 1):
        raise UsageError(f"one_hot_targets got classes={classes!r}; it must be a positive integer")
    return OneHotSubject(adapt(loss), None if classes is None else int(classes), axis)


class AxesSubject(Wrapped):
    """A layer whose inputs and outputs have their axes in another order than torch's."""

    def __init__(self, inner: Any, inputs: Orders, outputs: Orders) -> None:
        super().__init__(inner)
        self.inputs = inputs
        self.outputs = outputs

    def spawn(self, dtype: str) -> AxesRunner:
        """Return a runner that turns arrays on the way in and out."""
        return AxesRunner(self.inner.spawn(dtype), self)


class AxesRunner(Wrapped):
    """Turns arrays to the layer's axis order on the way in, and to torch's on the way out."""

    def __init__(self, inner: Any, subject: AxesSubject) -> None:
        self.inner = inner
        self.subject = subject

    def forward(self, *inputs: Array) -> Any:
        """Hand the inputs on in the layer's order; return the outputs in torch's."""
        turned = [_turn(a, _order(self.subject.inputs, i)) for i, a in enumerate(inputs)]
        return self._back(self.inner.forward(*turned), self.subject.outputs)

    def backward(self, *upstream: Any) -> Any:
        """Hand the upstream gradients on in the layer's order; return torch's."""
        turned = [_turn(g, _order(self.subject.outputs, i)) for i, g in enumerate(upstream)]
        return self._back(self.inner.backward(*turned), self.subject.inputs)

    def _back(self, result: Any, orders: Orders) -> Any:
        if result is None:
            return None
        if isinstance(result, (tuple, list)):
            return tuple(
                None if a is None else _turn(a, _order(orders, i), back=True)
                for i, a in enumerate(result)
            )
        return _turn(result, _order(orders, 0), back=True)


def axes(layer: Any, inputs: Orders = None, outputs: Orders = None) -> AxesSubject:
    """Adapt a layer whose arrays have their axes in another order than torch's.

    ``inputs`` and ``outputs`` are the order that turns torch's array into the layer's, as
    ``np.transpose`` takes it: (0, 2, 3, 1) for a layer on (N, H, W, C) where torch has
    (N, C, H, W); (1, 0, 2) for time first where torch has the batch first. A list holds one order
    an array, None for an array that is alike on both sides. Weights: see ``weights=``.

    Raises UsageError for an order that is no permutation, and for a torch module.
    """
    from parity.adapting import adapt

    for what, given in (("inputs", inputs), ("outputs", outputs)):
        if given is None or not all(isinstance(item, (int, np.integer)) for item in given):
            many = list(given or [])
        else:
            many = [given]
        for order in many:
            if order is not None and sorted(order) != list(range(len(order))):
                raise UsageError(
                    f"axes got {what}={given!r}; an order names every axis once, as in "
                    "(0, 2, 3, 1), and several arrays have a list of orders"
                )
    inner = adapt(layer)
    if hasattr(inner, "side"):
        raise UsageError(
            f"axes got the torch module {inner.title}; permute inside a module's forward instead: "
            "return self.layer(x.permute(…)).permute(…)"
        )
    return AxesSubject(inner, inputs, outputs)


def _order(orders: Orders, position: int) -> tuple[int, ...] | None:
    if orders is None:
        return None
    if all(isinstance(item, (int, np.integer)) for item in orders):
        return tuple(int(axis) for axis in orders)
    if position < len(orders) and orders[position] is not None:
        return tuple(orders[position])
    return None


def _turn(value: Any, order: tuple[int, ...] | None, back: bool = False) -> Any:
    if order is None or np.ndim(value) != len(order):
        return value
    return np.ascontiguousarray(array(value).transpose(np.argsort(order) if back else order))
