"""Trials: draws on which a hypothesis has to hold, with both sides' answers and their noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from parity.draws import FAR, Draw
from parity.elements import saturation
from parity.ends import LABEL as ENDS
from parity.ends import unasked
from parity.judged import channel_axis
from parity.ladder import (
    EPS32,
    EPS64,
    SAFETY64,
    SCALE_GAP,
    TINY64,
    farthest,
    judge64,
    largest,
    response,
)
from parity.outcomes import Array
from parity.pair import Pair

Quantities = Mapping[str, "Array | None"]
COARSE = 1e-6  # a prediction further off than this share of its size needs no closer look
NARROW = 1e-4  # the same for a layer that computes in float32 alone
NUDGES = 2
ELEMENTS = 64.0  # elementwise bound in units of the element's own response and ulp


@dataclass(eq=False)
class Trial:
    """One draw: ``own`` is what the hand-written side gave, everything else is asked for lazily."""

    pair: Pair
    draw: Draw
    own: Quantities
    earlier: list[Trial] | None = None
    _runs: dict[Any, Quantities | None] = field(default_factory=dict)

    @cached_property
    def theirs(self) -> Quantities:
        """The reference's own answer."""
        return self.run() or {}

    def run(self, module: Any = None, **changes: Any) -> Quantities | None:
        """Run the reference, or ``module`` in its place, on the draw with ``changes``.

        None where it refuses: a hypothesis that cannot be run on a trial does not explain it.
        """
        key = id(module) if not changes else None
        if key is not None and key in self._runs:
            return self._runs[key]
        found: Quantities | None = None
        # an output of another shape does not take torch's upstream gradient: forward alone then
        for asked in (changes, {**changes, "upstream": ()}):
            try:
                draw = replace(self.draw, **asked) if asked else self.draw
                found = self.pair.theirs(draw, "float64", module).quantities
                break
            except Exception:  # a variant may fail in any way: it is only a guess
                continue
        if module is None and key is not None:
            self._runs[key] = found
        return found

    @cached_property
    def nudged(self) -> list[Trial]:
        """The same trial with every value moved by one ulp: what the noise is measured on."""
        rng = np.random.default_rng([self.draw.seed, 13])
        ways = ["up", "down"] if self.draw.label == "magnitudes" else ["random"] * NUDGES
        inputs = not self.pinned
        made = []
        for how in ways:
            moved = Trial(
                self.pair, self.draw.nudged(rng, np.float64, how, inputs), self.own, self.earlier
            )
            if not moved.theirs:
                inward = self.draw.nudged(rng, np.float64, "inward", inputs)
                moved = Trial(self.pair, inward, self.own, self.earlier)
            made.append(moved)
        return made

    @property
    def pinned(self) -> bool:
        """Whether inputs sit on kinks on purpose and must not be moved off them."""
        return self.draw.label in ("integers", ENDS)

    @property
    def x(self) -> Array:
        """The first input."""
        return self.draw.inputs[0]

    @property
    def upstream(self) -> Array | None:
        """The first upstream gradient."""
        return self.draw.upstream[0] if self.draw.upstream else None

    @property
    def names(self) -> list[str]:
        """Quantities that both sides have."""
        return [n for n, ref in self.theirs.items() if ref is not None and self.get(n) is not None]

    def get(self, name: str) -> Array | None:
        """Return the hand-written side's quantity ``name``."""
        return self.own.get(name)

    def overflows(self, made: Quantities) -> bool:
        """Whether a prediction is not finite on large inputs, where torch's answer is."""
        return self.draw.label in FAR and any(
            ref is not None
            and (array := made.get(name)) is not None
            and array.shape == ref.shape
            and bool((np.isfinite(ref) & ~np.isfinite(array)).any())
            for name, ref in self.theirs.items()
        )

    def lacks(self, name: str) -> bool:
        """Whether a trial cannot speak about ``name``, which one side did not give."""
        return name not in self.theirs or self.get(name) is None

    @cached_property
    def _differs(self) -> dict[str, bool]:
        return {}

    def differs(self, name: str) -> bool:
        """Whether the two sides differ in ``name`` by more than rounding explains."""
        if name not in self._differs:
            ref = self.theirs.get(name)
            others = [n.theirs.get(name) for n in self.nudged]
            open_to = ref is not None and self.get(name) is not None
            self._differs[name] = open_to and self.fits(name, ref, others) is False
        return self._differs[name]

    def close(self, name: str, predicted: Array | None, own: Array | None = None) -> bool:
        """Whether ``predicted`` is near enough to deserve the exact judgement."""
        own = self.get(name) if own is None else own
        if predicted is None or own is None:
            return predicted is None and own is None
        if own.shape != predicted.shape:
            return False
        if predicted.dtype.kind != "f" or own.dtype.kind != "f":
            return True
        finite = np.isfinite(predicted)
        if not np.array_equal(finite, np.isfinite(own)):
            return False
        off = farthest(own, predicted)
        # what a parameter held away from 0 may vanish without it: its rounding is that of torch's
        ref = self.theirs.get(name)
        usual = largest(ref) if ref is not None and ref.dtype.kind == "f" else 0.0
        coarse = COARSE if own.dtype != np.float32 else NARROW
        return off <= coarse * max(largest(predicted), usual) or off <= self._noise(name)

    def _noise(self, name: str) -> float:
        """What rounding alone makes of a quantity that is zero by construction; 0 of others."""
        ref = self.theirs.get(name)
        if ref is None or ref.dtype.kind != "f" or self.pinned:
            return 0.0
        others = [a for n in self.nudged if (a := n.theirs.get(name)) is not None]
        noise = response(ref, [a for a in others if a.shape == ref.shape])
        zero = np.isfinite(noise).all() and (np.abs(ref) <= SAFETY64 * noise).all()
        return SAFETY64 * largest(noise) if zero else 0.0

    def fits(
        self,
        name: str,
        predicted: Array | None,
        others: Sequence[Array | None] = (),
        own: Array | None = None,
    ) -> bool | None:
        """Judge a prediction of ``name`` on the ladder; None where noise cannot decide.

        ``others`` are the same prediction on the nudged trials: its own measured noise.
        """
        own = self.get(name) if own is None else own
        if predicted is None or own is None:
            return predicted is None and own is None
        if own.shape != predicted.shape:
            return False
        if predicted.dtype.kind != "f":
            return bool(np.array_equal(own, predicted))
        noise = response(predicted, [o for o in others if o is not None and o.shape == own.shape])
        narrow = own.dtype == np.float32  # a layer that has no other precision
        if narrow:
            with np.errstate(over="ignore"):
                noise = noise / SCALE_GAP + EPS32 * largest(predicted)
        judged = judge64(
            own,
            predicted,
            noise,
            axis=channel_axis(name, predicted),
            per_element=None if narrow else self._elements(name, predicted, noise),
            pinned=self.pinned or narrow,
            floor=saturation(self.pair, self.draw, name),
        )
        if judged.nonfinite:
            return False
        return None if judged.undecided else judged.inside

    def _elements(self, name: str, predicted: Array, noise: Array) -> Array | None:
        if self.draw.label != "magnitudes" or not self.pair.elementary:
            return None
        if name != "forward" and not (name == "grad_input0" and self.pair.elementwise):
            return None
        with np.errstate(all="ignore"):
            bound = ELEMENTS * (noise + 2 * EPS64 * np.abs(predicted)) + 4 * TINY64
            if name != "forward" and self.upstream is not None:
                bound = bound + 8 * EPS64 * np.abs(self.upstream)
        return np.asarray(np.where(np.isfinite(bound), bound, np.inf))


Predict = Callable[[Trial], "Quantities | None"]


def explained(trials: Sequence[Trial], predict: Predict, wanted: Sequence[str]) -> set[str]:
    """Return those of ``wanted`` that ``predict`` explains on every trial, to float64 accuracy.

    A quantity counts only where the sides really differ on one trial, so that agreement alone is
    never an explanation.
    """
    alive, predictions = set(wanted), []
    for trial in trials:
        made = _guess(predict, trial)
        if made is None:
            return set()
        alive = {name for name in alive if trial.lacks(name) or trial.close(name, made.get(name))}
        if not alive:
            return set()
        predictions.append(made)
    for trial, made in zip(trials, predictions, strict=True):
        others = [_guess(predict, moved) or {} for moved in trial.nudged]
        alive = {
            name
            for name in alive
            if trial.lacks(name)
            or trial.fits(name, made.get(name), [o.get(name) for o in others]) is not False
        }
        if not alive:
            return set()
    # beside numbers that it makes, a cause may leave NaN as well; alone that is no evidence
    return alive if any(telling(trials, name) for name in alive) else set()


def telling(trials: Sequence[Trial], name: str) -> bool:
    """Whether ``name`` has numbers to explain: NaN throughout is what any fault may leave."""
    wrong = [a for t in trials if t.differs(name) and (a := t.get(name)) is not None]
    return not wrong or any(a.dtype.kind != "f" or np.isfinite(a).any() for a in wrong)


def _guess(predict: Predict, trial: Trial) -> Quantities | None:
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = predict(trial)
            # what is no matter of mine at the ends of a domain is none of a prediction either
            ends = made is not None and trial.draw.label == ENDS
            return unasked(made or {}, trial.theirs) if ends else made
    except Exception:  # a guess that cannot be made is no explanation
        return None
