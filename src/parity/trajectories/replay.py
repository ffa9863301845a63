"""Optimizer rules replayed on recorded gradients: which wrong rule makes exactly these steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from parity.draws import Draw
from parity.findings import Cause
from parity.ladder import EPS64
from parity.outcomes import Array
from parity.trajectories.exact import all_double
from parity.trajectories.lengths import of_lengths, ratios
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
    """Replays optimizers from the common start on the hand-written side's own gradients.

    ``exact`` keeps all of torch's numbers in float64. ``later`` are the records that follow, for
    what an explanation says of every step.
    """

    def __init__(
        self,
        plan: Plan,
        start: Draw,
        records: list[Record],
        skip: set[str],
        exact: bool = False,
        later: Sequence[Record] = (),
    ) -> None:
        self.plan, self.start, self.records = plan, start, records
        self.exact, self.later = exact, later
        self.names = [n for n in start.params if n in records[0].params and n not in skip]
        sizes = [len(plan.batches.epoch(e)) for e in range(plan.batches.epochs)]
        self.ends = set(np.cumsum(sizes).tolist())

    def whole(self) -> Replay:
        """Return the same over every step that was kept, as far as mine's numbers are finite."""
        last = next(
            (i for i, r in enumerate(self.later) if not all(map(_finite, (r.mine, r.params)))),
            len(self.later),
        )
        made = copy.copy(self)
        made.records, made.later = [*self.records, *self.later[:last]], ()
        return made

    def exactly(self) -> Replay | None:
        """Return the same with torch's numbers in float64; None where that changes no step."""
        if self.exact:
            return None
        made = copy.copy(self)
        made.exact = True
        try:
            moved = any(
                not np.array_equal(params[name], other[name])
                for params, other in zip(self.torch(), made.torch(), strict=True)
                for name in params
            )
        except Exception:  # an optimizer that does not run so
            return None
        return made if moved else None

    def _around(self) -> AbstractContextManager[None]:
        return all_double() if self.exact else nullcontext()

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
        self.plan.reference.load(module, self.start)
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
            with self._around():
                optimizer.step()
            yield {n: p.detach().numpy().copy() for n, p in named.items()}
            for name in self.names if forced else ():
                named[name].data.copy_(torch.from_numpy(np.array(record.params[name])))
            if scheduler is not None and i in self.ends:
                scheduler.step()

    def _made(self, module: Any, plain: Any = None) -> tuple[Any, Any]:
        with self._around():
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
    found = _wrong_rule(replay)
    if found is None:
        other = replay.exactly()
        found = _wrong_rule(other) if other is not None else None
    return found


def _wrong_rule(replay: Replay) -> Cause | None:
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
    return of_lengths(replay.whole(), ratios(replay) is not None)


def _never_updated(replay: Replay) -> Cause | None:
    """Name parameters that mine leaves as they were, where torch moves them; the others fit."""
    start, names = replay.start.params, replay.names
    still = [n for n in names if all(np.array_equal(r.params[n], start[n]) for r in replay.records)]
    moved = {n for ps in replay.torch() for n in still if not np.array_equal(ps[n], start[n])}
    if not moved:
        return None
    if len(still) == len(names):
        when = _unmoved(replay)
        return Cause("parameters_not_updated", f"the parameters stay as they were {when}")
    replay.names = [n for n in names if n not in moved]
    fits = replay.fits(replay.torch())
    replay.names = names
    which = ", ".join(n for n in names if n in moved)
    when = _unmoved(replay, moved)
    never = "the optimizer never updates it"
    text = f"{which}: {never if when == EVERY else f'it stays as it was {when}'}"
    return Cause("parameters_not_updated", text) if fits else None


EVERY = "at every step"


def _unmoved(replay: Replay, names: Collection[str] = ()) -> str:
    """Say at which steps mine leaves ``names``, by default all parameters, as they were."""
    start, records = replay.start.params, replay.whole().records
    for i, record in enumerate(records):
        if any(not np.array_equal(record.params[n], start[n]) for n in names or replay.names):
            return f"at step{'s 1 to' if i > 1 else ''} {i}, where torch's move"
    return EVERY


def _finite(arrays: Params) -> bool:
    return all(np.isfinite(array).all() for array in arrays.values())
