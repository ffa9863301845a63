"""Optimizer rules replayed on recorded gradients: which wrong rule makes exactly these steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from parity.draws import Draw
from parity.findings import Cause
from parity.ladder import EPS64
from parity.outcomes import Array
from parity.trajectories.lockstep import Record
from parity.trajectories.plan import Plan

Params = dict[str, Array]
Rule = Callable[["Stepper", str, Array, Array, dict[str, Array]], Array]
CLOSE = 1e-9  # of a step: what a right explanation may leave


@dataclass
class Stepper:
    """The options of the reference's optimizer at one step, for rules written in NumPy."""

    options: dict[str, Any]
    step: int

    def __getattr__(self, name: str) -> Any:
        return self.options.get(name, 0)


class Replay:
    """Replays optimizers from the common start on the hand-written side's own gradients."""

    def __init__(self, plan: Plan, start: Draw, records: list[Record], skip: set[str]) -> None:
        self.plan, self.start, self.records = plan, start, records
        self.names = [n for n in start.params if n in records[0].params and n not in skip]
        sizes = [len(plan.batches.epoch(e)) for e in range(plan.batches.epochs)]
        self.ends = set(np.cumsum(sizes).tolist())

    def torch(self, change: Callable[[dict[str, Any]], None] | None = None) -> Iterator[Params]:
        """Yield parameters after each step of the reference's optimizer, options changed."""
        module = copy.deepcopy(self.plan.reference.copy("float64"))
        self.plan.reference._load(module, self.start, "float64")
        optimizer, scheduler = self._made(module)
        named = dict(module.named_parameters())
        for group in optimizer.param_groups:
            if change is not None:
                change(group)
        for i, record in enumerate(self.records, 1):
            for name, parameter in named.items():
                grad = record.mine.get(name)
                fits = grad is not None and grad.shape == tuple(parameter.shape)
                parameter.grad = torch.from_numpy(np.array(grad)) if fits else None
            optimizer.step()
            yield {n: p.detach().numpy().copy() for n, p in named.items()}
            if scheduler is not None and i in self.ends:
                scheduler.step()

    def _made(self, module: Any) -> tuple[Any, Any]:
        optimizer = self.plan.their_optimizer(list(module.parameters()))
        made = self.plan.their_scheduler
        return optimizer, made(optimizer) if made is not None else None

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


def _options(group: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (cause, sentence, changed options) for one parameter group."""
    m = group.get("momentum", 0)
    if m:
        text = f"momentum is 1 - {m:g}: old and new are weighed the wrong way round"
        yield "momentum_swapped", text, {"momentum": 1 - m}
        yield "momentum_ignored", "momentum is ignored", {"momentum": 0, "nesterov": False}
        text = f"the gradient enters the buffer times 1 - momentum (dampening = {m:g})"
        yield "wrong_dampening", text, {"dampening": m, "nesterov": False}
    if group.get("dampening"):
        yield "dampening_ignored", "dampening is ignored", {"dampening": 0}
    if group.get("nesterov"):
        yield "nesterov_ignored", "Nesterov's look-ahead is missing", {"nesterov": False}
    elif "nesterov" in group and m and not group.get("dampening"):
        yield "wrong_nesterov", "it looks ahead as Nesterov does", {"nesterov": True}
    if group.get("weight_decay"):
        yield "weight_decay_ignored", "weight decay is ignored", {"weight_decay": 0}
        yield (
            "wrong_weight_decay",
            "weight decay is doubled",
            {"weight_decay": 2 * group["weight_decay"]},
        )
    if "betas" in group:
        b1, b2 = group["betas"]
        yield "betas_swapped", f"the betas are swapped: ({b2:g}, {b1:g})", {"betas": (b2, b1)}
    if "eps" in group:
        for eps in (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12, 0.0):
            yield "wrong_eps", f"eps is {eps:g}, torch has {group['eps']:g}", {"eps": eps}
    for name in ("amsgrad", "maximize"):
        if name in group:
            value = not group[name]
            yield f"wrong_{name}", f"it behaves like {name}={value}", {name: value}


def _buffer(o: Stepper, g: Array, slots: dict[str, Array]) -> Array:
    old = slots.get("buffer")
    slots["buffer"] = g if old is None else o.momentum * old + (1 - o.dampening) * g
    return slots["buffer"]


def _direction(o: Stepper, g: Array, slots: dict[str, Array]) -> Array:
    if not o.momentum:
        return g
    buffer = _buffer(o, g, slots)
    return g + o.momentum * buffer if o.nesterov else buffer


def _stale(o: Stepper, name: str, p: Array, g: Array, slots: dict[str, Array]) -> Array:
    now, slots["last"] = slots.get("last", g), g
    return np.asarray(o.lr * _direction(o, now + o.weight_decay * p, slots))


def _lr_inside(o: Stepper, name: str, p: Array, g: Array, slots: dict[str, Array]) -> Array:
    slots["v"] = o.momentum * slots.get("v", 0 * g) + o.lr * (g + o.weight_decay * p)
    return slots["v"]


def _decay_after(o: Stepper, name: str, p: Array, g: Array, slots: dict[str, Array]) -> Array:
    return np.asarray(o.lr * (_direction(o, g, slots) + o.weight_decay * p))


def _buffer_look_ahead(o: Stepper, name: str, p: Array, g: Array, slots: dict[str, Array]) -> Array:
    g = g + o.weight_decay * p
    return np.asarray(o.lr * (_buffer(o, g, slots) + o.momentum * g))


SGD_RULES: tuple[tuple[str, str, Rule], ...] = (
    ("stale_gradients", "the optimizer steps with the gradients of the step before", _stale),
    ("lr_inside_buffer", "the learning rate stands inside the momentum buffer", _lr_inside),
    (
        "weight_decay_after_momentum",
        "weight decay is added after the momentum; torch adds it to the gradient before",
        _decay_after,
    ),
    ("nesterov_wrong", "the look-ahead adds momentum × gradient to the buffer", _buffer_look_ahead),
)


def _adam(
    first: bool = True,
    second: bool = True,
    inside: bool = False,
    early: bool = False,
    stale: bool = False,
    decoupled: bool | None = None,
    root: bool = True,
    ahead: int = 0,
) -> Rule:
    """Return Adam's step with bias corrections off, eps elsewhere, or old gradients."""

    def rule(o: Stepper, name: str, p: Array, g: Array, slots: dict[str, Array]) -> Array:
        if stale:
            g, slots["last"] = slots.get("last", g), g
        b1, b2 = o.betas
        g = g if decoupled else g + o.weight_decay * p
        m = slots["m"] = b1 * slots.get("m", 0 * g) + (1 - b1) * g
        v = slots["v"] = b2 * slots.get("v", 0 * g) + (1 - b2) * g * g
        c1 = 1 - b1 ** (o.step + ahead) if first else 1.0
        c2 = 1 - b2 ** (o.step + ahead) if second else 1.0
        if not root:
            below = v / c2 + o.eps
        elif inside:
            below = np.sqrt(v / c2 + o.eps)
        elif early:
            below = (np.sqrt(v) + o.eps) / np.sqrt(c2)
        else:
            below = np.sqrt(v / c2) + o.eps
        moved = o.lr * (m / c1) / below
        return np.asarray(moved + o.lr * o.weight_decay * p if decoupled else moved)

    return rule


def _adam_rules(decoupled: bool) -> Iterator[tuple[str, str, Rule]]:
    d = decoupled
    off = "bias_correction_missing"
    yield off, "the bias corrections are missing", _adam(False, False, decoupled=d)
    yield off, "the bias correction of exp_avg is missing", _adam(False, True, decoupled=d)
    yield off, "the bias correction of exp_avg_sq is missing", _adam(True, False, decoupled=d)
    text = "eps stands inside the square root; torch adds it outside"
    yield "eps_inside_sqrt", text, _adam(inside=True, decoupled=d)
    text = "eps is added before the bias correction"
    yield "eps_before_correction", text, _adam(early=True, decoupled=d)
    text = "the optimizer steps with the gradients of the step before"
    yield "stale_gradients", text, _adam(stale=True, decoupled=d)
    text = "it divides by the second moment, not by its square root"
    yield "square_root_missing", text, _adam(root=False, decoupled=d)
    text = "the bias corrections count one step too many"
    yield "step_count_off_by_one", text, _adam(ahead=1, decoupled=d)
    if d:
        text = "weight decay is added to the gradient (Adam); torch's AdamW decays the parameter"
        yield "weight_decay_coupled", text, _adam()
    else:
        text = "weight decay acts on the parameter (AdamW); torch's Adam adds it to the gradient"
        yield "weight_decay_decoupled", text, _adam(decoupled=True)


def optimizer_cause(replay: Replay) -> Cause | None:
    """Return the wrong rule that makes exactly the hand-written side's steps, or None."""
    groups = replay.options()
    for name, sentence, changed in _options(groups[0]):
        if replay.fits(replay.torch(lambda group, c=changed: group.update(c))):  # type: ignore[misc]
            return Cause(name, sentence)
    kind = _kind(replay)
    rules = SGD_RULES if kind == "SGD" else ()
    if kind in ("Adam", "AdamW"):
        rules = tuple(_adam_rules(kind == "AdamW"))
    for name, sentence, rule in rules:
        if replay.fits(replay.numpy(rule)):
            return Cause(name, sentence)
    return _rate(replay, groups)


def _kind(replay: Replay) -> str:
    module = copy.deepcopy(replay.plan.reference.copy("float64"))
    return type(replay.plan.their_optimizer(list(module.parameters()))).__name__


def _rate(replay: Replay, groups: list[dict[str, Any]]) -> Cause | None:
    """Another learning rate, or the right one at the wrong time."""
    before: Params = dict(replay.start.params)
    for params, record, group in zip(replay.torch(), replay.records, groups, strict=True):
        k = _ratio(replay.names, before, params, record.params)
        if k is None:
            return None
        if abs(k - 1) > 1e-6:
            rates = {float(g["lr"]) for g in groups} | set(_later_rates(replay))
            mine = k * float(group["lr"])
            if len(rates) > 1 and any(abs(mine - r) <= 1e-6 * abs(r) for r in rates):
                text = f"the learning rate is {mine:.6g} where the schedule says {group['lr']:.6g}"
                return Cause("schedule_off_by_one", f"{text}: it is changed at another epoch")
            text = f"the learning rate is {mine:.6g}, {k:.6g} × torch's"
            return Cause("wrong_lr", text)
        before = record.params
    return None


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
