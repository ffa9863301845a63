"""One training run of the hand-written side, step by step, on copies of the user's objects."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch

from parity.adapting import is_torch_module
from parity.casting import plain_mapping, walk
from parity.draws import Draw
from parity.findings import UsageError
from parity.outcomes import Array, LayerError, Outcome
from parity.subjects import (
    NameMap,
    PlainRunner,
    Runner,
    Subject,
    as_array,
    buffers_of,
    cast,
    guarded,
    load,
)
from parity.torch_side import TorchSide
from parity.trajectories.batches import Batch
from parity.trajectories.plan import Plan
from parity.trajectories.theirs import state_of


class TorchModel:
    """A torch module under test as a runner: its gradients come from autograd."""

    def __init__(self, side: TorchSide, dtype: str) -> None:
        self.module = copy.deepcopy(side.copy(dtype))
        self._inputs: list[torch.Tensor] = []
        self._output: torch.Tensor | None = None

    def params(self) -> Mapping[str, Array]:
        """Return live views by name."""
        return {n: p.detach().numpy() for n, p in self.module.named_parameters()}

    def buffers(self) -> Mapping[str, Array]:
        """Return live views by name."""
        return {n: b.detach().numpy() for n, b in self.module.named_buffers()}

    def grads(self) -> Mapping[str, Array]:
        """Return live views by name."""
        named = self.module.named_parameters()
        return {n: p.grad.detach().numpy() for n, p in named if p.grad is not None}

    def write(self, kind: str, name: str, array: Array) -> None:
        """Copy ``array`` into the module."""
        getattr(self, kind)()[name][...] = array

    def mode(self, training: bool) -> bool:
        """Switch to training or evaluation."""
        (self.module.train if training else self.module.eval)()
        return True

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.module.zero_grad()

    def forward(self, *inputs: Array) -> Array:
        """Return the output; a loss's target keeps no gradient."""
        self._inputs = [torch.from_numpy(np.array(a)) for a in inputs]
        if self._inputs[0].is_floating_point():
            self._inputs[0].requires_grad_(True)
        self._output = self.module(*self._inputs)
        return np.array(self._output.detach().numpy())

    def backward(self, *upstream: Any) -> Any:
        """Run autograd; return the gradient of the first input."""
        assert self._output is not None  # a step runs forward first
        grad = torch.as_tensor(np.asarray(upstream[0]), dtype=self._output.dtype)
        self._output.backward(grad.reshape(self._output.shape))
        own = self._inputs[0].grad
        return None if own is None else own.numpy()

    def masks(self) -> list[Array]:
        """Return nothing: dropout masks are the harness's own on both sides."""
        return []


class _Writes(MutableMapping[str, Any]):
    """A runner's parameters as a dict: what is put into it reaches the runner."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __getitem__(self, name: str) -> Array:
        return self._runner.params()[name]

    def __setitem__(self, name: str, array: Any) -> None:
        self._runner.write("params", name, np.asarray(array))

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"parameter {name!r} cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._runner.params())

    def __len__(self) -> int:
        return len(self._runner.params())


class _AsModel:
    """A runner dressed as the plain contract, for an optimizer factory."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.params = _Writes(runner)

    @property
    def grads(self) -> Mapping[str, Array]:
        return self._runner.grads()

    def zero_grad(self) -> None:
        self._runner.zero_grad()


def _spawn(subject: Subject, dtype: str) -> Any:
    side = getattr(subject, "side", None)
    return TorchModel(side, dtype) if isinstance(side, TorchSide) else subject.spawn(dtype)


class MyRun:
    """The hand-written model, loss and optimizer in one precision, ready to be stepped."""

    def __init__(self, plan: Plan, dtype: str, start: Draw) -> None:
        self.plan, self.dtype, self.names = plan, dtype, plan.names
        self.draw = start
        self.runner: Runner = _spawn(plan.subject, dtype)
        self.loss: Runner = _spawn(plan.my_loss, dtype)
        self.outcome = Outcome(())
        load(self.runner, start, dtype, plan.names)
        target = plan.batches.first[0].target
        load(self.loss, Draw((target, target), upstream=(None,)), dtype, NameMap())
        if isinstance(self.runner, PlainRunner):
            self.model: Any = self.runner.layer
        else:
            self.model = getattr(self.runner, "module", None) or _AsModel(self.runner)
        bind = getattr(plan.my_optimizer, "bind", None)  # parity.optimizer works on the runner
        maker, model = (plan.my_optimizer, self.model) if bind is None else (bind, self.runner)
        try:
            self.optimizer = guarded("optimizer", self.outcome, maker, model)
        except LayerError as error:
            _refuse_torchs(error)
            raise
        self._check_optimizer()
        self.scheduler = None
        if plan.my_scheduler is not None:
            self.scheduler = guarded("scheduler", self.outcome, plan.my_scheduler, self.optimizer)
        self.narrow = False
        self.kept_grads: dict[str, Array] = {}

    def _check_optimizer(self) -> None:
        if not callable(getattr(self.optimizer, "step", None)):
            raise UsageError(
                f"optimizer[0] made {type(self.optimizer).__name__}, which has no step(); "
                "the factory takes the model and returns an object with step()"
            )
        taken = self.plan.originals
        if any(item is original for item in walk(self.optimizer) for original in taken):
            raise UsageError(
                "optimizer[0] made an optimizer of your own model, which the harness never "
                "touches; use the model that the factory is given: lambda model: MySGD(model, …)"
            )

    def extra(self) -> tuple[str, ...]:
        """Return the parameters that the reference lacks."""
        partners = {self.names.mine(name) for name in self.draw.params}
        return tuple(name for name in self.runner.params() if name not in partners)

    def step(self, batch: Batch) -> float:
        """Make one optimizer step in training mode; return the loss before it.

        Raises LayerError with the phase where the user's code raises.
        """
        self.outcome.remarks.clear()
        inputs = tuple(cast(a, self.dtype) for a in batch.inputs)
        self.runner.mode(True)
        zero = getattr(self.optimizer, "zero_grad", None)
        self._guarded("zero_grad", zero if callable(zero) else self.runner.zero_grad)
        raw = self._guarded("forward", self.runner.forward, *inputs)
        prediction = as_array(raw, "forward")
        self.narrow = prediction.dtype.kind == "f" and prediction.dtype.name < self.dtype
        target = cast(batch.target, self.dtype)
        value = as_array(self._guarded("loss", self.loss.forward, raw, target), "loss")
        if value.size != 1:
            raise LayerError(
                f"returned an array of shape {value.shape}, where a single number is wanted; "
                "return its mean or its sum",
                "loss",
            )
        one = np.dtype(self.dtype).type(1.0)
        grad = self._guarded("loss backward", self.loss.backward, one)
        if isinstance(grad, tuple):
            grad = grad[0]
        as_array(grad, "loss backward")
        self._guarded("backward", self.runner.backward, grad)
        self.kept_grads = self._named(self.runner.grads())
        self._guarded("optimizer step", self.optimizer.step)
        return float(value.reshape(()))

    def _guarded(self, phase: str, call: Any, *arguments: Any) -> Any:
        return guarded(phase, self.outcome, call, *arguments)

    def end_epoch(self) -> None:
        """Step the scheduler where there is one."""
        if self.scheduler is not None:
            self._guarded("scheduler", self.scheduler.step)

    def predict(self, batch: Batch) -> Array:
        """Return the output in evaluation mode."""
        self.runner.mode(False)
        inputs = tuple(cast(a, self.dtype) for a in batch.inputs)
        return np.array(as_array(self._guarded("forward", self.runner.forward, *inputs), "forward"))

    def masks(self) -> tuple[Array, ...]:
        """Return the keep masks of the last training forward."""
        if not self.plan.reference.dropouts:
            return ()
        return tuple(np.array(mask) for mask in self.runner.masks())

    def quantities(self) -> dict[str, Array]:
        """Return gradients, parameters, buffers and optimizer state under torch's names."""
        found = {f"grad_{n}": a for n, a in self.kept_grads.items()}
        found |= {f"parameter_{n}": a for n, a in self._named(self.runner.params()).items()}
        buffers = buffers_of(self.runner, self.draw, self.names)
        found |= {f"buffer_{n}": a for n, a in buffers.items()}
        for name, slots in my_state(self.optimizer, self.model).items():
            theirs = self.names.theirs(name)
            for slot, array in slots.items():
                found[f"state_{theirs}.{slot}"] = self.names.to_theirs(theirs, array)
        return found

    def _named(self, arrays: Mapping[str, Any]) -> dict[str, Array]:
        found = {}
        for name, array in arrays.items():
            if array is not None:
                theirs = self.names.theirs(name)
                found[theirs] = np.array(self.names.to_theirs(theirs, np.asarray(array)))
        return found


def _refuse_torchs(error: LayerError) -> None:
    """Raise UsageError where torch's optimizer refused what it was given in place of parameters."""
    frames = traceback.walk_tb(error.__cause__.__traceback__ if error.__cause__ else None)
    if any(frame.f_globals.get("__name__", "").startswith("torch.optim") for frame, _ in frames):
        raise UsageError(
            f"optimizer[0] raised {error}; the first of the pair is given the model: lambda model: "
            "MySGD(model, lr=0.1), or lambda model: torch.optim.SGD(model.parameters(), lr=0.1) "
            "for a torch module"
        ) from error


def my_state(optimizer: Any, model: Any) -> dict[str, dict[str, Array]]:
    """Return name → {slot: array} of a plain or a torch optimizer; empty where it shows none.

    Slot → {name: array} is understood too, where the slots are torch's.
    """
    if is_torch_module(model):
        return state_of(optimizer, model)
    state = plain_mapping(getattr(optimizer, "state", None))
    found: dict[str, dict[str, Array]] = {}
    for outer, inner in state.items():
        for key, value in plain_mapping(inner).items():
            name, slot = (key, outer) if outer in SLOTS and key not in SLOTS else (outer, key)
            if value is not None and np.asarray(value).dtype.kind in "fiub":
                found.setdefault(str(name), {})[str(slot)] = np.asarray(value)
    return found


SLOTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step")
