"""Readings with one more term or factor: an offset, a parameter added or missing, a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from parity.diagnosis.registry import Reading, readings
from parity.diagnosis.trials import Trial
from parity.outcomes import Array


@readings
def offset(trials: Sequence[Trial], name: str) -> Iterator[Reading]:
    """Read a quantity as torch's plus a constant, a parameter, an input or the upstream."""
    for label, text, term in _terms(trials[0], name):
        for sign, cause, verb in ((1, "term_added", "plus"), (-1, "term_subtracted", "minus")):
            yield Reading(
                f"{label}_{cause}",
                f"{{q}} is torch's {verb} {text}",
                partial(_add, term, sign),
            )
        c = _share(trials, name, term)
        if c is not None and abs(abs(c) - 1) > 1e-9:
            cause = "term_added" if c > 0 else "term_subtracted"
            verb = "plus" if c > 0 else "minus"
            yield Reading(
                f"{label}_{cause}",
                f"{{q}} is torch's {verb} {abs(c):.6g} × {text}",
                partial(_add, partial(_times, c, term), 1),
            )
    c = _constant(trials, name)
    if c is not None:
        yield Reading(
            "constant_offset",
            f"{{q}} is torch's {'plus' if c > 0 else 'minus'} {abs(c):.6g} on every draw",
            partial(_add, lambda u: np.float64(c), 1),
        )


def _terms(trial: Trial, name: str) -> Iterator[tuple[str, str, Callable[[Trial], Any]]]:
    ref = trial.theirs.get(name)
    if ref is None:
        return
    for param in trial.draw.params:
        shown = trial.draw.params[param].shape
        if shown == ref.shape:
            yield param, param, partial(_param, param, 0)
        elif len(shown) == 1 and ref.ndim > 1 and shown[0] == ref.shape[1] and name == "forward":
            yield (
                param,
                param,
                partial(_param, param, ref.ndim),
            )
    if trial.x.shape == ref.shape:
        yield "input", "the input", lambda t: t.x
    if trial.upstream is not None and trial.upstream.shape == ref.shape:
        yield "upstream", "the upstream gradient", lambda t: t.upstream
    eps = getattr(trial.pair.reference.original, "eps", None)
    if isinstance(eps, float):
        yield "eps", f"eps ({eps:g})", lambda t: np.float64(eps)


def _param(name: str, ndim: int, trial: Trial) -> Array:
    """A parameter as it is, or laid along axis 1 of ``ndim`` axes."""
    held = trial.draw.params[name]
    return held.reshape((1, -1) + (1,) * (ndim - 2)) if ndim else held


def _add(term: Callable[[Trial], Any], sign: int, trial: Trial, name: str) -> Array | None:
    ref, extra = trial.theirs.get(name), term(trial)
    if ref is None or extra is None:
        return None
    made = ref + sign * extra
    return made if made.shape == ref.shape else None


def _times(c: float, term: Callable[[Trial], Any], trial: Trial) -> Any:
    return c * term(trial)


def _share(trials: Sequence[Trial], name: str, term: Callable[[Trial], Any]) -> float | None:
    """Return c of own = theirs + c·term, read where the term is large; None without one."""
    for trial in trials:
        own, ref, extra = trial.get(name), trial.theirs.get(name), term(trial)
        if own is None or ref is None or extra is None or own.shape != ref.shape:
            return None
        wide = np.broadcast_to(extra, ref.shape) if np.ndim(extra) <= ref.ndim else None
        if wide is None or not trial.differs(name) or not np.isfinite(own).all():
            continue
        big = np.abs(wide) >= 0.1 * np.abs(wide).max(initial=0.0)
        if not big.any() or not np.abs(wide).max():
            continue
        c = float(np.median((own - ref)[big] / wide[big]))
        return _tidy(c) if math.isfinite(c) and c else None
    return None


def _tidy(c: float) -> float:
    """Return the short number that c may have been before it was rounded with the sum."""
    short = float(f"{c:.6g}")
    return short if abs(short - c) <= 1e-7 * abs(c) else c


def _constant(trials: Sequence[Trial], name: str) -> float | None:
    found: list[float] = []
    for trial in trials:
        own, ref = trial.get(name), trial.theirs.get(name)
        if own is None or ref is None or own.shape != ref.shape or not own.size:
            continue
        c = float(np.median(own - ref))
        if not math.isfinite(c):
            return None
        found.append(c)
    if not found or max(found) - min(found) > 1e-9 * abs(found[0]) or not found[0]:
        return None
    return found[0]


@readings
def scaled_by_parameter(trials: Sequence[Trial], name: str) -> Iterator[Reading]:
    """Read a quantity as torch's times or divided by a parameter, channel by channel."""
    ref = trials[0].theirs.get(name)
    if ref is None or not ref.ndim:
        return
    for param, array in trials[0].draw.params.items():
        if array.ndim != 1:
            continue
        for axis in {0, min(1, ref.ndim - 1), ref.ndim - 1}:
            if ref.shape[axis] != array.size:
                continue
            for power, cause, text in (
                (1, "multiplied_by", "torch's times {p}: once too often"),
                (-1, "divided_by", "torch's divided by {p}: that factor is missing"),
            ):
                yield Reading(
                    f"{cause}_{param}",
                    "{q} is " + text.format(p=param),
                    partial(_scaled, param, axis, power),
                )


def _scaled(param: str, axis: int, power: int, trial: Trial, name: str) -> Array | None:
    ref = trial.theirs.get(name)
    if ref is None or ref.shape[axis] != trial.draw.params[param].size:
        return None
    shape = [1] * ref.ndim
    shape[axis] = -1
    return ref * (trial.draw.params[param] ** power).reshape(shape)


@readings
def clipped(trials: Sequence[Trial], name: str) -> Iterator[Reading]:
    """Read a quantity as torch's cut off at the largest magnitude that is seen."""
    tops = []
    for trial in trials:
        own, ref = trial.get(name), trial.theirs.get(name)
        if own is None or ref is None or own.shape != ref.shape or not own.size:
            continue
        if trial.differs(name):
            tops.append(float(np.abs(own).max()))
    if len(tops) > 1 and max(tops) == min(tops) and tops[0] > 0:
        c = tops[0]
        text = f"{{q}} is torch's clipped to ±{c:.6g}"
        for low in (-c, -np.inf):
            yield Reading("clipped", text, partial(_clipped, low, c))


def _clipped(low: float, high: float, trial: Trial, name: str) -> Array | None:
    ref = trial.theirs.get(name)
    return None if ref is None else np.clip(ref, low, high)
