"""Kinks and numerics: ties and corners decided otherwise, overflow, cancellation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from parity.diagnosis.registry import Hypothesis, Reading, hypotheses, readings
from parity.diagnosis.trials import COARSE, Quantities, Trial
from parity.draws import FAR
from parity.ladder import EPS64
from parity.outcomes import Array
from parity.pair import LOUD, Pair

NUDGE = 2.0**-40  # moves an integer off a kink, and a piecewise linear function not at all
EXP_ENDS = 709.0  # beyond it exp overflows, and below -709 - 36 it is 0
GIVEN_MUCH = (LOUD, "large")  # draws whose upstream gradient is large
CORNERS = (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 6.0, -6.0)
NEARLY = 1e-12  # relative: a corner is met exactly, or missed by rounding
ROUNDINGS = 64.0  # a difference of nearly equal numbers near 1 is off by a few of their roundings


@hypotheses
def other_side(pair: Pair) -> Iterator[Hypothesis]:
    """Corners read from the other side: the derivative at x ± a hair."""
    if not pair.reference.lone or not any(spec.free for spec in pair.specs):
        return
    for sign, side in ((1, "right"), (-1, "left")):
        yield Hypothesis(
            "kink_derivative",
            f"at the corner it takes the derivative from the {side}, torch the other",
            partial(_moved, sign * NUDGE),
        )
    if len(pair.specs) > 1:
        for sign in (1, -1):
            yield Hypothesis(
                "kink_derivative",
                "a score exactly on the margin counts as inside it, in torch as outside",
                partial(_margin, sign * NUDGE),
            )


def _moved(by: float, trial: Trial) -> Quantities | None:
    """Gradients at x + by where the trial sits on kinks; the forward pass stays."""
    if not trial.pinned:
        return trial.theirs
    found = trial.run(inputs=(trial.x + by, *trial.draw.inputs[1:]))
    return found and {**found, **{n: a for n, a in trial.theirs.items() if n.startswith("forward")}}


def _margin(by: float, trial: Trial) -> Quantities | None:
    target = trial.draw.inputs[1]
    if not trial.pinned or trial.x.ndim != 2 or target.shape != trial.x.shape[:1]:
        return trial.theirs
    x = trial.x.copy()
    x[np.arange(len(x)), target] -= by
    found = trial.run(inputs=(x, target))
    return found and {**found, **{n: a for n, a in trial.theirs.items() if n.startswith("forward")}}


@readings
def corner_values(trials: Sequence[Trial], name: str) -> Iterator[Reading]:
    """Read what an elementwise function gives at the few x where the two sides differ."""
    if not trials[0].pair.elementary or name not in ("forward", "grad_input0"):
        return
    places: dict[float, float] = {}
    for trial in trials:
        own, ref, x, g = trial.get(name), trial.theirs.get(name), trial.x, trial.upstream
        if own is None or ref is None or g is None:
            return
        if not own.shape == ref.shape == x.shape == g.shape:
            return
        for at in np.argwhere((own != ref) & (np.abs(own - ref) > 1e-6 * np.abs(ref))):
            i = tuple(at)
            if trial.draw.label in FAR and not np.isfinite(own[i]):
                return  # an overflow is no corner
            if name == "forward":
                value = float(own[i])
            elif g[i] == 0:
                continue
            else:
                value = float(own[i] / g[i])
            if abs(places.setdefault(float(x[i]), value) - value) > 1e-12 or len(places) > 3:
                return
    if not places or not _isolated(places, trials, name):
        return
    if not all(_corner(x, trials[0].pair) for x in places):
        return  # ordinary places, of which chance met a few
    shown = ", ".join(f"x = {x:g} it is {value:.6g}" for x, value in sorted(places.items()))
    what, cause = (
        ("value", "boundary_value") if name == "forward" else ("derivative", "kink_derivative")
    )
    text = f"only the {what} at the corner differs: at {shown}"

    def predict(trial: Trial, q: str) -> Array | None:
        ref = trial.theirs.get(q)
        if ref is None:
            return None
        made = ref.copy()
        for x, value in places.items():
            hit = trial.x == x
            made[hit] = value if q == "forward" else value * trial.upstream[hit]  # type: ignore[index]
        return made

    yield Reading(cause, text, predict)


def _corner(x: float, pair: Pair) -> bool:
    """Whether a function of torch may have a kink at x."""
    return any(abs(x - at) <= NEARLY * abs(at) for at in (*CORNERS, *pair.special_values()))


def _isolated(places: dict[float, float], trials: Sequence[Trial], name: str) -> bool:
    """Whether the two sides agree on both sides of the corners: no whole region differs."""
    for trial in trials:
        own, ref = trial.get(name), trial.theirs.get(name)
        if own is None or ref is None or not np.isin(trial.x, list(places)).any():
            continue
        agree = trial.x[own == ref]
        if agree.size and agree.min() < min(places) and agree.max() > max(places):
            return True
    return False


@readings
def numerics(trials: Sequence[Trial], name: str) -> Iterator[Reading]:
    """Read overflow at large inputs, broken ends, clipping, and cancellation at tiny inputs."""
    wrong = [t for t in trials if t.differs(name)]
    # beside an infinity stand numbers that are nearly one, and have lost their digits
    if all(t.draw.label in FAR for t in wrong) and any(breaks(t, name) for t in wrong):
        top = max(float(np.abs(t.x).max()) for t in wrong)
        if all(_log_of_zero(t, name) for t in wrong):
            text = (
                f"{{q}} takes the logarithm of what underflows to 0 for large inputs (|x| up to "
                f"{top:.0f}), where torch's stays finite: take both in one formula, "
                "x - max - log(sum(exp(x - max)))"
            )
            far = partial(_own_where, lambda t: t.draw.label in FAR)
            yield Reading("overflow", text, far, broken=True)
        yield Reading(
            "overflow",
            f"{{q}} overflows for large inputs (|x| up to {top:.0f}), where torch's stays finite: "
            "subtract the maximum, take log and sum of exp in one formula, or choose it by the "
            "sign",
            partial(_own_where, lambda t: t.draw.label in FAR),
            broken=True,
        )
    if wrong and all(_ends(t) and breaks(t, name) for t in wrong):
        which = " or ".join(f"{end:g}" for end in sorted(set().union(*map(_ends, wrong))))
        yield Reading(
            "boundary_not_guarded",
            f"{{q}} is infinite or NaN where an input is exactly {which}, and torch's stays "
            "finite: guard the logarithm or the division at the ends of the domain",
            partial(_own_where, _ends),
            broken=True,
        )
    if _clips(wrong):
        yield Reading(
            "backward_not_linear",
            "{q} is right for usual upstream gradients and does not grow with large ones: backward "
            "is linear in what it is given, and something in it is clipped or overflows",
            partial(_own_where, lambda t: t.draw.label in GIVEN_MUCH),
        )
    if wrong and all(t.draw.label == "magnitudes" and _cancels(t, name) for t in wrong):
        yield Reading(
            "cancellation",
            f"{{q}} is right for |x| near 1 and loses its digits {_lost(wrong, name)}: "
            "nearly equal numbers are subtracted, or a small one is added to 1 (exp(x) - 1 for "
            "expm1, log(1 + x) for log1p)",
            partial(_own_where, lambda t: t.draw.label == "magnitudes"),
        )


def _clips(wrong: Sequence[Trial]) -> bool:
    """Whether nothing but a large upstream gradient shows the fault, with torch's own outputs."""
    labels = {t.draw.label for t in wrong}
    forward = (t.differs(n) for t in wrong for n in t.names if n.startswith("forward"))
    return LOUD in labels and labels <= set(GIVEN_MUCH) and not any(forward)


def breaks(trial: Trial, name: str) -> bool:
    """Whether mine is not finite somewhere, and torch's is."""
    own, ref = trial.get(name), trial.theirs.get(name)
    if own is None or ref is None or own.shape != ref.shape:
        return False
    return bool((np.isfinite(ref) & ~np.isfinite(own)).any())


def _log_of_zero(trial: Trial, name: str) -> bool:
    """Whether mine is infinite just where torch's logarithm is beyond any number's, not exp's."""
    own, ref = trial.get(name), trial.theirs.get(name)
    if own is None or ref is None or trial.pair.elementwise:
        return False
    if not own.shape == ref.shape == trial.x.shape:
        return False
    broken = np.isfinite(ref) & ~np.isfinite(own)
    held = bool((np.isfinite(own) & (trial.x > EXP_ENDS)).any())  # where exp(x) itself overflows
    return held and bool((own[broken] == -np.inf).all() and (ref[broken] < -EXP_ENDS).all())


def _own_where(chosen: Callable[[Trial], Any], trial: Trial, name: str) -> Array | None:
    """Mine on such data, where other elements may share the fault of one; torch's elsewhere."""
    own, ref = trial.get(name), trial.theirs.get(name)
    told = own is not None and ref is not None and own.shape == ref.shape
    return own if told and chosen(trial) else ref


def _ends(trial: Trial) -> set[float]:
    """The ends of bounded inputs' domains that some of their values stand on."""
    found = set()
    for spec, array in zip(trial.pair.specs, trial.draw.inputs, strict=True):
        if spec.free or array.dtype.kind != "f" or not array.size:
            continue
        found |= {float(end) for end in (array.min(), array.max()) if (array == end).sum() > 1}
    return found


def _lost(wrong: Sequence[Trial], name: str) -> str:
    """Return where digits are lost: for tiny inputs, or in a tail alone."""
    far = []
    for trial in wrong:
        own, ref = trial.get(name), trial.theirs.get(name)
        if own is None or ref is None or not own.shape == ref.shape == trial.x.shape:
            return "for tiny values"
        far.append(np.abs(trial.x[np.abs(own - ref) > COARSE * np.abs(ref)]))
    lost = np.concatenate(far)
    if lost.size and lost.min() > 1:
        return f"from |x| = {lost.min():.2g} on, where it is tiny"
    return "for tiny values"


def _cancels(trial: Trial, name: str) -> bool:
    own, ref = trial.get(name), trial.theirs.get(name)
    if own is None or ref is None or own.shape != ref.shape or not np.isfinite(own).all():
        return False
    near = np.maximum(1.0, np.abs(trial.x)) if trial.x.shape == ref.shape else 1.0
    scale = np.abs(trial.upstream) if name != "forward" and trial.upstream is not None else 1.0
    if np.shape(scale) not in ((), ref.shape):
        scale = float(np.abs(trial.upstream).max())  # type: ignore[arg-type]
    return bool((np.abs(own - ref) <= ROUNDINGS * EPS64 * near * scale).all())
