"""A functional optimizer dressed as an object with step(), zero_grad() and state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from parity.adapters.calling import positional
from parity.adapters.forms import FormRunner
from parity.adapters.slots import Slot, array, is_numbers
from parity.findings import UsageError

SINGLE = frozenset(("w", "x", "p", "param", "theta", "weight", "var", "variable"))
SLOTS = frozenset(("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"))


class FunctionalOptimizer:
    """What :func:`optimizer` made for one model."""

    def __init__(self, maker: OptimizerMaker, runner: Any) -> None:
        self.function = maker.function
        self.config = copy.deepcopy(maker.config)
        self.each = maker.each
        self._runner = lambda: runner  # out of sight of those who look for the user's own model
        self.memory: dict[str, Any] = {}

    @property
    def model(self) -> Any:
        """The runner whose parameters are stepped."""
        return self._runner()

    def zero_grad(self) -> None:
        """Forget the gradients of the last pass."""
        self.model.zero_grad()

    @property
    def state(self) -> dict[str, dict[str, Any]]:
        """Name → {slot: array}, for slots that are named as torch's."""
        found: dict[str, dict[str, Any]] = {}
        for name, held in self.memory.items():
            if isinstance(held, Mapping):
                own = {k: v for k, v in held.items() if k in SLOTS and v is not None}
                if own:
                    found[name] = own
        return found

    def step(self) -> None:
        """Call the function once for the whole model, or once for each parameter."""
        params, grads = self._arrays()
        if self.each:
            for name, value in params.items():
                self._one(name, value, grads.get(name))
        else:
            self._whole(params, grads)

    def _arrays(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if isinstance(self.model, FormRunner):
            slots = self._slots()
            grads = {name: slot.grad() for name, slot in slots.items()}
            return {name: slot.read() for name, slot in slots.items()}, grads
        return dict(self.model.params()), dict(self.model.grads())

    def _slots(self) -> dict[str, Slot]:
        named = {id(slot): name for name, (slot, _) in self.model.partners.items()}
        return {
            named.get(id(slot), slot.name): slot
            for slot in self.model.slots
            if slot.kind == "params"
        }

    def _put(self, name: str, value: Any) -> None:
        if isinstance(self.model, FormRunner):
            self._slots()[name].write(array(value))
        else:
            self.model.write("params", name, np.asarray(value))

    def _one(self, name: str, value: Any, grad: Any) -> None:
        if grad is None:
            return
        config = self.memory.setdefault(name, copy.deepcopy(self.config))
        result = self.function(value, grad, config)
        if isinstance(result, tuple) and len(result) == 2:
            self.memory[name] = result[1]
            result = result[0]
        if result is not None:
            self._put(name, result)

    def _whole(self, params: dict[str, Any], grads: dict[str, Any]) -> None:
        given = [*self._containers(params, grads), self.config, self.memory]
        count = len(positional(self.function) or given)
        result = self.function(*given[: min(count, len(given))])
        if isinstance(result, tuple) and result and isinstance(result[0], Mapping):
            if len(result) > 1 and isinstance(result[1], dict):
                self.memory = result[1]
            result = result[0]
        if isinstance(result, Mapping) and set(result) == set(params):
            for name, value in result.items():
                self._put(name, value)
        elif isinstance(given[0], dict):  # entries that were replaced rather than changed in place
            for name, value in given[0].items():
                if value is not params[name] and is_numbers(value):
                    self._put(name, value)

    def _containers(self, params: dict[str, Any], grads: dict[str, Any]) -> tuple[Any, Any]:
        """Nested lists where the model hands them out itself, dicts where it keeps dicts."""
        layer = getattr(self.model, "layer", None)
        lists = [getattr(layer, name, None) for name in ("getParameters", "getGradParameters")]
        if all(map(callable, lists)):
            return lists[0](), lists[1]()  # type: ignore[misc]
        if isinstance(getattr(layer, "params", None), (list, tuple)):
            return list(params.values()), [grads.get(name) for name in params]
        return dict(params), dict(grads)


class OptimizerMaker:
    """What :func:`optimizer` returns: makes one optimizer for each model that it is called with."""

    def __init__(self, function: Callable[..., Any], config: Any, each: bool) -> None:
        self.function = function
        self.config = config
        self.each = each

    def bind(self, runner: Any) -> FunctionalOptimizer:
        """Return an optimizer of the model that ``runner`` holds."""
        return FunctionalOptimizer(self, runner)

    def __call__(self, model: Any) -> FunctionalOptimizer:
        """Return an optimizer of ``model``, an object in any form that is recognised."""
        from parity.adapters.forms import FormSubject
        from parity.adapting import adapt
        from parity.subjects import PlainRunner

        subject = adapt(model)
        if isinstance(subject, FormSubject):
            return self.bind(subject.runner(model, subject))
        return self.bind(PlainRunner(model))


def optimizer(
    function: Callable[..., Any], config: Any = None, *, each: bool | None = None
) -> OptimizerMaker:
    """Adapt a functional optimizer for :func:`parity.check_training`.

    ``function(params, grads, config, state)`` changes the arrays in place, or returns new ones;
    ``function(w, dw, config)`` returns (w, config) for one array (cs231n's form), and is called
    once ``each`` parameter. Use it as ``optimizer=(parity.optimizer(sgd, {"lr": 0.1}), lambda
    params: torch.optim.SGD(params, lr=0.1))``.

    Raises UsageError for what cannot be called with at least two arguments.
    """
    names = [p.name for p in positional(function) or ()] if callable(function) else []
    if not callable(function) or (len(names) < 2 and positional(function) is not None):
        raise UsageError(
            "parity.optimizer takes a function of (params, grads, config, state), or of "
            f"(w, dw, config); got {getattr(function, '__name__', repr(function))}"
            f"({', '.join(names)})"
        )
    if each is None:
        each = bool(names) and names[0].lower() in SINGLE
    return OptimizerMaker(function, {} if config is None else config, each)
