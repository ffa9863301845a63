"""The hand-written side: any object that keeps the contract of a layer, run on a draw."""

from __future__ import annotations

import functools
import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any, Protocol

import numpy as np

from parity.casting import cast_copy, cast_made, copies, plain_mapping, walk
from parity.draws import Draw
from parity.findings import UsageError
from parity.guarding import end_copy
from parity.names import NameMap as NameMap
from parity.nesting import arranged, leaves
from parity.outcomes import Array, LayerError, Outcome, alike, forward_names


class Runner(Protocol):
    """One cast copy of the hand-written side: what every adapter provides.

    Names are the hand-written side's own; :class:`NameMap` translates them to torch's.
    """

    def params(self) -> Mapping[str, Array]:
        """Return parameter name → array."""

    def buffers(self) -> Mapping[str, Array]:
        """Return buffer name → array."""

    def grads(self) -> Mapping[str, Array]:
        """Return parameter name → gradient; a missing name has no gradient."""

    def write(self, kind: str, name: str, array: Array) -> None:
        """Set one parameter or buffer (``kind`` is ``params`` or ``buffers``)."""

    def mode(self, training: bool) -> bool:
        """Switch to training or evaluation; False where the layer has no modes."""

    def zero_grad(self) -> None:
        """Forget the gradients of earlier passes."""

    def forward(self, *inputs: Array) -> Any:
        """Return the output, or a tuple of outputs."""

    def backward(self, *upstream: Any) -> Any:
        """Return the gradient of the input, or a tuple of them."""

    def masks(self) -> list[Array]:
        """Return the keep masks of the dropout layers of the last forward, in order."""


class Subject(Protocol):
    """The hand-written side as given: hands out runners, one fresh copy each."""

    title: str

    def spawn(self, dtype: str) -> Any:
        """Return a fresh copy in ``dtype``: a :class:`Runner`, or one that runs itself."""


class PlainRunner:
    """An object that keeps the plain contract: params, grads, buffers, forward, backward."""

    accumulates = True  # gradients are added to until they are zeroed
    returned: Any = None  # what forward returned last

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def params(self) -> Mapping[str, Array]:
        """See :class:`Runner`."""
        return plain_mapping(getattr(self.layer, "params", None))

    def grads(self) -> Mapping[str, Array]:
        """See :class:`Runner`."""
        return plain_mapping(getattr(self.layer, "grads", None))

    def buffers(self) -> Mapping[str, Array]:
        """See :class:`Runner`."""
        return plain_mapping(getattr(self.layer, "buffers", None))

    def write(self, kind: str, name: str, array: Array) -> None:
        """See :class:`Runner`; in place where it can be, so that aliases of the array follow."""
        store = getattr(self.layer, kind)
        current = store.get(name)
        fits = isinstance(current, np.ndarray) and current.shape == array.shape
        if fits and current.flags.writeable and current.dtype == array.dtype:
            current[...] = array
            held = getattr(self.layer, kind)[name]
            plain = type(current) is np.ndarray  # what is written into one is what it holds
            if (plain and held is current) or alike(held, array):
                return
        try:
            store[name] = array.copy()
        except TypeError as error:
            text = f"{kind} is a {type(store).__name__} that cannot be written to"
            raise LayerError(text, "weights") from error
        if getattr(self.layer, kind).get(name) is store[name]:
            return
        if not alike(getattr(self.layer, kind)[name], array):
            raise LayerError(
                f"{kind}[{name!r}] was written, yet reads back as something else: {kind} is made "
                f"anew at every reading; let it return the layer's own dict",
                "weights",
            )

    def mode(self, training: bool) -> bool:
        """See :class:`Runner`."""
        layer = self.layer
        switch = getattr(layer, "train" if training else "eval", None)
        if not training and not callable(switch):
            switch = getattr(layer, "evaluate", None)
        if callable(switch):
            switch()
            return True
        if hasattr(layer, "training"):
            layer.training = training
            return True
        return False

    def zero_grad(self) -> None:
        """See :class:`Runner`."""
        clear = getattr(self.layer, "zero_grad", None)
        if callable(clear):
            clear()
            return
        store = self.grads()
        for name, grad in list(store.items()):
            if isinstance(grad, np.ndarray) and grad.flags.writeable:
                grad[...] = 0
            elif isinstance(grad, (np.generic, float)) and isinstance(store, MutableMapping):
                store[name] = type(grad)(0)

    def forward(self, *inputs: Array) -> Any:
        """See :class:`Runner`."""
        call = getattr(self.layer, "forward", self.layer)
        self.returned = call(*inputs)
        return self.returned

    def backward(self, *upstream: Any) -> Any:
        """See :class:`Runner`; a loss whose backward takes nothing is given nothing."""
        return self.layer.backward(*self.handed(self.layer.backward, upstream))

    def handed(self, backward: Callable[..., Any], upstream: tuple[Any, ...]) -> list[Any]:
        """Return the arguments of ``backward``, nested as the outputs were.

        Raises LayerError for one that takes some of the gradients only.
        """
        given = arranged(self.returned, upstream, _positional(backward, len(upstream) + 1))
        takes = _positional(backward, len(given))
        if 0 < takes < len(given):
            raise LayerError(
                f"takes {takes} of the {len(given)} gradients, one for each output; take them all, "
                "or return from both sides' forward only what backward has a gradient for",
                "backward",
            )
        return given[:takes]

    def takes_upstream(self) -> bool:
        """Whether backward takes an upstream gradient at all (some losses do not)."""
        backward = getattr(self.layer, "backward", None)
        return backward is None or _positional(backward, 1) > 0

    def masks(self) -> list[Array]:
        """See :class:`Runner`."""
        found = [
            item
            for item in walk(self.layer)
            if hasattr(item, "forward") and isinstance(getattr(item, "mask", None), np.ndarray)
        ]
        named = [item for item in found if "drop" in type(item).__name__.lower()]
        return [np.asarray(item.mask) != 0 for item in (named or found)]


def _positional(function: Callable[..., Any], most: int) -> int:
    """How many positional arguments ``function`` takes, at most ``most``."""
    if type(function) is MethodType and type(function.__func__) is FunctionType:
        takes = _takes(function.__func__)  # asked in every pass, and always answered alike
        return most if takes is None else min(most, takes - 1)
    takes = _takes.__wrapped__(function)
    return most if takes is None else min(most, takes)


@functools.lru_cache(maxsize=256)
def _takes(function: Callable[..., Any]) -> int | None:
    """How many positional arguments ``function`` takes; None for any number, or unknown."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


class PlainSubject:
    """An object of the plain contract, or a factory of one."""

    def __init__(self, layer: Any = None, factory: Callable[[], Any] | None = None) -> None:
        self._factory = factory
        self._layer = factory() if factory is not None else layer
        self.title = type(self._layer).__name__
        self._copies: dict[str, Callable[[], Any]] = {}

    def spawn(self, dtype: str) -> PlainRunner:
        """Return a fresh copy."""
        return PlainRunner(self.copy(dtype))

    def copy(self, dtype: str) -> Any:
        """Return a fresh copy of the object in ``dtype``; of a factory, the next it makes, cast."""
        if self._factory is not None:
            return cast_made(self._factory(), dtype)
        if dtype not in self._copies:
            self._copies[dtype] = copies(cast_copy(self._layer, dtype), dtype)
        return self._copies[dtype]()


class _Bytes(io.RawIOBase):
    """What ``sys.stdout.buffer`` is while printing is held back."""

    def __init__(self) -> None:
        self.printed = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.printed += len(data)
        return len(data)


class _Discarded(io.TextIOBase):
    """Takes any amount of text and keeps only its length."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.buffer = _Bytes()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.buffer.printed += len(text)
        return len(text)


FLOOD = 2**20  # characters that one pass may print before it is a finding
ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


class quietly:
    """Run somebody's code: its warnings become remarks, its printing is held back.

    What it does to NumPy's error handling and to the process (a fork that comes back twice) is
    seen here; other global settings are watched once an examination.
    """

    def __init__(self, remarks: list[tuple[str, str]]) -> None:
        self.remarks = remarks
        self.warnings = warnings.catch_warnings(record=True)
        self.errors = np.errstate(all="warn", under="ignore")

    def __enter__(self) -> None:
        self.caught = self.warnings.__enter__() or []
        self.errors.__enter__()
        self.out, self.pid = _Discarded(), os.getpid()
        self.streams = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = self.out
        warnings.simplefilter("always")

    def __exit__(self, *raised: Any) -> None:
        try:
            if os.getpid() != self.pid:
                end_copy(self.pid)
            errors = np.geterr()
        finally:
            sys.stdout, sys.stderr = self.streams
            self.errors.__exit__(*raised)
            self.warnings.__exit__(*raised)
        if raised[0] is not None:
            return
        printed = self.out.buffer.printed
        if errors != ERRORS:
            self.remarks.append(("changes_global_state", f"changed np.seterr to {errors}"))
        if printed > FLOOD:
            text = f"printed {printed / 2**20:.0f} MiB in a pass"
            self.remarks.append(("floods_output", text))
        for warning in self.caught:
            text = str(warning.message).partition("\n")[0]
            self.remarks.append(("warning", f"{warning.category.__name__}: {text}"))


def _contained(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn whatever somebody's object raises, in any of its attributes, into a LayerError."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except (LayerError, UsageError, KeyboardInterrupt):
            raise
        except BaseException as error:
            phase = "backward" if function.__name__ == "backward" else "forward"
            raise LayerError(said(error), phase) from error

    return call


def said(error: BaseException) -> str:
    """Return an exception's type and first line; its own text may raise."""
    try:
        text = str(error).strip().partition("\n")[0]
    except Exception:
        text = "(its message cannot be read)"
    return f"{type(error).__name__}: {text}"


@_contained
def run(
    runner: Runner, draw: Draw, dtype: str, names: NameMap | None = None, masks: bool = True
) -> Outcome:
    """Run one forward and backward pass of the hand-written side on ``draw`` in ``dtype``.

    ``masks`` is false where the reference drops nothing, so that none need be looked for.
    Raises LayerError, with the phase and the layer's own exception as its cause.
    """
    names = names or NameMap()
    begin(runner, draw, dtype, names)
    inputs = tuple(cast(array, dtype) for array in draw.inputs)
    outcome = Outcome(())
    raw = guarded("forward", outcome, runner.forward, *inputs)
    outputs = as_arrays(raw, "forward")
    _observe_outputs(outcome, outputs, inputs, dtype)
    outcome.outputs = tuple(np.array(output) for output in outputs)
    outcome.quantities.update(zip(forward_names(len(outputs)), outcome.outputs, strict=True))
    if masks:
        outcome.masks = tuple(np.array(mask) for mask in runner.masks())
    if draw.upstream and len(outputs) != len(draw.upstream):
        text = (
            f"forward returned {_arrays(len(outputs))}, torch returns {len(draw.upstream)}; return "
            "as many, or hand over a reference that returns what yours does"
        )
        if isinstance(raw, list) and not any(output.ndim for output in outputs):
            text = "forward returned a list of numbers; an array was expected: np.array(…)"
        raise LayerError(text, "shape")
    if any(g is not None for g in draw.upstream):
        backward(runner, draw, outcome, dtype, names)
    for name, array in buffers_of(runner, draw, names).items():
        outcome.quantities[f"buffer_{name}"] = np.array(array)
    for i, (given, before) in enumerate(zip(inputs, draw.inputs, strict=True)):
        if not _kept(given, before):
            outcome.remarks.append(("input_modified", f"input {i} was changed by the layer"))
    return outcome


def _arrays(count: int) -> str:
    return "1 array" if count == 1 else f"{count} arrays"


@_contained
def backward(runner: Runner, draw: Draw, outcome: Outcome, dtype: str, names: NameMap) -> None:
    """Run the backward pass of ``draw`` and add its gradients to ``outcome``."""
    upstream, drawn = [], []
    for output, g in zip(outcome.outputs, draw.upstream, strict=False):
        if g is None:
            continue
        if g.size != output.size:
            text = f"the output has shape {output.shape}, torch's is {g.shape}"
            raise LayerError(text, "shape")
        drawn.append(g.reshape(output.shape))
        g = np.asarray(cast(g, dtype))
        # a mean over the batch is a scalar: hand back the kind of thing that came out
        upstream.append(g.reshape(output.shape) if output.ndim else g.dtype.type(g.reshape(())))
    raw = guarded("backward", outcome, runner.backward, *upstream)
    grads = [] if raw is None else list(raw) if isinstance(raw, (tuple, list)) else [raw]
    outcome.returned = len(grads)
    mine_alone = type(runner) is PlainRunner or not draw.params  # others may hand on weights' too
    if mine_alone and len(grads) > len(draw.inputs):
        inputs = "1 input" if len(draw.inputs) == 1 else f"{len(draw.inputs)} inputs"
        text = f"mine's backward returned {len(grads)} values for {inputs}: the rest was not read"
        outcome.remarks.append(("extra_gradients", text))
    for i in range(len(draw.inputs)):
        array = grads[i] if i < len(grads) else None
        if draw.inputs[i].dtype.kind == "f":
            outcome.quantities[f"grad_input{i}"] = (
                None if array is None else as_array(array, "backward")
            )
    for name, array in runner.grads().items():
        theirs = names.theirs(name)
        outcome.quantities[f"grad_{theirs}"] = (
            None
            if array is None
            else np.array(names.to_theirs(theirs, as_array(array, "backward")))
        )
    if not all(map(_kept, upstream, drawn)):
        outcome.remarks.append(("upstream_modified", "the upstream gradient was changed"))
    wide = [
        f"{name} is {array.dtype}"
        for name, array in outcome.quantities.items()
        if name.startswith("grad_") and array is not None and array.ndim
        if array.dtype.kind == "f" and array.dtype != dtype
    ]
    if wide:
        outcome.remarks.append(("gradient_dtype", f"{', '.join(wide)} for {dtype} input"))


def begin(runner: Runner, draw: Draw, dtype: str, names: NameMap) -> None:
    """Give ``runner`` the draw's numbers and mode, and no gradients. Raises LayerError."""
    load(runner, draw, dtype, names)
    runner.mode(draw.training)
    runner.zero_grad()


def load(runner: Runner, draw: Draw, dtype: str, names: NameMap) -> None:
    """Write the draw's parameters and buffers into ``runner``, by name.

    Raises LayerError in the phase ``weights`` where a parameter has no partner or another shape.
    """
    meet = getattr(runner, "meet", None)
    if meet is not None:  # an adapter reads names by habit, once it knows the reference's
        meet(draw, names)
    accepts = getattr(runner, "accepts", None)
    own = dict(runner.params())
    for name, array in draw.params.items():
        mine = names.mine(name)
        value = names.to_mine(name, cast(array, dtype))
        if accepts is not None and not accepts(mine):
            continue
        if accepts is None and mine not in own:
            have = ", ".join(own) or "none"
            raise LayerError(
                f"parameter {name!r} of the reference has no partner; mine has: {have}. "
                "Name it alike, or declare weights={'mine': 'theirs'}",
                "weights",
            )
        shape = np.shape(own[mine]) if accepts is None else None
        if shape is not None and shape != value.shape:
            raise LayerError(
                f"parameter {mine!r} has shape {shape}, the reference's {name!r} {value.shape}; "
                "declare the axis order with weights={'" + mine + "': ('" + name + "', axes)}",
                "weights",
            )
        runner.write("params", mine, value)
    for name in draw.buffers:
        store = buffer_store(runner, names.mine(name))
        if store is not None:
            store(names.to_mine(name, cast(draw.buffers[name], dtype)))


def buffer_store(runner: Runner, name: str) -> Callable[[Array], None] | None:
    """Return what writes buffer ``name``: the dict entry, else an attribute; None for neither."""
    if name in runner.buffers():
        return lambda array: runner.write("buffers", name, array)
    hold = getattr(runner, "hold_buffer", None)
    if hold is not None:
        return lambda array: hold(name, array)
    layer = getattr(runner, "layer", None)
    if layer is not None and "." not in name and isinstance(getattr(layer, name, None), np.ndarray):

        def assign(array: Array) -> None:
            current = getattr(layer, name)
            if current.shape == array.shape and current.dtype == array.dtype:
                current[...] = array
            else:
                setattr(layer, name, array.copy())

        return assign
    return None


def unheld(runner: Any, buffers: Iterable[str], names: NameMap) -> frozenset[str]:
    """Return the reference's buffers that the hand-written side has no place for."""
    own = runner.buffers()
    return frozenset(
        name
        for name in buffers
        if names.mine(name) not in own and buffer_store(runner, names.mine(name)) is None
    )


def buffers_of(runner: Runner, draw: Draw, names: NameMap) -> dict[str, Array]:
    """Return the buffers of ``draw`` as the hand-written side holds them now, by torch's names."""
    found = {}
    own = runner.buffers()
    layer = getattr(runner, "layer", None)
    for name in draw.buffers:
        mine = names.mine(name)
        if mine in own:
            found[name] = names.to_theirs(name, np.asarray(own[mine]))
        elif layer is not None and "." not in mine:
            value = getattr(layer, mine, None)
            if isinstance(value, (np.ndarray, np.generic, int, float)):
                found[name] = names.to_theirs(name, np.asarray(value))
    return found


def guarded(phase: str, outcome: Outcome, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call somebody's code; whatever it raises, SystemExit included, becomes a LayerError."""
    try:
        with quietly(outcome.remarks):
            return call(*arguments)
    except (UsageError, LayerError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit, and pytest's own skip and fail
        raise LayerError(said(error), phase) from error


def _observe_outputs(
    outcome: Outcome, outputs: tuple[Array, ...], inputs: tuple[Array, ...], dtype: str
) -> None:
    for i, output in enumerate(outputs):
        label = "the output" if len(outputs) == 1 else f"output {i}"
        # a loss may well be a Python float, which has one precision only
        if output.ndim and output.dtype.kind == "f" and output.dtype != dtype:
            outcome.remarks.append(("wrong_dtype", f"{label} is {output.dtype} for {dtype} input"))
        if any(np.shares_memory(output, array) for array in inputs if array.size):
            outcome.remarks.append(("view_of_input", f"{label} is a view of the input"))


def _kept(given: Any, drawn: Array) -> bool:
    """Whether an array that was handed out still holds what was drawn."""
    given = np.asarray(given)
    return alike(given, drawn if given.dtype == drawn.dtype else cast(drawn, given.dtype))


def cast(array: Array, dtype: Any) -> Array:
    """Return a fresh floating array in ``dtype``; integers are copied as they are."""
    if array.dtype.kind != "f" or array.dtype == dtype:
        return array.copy()
    with np.errstate(over="ignore", under="ignore"):
        return np.array(array, dtype=dtype)


def as_arrays(value: Any, phase: str) -> tuple[Array, ...]:
    """Return outputs as a tuple of arrays.

    Nested tuples are walked, as torch's are. Raises LayerError for anything that is not numeric
    arrays.
    """
    return tuple(as_array(item, phase) for item in leaves(value))


def as_array(value: Any, phase: str) -> Array:
    """Return one output as an array.

    Raises LayerError for None, objects, complex numbers, generators and the like.
    """
    if isinstance(value, (np.ndarray, np.generic, bool, int, float)):
        array = np.asarray(value)
        if array.dtype.kind in "fiub":
            return array
        raise LayerError(
            f"returned an array of dtype {array.dtype}; real numbers are compared", phase
        )
    if hasattr(value, "__array__") and not isinstance(value, type):
        return as_array(np.asarray(value.detach() if hasattr(value, "detach") else value), phase)
    if value is None:
        raise LayerError("returned None; an array was expected", phase)
    raise LayerError(f"returned {type(value).__name__}; an array was expected", phase)


def with_upstream(draw: Draw, upstream: tuple[Array | None, ...]) -> Draw:
    """Return ``draw`` with other upstream gradients."""
    return replace(draw, upstream=upstream)
