"""The registry of hypotheses: one cause, one small entry; makers yield them, simplest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from parity.diagnosis.trials import Predict, Trial
from parity.outcomes import Array
from parity.pair import Pair


@dataclass(frozen=True)
class Hypothesis:
    """A whole pass with one thing changed: it predicts every quantity of a trial.

    ``sentence`` is what a person reads; ``module`` the changed reference, where there is one, so
    that two hypotheses can be combined.
    """

    name: str
    sentence: str
    predict: Predict
    module: Any = None


@dataclass(frozen=True)
class Reading:
    """One quantity read as a simple function of torch's: a factor, a transpose, an offset.

    ``sentence`` may hold {q}, the quantity in words. ``predict`` returns what the quantity would
    be; ``view`` changes the hand-written array first (a sum over an axis that is still there).
    """

    name: str
    sentence: str
    predict: Callable[[Trial, str], Array | None]
    view: Callable[[Trial, Array], Array | None] | None = None
    broken: bool = False  # whether it is about what is not finite, and needs nothing that is


HypothesisMaker = Callable[[Pair], Iterator[Hypothesis]]
ReadingMaker = Callable[[Sequence[Trial], str], Iterator[Reading]]

HYPOTHESES: list[HypothesisMaker] = []
LATE: list[HypothesisMaker] = []
READINGS: list[ReadingMaker] = []


def hypotheses(maker: HypothesisMaker) -> HypothesisMaker:
    """Register a maker of whole-pass hypotheses, tried in order of registration."""
    HYPOTHESES.append(maker)
    return maker


def late_hypotheses(maker: HypothesisMaker) -> HypothesisMaker:
    """Register a maker of hypotheses that come after the readings, which are simpler."""
    LATE.append(maker)
    return maker


def readings(maker: ReadingMaker) -> ReadingMaker:
    """Register a maker of readings of one quantity, tried in order of registration."""
    READINGS.append(maker)
    return maker


def multiple(k: float) -> str:
    """Return a factor as a sentence shows it: 8, 1/8, or how far from 1 it is."""
    if 0 < abs(k) < 1 and abs(1 / k - round(1 / k)) < 1e-9 and round(1 / abs(k)) > 1:
        return f"{'-' if k < 0 else ''}1/{1 / abs(k):.6g}"
    text = f"{k:.6g}"
    if abs(k) == 1 or text not in ("1", "-1"):
        return text
    size = abs(k)
    return f"{text.removesuffix('1')}(1 {'+' if size > 1 else '-'} {abs(size - 1):.3g})"


def second_axis(inputs: Sequence[Array]) -> str:
    """Return what axis 1 of the first input usually holds: channels, classes of a loss, features.

    :func:`parity.diagnosis.axes.axes` knows the layers that have other axes.
    """
    if any(a.dtype.kind in "iu" for a in inputs[1:]):
        return "classes"
    return "channels" if inputs and inputs[0].ndim > 2 else "features"


def words(quantity: str, inputs: int = 1) -> str:
    """Return a quantity as a sentence names it: ``grad_weight`` is "weight.grad"."""
    if quantity.startswith("grad_input"):
        number = quantity.removeprefix("grad_input")
        return "the gradient of the input" if inputs == 1 else f"the gradient of input {number}"
    if quantity.startswith("grad_"):
        return quantity.removeprefix("grad_") + ".grad"
    if quantity.startswith("buffer_"):
        return quantity.removeprefix("buffer_")
    number = quantity.removeprefix("forward")
    return f"output {number}" if number else "the output"
