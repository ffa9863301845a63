"""A pair of plain functions: outputs and cache one way, gradients the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.adapters.arguments import is_config, match_arguments, settings
from parity.adapters.calling import Caller, positional, required
from parity.adapters.forms import settle
from parity.adapters.layouts import Layout, free_layouts
from parity.adapters.returned import distribute
from parity.adapters.slots import BUFFERS, array, hint_of
from parity.draws import Draw
from parity.findings import UsageError
from parity.nesting import arranged, first
from parity.outcomes import Array
from parity.subjects import NameMap

if TYPE_CHECKING:
    from parity.pair import Pair

CACHES = frozenset(("cache", "caches", "ctx", "context", "saved", "state", "memory", "mem", "meta"))


@dataclass(frozen=True)
class Functions:
    """A pair of plain functions, as :func:`functions` returns it."""

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None
    params: tuple[str, ...] = ()
    returns: tuple[str, ...] | None = None
    transpose: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    input_grads: bool = True
    given: Mapping[str, Any] = field(default_factory=dict)


def functions(
    forward: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    *,
    params: Sequence[str] = (),
    returns: Sequence[str] | None = None,
    transpose: Mapping[str, tuple[int, ...]] | None = None,
    input_grads: bool = True,
    given: Mapping[str, Any] | None = None,
) -> Functions:
    """Adapt a pair of plain functions for :func:`parity.check`.

    ``forward(*inputs, *params)`` returns the output, or ``(output, cache)``;
    ``backward(grad_output, cache)`` returns the gradients of the inputs (none where
    ``input_grads`` is False) followed by those named in ``returns`` (default: all ``params``).
    Without ``params`` the arguments after the inputs are taken, read by habit (w and gamma are
    weight, b and beta bias). ``transpose`` maps a parameter's name to the axis order of the
    hand-written array, (1, 0) for weights kept as (in, out); without ``params`` both are tried.
    ``given`` holds further arguments by name, such as ``{"conv_param": {"stride": 1, "pad": 0}}``.
    One function that returns ``(loss, gradient)`` is a loss. A gradient that is not returned is
    skipped, not failed.

    Raises UsageError where ``returns`` or ``transpose`` names something that is not in ``params``.
    """
    if isinstance(params, str):
        raise UsageError(f'params is the text {params!r}; give a tuple: params=("{params}",)')
    if not callable(forward) or not (backward is None or callable(backward)):
        raise UsageError("parity.functions takes two callables: functions(forward, backward)")
    names = tuple(params)
    chosen = None if returns is None else tuple(returns)
    if chosen is None and names:
        chosen = names
    possible = names or tuple(p.name for p in positional(forward) or ())
    for what, listed in (("returns", chosen or ()), ("transpose", tuple(transpose or ()))):
        for name in listed:
            known = {*possible, *(hint_of(own)[0] for own in possible)}
            if name not in (names or known):
                raise UsageError(f"{what} names {name!r}, which is not among params={possible!r}")
    return Functions(
        forward, backward, names, chosen, dict(transpose or {}), input_grads, dict(given or {})
    )


class FunctionRunner:
    """A pair of plain functions with the parameters that the reference has."""

    def __init__(self, subject: FunctionSubject) -> None:
        self.subject = subject
        self.pair = subject.given
        self._params: dict[str, Array] = {}
        self._grads: dict[str, Array] = {}
        self._names: dict[str, str] = {}  # argument → the name it is exposed under
        self._layouts: dict[str, Layout] = {}
        self._known: dict[str, Any] = {}
        self._cache: tuple[Any, ...] = ()
        self._outputs: Any = None
        self.result: Any = None  # what backward returned last
        self._delta: Any = None
        self._state: dict[str, Any] = {}
        self._inputs: tuple[Array, ...] = ()
        self._call = Caller(subject.tensors)

    # ---- names -------------------------------------------------------------------------------

    def meet(self, draw: Draw, names: NameMap) -> None:
        """Find which argument is which of the draw's parameters."""
        inputs = len(draw.inputs)
        self.subject.outputs = len(draw.upstream) or self.subject.outputs
        arguments = list(self.pair.params) or self._arguments(inputs)
        theirs = {names.mine(name): name for name in draw.params}
        self._names = match_arguments(arguments, list(theirs))
        self.subject.open, self._layouts = {}, {}
        for argument, mine in self._names.items():
            name = theirs[mine]
            declared = self.pair.transpose.get(argument, self.pair.transpose.get(mine))
            shape = tuple(draw.params[name].shape)
            if name in names.axes:
                continue  # the user's own axis order does the turning
            if declared is not None:
                turned = tuple(shape[axis] for axis in declared)
                self._layouts[mine] = Layout(shape, turned, tuple(declared))
            elif len(shape) > 1 and not self.pair.params:
                possible = free_layouts(shape)
                self.subject.open[mine] = possible
                self._layouts[mine] = self.subject.layouts.get(mine, possible[0])
        self._prepare(draw, arguments)
        self.subject.told(self.pair, self._names, self._layouts)

    def _arguments(self, inputs: int) -> list[str]:
        names = [p.name for p in positional(self.pair.forward) or () if p.default is p.empty]
        skip = set(self.pair.given)
        return [n for n in names[inputs:] if n not in skip and not is_config(n)]

    def _prepare(self, draw: Draw, arguments: list[str]) -> None:
        """Make a dict for every configuration argument: a mode, and running statistics."""
        for parameter in (positional(self.pair.forward) or [])[len(draw.inputs) :]:
            name = parameter.name
            if name in arguments or not is_config(name) or name in self._state:
                continue
            given = self.pair.given.get(name, self.subject.configs.get(name, {}))
            self._state[name] = dict(given) if isinstance(given, Mapping) else given

    def accepts(self, name: str) -> bool:
        """Whether the pair takes parameter ``name`` at all: others are the reference's own."""
        return name in self._names.values()

    def params(self) -> Mapping[str, Array]:
        """See :class:`parity.subjects.Runner`; names appear as they are written."""
        found = {n: self._params[n] for n in self._names.values() if n in self._params}
        return {n: _seen(self._layouts.get(n), a) for n, a in found.items()}

    def grads(self) -> Mapping[str, Array]:
        """See :class:`parity.subjects.Runner`."""
        return {n: _seen(self._layouts.get(n), array(g)) for n, g in self._grads.items()}

    def buffers(self) -> Mapping[str, Array]:
        """See :class:`parity.subjects.Runner`: what a configuration dict keeps, if anything."""
        return {
            name: config[name]
            for config in self._state.values()
            if isinstance(config, dict)
            for name in BUFFERS
            if name in config
        }

    def write(self, kind: str, name: str, array: Array) -> None:
        """See :class:`parity.subjects.Runner`."""
        if kind == "buffers":
            for config in self._state.values():
                if isinstance(config, dict) and name in config:
                    config[name] = array.copy()
            return
        layout = self._layouts.get(name)
        self._params[name] = array.copy() if layout is None else layout.to_mine(array)

    def hold_buffer(self, name: str, value: Array) -> bool:
        """Put a running statistic into the batch-norm configuration; False where none takes it."""
        for key, config in self._state.items():
            if name in BUFFERS and key.startswith(("bn", "batch")) and isinstance(config, dict):
                config[name] = value.copy()
                return True
        return False

    def mode(self, training: bool) -> bool:
        """See :class:`parity.subjects.Runner`: configurations have a ``mode``, train or test."""
        modes = [c for n, c in self._state.items() if isinstance(c, dict) and n.endswith("param")]
        for config in modes:
            config["mode"] = "train" if training else "test"
        return bool(modes)

    def zero_grad(self) -> None:
        """See :class:`parity.subjects.Runner`."""
        self._grads = {}

    def takes_upstream(self) -> bool:
        """Whether backward takes an upstream gradient: a loss usually does not."""
        if self.pair.backward is None:
            return False
        names = required(self.pair.backward)
        if not names:
            return names is None
        known = {p.name for p in positional(self.pair.forward) or ()}
        return not all(name in known or name in CACHES for name in names)

    # ---- passes ------------------------------------------------------------------------------

    def forward(self, *inputs: Array) -> Any:
        """See :class:`parity.subjects.Runner`; what comes beyond the outputs is the cache."""
        self._inputs = inputs
        numbers = [self._params[name] for name in self._names.values()]
        # arguments beyond inputs and parameters go by name, wherever they stand
        named = {**{k: v for k, v in self.pair.given.items() if k not in self._state}}
        named |= self._state
        arguments = dict(zip(self._order(), (*inputs, *numbers), strict=False))
        self._known = {**arguments, **named}
        result = self._call(_with(self.pair.forward, named), *inputs, *numbers)
        self.subject.tensors = self._call.tensors
        self._cache, self._delta, self._outputs = (), None, result
        if not isinstance(result, tuple) or len(result) < 2:
            return result
        if self.pair.backward is None:
            if len(result) == 2 and self._is_delta(result):
                result, self._delta = result
            return result
        wanted = first(result, self.subject.outputs or 1)
        if len(result) > wanted:
            self._cache = result[wanted:]
            result = result[:wanted]
        self._outputs = result[0] if len(result) == 1 else result
        return self._outputs

    def _order(self) -> list[str]:
        own = [p.name for p in positional(self.pair.forward) or ()]
        return [*own[: len(self._inputs)], *self._names]

    def _is_delta(self, result: tuple[Any, ...]) -> bool:
        first, second = result
        return np.size(first) == 1 and np.shape(second) == np.shape(self._inputs[0])

    def backward(self, *upstream: Any) -> Any:
        """See :class:`parity.subjects.Runner`."""
        if self.pair.backward is None:
            return self._delta
        result = self._call(self.pair.backward, *self._handed(self.pair.backward, upstream))
        self.result = result
        found = distribute(
            result,
            [a for a in self._inputs],
            {argument: self._params[name] for argument, name in self._names.items()},
            self.pair.returns if self.pair.returns is None else self._returned(),
            self.pair.input_grads,
        )
        self._grads = {self._names[argument]: grad for argument, grad in found.params.items()}
        if found.inputs is None:
            self.subject.pair = replace(self.subject.pair, input_grads=False)
            return None
        return tuple(found.inputs)

    def _returned(self) -> list[str]:
        """The declared returns, as arguments; either name may have been given."""
        chosen = self.pair.returns or ()
        back = {name: argument for argument, name in self._names.items()}
        return [name if name in self._names else back.get(name, name) for name in chosen]

    def _handed(self, backward: Callable[..., Any], upstream: Sequence[Any]) -> list[Any]:
        """Return the arguments of backward: upstream gradients, the cache, forward's arguments."""
        names = [p.name for p in positional(backward) or ()]
        needed = required(backward)
        cache = self._cache[0] if len(self._cache) == 1 else self._cache
        upstream = arranged(self._outputs, upstream, len(names) - bool(self._cache))
        if needed is None:
            return [*upstream, cache]
        if self._cache and len(names) == len(upstream) + 1:
            first = names[0].lower() in CACHES
            return [cache, *upstream] if first else [*upstream, cache]
        queue, handed, kept = list(upstream), [], bool(self._cache)
        for name in needed:
            if name in self._known:
                handed.append(self._known[name])
            elif kept and (name.lower() in CACHES or not queue):
                handed.append(cache)
                kept = False
            elif queue:
                handed.append(queue.pop(0))
            elif self._cache == () and len(names) == len(upstream) + 1:
                handed.append(None)  # an empty cache: forward returned its output alone
            else:
                own = ", ".join([*(["cache"] if self._cache else []), *self._known])
                raise UsageError(
                    f"backward({', '.join(needed)}) takes {name!r}, which nothing provides; it can "
                    f"be given the upstream gradient and: {own}"
                )
        return handed

    def masks(self) -> list[Array]:
        """See :class:`parity.subjects.Runner`; recovered from the zeros of the output."""
        return []


class FunctionSubject:
    """A pair of plain functions as given."""

    widens = True  # np.zeros in a course's function makes float64 of float32: a note, no fault

    def __init__(self, pair: Functions) -> None:
        self.given = pair
        # as the harness sees it: torch's names for what is returned, once they are known
        self.pair = replace(pair, returns=pair.params if pair.returns is None else pair.returns)
        self.title = getattr(pair.forward, "__name__", "functions")
        self.notes: list[str] = []
        self.outputs = 0
        self.tensors: bool | None = None
        self.layouts: dict[str, Layout] = {}
        self.open: dict[str, list[Layout]] = {}
        self.configs: dict[str, dict[str, Any]] = {}

    def spawn(self, dtype: str) -> FunctionRunner:
        """Return a runner with no parameters yet."""
        return FunctionRunner(self)

    def told(self, pair: Functions, names: Mapping[str, str], chosen: Mapping[str, Layout]) -> None:
        """Note how the arguments were read; the pair then speaks of them by the other names."""
        words = []
        for argument, name in names.items():
            layout = chosen.get(name)
            turned = layout is not None and not layout.plain and name not in pair.transpose
            if argument != name or turned:
                kept = f" as {layout.describe()}" if layout is not None and turned else ""
                words.append(f"{argument} is {name}{kept}")
        self.notes = ["functions: " + ", ".join(words)] if words else []
        self.notes += [f"{name} was given {config}" for name, config in self.configs.items()]
        returned = pair.returns
        if returned is None:
            returned = tuple(names.values())
        else:
            returned = tuple(names.get(name, name) for name in returned)
        self.pair = replace(self.pair, returns=returned if pair.backward else ())

    def settle(self, pair: Pair) -> None:
        """Give configurations the reference's own settings; try the layouts left open."""
        self._configure(pair.reference.original)
        settle(self, pair)

    def _configure(self, module: Any) -> None:
        """Read stride, padding, window and eps off the reference for arguments like conv_param."""
        for parameter in positional(self.pair.forward) or ():
            if is_config(parameter.name) and parameter.name not in self.pair.given:
                found = settings(module)
                if found:
                    self.configs[parameter.name] = found


def _with(function: Callable[..., Any], named: Mapping[str, Any]) -> Callable[..., Any]:
    if not named:
        return function

    def call(*arguments: Any) -> Any:
        return function(*arguments, **named)

    return call


def _seen(layout: Layout | None, value: Array) -> Array:
    return value if layout is None else layout.to_theirs(value)
