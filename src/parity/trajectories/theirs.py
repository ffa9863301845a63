"""One training run of the reference: plain, nudged by an ulp at every step, or permuted."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.draws import Draw
from parity.findings import UsageError
from parity.outcomes import Array
from parity.subjects import said
from parity.torch_side import DTYPES, flatten
from parity.trajectories.batches import Batch
from parity.trajectories.plan import Plan

OPTIMIZER = (
    "the second of the pair takes parameters and returns a torch optimizer: "
    "lambda params: torch.optim.SGD(params, lr=0.1)"
)
SCHEDULER = (
    "the second of the pair takes torch's optimizer and returns a scheduler: "
    "lambda optimizer: StepLR(optimizer, 10)"
)
PLAIN = ("SGD", "ASGD")  # every other optimizer divides by what it has seen of the gradient


def nudge(array: Array, rng: np.random.Generator, dtype: str) -> Array:
    """Move every value but 0 to a neighbouring number of ``dtype``.

    Rounding never moves an exact zero, and zeros are where the kinks of ReLU are.
    """
    narrow = array.astype(dtype)
    target = np.where(rng.random(narrow.shape) < 0.5, -np.inf, np.inf).astype(dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        moved = np.nextafter(narrow, target)
    return np.where(narrow == 0, narrow, moved)


class TorchRun:
    """A copy of the reference with its loss and optimizer, in one precision.

    ``nudged`` draws one-ulp moves for the start and every batch, and with ``every_step`` for the
    weights at every step; ``permuted`` shuffles the items of every batch; ``rounded`` rounds the
    batches through float32 first.
    """

    def __init__(
        self,
        plan: Plan,
        dtype: str,
        start: Draw,
        *,
        nudged: np.random.Generator | None = None,
        permuted: np.random.Generator | None = None,
        every_step: bool = False,
        rounded: bool = False,
    ) -> None:
        self.plan, self.dtype = plan, dtype
        self.nudged, self.permuted = nudged, permuted
        self.every_step, self.rounded = every_step, rounded
        self.module = copy.deepcopy(plan.reference.copy(dtype))
        self.loss = copy.deepcopy(plan.their_loss).to(DTYPES[dtype])
        plan.reference.load(self.module, start)
        self._nudge_weights()
        self.named = dict(self.module.named_parameters())
        given = list(self.module.parameters())
        self.optimizer = _from("optimizer[1]", plan.their_optimizer, given, OPTIMIZER)
        _check_optimizer(self.optimizer, given)
        self.scheduler = None
        if plan.their_scheduler is not None:
            made = _from("scheduler[1]", plan.their_scheduler, self.optimizer, SCHEDULER)
            self.scheduler = made
        self.kept_grads: dict[str, Array] = {}

    @property
    def adaptive(self) -> bool:
        """Whether steps divide by the gradient's size, so that rounding noise becomes a step."""
        return type(self.optimizer).__name__ not in PLAIN

    def _nudge_weights(self) -> None:
        if self.nudged is None:
            return
        with torch.no_grad():
            for parameter in self.module.parameters():
                if parameter.is_floating_point():
                    array = nudge(parameter.numpy(), self.nudged, self.dtype)
                    parameter.copy_(torch.from_numpy(array))

    def _seen(self, batch: Batch, masks: tuple[Array, ...]) -> tuple[Batch, tuple[Array, ...]]:
        if self.rounded:
            with np.errstate(over="ignore"):
                batch = batch.map(lambda a: a.astype(np.float32).astype(np.float64))
        if self.permuted is not None and batch.rows is not None:
            order = self.permuted.permutation(batch.rows)
            batch = batch.permuted(order)
            masks = tuple(m[order] if len(m) == len(order) else m for m in masks)
        if self.nudged is not None:
            rng = self.nudged
            batch = batch.map(lambda a: nudge(a, rng, self.dtype))
        return batch, masks

    def step(self, batch: Batch, masks: tuple[Array, ...] = ()) -> float:
        """Make one optimizer step in training mode; return the loss before it.

        Raises UsageError where the reference or its loss refuses the batch.
        """
        batch, masks = self._seen(batch, masks)
        if self.every_step:
            self._nudge_weights()
        self.module.train()
        self.share(masks)
        # both sides start every step from nothing, whatever zero_grad means in this version
        for parameter in self.named.values():
            parameter.grad = None
        try:
            value = self.loss(self._output(batch), self._tensor(batch.target))
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                given = getattr(value, "shape", None)
                what = type(value).__name__ if given is None else f"shape {tuple(given)}"
                raise UsageError(
                    f"loss[1] returned {what}; training needs a single number: its mean or sum"
                )
            if value.requires_grad:
                value.backward()
        except UsageError:
            raise
        except Exception as error:
            text = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"the reference refuses the batch (x {batch.inputs[0].shape}, "
                f"y {batch.target.shape} {batch.target.dtype}): {text}"
            ) from error
        self.kept_grads = {
            n: p.grad.detach().numpy().copy() for n, p in self.named.items() if p.grad is not None
        }
        self.optimizer.step()
        return float(value.detach())

    def _output(self, batch: Batch) -> torch.Tensor:
        outputs = flatten(self.module(*(self._tensor(a) for a in batch.inputs)))
        if len(outputs) != 1:
            raise UsageError(
                f"the reference returned {len(outputs)} tensors, where a loss takes one; wrap it "
                "in a module whose forward returns that one alone"
            )
        return outputs[0]

    def _tensor(self, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(array, order="C"))
        return tensor.to(DTYPES[self.dtype]) if tensor.is_floating_point() else tensor

    def share(self, masks: tuple[Array, ...]) -> None:
        """Give the dropout layers the hand-written side's keep masks, in order."""
        layers = [m for m in self.module.modules() if type(m).__name__ == "_SharedMask"]
        for layer, mask in zip(layers, masks, strict=False):
            layer.keep = torch.from_numpy(np.ascontiguousarray(mask))

    def end_epoch(self) -> None:
        """Step the scheduler where there is one."""
        if self.scheduler is not None:
            self.scheduler.step()

    def predict(self, batch: Batch) -> Array:
        """Return the output in evaluation mode."""
        if self.rounded:
            batch = batch.map(lambda a: a.astype(np.float32).astype(np.float64))
        self.module.eval()
        with torch.no_grad():
            return np.array(self._output(batch).numpy())

    def value(self, batch: Batch) -> float:
        """Return the loss in evaluation mode; NaN where it is no tensor, which a step refuses."""
        self.module.eval()
        with torch.no_grad():
            value = self.loss(self._output(batch), self._tensor(batch.target))
        return float(value.sum()) if isinstance(value, torch.Tensor) else float("nan")

    def quantities(self) -> dict[str, Array]:
        """Return gradients, parameters, buffers and optimizer state; some are live views."""
        found = {f"grad_{n}": a for n, a in self.kept_grads.items()}
        found |= {f"parameter_{n}": p.detach().numpy() for n, p in self.named.items()}
        found |= {f"buffer_{n}": b.detach().numpy() for n, b in self.module.named_buffers()}
        for name, slots in state_of(self.optimizer, self.module).items():
            found |= {f"state_{name}.{slot}": array for slot, array in slots.items()}
        return found


def order_is_free(plan: Plan, start: Draw) -> bool:
    """Whether the items of a batch may be given in another order without changing the loss."""
    batch = plan.batches.first[0]
    if batch.rows is None or batch.rows < 2:
        return False
    try:
        run = TorchRun(plan, "float64", start)
        one = run.value(batch)
        other = run.value(batch.permuted(np.arange(batch.rows)[::-1]))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False  # the run itself says what is wrong with the batch
    return bool(abs(one - other) <= 1e-9 * abs(one))


def state_of(optimizer: Any, module: nn.Module) -> dict[str, dict[str, Array]]:
    """Return name → {slot: array} of a torch optimizer."""
    state: Any = getattr(optimizer, "state", {})
    found: dict[str, dict[str, Array]] = {}
    for name, parameter in module.named_parameters():
        for slot, value in state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                found.setdefault(name, {})[slot] = value.detach().numpy()
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                found.setdefault(name, {})[slot] = np.asarray(value)
    return found


def _from(who: str, factory: Any, given: Any, wanted: str) -> Any:
    """Return what the factory makes. Raises UsageError where it cannot."""
    try:
        return factory(given)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{who} raised {said(error)}; {wanted}") from error


def _check_optimizer(optimizer: Any, given: list[nn.Parameter]) -> None:
    groups = getattr(optimizer, "param_groups", None)
    if not callable(getattr(optimizer, "step", None)) or groups is None:
        raise UsageError(f"optimizer[1] made {type(optimizer).__name__}; {OPTIMIZER}")
    known = {id(parameter) for parameter in given}
    if any(id(p) not in known for group in groups for p in group["params"]):
        raise UsageError(
            "optimizer[1] holds parameters of another module; use those the factory is given: "
            "lambda params: torch.optim.SGD(params, lr=0.1)"
        )
