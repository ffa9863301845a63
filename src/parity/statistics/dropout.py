"""A dropout mask's test: is each element kept with probability 1 - p, alone, and anew each call?

Every test is an exact binomial one over counts that are independent when the mask is right, so
small masks and extreme p raise no more alarms than stated; Bonferroni's bound joins them.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from scipy import stats

from parity.findings import UsageError, WrongType
from parity.statistics.inputs import as_array

ALPHA = 1e-6  # how often, at most, a right mask is called wrong
LAGS = 32  # how far apart neighbours are compared
SLICES = 128  # how many slices of an axis are compared with each other
COLUMNS = 65_536  # how many elements of a slice that comparison looks at
SMALLEST = 64  # elements below which nothing could be noticed


@dataclass(frozen=True)
class DropoutCheck:
    """The tests of `calls` dropout masks: `pvalues` by test name, each fit to stand alone."""

    p: float
    calls: int
    shape: tuple[int, ...]  # of one call's mask
    kept: int
    total: int
    pvalues: dict[str, float]
    patterns: tuple[str, ...]  # faults that can be named, where the masks fail at ALPHA

    @property
    def fraction(self) -> float:
        """The share of elements kept; 1 - p is wanted."""
        return self.kept / self.total

    @property
    def p_value(self) -> float:
        """The smallest p-value times the number of tests (Bonferroni), at most 1."""
        return _joint(self.pvalues)

    def passed(self, alpha: float = ALPHA) -> bool:
        """Whether no test, corrected for their number, rejects at level `alpha`."""
        return self.p_value >= alpha

    def failures(self, alpha: float = ALPHA) -> list[str]:
        """The names of the tests that reject at level `alpha`, corrected for their number."""
        return [name for name, value in self.pvalues.items() if value * len(self.pvalues) < alpha]

    def __str__(self) -> str:
        """One sentence at the default level; the failing tests and what was recognised."""
        kept = f"kept {self.kept} of {self.total} = {self.fraction:.4g}, wanted {1 - self.p:.4g}"
        if self.passed():
            tests = f"{len(self.pvalues)} tests, p = {self.p_value:.3g}"
            return f"dropout mask: as it should be ({kept}; {tests})"
        causes = "; ".join(self.patterns) or "no known pattern"
        return f"dropout mask: wrong ({kept}): {causes}; rejected by {', '.join(self.failures())}"

    def to_dict(self) -> dict[str, Any]:
        """Every field and the joint p-value, ready for JSON."""
        return {
            "p": self.p,
            "calls": self.calls,
            "shape": list(self.shape),
            "kept": self.kept,
            "total": self.total,
            "fraction": self.fraction,
            "pvalues": dict(self.pvalues),
            "p_value": self.p_value,
            "patterns": list(self.patterns),
        }


def check_dropout_mask(masks: Any, p: float) -> DropoutCheck:
    """Test masks (calls, *), or a sequence of masks (*), one a call, against dropout probability p.

    A single mask is given as mask[None]. What is not zero counts as kept, so masks scaled by 1 / (1
    - p) may be given as they are. Tested are the kept fraction, overall, by slice and by line of
    every axis; how often elements 1 to 32 steps apart agree, along every axis, the calls' included,
    and in memory order; how often whole slices agree; and whether counts spread as binomial ones
    do. With p = 0 or 1 the fraction alone is tested.

    Returns a DropoutCheck. Raises UsageError for NaN, masks of different shapes, p outside 0 to 1
    and fewer than 64 elements, which could show nothing.
    """
    if isinstance(p, bool) or not isinstance(p, Real) or not 0 <= float(p) <= 1:
        raise UsageError(f"p is {p!r}; give the dropout probability, a number from 0 to 1")
    p, kept = float(p), _read_masks(masks)
    tests = {"kept fraction": float(_two_sided(kept.sum(), kept.size, 1 - p))}
    if 0 < p < 1:
        tests |= _independence(kept, p)
    return DropoutCheck(
        p=p,
        calls=kept.shape[0],
        shape=kept.shape[1:],
        kept=int(kept.sum()),
        total=kept.size,
        pvalues=tests,
        patterns=_patterns(kept, p) if _joint(tests) < ALPHA else (),
    )


def _read_masks(masks):
    """Which elements are kept, bool (calls, *)."""
    if isinstance(masks, list | tuple):
        masks = [as_array(mask, f"masks[{call}]") for call, mask in enumerate(masks)]
        shapes = sorted({mask.shape for mask in masks})
        if len(shapes) > 1:
            raise UsageError(
                f"masks differ in shape, {shapes[0]} and {shapes[1]}; give one for all"
            )
    masks = as_array(masks, "masks")
    if masks.dtype.kind == "U":
        raise WrongType("masks holds strings; give numbers or booleans, zero where dropped")
    if masks.size < SMALLEST:
        raise UsageError(
            f"masks has {masks.size} elements, shape {masks.shape}; below {SMALLEST} nothing could "
            "be noticed: give more calls or a larger mask"
        )
    if masks.dtype.kind == "f" and np.isnan(masks).any():
        raise UsageError(f"masks has {np.isnan(masks).sum()} NaN; give zero where dropped")
    return masks != 0


def _two_sided(counts, trials, probability):
    """Exact two-sided p-values, twice the smaller binomial tail."""
    low = stats.binom.cdf(counts, trials, probability)
    high = stats.binom.sf(np.asarray(counts) - 1, trials, probability)
    return np.minimum(2 * np.minimum(low, high), 1.0)


def _joint(tests):
    """Bonferroni's p-value of named tests together."""
    return min(1.0, len(tests) * min(tests.values()))


def _smallest(pvalues):
    """Bonferroni's joint p-value."""
    pvalues = np.asarray(pvalues)
    return float(min(1.0, pvalues.size * pvalues.min()))


def _independence(kept, p):
    """The p-values of every test but the overall fraction's."""
    q, agree = 1 - p, p * p + (1 - p) ** 2
    tests = {"neighbours in memory order": _neighbours(kept.reshape(-1, 1), agree)}
    for axis in range(kept.ndim):
        name = f"axis {axis - 1}" if axis else "calls"
        slices = np.moveaxis(kept, axis, 0).reshape(kept.shape[axis], -1)
        length, width = slices.shape
        if length < 2:
            continue
        # Slices: everything at one position of the axis. Lines: everything along the axis.
        for kind, counts, trials in (
            ("slice", slices.sum(axis=1), width),
            ("line", slices.sum(axis=0), length),
        ):
            tests[f"fraction by {kind}, {name}"] = _fractions(counts, trials, q)
            tests[f"spread by {kind}, {name}"] = _spread(counts, trials, q)
        tests[f"neighbours, {name}"] = _neighbours(slices, agree)
        tests[f"equal slices, {name}"] = _slice_pairs(slices, agree)
    for depth in range(2, kept.ndim):  # a fixed number kept in each sample, in each channel, …
        blocks = kept.reshape(int(np.prod(kept.shape[:depth])), -1)
        name = f"spread by block, first {depth} axes"
        tests[name] = _spread(blocks.sum(axis=1), blocks.shape[1], q)
    return tests


def _fractions(counts, trials, q):
    """Joint p-value of many kept counts, each out of `trials`."""
    # Few distinct counts are seen many times: one tail each is enough.
    return float(min(1.0, counts.size * _two_sided(np.unique(counts), trials, q).min()))


def _spread(counts, trials, q):
    """Whether as many counts as should fall between the quartiles of the binomial law.

    Too few do when elements share their fate, too many when a fixed number is kept.
    """
    low, high = stats.binom.ppf([0.25, 0.75], trials, q)
    share = stats.binom.cdf(high, trials, q) - stats.binom.cdf(low - 1, trials, q)
    inside = np.count_nonzero((counts >= low) & (counts <= high))
    return float(_two_sided(inside, counts.size, min(share, 1.0)))


def _neighbours(slices, agree):
    """Agreement between slices (L, M) one to LAGS apart, over pairs that share no element.

    Overlapping pairs are dependent unless p is one half, so every lag is judged twice, over the
    pairs that start in even blocks of that length and over those that start in odd ones.
    """
    length, width = slices.shape
    same, trials = [], []
    for lag in range(1, min(LAGS, length - 1) + 1):
        equal = (slices[:-lag] == slices[lag:]).sum(axis=1)
        odd = np.arange(length - lag) // lag % 2 == 1
        for chosen in (equal[~odd], equal[odd]):
            if chosen.size:
                same.append(chosen.sum())
                trials.append(chosen.size * width)
    return _smallest(_two_sided(np.array(same), np.array(trials), agree))


def _slice_pairs(slices, agree):
    """Agreement of every two of the first slices: catches a mask that comes back later."""
    part = slices[:SLICES, :COLUMNS].astype(np.float32)  # counts up to 2^24 are exact
    width = part.shape[1]
    both = part @ part.T
    own = part.sum(axis=1)
    equal = width - own[:, None] - own[None, :] + 2 * both
    pairs = equal[np.triu_indices(len(part), 1)]
    return float(min(1.0, pairs.size * _two_sided(np.unique(pairs), width, agree).min()))


def _patterns(kept, p):
    """Faults that can be told from the masks themselves."""
    found = []
    right, swapped = (float(_two_sided(kept.sum(), kept.size, share)) for share in (1 - p, p))
    if right < 1e-9 and swapped > 1e-3:
        found.append("elements are kept with probability p, not 1 - p")
    if kept.all() or not kept.any():
        found.append("every element is kept" if kept.all() else "every element is dropped")
        return tuple(found) if 0 < p < 1 else ()
    for axis in range(kept.ndim):
        first = kept.take([0], axis=axis)
        if kept.shape[axis] > 1 and (kept == first).all():
            where = f"is shared along its axis {axis - 1}" if axis else "is the same at every call"
            found.append(f"the mask {where}")
    return tuple(found)
