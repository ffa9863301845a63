"""A layer in any form with something around it: one-hot targets, axes in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from parity.adapters.slots import array
from parity.findings import UsageError
from parity.nesting import leaves
from parity.outcomes import Array, LayerError

Orders = Sequence[Any] | None


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
        """Hand the inputs on in the layer's order; return the outputs in torch's.

        Raises UsageError for an order that no input has the axes of, LayerError for such outputs.
        """
        unfit = _unfit(self.subject.inputs, inputs, "inputs")
        if unfit:
            raise UsageError(unfit)
        turned = [_turn(a, _order(self.subject.inputs, i)) for i, a in enumerate(inputs)]
        result = self.inner.forward(*turned)
        unfit = _unfit(self.subject.outputs, leaves(result), "outputs")
        if unfit:
            raise LayerError(unfit, "shape")
        return self._back(result, self.subject.outputs)

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
                for i, a in enumerate(leaves(result))
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
        if given is not None and not isinstance(given, (tuple, list)):
            raise UsageError(
                f"axes got {what}={given!r}; give an order such as (0, 2, 3, 1), or a list of them"
            )
        if given is None or not all(isinstance(item, (int, np.integer)) for item in given):
            many = list(given or [])
        else:
            many = [given]
        for order in many:
            named = isinstance(order, (tuple, list)) and all(
                isinstance(n, (int, np.integer)) for n in order
            )
            if order is not None and not (named and sorted(order) == list(range(len(order)))):
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


def _unfit(orders: Orders, arrays: Sequence[Any], what: str) -> str:
    """Return the sentence on an order that would be passed over; nothing where all are used."""
    if not orders:
        return ""
    shapes = [np.shape(a) for a in arrays]
    if all(isinstance(item, (int, np.integer)) for item in orders):
        fits = any(len(shape) == len(orders) for shape in shapes)
    else:
        fits = len(orders) <= len(shapes) and all(
            order is None or len(order) == len(shape)
            for order, shape in zip(orders, shapes, strict=False)
        )
    held = ", ".join(map(str, shapes)) or "none"
    return "" if fits else f"axes got {what}={orders!r}; the {what} have the shapes {held}"


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
