"""Two classifiers on the same items: McNemar's tests with equivalence and detectable difference."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from parity.findings import UsageError, WrongType
from parity.statistics import paired
from parity.statistics.inputs import (
    check_alike,
    check_confidence,
    check_margin,
    plain,
    read_labels,
    read_truth,
)


@dataclass(frozen=True)
class PredictionComparison:
    """Two sides' predictions for the same n items, compared in pairs.

    Accuracies, `difference`, `margin`, `interval`, `newcombe` and `detectable` are shares of one;
    `difference_points` is the difference, first side minus second, in percentage points.
    """

    names: tuple[str, str]
    n: int
    table: tuple[tuple[int, int], tuple[int, int]]  # first side right/wrong x second right/wrong
    agreement: int  # items with the same predicted label, right or wrong
    identical: bool
    accuracies: tuple[float, float]
    difference: float
    interval: tuple[float, float]  # Tango's score interval
    newcombe: tuple[float, float]  # Newcombe's square-and-add interval
    p_exact: float
    p_midp: float
    chi2: float
    p_chi2: float
    chi2_corrected: float
    p_chi2_corrected: float
    odds_ratio: float
    odds_ratio_interval: tuple[float, float]
    margin: float
    equivalence_p: float
    equivalent: bool
    equivalence_interval: tuple[float, float]  # inside the margin exactly when `equivalent`
    detectable: float | None
    confidence: float
    notes: tuple[str, ...] = ()

    @property
    def b(self) -> int:
        """Items that the first side alone gets right."""
        return self.table[0][1]

    @property
    def c(self) -> int:
        """Items that the second side alone gets right."""
        return self.table[1][0]

    @property
    def difference_points(self) -> float:
        """Accuracy of the first side minus that of the second, in percentage points."""
        return 100 * self.difference

    @property
    def significant(self) -> bool:
        """Whether the exact McNemar test rejects equal accuracies at level 1 - confidence."""
        return self.p_exact < 1 - self.confidence

    @property
    def statements(self) -> tuple[str, ...]:
        """What the numbers say: about the difference, about equivalence, about the test set."""
        return (
            _difference_sentence(self),
            _equivalence_sentence(self),
            _power_sentence(self),
            *self.notes,
        )

    def __str__(self) -> str:
        """The two-by-two table, the p-values and the statements."""
        (a, b), (c, d) = self.table
        mine, theirs = self.names
        heads = (f"{theirs} right", f"{theirs} wrong")
        rows = ((f"{mine} right", a, b), (f"{mine} wrong", c, d))
        width, wide = len(rows[0][0]), max(len(heads[0]), len(str(self.n)))
        low, high = self.odds_ratio_interval
        lines = [
            f"{'':<{width}}  {heads[0]:>{wide}}  {heads[1]:>{wide}}",
            *(
                f"{side:<{width}}  {first:>{wide}}  {second:>{wide}}"
                for side, first, second in rows
            ),
            f"accuracy: {mine} {100 * self.accuracies[0]:.2f} %, "
            f"{theirs} {100 * self.accuracies[1]:.2f} %, n = {self.n}",
            f"McNemar: discordant {b} and {c}; p exact {self.p_exact:.3g}, "
            f"mid-p {self.p_midp:.3g}, chi2 {self.p_chi2:.3g}, "
            f"corrected {self.p_chi2_corrected:.3g}",
            f"odds ratio {self.odds_ratio:.3g}, {100 * self.confidence:g} % interval "
            f"{low:.3g} to {high:.3g}",
            *self.statements,
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Every field and statement, ready for JSON; an unbounded limit is None."""
        result = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        for name in ("b", "c", "difference_points", "significant", "statements"):
            result[name] = plain(getattr(self, name))
        return result


def compare_predictions(
    mine: Any,
    theirs: Any,
    truth: Any,
    *,
    margin: float = 0.01,
    confidence: float = 0.95,
    names: tuple[str, str] = ("mine", "torch"),
) -> PredictionComparison:
    """Compare two sides' predictions for the same items, pair by pair.

    mine, theirs: labels (N,), integers, booleans, strings or whole floats; or scores (N, C), of
    which the first largest entry of each row is the label. truth: labels (N,). Tensors on any
    device are read as arrays.

    The McNemar test (McNemar 1947; Fagerland, Lydersen & Laake 2013) asks whether accuracies
    differ; two one-sided score tests (Schuirmann 1987; Tango 1998), each at level 1 - confidence,
    ask whether they are equal within ±margin, a share of the items (0.01 is one percentage point).
    Where no item is discordant, the expected case with shared weights, p is 1 by definition.

    Returns a PredictionComparison. Raises UsageError, in one line, for what cannot be
    compared: other lengths, nothing at all, NaN, labels that are not whole, a truth of two axes.
    """
    margin, confidence = check_margin(margin), check_confidence(confidence)
    names = _check_names(names)
    same_object = mine is theirs
    mine, mine_classes = read_labels(mine, names[0])
    theirs, their_classes = read_labels(theirs, names[1])
    truth = read_truth(truth)
    check_alike(mine, theirs, truth, (mine_classes, their_classes), names)
    notes = _vacuous_notes(mine, theirs, truth, same_object, names)
    agreement = int(np.count_nonzero(mine == theirs))
    return _from_rights(mine == truth, theirs == truth, agreement, margin, confidence, names, notes)


def _from_rights(right, other, agreement, margin, confidence, names, notes):
    """The comparison, from which items (N,) each side got right."""
    n = len(right)
    a, b, c, d = (
        int(np.count_nonzero(cell))
        for cell in (right & other, right & ~other, ~right & other, ~(right | other))
    )
    table = ((a, b), (c, d))
    chi2, p_chi2 = paired.mcnemar_chi2(b, c, correction=False)
    corrected, p_corrected = paired.mcnemar_chi2(b, c, correction=True)
    ratio, ratio_interval = paired.odds_ratio(b, c, confidence)
    equivalence_p = paired.equivalence_pvalue(b, c, n, margin)
    return PredictionComparison(
        names=names,
        n=n,
        table=table,
        agreement=agreement,
        identical=agreement == n,
        accuracies=((a + b) / n, (a + c) / n),
        difference=(b - c) / n,
        interval=paired.score_interval(b, c, n, confidence),
        newcombe=paired.newcombe_interval(table, confidence),
        p_exact=paired.mcnemar_exact(b, c),
        p_midp=paired.mcnemar_midp(b, c),
        chi2=chi2,
        p_chi2=p_chi2,
        chi2_corrected=corrected,
        p_chi2_corrected=p_corrected,
        odds_ratio=ratio,
        odds_ratio_interval=ratio_interval,
        margin=margin,
        equivalence_p=equivalence_p,
        equivalent=equivalence_p < 1 - confidence,
        equivalence_interval=paired.score_interval(b, c, n, 2 * confidence - 1),
        detectable=paired.detectable_difference(b, c, n, confidence),
        confidence=confidence,
        notes=notes,
    )


def _check_names(names):
    listed = isinstance(names, tuple | list)
    if not listed or not all(isinstance(name, str) and name for name in names):
        raise WrongType(f"names is {names!r}; give two strings, for example ('mine', 'torch')")
    names = tuple(names)
    if len(names) != 2 or names[0] == names[1] or "truth" in names:
        raise UsageError(f"names is {names!r}; give two different ones, neither of them 'truth'")
    return names


def _vacuous_notes(mine, theirs, truth, same_object, names):
    """What makes an agreement worth less than it looks."""
    notes = []
    if same_object:
        notes.append(f"{names[0]} and {names[1]} are one object: nothing was compared.")
    if len(truth) > 1:
        for name, labels in zip(names, (mine, theirs), strict=True):
            if (labels == labels[0]).all():
                notes.append(f"{name} predicts {labels[0].item()!r} for every item.")
        if (truth == truth[0]).all():
            notes.append(f"Every true label is {truth[0].item()!r}: accuracy shows little.")
    return tuple(notes)


def _points(interval):
    return f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"


def _difference_sentence(result):
    mine, theirs = result.names
    if result.identical:
        return (
            f"All {result.n} predictions are identical: no item is discordant, p = 1 by definition."
        )
    if not result.b + result.c:
        return (
            f"{mine} and {theirs} are right on the same items, p = 1 by definition, but predict "
            f"different labels on {result.n - result.agreement} of {result.n}."
        )
    verdict = "significant" if result.significant else "not significant"
    return (
        f"{mine} minus {theirs}: {result.difference_points:+.2f} percentage points, "
        f"{100 * result.confidence:g} % interval {_points(result.interval)}; {verdict} "
        f"(exact p = {result.p_exact:.3g})."
    )


def _equivalence_sentence(result):
    seen = (
        f"(p = {result.equivalence_p:.3g}; {200 * result.confidence - 100:g} % interval "
        f"{_points(result.equivalence_interval)})"
    )
    size = f"{100 * result.margin:g}"
    margin = f"within {size} percentage point{'' if size == '1' else 's'}"
    if result.equivalent:
        return f"Equivalent {margin}: shown {seen}."
    warning = "" if result.significant else "; not significant does not mean equal"
    return f"Equivalent {margin}: not shown {seen}{warning}."


def _power_sentence(result):
    if result.detectable is None:
        return f"With n = {result.n} no difference could have been detected at 80 % power."
    return (
        f"Smallest difference this test set detects with 80 % power: "
        f"{100 * result.detectable:.2f} percentage points."
    )
