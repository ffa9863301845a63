"""The statistics of paired predictions against published examples and formulas written out here."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from parity import statistics
from parity.statistics import compare_predictions, paired


def predictions(a, b, c, d):
    """Labels of both sides and the truth that give the table ((a, b), (c, d))."""
    cells = np.repeat(np.arange(4), (a, b, c, d))
    truth = np.arange(len(cells)) % 3
    return np.where(cells < 2, truth, 7), np.where(cells % 2 == 0, truth, 7), truth


def compared(a, b, c, d, **options):
    return compare_predictions(*predictions(a, b, c, d), **options)


def same(x, y):
    """Equal to nine significant digits, as a published formula evaluated another way must be."""
    return f"{x:.9g}" == f"{y:.9g}"


# Published examples ---------------------------------------------------------------------------


def test_agresti_approval_ratings():
    """Agresti, Categorical Data Analysis: 1,600 voters asked twice; z = 4.17, 0.040 apart."""
    result = compared(794, 150, 86, 570)
    assert result.table == ((794, 150), (86, 570))
    assert (result.n, result.b, result.c) == (1600, 150, 86)
    assert round(result.chi2, 2) == 17.36
    assert round(math.sqrt(result.chi2), 2) == 4.17
    assert round(result.chi2_corrected, 2) == 16.82  # 63² / 236
    assert same(result.difference_points, 4)
    # Agresti prints the Wald interval 0.021 to 0.059; the better two agree to its digits.
    for interval in (result.interval, result.newcombe):
        assert [round(limit, 3) for limit in interval] == [0.021, 0.059]
    assert round(result.odds_ratio, 2) == 1.74
    assert result.significant
    assert not result.equivalent


def test_fagerland_airway_example():
    """Fagerland et al. 2013: 1, 1, 7, 12 children; every p-value and both intervals as printed."""
    result = compared(1, 1, 7, 12)
    printed = (result.p_exact, result.p_midp, result.p_chi2, result.p_chi2_corrected)
    assert [round(p, 4) for p in printed] == [0.0703, 0.0391, 0.0339, 0.0771]
    assert [round(limit, 3) for limit in result.interval] == [-0.517, -0.026]
    assert [round(limit, 3) for limit in result.newcombe] == [-0.507, -0.026]


def test_score_interval_of_another_implementation():
    """The R package PropCIs gives -0.0148 to 0.0247 for 25 and 28 of 618 at 90 %, c before b."""
    low, high = paired.score_interval(28, 25, 618, 0.90)
    assert (round(low, 4), round(high, 4)) == (-0.0148, 0.0247)


@pytest.mark.parametrize(
    ("b", "c", "corrected", "plain"),
    [
        (121, 59, (20.67222, 5.450095e-06), (21.35556, 3.815136e-06)),
        (70, 59, (0.7751938, 0.3786151), (0.9379845, 0.3327967)),
        (80, 59, (2.87769784, 0.08981434), (3.17266187, 0.07488031)),
    ],
)
def test_chi2_as_other_packages_print_it(b, c, corrected, plain):
    for expected, correction in ((corrected, True), (plain, False)):
        found = paired.mcnemar_chi2(b, c, correction)
        for ours, theirs in zip(found, expected, strict=True):
            assert f"{ours:.5g}" == f"{theirs:.5g}"


# First principles -----------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "c"), [(0, 1), (1, 0), (3, 3), (2, 9), (40, 25), (0, 6), (31, 30)])
def test_exact_and_midp_by_counting(b, c):
    n, k = b + c, min(b, c)
    ways = [Fraction(math.comb(n, i), 2**n) for i in range(n + 1)]
    exact = min(2 * sum(ways[: k + 1]), Fraction(1))
    midp = exact - (ways[k] / 2 if b == c else ways[k])
    assert same(paired.mcnemar_exact(b, c), float(exact))
    assert same(paired.mcnemar_midp(b, c), float(midp))


def likelihood_score(b, c, n, delta):
    """Tango's statistic, the likelihood maximised by bisecting its derivative in q = P(c)."""

    def slope(q):
        parts = ((b, q + delta, 1), (c, q, 1), (n - b - c, 1 - delta - 2 * q, -2))
        return sum(count * factor / share for count, share, factor in parts if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (b - c - n * delta) / math.sqrt(n * (2 * low + delta * (1 - delta)))


@pytest.mark.parametrize(("b", "c", "n"), [(3, 9, 40), (10, 4, 200), (0, 5, 60), (6, 0, 25)])
def test_score_test_maximises_the_likelihood(b, c, n):
    for delta in (-0.05, 0.01, 0.2):
        gap, error = paired._score_parts(b, c, n, delta)
        assert f"{gap / error:.9g}" == f"{likelihood_score(b, c, n, delta):.9g}"


@pytest.mark.parametrize(("b", "c", "n"), [(3, 9, 40), (0, 5, 60), (6, 0, 25), (0, 0, 500)])
def test_interval_holds_what_the_score_test_keeps(b, c, n):
    z = stats.norm.isf(0.025)
    low, high = paired.score_interval(b, c, n, 0.95)
    assert low <= (b - c) / n <= high
    for limit, sign in ((low, 1), (high, -1)):
        gap, error = paired._score_parts(b, c, n, limit)
        assert f"{gap / error:.4f}" == f"{sign * z:.4f}"


def test_sides_change_places():
    one, other = compared(30, 9, 4, 57), compared(30, 4, 9, 57)
    assert one.interval == tuple(-limit for limit in reversed(other.interval))
    assert same(one.newcombe[0], -other.newcombe[1])
    assert (one.p_exact, one.p_midp, one.chi2) == (other.p_exact, other.p_midp, other.chi2)
    assert same(one.odds_ratio, 1 / other.odds_ratio)
    assert same(one.equivalence_p, other.equivalence_p)
    assert one.detectable == other.detectable


@pytest.mark.parametrize("table", [(0, 7, 0, 0), (0, 0, 7, 0), (5, 0, 0, 0), (0, 0, 0, 5)])
def test_extreme_tables_stay_inside_their_bounds(table):
    result = compared(*table)
    for low, high in (result.interval, result.newcombe):
        assert -1 <= low <= result.difference <= high <= 1
        assert low < high
    assert result.odds_ratio_interval[0] <= result.odds_ratio <= result.odds_ratio_interval[1]


def test_odds_ratio_interval_agrees_with_the_exact_test():
    for b in range(1, 30):
        ratio, (low, high) = paired.odds_ratio(b, 10, 0.95)
        assert ratio == b / 10
        assert (low > 1 or high < 1) == (paired.mcnemar_exact(b, 10) < 0.05)
    assert paired.odds_ratio(5, 0, 0.95)[0] == 11  # Haldane: 5.5 / 0.5
    assert paired.odds_ratio(5, 0, 0.95)[1][1] == math.inf
    assert paired.odds_ratio(0, 0, 0.95) == (1, (0, math.inf))


def test_equivalence_is_an_interval_inside_the_margin():
    seen = set()
    for b, c, n in ((4, 2, 2000), (30, 20, 2000), (0, 0, 100), (0, 0, 2000), (15, 0, 3000)):
        result = compared(n - b - c, b, c, 0)
        low, high = result.equivalence_interval
        assert result.equivalent == (-result.margin < low and high < result.margin)
        seen.add(result.equivalent)
    assert seen == {True, False}


def test_detectable_difference_has_the_power_it_claims():
    """Tables drawn with that true difference are found significant in about four of five."""
    b, c, n = 60, 60, 2000
    d, rate_seen = paired.detectable_difference(b, c, n, 0.95), (b + c) / n
    shares = ((rate_seen + d) / 2, (rate_seen - d) / 2, 1 - rate_seen)
    draws = np.random.default_rng(0).multinomial(n, shares, size=4000)
    found = np.mean([paired.mcnemar_chi2(x, y, False)[1] < 0.05 for x, y, _ in draws.tolist()])
    assert 0.77 < found < 0.83


@pytest.mark.slow
def test_equal_sides_are_rarely_called_different():
    draws = np.random.default_rng(1).multinomial(500, (0.05, 0.05, 0.9), size=2000)
    tables, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    for test, allowed in ((paired.mcnemar_exact, 0.05), (paired.mcnemar_midp, 0.065)):
        rejected = [test(b, c) < 0.05 for b, c in tables.tolist()]
        assert times[rejected].sum() / 2000 < allowed


# What is said --------------------------------------------------------------------------------


def test_wording():
    assert str(compared(1700, 40, 25, 235)).splitlines() == [
        "            torch right  torch wrong",
        "mine right         1700           40",
        "mine wrong           25          235",
        "accuracy: mine 87.00 %, torch 86.25 %, n = 2000",
        "McNemar: discordant 40 and 25; p exact 0.0817, mid-p 0.064, chi2 0.0628, corrected 0.0825",
        "odds ratio 1.6, 95 % interval 0.947 to 2.75",
        "mine minus torch: +0.75 percentage points, 95 % interval -0.04 to +1.58; "
        "not significant (exact p = 0.0817).",
        "Equivalent within 1 percentage point: not shown (p = 0.27; 90 % interval "
        "+0.09 to +1.44); not significant does not mean equal.",
        "Smallest difference this test set detects with 80 % power: 1.13 percentage points.",
    ]
    identical = compared(300, 0, 0, 20)
    assert identical.statements[0] == (
        "All 320 predictions are identical: no item is discordant, p = 1 by definition."
    )
    assert identical.statements[1].startswith("Equivalent within 1 percentage point: shown (p = ")


def test_dictionary_is_json():
    result = compared(5, 3, 0, 1)
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["odds_ratio_interval"][1] is None  # unbounded
    assert read["table"] == [[5, 3], [0, 1]]
    assert (read["b"], read["c"]) == (3, 0)
    assert read["statements"] == list(result.statements)
    with pytest.raises(AttributeError):
        result.n = 4


def test_everything_exported_exists():
    assert all(hasattr(statistics, name) for name in statistics.__all__)
