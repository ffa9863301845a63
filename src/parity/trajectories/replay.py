"""Optimizer rules replayed on recorded gradients: which wrong rule makes exactly these steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from parity.diagnosis.registry import multiple
from parity.draws import Draw
from parity.findings import Cause
from parity.ladder import EPS64
from parity.outcomes import Array
from parity.trajectories.clipping import clipping_cause
from parity.trajectories.lockstep import Record
from parity.trajectories.optimizer_rules import (
    RMSPROP_RULES,
    SGD_RULES,
    Rule,
    Stepper,
    adam_rules,
    changed_options,
)
from parity.trajectories.plan import Plan

Params = dict[str, Array]
CLOSE = 1e-9  # of a step: what a right explanation may leave


class Replay:
    """Replays optimizers from the common start on the hand-written side's own gradients."""

    def __init__(self, plan: Plan, start: Draw, records: list[Record], skip: set[str]) -> None:
        self.plan, self.start, self.records = plan, start, records
        self.names = [n for n in start.params if n in records[0].params and n not in skip]
        sizes = [len(plan.batches.epoch(e)) for e in range(plan.batches.epochs)]
        self.ends = set(np.cumsum(sizes).tolist())

    def torch(
        self,
        change: Callable[[dict[str, Any]], None] | None = None,
        forced: bool = False,
        grads: Callable[[Params], Params] | None = None,
        plain: Any = None,
    ) -> Iterator[Params]:
        """Yield parameters after each step of the reference's optimizer, options changed.

        ``forced`` starts every step from the hand-written side's own parameters; ``grads`` changes
        the gradients; ``plain`` is a class of torch whose step is taken for the optimizer's own.
        """
        module = copy.deepcopy(self.plan.reference.copy("float64"))
        self.plan.reference._load(module, self.start)
        optimizer, scheduler = self._made(module, plain)
        named = dict(module.named_parameters())
        for group in optimizer.param_groups:
            if change is not None:
                change(group)
        for i, record in enumerate(self.records, 1):
            held = record.mine if grads is None else grads(record.mine)
            for name, parameter in named.items():
                grad = held.get(name)
                fits = grad is not None and grad.shape == tuple(parameter.shape)
                parameter.grad = torch.from_numpy(np.array(grad)) if fits else None
            optimizer.step()
            yield {n: p.detach().numpy().copy() for n, p in named.items()}
            for name in self.names if forced else ():
                named[name].data.copy_(torch.from_numpy(np.array(record.params[name])))
            if scheduler is not None and i in self.ends:
                scheduler.step()

    def _made(self, module: Any, plain: Any = None) -> tuple[Any, Any]:
        optimizer = self.plan.their_optimizer(list(module.parameters()))
        if plain is not None:
            optimizer.__class__ = plain  # before a scheduler wraps its step
        made = self.plan.their_scheduler
        return optimizer, made(optimizer) if made is not None else None

    def kind(self) -> type:
        """Return the class of the reference's optimizer."""
        return type(self._made(copy.deepcopy(self.plan.reference.copy("float64")))[0])

    def options(self) -> list[dict[str, Any]]:
        """Return the reference's options at every recorded step, its schedule followed."""
        module = copy.deepcopy(self.plan.reference.copy("float64"))
        optimizer, scheduler = self._made(module)
        found = []
        for i in range(1, len(self.records) + 1):
            found.append({k: v for k, v in optimizer.param_groups[0].items() if k != "params"})
            if scheduler is not None and i in self.ends:
                optimizer.step()  # nothing has a gradient; torch wants the order
                scheduler.step()
        return found

    def numpy(self, rule: Rule) -> Iterator[Params]:
        """Yield parameters after each step of a rule written in NumPy."""
        params = {n: np.array(a, dtype=np.float64) for n, a in self.start.params.items()}
        slots: dict[str, dict[str, Array]] = {n: {} for n in params}
        for i, (record, options) in enumerate(zip(self.records, self.options(), strict=True), 1):
            for name in self.names:
                if name in record.mine:
                    taken = Stepper(options, i)
                    moved = rule(taken, name, params[name], record.mine[name], slots[name])
                    params[name] = params[name] - moved
            yield dict(params)

    def fits(self, steps: Iterator[Params]) -> bool:
        """Whether a replay makes the hand-written side's own steps, all of them."""
        last: Params = dict(self.start.params)
        with np.errstate(all="ignore"):
            for record, params in zip(self.records, steps, strict=True):
                for name in self.names:
                    mine = record.params[name]
                    step = float(np.abs(mine - last[name]).max(initial=0.0))
                    room = CLOSE * step + 64 * EPS64 * float(np.abs(mine).max(initial=0.0))
                    if not float(np.abs(params[name] - mine).max(initial=0.0)) <= room:
                        return False
                last = record.params
        return True


def optimizer_cause(replay: Replay) -> Cause | None:
    """Return the wrong rule that makes exactly the hand-written side's steps, or None."""
    groups = replay.options()
    if replay.fits(replay.torch()):
        return None  # no rule is wrong that takes torch's own steps
    still = _never_updated(replay)
    if still is not None:
        return still
    for name, sentence, changed in changed_options(groups[0]):
        if all(groups[0].get(option) == value for option, value in changed.items()):
            continue  # torch's own
        if replay.fits(replay.torch(lambda group, c=changed: group.update(c))):  # type: ignore[misc]
            return Cause(name, sentence)
    kind = replay.kind().__name__
    rules = SGD_RULES if kind == "SGD" else RMSPROP_RULES if kind == "RMSprop" else ()
    if kind in ("Adam", "AdamW"):
        rules = tuple(adam_rules(kind == "AdamW"))
    for name, sentence, rule in rules:
        if replay.fits(replay.numpy(rule)):
            return Cause(name, sentence)
    ks = _ratios(replay)
    return clipping_cause(replay, ks) or (_rate(replay, groups, ks) if ks else None)


def _never_updated(replay: Replay) -> Cause | None:
    """Name parameters that mine leaves as they were, where torch moves them; the others fit."""
    start, names = replay.start.params, replay.names
    still = [n for n in names if all(np.array_equal(r.params[n], start[n]) for r in replay.records)]
    moved = {n for ps in replay.torch() for n in still if not np.array_equal(ps[n], start[n])}
    if not moved:
        return None
    if len(still) == len(names):
        return Cause("parameters_not_updated", "the parameters stay as they were at every step")
    replay.names = [n for n in names if n not in moved]
    fits = replay.fits(replay.torch())
    replay.names = names
    text = f"{', '.join(n for n in names if n in moved)}: the optimizer never updates it"
    return Cause("parameters_not_updated", text) if fits else None


def _ratios(replay: Replay) -> list[float] | None:
    """Return by how much each step is longer than torch's from there; None where by no factor."""
    before: Params = dict(replay.start.params)
    ks = []
    for params, record in zip(replay.torch(forced=True), replay.records, strict=True):
        k = _ratio(replay.names, before, params, record.params)
        if k is None:
            return None
        ks.append(k)
        before = record.params
    return ks


def _rate(replay: Replay, groups: list[dict[str, Any]], ks: list[float]) -> Cause | None:
    """Another learning rate at every step, or the right one at the wrong time."""
    at = next((i for i, k in enumerate(ks) if abs(k - 1) > 1e-6), None)
    if at is None:
        return None
    mine, told = ks[at] * float(groups[at]["lr"]), float(groups[at]["lr"])
    if max(ks) - min(ks) <= 1e-6 * abs(ks[0]) and not _scheduled(replay, ks, groups):
        text = f"the learning rate is {mine:.6g}, {multiple(ks[0])} × torch's"
        return Cause("wrong_lr", text)
    if replay.plan.my_scheduler is None and replay.plan.their_scheduler is None:
        text = (
            f"the step is {multiple(ks[at])} × torch's at step {at + 1}, for all parameters alike, "
            "and by other factors at other steps"
        )
        return Cause("step_scaled", text)
    text = f"the learning rate is {mine:.6g} where the schedule says {told:.6g}"
    if _scheduled(replay, ks, groups):
        return Cause("schedule_off_by_one", f"{text}: it is changed at another epoch")
    return Cause("wrong_schedule", f"{text}, at step {at + 1}: it follows another schedule")


def _scheduled(replay: Replay, ks: list[float], groups: list[dict[str, Any]]) -> bool:
    """Whether all rates are the schedule's own, only at other times."""
    rates = {float(g["lr"]) for g in groups} | set(_later_rates(replay))
    used = [k * float(g["lr"]) for k, g in zip(ks, groups, strict=True)]
    return len(rates) > 1 and all(any(abs(u - r) <= 1e-6 * abs(r) for r in rates) for u in used)


def _later_rates(replay: Replay) -> Iterator[float]:
    """Yield the rates of every epoch to come and one beyond."""
    module = copy.deepcopy(replay.plan.reference.copy("float64"))
    optimizer, scheduler = replay._made(module)
    for _ in range(replay.plan.batches.epochs + 1):
        yield float(optimizer.param_groups[0]["lr"])
        if scheduler is not None:
            optimizer.step()
            scheduler.step()


def _ratio(names: list[str], before: Params, theirs: Params, mine: Params) -> float | None:
    """The one factor by which all steps of a parameter set differ, or None."""
    a = np.concatenate([(theirs[n] - before[n]).ravel() for n in names])
    b = np.concatenate([(mine[n] - before[n]).ravel() for n in names])
    size = float(a @ a)
    if not size or not np.isfinite(size):
        return None
    k = float(a @ b) / size
    room = 1e-7 * float(np.abs(b).max()) + 64 * EPS64 * max(
        float(np.abs(mine[n]).max(initial=0.0)) for n in names
    )
    return k if float(np.abs(b - k * a).max()) <= room else None
