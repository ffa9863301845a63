"""Several seeds together: combined p-values and the spread of the accuracy differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy import stats

from parity.findings import UsageError, WrongType
from parity.statistics.comparison import PredictionComparison
from parity.statistics.inputs import as_array, check_confidence, check_margin, plain


@dataclass(frozen=True)
class CombinedPValues:
    """One p-value out of `count`: Fisher's and Stouffer's, two methods for the same question."""

    count: int
    fisher: float
    stouffer: float


def combine_pvalues(pvalues: Iterable[float]) -> CombinedPValues:
    """Combine p-values (K,) of independent tests (scipy.stats.combine_pvalues).

    Fisher 1932 heeds the smallest most; Stouffer 1949 averages. Stouffer's sum is infinite at 0 and
    1, so p-values are first moved into the open interval, by less than a rounding error.

    Raises UsageError unless all lie in 0 to 1 and there is at least one.
    """
    values = as_array(pvalues, "pvalues")
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "fiu":
        raise UsageError(f"pvalues has shape {values.shape}; give one or more numbers, shape (K,)")
    values = values.astype(np.float64)
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        raise UsageError(f"pvalues holds {values[bad][0]}; each must lie between 0 and 1")
    inside = np.clip(values, np.finfo(float).tiny, np.nextafter(1.0, 0.0))
    fisher, stouffer = (
        float(stats.combine_pvalues(inside, method=method).pvalue)
        for method in ("fisher", "stouffer")
    )
    return CombinedPValues(values.size, fisher, stouffer)


@dataclass(frozen=True)
class SeedComparison:
    """Comparisons of several seeds as one; differences, `margin`, `interval` are shares of one.

    `interval`, `equivalence_p` and `equivalent` are None for a single seed, whose spread is
    unknown.
    """

    names: tuple[str, str]
    count: int
    differences: tuple[float, ...]
    mean: float
    spread: float | None  # sample standard deviation of the differences
    interval: tuple[float, float] | None  # Student's t, for the mean difference
    p_t: float | None
    p_fisher: float  # of the exact p-values: do the sides differ on some seed, either way
    p_stouffer: float  # of the signed mid-p values: do they differ the same way throughout
    pooled_table: tuple[tuple[int, int], tuple[int, int]]
    identical: int  # seeds with identical predictions
    margin: float
    equivalence_p: float | None
    equivalent: bool | None
    confidence: float

    @property
    def statements(self) -> tuple[str, ...]:
        """What the numbers say: the spread, the combined tests, equivalence."""
        return tuple(self._sentences())

    def _sentences(self):
        mine, theirs = self.names
        points = ", ".join(f"{100 * value:+.2f}" for value in self.differences)
        yield f"{mine} minus {theirs} over {self.count} seeds, percentage points: {points}."
        yield (
            f"Combined McNemar p-values: Fisher {self.p_fisher:.3g}, "
            f"Stouffer (signed) {self.p_stouffer:.3g}; "
            f"identical predictions on {self.identical} of {self.count} seeds."
        )
        if self.interval is None:
            yield "One seed shows no spread: equivalence over seeds cannot be judged."
            return
        low, high = self.interval
        yield (
            f"Mean {100 * self.mean:+.2f}, {100 * self.confidence:g} % t-interval "
            f"{100 * low:+.2f} to {100 * high:+.2f} percentage points (p = {self.p_t:.3g})."
        )
        verdict = "shown" if self.equivalent else "not shown"
        size = f"{100 * self.margin:g}"
        yield (
            f"Equivalent within {size} percentage point{'' if size == '1' else 's'}: {verdict} "
            f"(p = {self.equivalence_p:.3g})."
        )

    def __str__(self) -> str:
        """The statements, one a line."""
        return "\n".join(self.statements)

    def to_dict(self) -> dict[str, Any]:
        """Every field and statement, ready for JSON."""
        result = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        return result | {"statements": list(self.statements)}


def _as_table(counts: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    (both, first), (second, neither) = counts.tolist()
    return (both, first), (second, neither)


def compare_seeds(
    comparisons: Sequence[PredictionComparison],
    *,
    margin: float | None = None,
    confidence: float | None = None,
) -> SeedComparison:
    """Join PredictionComparisons of independent seeds, trained from independent initial weights.

    One seed's McNemar test is about two trained models; over seeds the question is the training
    procedure, so the differences themselves are the sample: Student's t-interval for their mean,
    and two one-sided t-tests (Schuirmann 1987) against ±margin. The exact p-values are combined by
    Fisher's method, blind to direction, and one-sided mid-p values by Stouffer's, doubled, which
    asks for the same direction throughout. The pooled table adds the counts up for display: items
    seen under several seeds are not independent, so no test is made of it.

    margin, confidence: those of the comparisons, where they all share one. Raises UsageError for
    anything but PredictionComparisons, for none, or for differing names or margins.
    """
    comparisons = _check_comparisons(comparisons)
    margin = check_margin(_shared(comparisons, "margin") if margin is None else margin)
    confidence = _shared(comparisons, "confidence") if confidence is None else confidence
    confidence = check_confidence(confidence)
    differences = np.array([one.difference for one in comparisons])
    tests = _t_tests(differences, margin, confidence)
    tables = np.array([one.table for one in comparisons])
    return SeedComparison(
        names=comparisons[0].names,
        count=len(comparisons),
        differences=tuple(differences.tolist()),
        mean=float(differences.mean()),
        p_fisher=combine_pvalues([one.p_exact for one in comparisons]).fisher,
        p_stouffer=_signed_stouffer([(one.b, one.c) for one in comparisons]),
        pooled_table=_as_table(tables.sum(axis=0)),
        identical=sum(one.identical for one in comparisons),
        margin=margin,
        confidence=confidence,
        **tests,
    )


def _check_comparisons(comparisons):
    if isinstance(comparisons, PredictionComparison):
        comparisons = [comparisons]
    try:
        comparisons = list(comparisons)
    except TypeError:
        raise WrongType(
            f"compare_seeds got {comparisons!r}; give a list of PredictionComparisons"
        ) from None
    if not comparisons:
        raise UsageError("compare_seeds got no comparisons; give one or more")
    for place, one in enumerate(comparisons):
        if not isinstance(one, PredictionComparison):
            kind = type(one).__name__
            raise WrongType(
                f"comparisons[{place}] is a {kind}; give what compare_predictions returns"
            )
    _shared(comparisons, "names")
    return comparisons


def _shared(comparisons, name):
    """The one value that all comparisons have for a field."""
    values = sorted({getattr(one, name) for one in comparisons})
    if len(values) > 1:
        raise UsageError(f"comparisons differ in {name}, {values[0]} and {values[1]}; give one")
    return values[0]


def _signed_stouffer(counts):
    """Stouffer's p-value that one side is better throughout, whichever it is, from pairs (b, c)."""
    better = combine_pvalues([_one_sided_midp(b, c) for b, c in counts]).stouffer
    worse = combine_pvalues([_one_sided_midp(c, b) for b, c in counts]).stouffer
    return min(1.0, 2 * min(better, worse))


def _one_sided_midp(b, c):
    """Mid-p value of the first side being better; one half where nothing is discordant."""
    return float(stats.binom.sf(b, b + c, 0.5) + stats.binom.pmf(b, b + c, 0.5) / 2)


def _t_tests(differences, margin, confidence):
    """Spread, t-interval, t-test and equivalence; None throughout for a single seed."""
    count, mean = len(differences), float(differences.mean())
    if count < 2:
        names = ("spread", "interval", "p_t", "equivalence_p", "equivalent")
        return dict.fromkeys(names)
    spread = float(differences.std(ddof=1))
    error, law = spread / math.sqrt(count), stats.t(count - 1)
    half = error * float(law.isf((1 - confidence) / 2))

    def tail(distance):
        """Chance of a mean this far beyond, at no spread a certainty or none."""
        return float(law.sf(distance / error)) if error else float(distance <= 0)

    equivalence_p = max(tail(mean + margin), tail(margin - mean))
    return {
        "spread": spread,
        "interval": (mean - half, mean + half),
        "p_t": min(1.0, 2 * tail(abs(mean))),
        "equivalence_p": equivalence_p,
        "equivalent": equivalence_p < 1 - confidence,
    }
