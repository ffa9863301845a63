"""Runner and subject of every object form: slots matched with torch's names, habits of calling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.adapters.calling import Caller, backward_style, takes_target
from parity.adapters.layouts import Layout
from parity.adapters.matching import match
from parity.adapters.slots import Slot, array, is_tensor, torch_named
from parity.draws import Draw
from parity.outcomes import Array, LayerError
from parity.subjects import NameMap, PlainRunner, PlainSubject

if TYPE_CHECKING:
    from parity.pair import Pair

TRIALS = 24  # layouts tried, one forward pass each, where shapes leave the layout open
AGREES = 1e-3  # a right layout agrees to rounding (float32 at worst), a wrong one to nothing


@dataclass(frozen=True)
class Form:
    """What is special about a form: where its numbers are, and what its methods are called."""

    name: str
    slots: Callable[[Any], list[Slot]]
    forward: str = "forward"
    backward: str | None = "backward"
    style: str | None = None
    tensors: bool | None = None
    transpose: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class FormRunner(PlainRunner):
    """An object in one of the known forms, seen under torch's names and shapes once it met them."""

    def __init__(self, layer: Any, subject: FormSubject) -> None:
        super().__init__(layer)
        self.subject = subject
        self.form = subject.form
        self.slots = subject.form.slots(layer)
        self.partners: dict[str, tuple[Slot, Layout | None]] = {}
        self._inputs: tuple[Array, ...] = ()
        tensors = self.form.tensors
        if tensors is None:
            held = [slot.read() for slot in self.slots]
            tensors = any(map(is_tensor, held)) or (subject.tensors if not held else False)
        self._call = Caller(tensors)

    @property
    def accumulates(self) -> bool:  # type: ignore[override]
        """Asked where the names are torch's own; course layers overwrite, and that is fine."""
        plain = isinstance(getattr(self.layer, "grads", None), Mapping)
        named = all(torch_named(slot.name) for slot in self.slots)
        return plain and named and self.form.name == "dict form"

    # ---- names and numbers -------------------------------------------------------------------

    def meet(self, draw: Draw, names: NameMap) -> None:
        """Find the partners of the draw's parameters and buffers among the slots."""
        self.partners = {}
        for kind, theirs in (("params", draw.params), ("buffers", draw.buffers)):
            slots = [slot for slot in self.slots if slot.kind == kind]
            own = {slot.name: slot for slot in slots}
            declared = {n: own[names.mine(n)] for n in theirs if names.mine(n) in own}
            declared = {n: s for n, s in declared.items() if names.mine(n) != n or n in names.axes}
            rest = [s for s in slots if all(s is not d for d in declared.values())]
            found = match({n: a for n, a in theirs.items() if n not in declared}, rest)
            for name, (slot, possible) in found.items():
                raw = name in names.axes  # the user's own axis order does the turning
                layout = self.subject.chosen(name, slot, possible)
                self.partners[name] = (slot, None if raw else layout)
            for name, slot in declared.items():
                self.partners[names.mine(name)] = (slot, None)
            if kind == "params":
                self.subject.said(self.partners, [s.name for s in slots])

    def _of(self, kind: str) -> dict[str, tuple[Slot, Layout | None]]:
        if not self.partners:
            return {slot.name: (slot, None) for slot in self.slots if slot.kind == kind}
        taken = {id(slot) for slot, _ in self.partners.values()}
        found = {n: pair for n, pair in self.partners.items() if pair[0].kind == kind}
        free = [slot for slot in self.slots if slot.kind == kind and id(slot) not in taken]
        return found | {slot.name: (slot, None) for slot in free if slot.name not in found}

    def params(self) -> Mapping[str, Array]:
        """See :class:`parity.subjects.Runner`; under torch's names and shapes."""
        return {name: _seen(slot.read(), layout) for name, (slot, layout) in self._read("params")}

    def buffers(self) -> Mapping[str, Array]:
        """See :class:`parity.subjects.Runner`; under torch's names and shapes."""
        return {name: _seen(slot.read(), layout) for name, (slot, layout) in self._read("buffers")}

    def _read(self, kind: str) -> Iterable[tuple[str, tuple[Slot, Layout | None]]]:
        for name, (slot, layout) in self._of(kind).items():
            if slot.read() is None and layout is not None:
                empty = np.zeros(layout.mine)
                yield name, (replace(slot, read=_constantly(empty)), layout)
            elif slot.read() is not None:
                yield name, (slot, layout)

    def grads(self) -> Mapping[str, Array]:
        """See :class:`parity.subjects.Runner`; under torch's names and shapes."""
        found = {}
        for name, (slot, layout) in self._of("params").items():
            grad = slot.grad()
            if grad is not None:
                found[name] = _seen(grad, layout)
        return found

    def write(self, kind: str, name: str, array: Array) -> None:
        """See :class:`parity.subjects.Runner`."""
        slot, layout = self._of(kind)[name]
        slot.write(array if layout is None else layout.to_mine(array))

    def mode(self, training: bool) -> bool:
        """See :class:`parity.subjects.Runner`; Torch7's ``training()`` is a method."""
        switch = getattr(self.layer, "training", None)
        if training and callable(switch) and not hasattr(self.layer, "train"):
            switch()
            return True
        return super().mode(training)

    def zero_grad(self) -> None:
        """See :class:`parity.subjects.Runner`: the layer's own method, else in place."""
        for name in ("zero_grad", "zeroGradParameters", "zero_grads"):
            clear = getattr(self.layer, name, None)
            if callable(clear):
                clear()
                return
        for slot in self.slots:
            if slot.kind == "params":
                try:
                    grad = slot.grad()
                except Exception:
                    continue  # nothing there before the first backward
                if is_tensor(grad):
                    grad.detach().zero_()
                elif isinstance(grad, np.ndarray) and grad.flags.writeable:
                    grad[...] = 0

    # ---- passes ------------------------------------------------------------------------------

    @property
    def style(self) -> str:
        """What backward is handed; see :func:`parity.adapters.calling.backward_style`."""
        if self.form.style is not None:
            return self.form.style
        backward = getattr(self.layer, self.form.backward or "", None)
        forward = getattr(self.layer, self.form.forward)
        return "upstream" if backward is None else backward_style(forward, backward)

    def takes_upstream(self) -> bool:
        """Whether backward takes an upstream gradient at all (losses often do not)."""
        if self.style in ("again", "with forward"):
            return False
        return super().takes_upstream() if self.form.backward == "backward" else True

    def forward(self, *inputs: Array) -> Any:
        """See :class:`parity.subjects.Runner`."""
        self._inputs = inputs
        result = self._call(getattr(self.layer, self.form.forward), *inputs)
        self.subject.tensors = self._call.tensors
        if self.style == "with forward":
            result, self._delta = _loss_and_delta(result, self.form.forward)
        self.returned = result
        return result

    def backward(self, *upstream: Any) -> Any:
        """See :class:`parity.subjects.Runner`."""
        if self.style == "with forward":
            return self._delta
        call = getattr(self.layer, self.form.backward or "backward")
        if self.style == "again":
            return self._call(call, *self._inputs)
        if self.style == "input first":
            return self._call(call, *self._inputs, *upstream)
        if self.style == "input last":
            return self._call(call, *upstream, *self._inputs)
        if self.form.backward == "backward" and not self.takes_upstream():
            return self._call(call)
        return self._call(call, *self.handed(call, upstream))


class FormSubject(PlainSubject):
    """An object in one of the known forms, or a factory of one."""

    runner: type[FormRunner] = FormRunner
    widens = True  # np.zeros in a course's layer makes float64 of float32: a note, no fault

    def __init__(self, layer: Any, form: Form, factory: Callable[[], Any] | None = None) -> None:
        super().__init__(layer, factory)
        self.form = form
        self.notes: list[str] = []
        self.tensors: bool | None = None
        self.layouts: dict[str, Layout] = {}
        self.open: dict[str, list[Layout]] = {}

    def spawn(self, dtype: str) -> FormRunner:
        """Return a fresh copy."""
        return self.runner(self.copy(dtype), self)

    def chosen(self, name: str, slot: Slot, possible: list[Layout]) -> Layout:
        """Return the layout to use: the declared one, the one found by trial, the likeliest."""
        declared = self.form.transpose.get(slot.name, self.form.transpose.get(name))
        if declared is not None:
            theirs = possible[0].theirs
            mine = tuple(theirs[axis] for axis in declared)
            return Layout(theirs, mine, tuple(declared))
        if len(possible) > 1:
            self.open[name] = possible
        return self.layouts.get(name, possible[0])

    def said(self, partners: Mapping[str, tuple[Slot, Layout | None]], own: list[str]) -> None:
        """Note how the names were read, where that is not plain from the names alone."""
        told = []
        for name, (slot, layout) in partners.items():
            turned = layout is not None and not layout.plain
            if slot.kind == "params" and (slot.name != name or turned):
                kept = f" as {layout.describe()}" if layout is not None and turned else ""
                told.append(f"{slot.name} is {name}{kept}")
        taken = {slot.name for slot, _ in partners.values()}
        idle = [name for name in own if name not in taken]
        self.notes = [f"{self.form.name}: " + ", ".join(told)] if told else []
        if idle:
            self.notes.append(f"no partner in the reference, left as it is: {', '.join(idle)}")

    def settle(self, pair: Pair) -> None:
        """Decide open layouts (square weights) by trial: the one whose forward agrees."""
        settle(self, pair)


def settle(subject: Any, pair: Pair) -> None:
    """Try the open layouts of ``subject`` with one forward pass each, and keep what agrees.

    Where none agrees the layer is wrong, and the likeliest that runs at all is kept.
    """
    try:
        draw = replace(pair.draw(pair.options.seed, training=False, label="layout"), upstream=())
        runner = subject.spawn("float64")
        meet = getattr(runner, "meet", None)
        if meet is not None:
            meet(draw, pair.names)
        if not subject.open:
            return
        theirs = pair.theirs(draw).outputs
    except LayerError:
        return  # the examination says what is wrong
    names = list(subject.open)
    best: dict[str, Layout] | None = None
    for trial in islice(product(*subject.open.values()), TRIALS):
        subject.layouts = dict(zip(names, trial, strict=True))
        try:
            error = _distance(pair.mine(draw).outputs, theirs)
        except LayerError:
            continue
        if best is None or error < AGREES:
            best = subject.layouts
        if error < AGREES:
            break
    subject.layouts = best or {}
    subject.open = {}


def _distance(mine: tuple[Array, ...], theirs: tuple[Array, ...]) -> float:
    worst = 0.0
    for own, ref in zip(mine, theirs, strict=False):
        if own.shape != ref.shape:
            return float("inf")
        with np.errstate(all="ignore"):
            scale = max(float(np.max(np.abs(ref), initial=0.0)), 1e-300)
            worst = max(worst, float(np.max(np.abs(own - ref), initial=0.0)) / scale)
    return worst if np.isfinite(worst) else float("inf")


def _constantly(value: Array) -> Callable[[], Array]:
    return lambda: value


def _seen(value: Any, layout: Layout | None) -> Array:
    return array(value) if layout is None else layout.to_theirs(array(value))


def _loss_and_delta(result: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise LayerError(
            f"returned {type(result).__name__}, and no gradient; return (loss, gradient) from "
            f"{name}, the gradient in the prediction's shape",
            "forward",
        )
    return result[0], result[1]


def is_loss(layer: Any, forward: str) -> bool:
    """Whether method ``forward`` takes a prediction and a target."""
    method = getattr(layer, forward, None)
    return callable(method) and takes_target(method)
