"""Wrong rules of optimizers, one small entry each: other options, and steps written in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.outcomes import Array

Rule = Callable[["Stepper", str, Array, Array, dict[str, Array]], Array]


@dataclass
class Stepper:
    """The options of the reference's optimizer at one step, for rules written in NumPy."""

    options: dict[str, Any]
    step: int

    def __getattr__(self, name: str) -> Any:
        return self.options.get(name, 0)


def changed_options(group: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
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
        text = "weight decay has the wrong sign: the weights grow"
        yield "weight_decay_sign", text, {"weight_decay": -group["weight_decay"]}
    if "betas" in group:
        b1, b2 = group["betas"]
        yield "betas_swapped", f"the betas are swapped: ({b2:g}, {b1:g})", {"betas": (b2, b1)}
        for b in (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999):
            yield "wrong_beta", f"beta1 is {b:g}, torch has {b1:g}", {"betas": (b, b2)}
        for b in (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999):
            yield "wrong_beta", f"beta2 is {b:g}, torch has {b2:g}", {"betas": (b1, b)}
    if "alpha" in group and "lambd" not in group:
        a = group["alpha"]
        text = f"alpha is {1 - a:g}, torch has {a:g}: old and new are weighed the wrong way round"
        yield "alpha_swapped", text, {"alpha": 1 - a}
    yield from _constants(group)
    if "eps" in group:
        for eps in (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12, 0.0):
            yield "wrong_eps", f"eps is {eps:g}, torch has {group['eps']:g}", {"eps": eps}
    for name in ("amsgrad", "maximize"):
        if name in group:
            value = not group[name]
            yield f"wrong_{name}", f"it behaves like {name}={value}", {name: value}


def _constants(group: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the constants of NAdam and ASGD left out, or as torch has them by default."""
    for name, usual in (("momentum_decay", 4e-3), ("lambd", 1e-4), ("t0", 1e6)):
        given = group.get(name)
        if given:
            yield f"{name}_ignored", f"{name} is ignored: torch has {given:g}", {name: 0}
        if given is not None and given != usual:
            text = f"{name} is {usual:g}, torch's default, where torch has {given:g}"
            yield f"wrong_{name}", text, {name: usual}


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


def _decay_bare(o: Stepper, name: str, p: Array, g: Array, slots: dict[str, Array]) -> Array:
    return np.asarray(o.lr * _direction(o, g, slots) + o.weight_decay * p)


def _old_buffer(o: Stepper, name: str, p: Array, g: Array, slots: dict[str, Array]) -> Array:
    g = g + o.weight_decay * p
    old = slots.get("buffer", g)
    _buffer(o, g, slots)
    return np.asarray(o.lr * (g + o.momentum * old))


def _damped_first(share: str) -> Rule:
    def rule(o: Stepper, name: str, p: Array, g: Array, slots: dict[str, Array]) -> Array:
        kept = 1 - float(getattr(o, share))
        g = g + o.weight_decay * p
        slots["buffer"] = o.momentum * slots.get("buffer", 0 * g) + kept * g
        return np.asarray(o.lr * (g + o.momentum * slots["buffer"] if o.nesterov
                                  else slots["buffer"]))  # fmt: skip

    return rule


def _last_gradient(at: int) -> Rule:
    def rule(o: Stepper, name: str, p: Array, g: Array, slots: dict[str, Array]) -> Array:
        g = g + o.weight_decay * p
        last = slots.get("last")
        slots["last"] = g
        return np.asarray(o.lr * (g if last is None else g + o.momentum * (last if at else g)))

    return rule


SGD_RULES: tuple[tuple[str, str, Rule], ...] = (
    ("stale_gradients", "the optimizer steps with the gradients of the step before", _stale),
    ("lr_inside_buffer", "the learning rate stands inside the momentum buffer", _lr_inside),
    (
        "weight_decay_after_momentum",
        "weight decay is added after the momentum; torch adds it to the gradient before",
        _decay_after,
    ),
    ("nesterov_wrong", "the look-ahead adds momentum × gradient to the buffer", _buffer_look_ahead),
    ("nesterov_wrong", "it looks ahead with the buffer as it was before the step", _old_buffer),
    ("weight_decay_without_lr", "weight decay is not multiplied by the learning rate", _decay_bare),
    (
        "dampening_at_first_step",
        "the first gradient is dampened as well: torch's buffer starts as the gradient itself",
        _damped_first("dampening"),
    ),
    (
        "wrong_dampening",
        "the buffer is the running average m·b + (1 - m)·g, starting from zero",
        _damped_first("momentum"),
    ),
    (
        "buffer_not_kept",
        "the buffer forgets what it held: it adds momentum × the same gradient",
        _last_gradient(0),
    ),
    (
        "buffer_not_kept",
        "the buffer holds the last gradient alone: it forgets those before",
        _last_gradient(1),
    ),
)


def _rmsprop(o: Stepper, name: str, p: Array, g: Array, slots: dict[str, Array]) -> Array:
    """RMSprop whose eps stands inside the root."""
    g = g + o.weight_decay * p
    v = slots["v"] = o.alpha * slots.get("v", 0 * g) + (1 - o.alpha) * g * g
    if o.centered:
        mean = slots["mean"] = o.alpha * slots.get("mean", 0 * g) + (1 - o.alpha) * g
        v = v - mean * mean
    step = slots["b"] = o.momentum * slots.get("b", 0 * g) + g / np.sqrt(v + o.eps)
    return np.asarray(o.lr * step)


INSIDE = "eps stands inside the square root; torch adds it outside"
RMSPROP_RULES: tuple[tuple[str, str, Rule], ...] = (("eps_inside_sqrt", INSIDE, _rmsprop),)


def _adam(
    first: bool = True,
    second: bool = True,
    inside: bool = False,
    early: bool = False,
    stale: bool = False,
    decoupled: bool | None = None,
    root: bool = True,
    ahead: int = 0,
    rate: bool = True,
    corrected: bool = False,
    late: bool = False,
) -> Rule:
    """Return Adam's step with bias corrections off, eps elsewhere, or old gradients.

    ``corrected`` takes amsgrad's maximum after the bias correction; without ``rate`` the learning
    rate is missing in the decoupled decay; ``late`` decays what the step has left.
    """

    def rule(o: Stepper, name: str, p: Array, g: Array, slots: dict[str, Array]) -> Array:
        if stale:
            g, slots["last"] = slots.get("last", g), g
        b1, b2 = o.betas
        g = g if decoupled else g + o.weight_decay * p
        m = slots["m"] = b1 * slots.get("m", 0 * g) + (1 - b1) * g
        v = slots["v"] = b2 * slots.get("v", 0 * g) + (1 - b2) * g * g
        c1 = 1 - b1 ** (o.step + ahead) if first else 1.0
        c2 = 1 - b2 ** (o.step + ahead) if second else 1.0
        if o.amsgrad:
            v, c2 = (v / c2, 1.0) if corrected else (v, c2)
            v = slots["top"] = np.maximum(v, slots.get("top", v))
        if not root:
            below = v / c2 + o.eps
        elif inside:
            below = np.sqrt(v / c2 + o.eps)
        elif early:
            below = (np.sqrt(v) + o.eps) / np.sqrt(c2)
        else:
            below = np.sqrt(v / c2) + o.eps
        moved = o.lr * (m / c1) / below
        decay = o.weight_decay * (o.lr if rate else 1.0)
        return np.asarray(moved + decay * (p - moved if late else p) if decoupled else moved)

    return rule


def adam_rules(decoupled: bool) -> Iterator[tuple[str, str, Rule]]:
    """Yield (cause, sentence, rule) for Adam, or for AdamW where the decay is ``decoupled``."""
    d = decoupled
    off = "bias_correction_missing"
    yield off, "the bias corrections are missing", _adam(False, False, decoupled=d)
    yield off, "the bias correction of exp_avg is missing", _adam(False, True, decoupled=d)
    yield off, "the bias correction of exp_avg_sq is missing", _adam(True, False, decoupled=d)
    yield "eps_inside_sqrt", INSIDE, _adam(inside=True, decoupled=d)
    text = "eps is added before the bias correction"
    yield "eps_before_correction", text, _adam(early=True, decoupled=d)
    text = "the optimizer steps with the gradients of the step before"
    yield "stale_gradients", text, _adam(stale=True, decoupled=d)
    text = "it divides by the second moment, not by its square root"
    yield "square_root_missing", text, _adam(root=False, decoupled=d)
    text = "the bias corrections count one step too many"
    yield "step_count_off_by_one", text, _adam(ahead=1, decoupled=d)
    text = "amsgrad keeps the largest corrected second moment; torch corrects the largest one"
    yield "amsgrad_after_correction", text, _adam(corrected=True, decoupled=d)
    text = "the decoupled weight decay is not multiplied by the learning rate"
    yield "weight_decay_without_lr", text, _adam(decoupled=True, rate=False)
    if d:
        text = "weight decay is added to the gradient (Adam); torch's AdamW decays the parameter"
        yield "weight_decay_coupled", text, _adam()
        text = "weight decay acts on the stepped parameter; torch's AdamW decays it before the step"
        yield "weight_decay_after_step", text, _adam(decoupled=True, late=True)
    else:
        text = "weight decay acts on the parameter (AdamW); torch's Adam adds it to the gradient"
        yield "weight_decay_decoupled", text, _adam(decoupled=True)
