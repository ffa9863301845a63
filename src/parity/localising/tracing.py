"""What went into and out of each layer of a model, forward and backward, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.outcomes import Array, LayerError, Outcome

Arrays = tuple[Array | None, ...]


@dataclass
class Call:
    """One pass through one layer; ``upstream`` and ``grads`` are filled by the backward pass."""

    unit: int
    inputs: Arrays
    outputs: Arrays = ()
    upstream: list[Array | None] = field(default_factory=list)
    grads: list[Array | None] = field(default_factory=list)
    before: dict[str, Array] = field(default_factory=dict)
    after: dict[str, Array] = field(default_factory=dict)
    opaque: bool = False
    training: bool | None = None


@dataclass
class Trace:
    """The calls of one run in order, and the outcome of the whole model (None where it failed)."""

    calls: list[Call] = field(default_factory=list)
    outcome: Outcome | None = None
    failure: LayerError | None = None

    def of(self, unit: int) -> list[Call]:
        """Return the calls of one layer, in order."""
        return [call for call in self.calls if call.unit == unit]


def as_numbers(value: Any) -> Array | None:
    """Return a copy of an array, number or tensor; None for anything else."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic, float, int)):
        array = np.array(value)
        return array if array.dtype.kind in "fiub" else None
    return None


def several(value: Any) -> Arrays:
    """Return the arrays of a layer's answer, one or several."""
    items = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(as_numbers(item) for item in items)


def trace_torch(
    layers: Sequence[Any], run: Callable[[], Outcome], failure_is_fatal: bool = True
) -> Trace:
    """Run a torch model with hooks on ``layers``.

    Every input of a layer is passed on as an alias of its own, so that its gradient is what this
    layer alone sends back, also where a tensor feeds several branches.
    """
    trace = Trace()
    handles = []
    for unit, layer in enumerate(layers):
        opened: list[Call] = []
        handles.append(_register(layer, _before(trace, unit, opened)))
        handles.append(layer.register_forward_hook(_after(opened)))
    try:
        trace.outcome = run()
    except LayerError as failure:
        if failure_is_fatal:
            raise
        trace.failure = failure
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _register(layer: Any, hook: Callable[..., Any]) -> Any:
    try:
        return layer.register_forward_pre_hook(hook, with_kwargs=True)
    except TypeError:  # torch before 2.0 does not tell a hook what was given by keyword
        return layer.register_forward_pre_hook(lambda layer, given: hook(layer, given)[0])


def _buffers(layer: Any) -> dict[str, Array]:
    return {name: np.array(b.detach().cpu().numpy()) for name, b in layer.named_buffers()}


def _before(trace: Trace, unit: int, opened: list[Call]) -> Callable[..., Any]:
    def hook(layer: Any, given: tuple[Any, ...], named: Any = None) -> tuple[Any, Any]:
        call = Call(unit, tuple(as_numbers(item) for item in given))
        # what is given by keyword, or is no array, cannot be handed to the other side's layer
        call.opaque = bool(named) or not given or any(item is None for item in call.inputs)
        call.before, call.training = _buffers(layer), layer.training
        call.grads = [None] * len(given)
        trace.calls.append(call)
        opened.append(call)
        passed = list(given)
        for i, item in enumerate(given):
            if getattr(item, "requires_grad", False):
                passed[i] = item.view_as(item)
                passed[i].register_hook(_keep(call.grads, i))
        return tuple(passed), named or {}

    return hook


def _after(opened: list[Call]) -> Callable[[Any, Any, Any], None]:
    def hook(layer: Any, given: Any, result: Any) -> None:
        from parity.torch_side import flatten

        call = opened.pop()
        outputs = flatten(result)
        call.outputs = tuple(as_numbers(output) for output in outputs)
        call.after = _buffers(layer)
        call.upstream = [None] * len(outputs)
        for i, output in enumerate(outputs):
            if output.requires_grad:
                output.register_hook(_keep(call.upstream, i))

    return hook


def _keep(place: list[Array | None], index: int) -> Callable[[Any], None]:
    def hook(grad: Any) -> None:
        place[index] = np.array(grad.detach().cpu().numpy())

    return hook


@contextmanager
def watched(layers: Sequence[Any], trace: Trace) -> Iterator[None]:
    """Record every call of the hand-written ``layers``: their bound methods are wrapped."""
    kept = [(layer, _watch(layer, unit, trace)) for unit, layer in enumerate(layers)]
    try:
        yield
    finally:
        for layer, restore in kept:
            restore(layer)


def _watch(layer: Any, unit: int, trace: Trace) -> Callable[[Any], None]:
    forward, backward = layer.forward, layer.backward
    pending: list[Call] = []

    def watched_forward(*inputs: Any, **options: Any) -> Any:
        call = Call(unit, tuple(as_numbers(item) for item in inputs))
        mode = getattr(layer, "training", None)
        call.training = mode if isinstance(mode, bool) else None
        trace.calls.append(call)
        pending.append(call)
        result = forward(*inputs, **options)
        call.outputs = several(result)
        return result

    def watched_backward(*upstream: Any, **options: Any) -> Any:
        # a layer that stands at several places goes back through them last first
        call = pending.pop() if pending else Call(unit, ())
        call.upstream = [as_numbers(item) for item in upstream]
        result = backward(*upstream, **options)
        call.grads = list(several(result))
        return result

    return _replaced(layer, {"forward": watched_forward, "backward": watched_backward})


def _replaced(layer: Any, methods: Mapping[str, Any]) -> Callable[[Any], None]:
    """Replace methods of one object; one without a dict gets a subclass of its own."""
    own = {name: vars(layer)[name] for name in methods if name in getattr(layer, "__dict__", {})}
    try:
        for name, method in methods.items():
            object.__setattr__(layer, name, method)
    except AttributeError:
        kind = type(layer)
        static = {name: staticmethod(method) for name, method in methods.items()}
        layer.__class__ = type(kind.__name__, (kind,), {"__slots__": (), **static})
        return lambda item: setattr(item, "__class__", kind)

    def restore(item: Any) -> None:
        for name in methods:
            vars(item).pop(name, None)
        vars(item).update(own)

    return restore


def trace_plain(layers: Sequence[Any], run: Callable[[], Outcome]) -> Trace:
    """Run a hand-written model and record its ``layers``; a failure ends the trace early."""
    trace = Trace()
    with watched(layers, trace):
        try:
            trace.outcome = run()
        except LayerError as failure:
            trace.failure = failure
    return trace
