"""One quantity over a whole run: what rounding explains at each step, and where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from parity.ladder import (
    EPS64,
    SAFETY64,
    TINY64,
    UNDECIDABLE,
    Judgement,
    farthest,
    judge64,
    nonfinite_differs,
)
from parity.outcomes import Array

MEMORY = 0.9  # a scalar's noise crosses zero now and then: the last ten steps speak for it too
FADING = 0.99  # a loss that falls by orders of magnitude is judged on its own size soon
BUILT = 2.0**-40  # gradients below this share of the largest are cancellation, not signal


@dataclass
class Parting:
    """A step at which a quantity lies outside what rounding explains."""

    step: int
    judgement: Judgement
    mine: Array
    theirs: Array


@dataclass
class Track:
    """What is known of one quantity so far; steps count from 1."""

    name: str
    steps: int = 0
    peak: float = 0.0
    height: float = 0.0
    usage: float = 0.0
    allowance: float = 0.0
    error: float = 0.0
    zero: bool = False
    partings: list[Parting] = field(default_factory=list)
    open_from: int | None = None
    chaotic: bool = False
    worst_shape: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    witness: tuple[int, Array] | None = None  # a step, and torch's numbers there in another run
    moved: float = 0.0  # how far they are from those of this run

    @property
    def first(self) -> Parting | None:
        """The first step outside, None where there is none."""
        return self.partings[0] if self.partings else None

    def compare(
        self, step: int, mine: Array, theirs: Array, others: Sequence[Array], unit: float = 0.0
    ) -> None:
        """Judge one step; ``unit`` is the natural size of its kind, such as the largest gradient.

        The allowance is 64·(noise + 2·eps·max|ref|), with the noise measured on ``others``, the
        reference's runs nudged by one ulp.
        """
        self.steps = step
        if self.witness is not None and step == self.witness[0]:
            self.moved = farthest(theirs, self.witness[1])
        if mine.shape != theirs.shape:
            self.worst_shape = self.worst_shape or (mine.shape, theirs.shape)
            return
        if not theirs.size or self.open_from:
            return
        with np.errstate(all="ignore"):
            scale = float(np.abs(theirs).max())
            noise = max((float(np.abs(o - theirs).max()) for o in others), default=0.0)
            off = float(np.abs(np.subtract(mine, theirs, dtype=np.float64)).max())
        if not (np.isfinite(scale) and np.isfinite(noise) and np.isfinite(off)):
            self._special(step, mine, theirs, others)
            return
        self.peak = max(noise, MEMORY * self.peak)
        # sums that cancel keep the rounding of their terms when they shrink, as gradients do
        fade = FADING if self.name == "trajectory" else 1.0
        self.height = max(fade * self.height, scale)
        bracket = self.peak + 2 * EPS64 * self.height
        self.zero = 0 < self.height <= SAFETY64 * self.peak and self.peak <= BUILT * unit
        if self.zero:
            bracket = max(bracket, EPS64 * unit)
        elif self.peak > UNDECIDABLE * self.height:
            self.open_from = step
            self.chaotic = self.peak > UNDECIDABLE * unit
            return
        allowed = SAFETY64 * bracket + 4 * TINY64
        if self.partings or off > allowed:
            self._part(step, mine, theirs, allowed, off)
        elif off / allowed >= self.usage:
            self.usage, self.allowance, self.error = off / allowed, allowed, off

    def stop(self, step: int) -> None:
        """Leave the rest of the run open: rounding has taken it over as a whole."""
        if self.open_from is None and not self.partings:
            self.open_from = step

    def _part(self, step: int, mine: Array, theirs: Array, allowed: float, off: float) -> None:
        """Keep the first step outside and the one that is furthest outside."""
        usage = off / allowed
        if usage <= 1 or (self.partings and usage <= self.usage):
            return
        self.usage = usage
        # the noise for which the ladder's own formula gives the allowance of this step
        noise = max(0.0, (allowed - 4 * TINY64) / SAFETY64 - 2 * EPS64 * _largest(theirs))
        judged = judge64(mine, theirs, np.full(theirs.shape, noise), pinned=True)
        del self.partings[1:]
        self.partings.append(Parting(step, judged, np.array(mine), np.array(theirs)))

    def _special(self, step: int, mine: Array, theirs: Array, others: Sequence[Array]) -> None:
        """NaN and infinities agree in place and kind, unless rounding decides where they stand."""
        odd = nonfinite_differs(mine, theirs)
        if not odd.any() or self.partings:
            return
        shaky = any(nonfinite_differs(o, theirs).any() for o in others)
        both = not np.isfinite(mine).all() and not np.isfinite(theirs).all()
        if shaky or (both and not self.name == "trajectory"):
            self.open_from, self.chaotic = step, True
            return
        judged = judge64(mine, theirs, np.zeros(theirs.shape), pinned=True)
        self.partings.append(Parting(step, judged, np.array(mine), np.array(theirs)))


def _largest(array: Array) -> float:
    return float(np.abs(array).max()) if array.size else 0.0
