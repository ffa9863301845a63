"""Rates with their exact intervals, for tables of kills and false alarms."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from parity.findings import UsageError, WrongType
from parity.statistics.inputs import check_confidence


@dataclass(frozen=True)
class Rate:
    """A count out of a number of trials, with its Clopper-Pearson interval `low` to `high`.

    `value` is None where nothing was tried; the interval is then 0 to 1.
    """

    successes: int
    trials: int
    value: float | None
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        """One phrase: the counts, the rate and its interval, in percent."""
        if self.value is None:
            return "0 of 0: nothing was tried"
        return (
            f"{self.successes:,} of {self.trials:,} ({100 * self.value:.4g} %, "
            f"{100 * self.confidence:g} % interval {100 * self.low:.3g} to {100 * self.high:.3g} %)"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary that JSON can hold."""
        return asdict(self)


def rate(successes: int, trials: int, *, confidence: float = 0.95) -> Rate:
    """The rate `successes / trials` with its exact interval (Clopper & Pearson 1934).

    Raises UsageError where a count is no integer and unless 0 <= successes <= trials.
    """
    confidence = check_confidence(confidence)
    try:
        successes, trials = operator.index(successes), operator.index(trials)
    except TypeError:
        raise WrongType(
            f"rate({successes!r}, {trials!r}): both must be whole numbers, a count and its trials"
        ) from None
    if not 0 <= successes <= trials:
        raise UsageError(f"rate({successes}, {trials}): successes must lie between 0 and trials")
    if not trials:  # SciPy refuses zero trials
        return Rate(0, 0, None, 0.0, 1.0, confidence)
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return Rate(
        successes,
        trials,
        successes / trials,
        float(interval.low),
        float(interval.high),
        confidence,
    )
