"""Several seeds' comparisons as one, combined p-values, and rates with exact intervals."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from parity.statistics import combine_pvalues, compare_predictions, compare_seeds, rate


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


def test_combined_pvalues_by_formula():
    ps = [0.1, 0.04, 0.6]
    combined = combine_pvalues(ps)
    half = -sum(math.log(p) for p in ps)  # chi-square with 2K degrees of freedom has a closed tail
    fisher = math.exp(-half) * sum(half**k / math.factorial(k) for k in range(3))
    stouffer = stats.norm.sf(sum(stats.norm.isf(p) for p in ps) / math.sqrt(3))
    assert same(combined.fisher, fisher)
    assert same(combined.stouffer, stouffer)
    ends = combine_pvalues([0, 1])
    assert 0 <= ends.fisher < 1e-300
    assert 0 <= ends.stouffer <= 1
    assert combine_pvalues([1, 1]).fisher == 1


@pytest.mark.parametrize("pvalues", [[], [0.1, 1.2], [-0.1], [math.nan], [[0.1]], 0.3])
def test_what_are_no_pvalues(pvalues):
    with pytest.raises(ValueError, match="pvalues "):
        combine_pvalues(pvalues)


def test_seeds_by_formula():
    tables = [(1700, 40, 25, 235), (1690, 30, 35, 245), (1710, 33, 30, 227)]
    result = compare_seeds(compared(*table) for table in tables)
    differences = np.array([15, -5, 3]) / 2000
    half = stats.t.isf(0.025, 2) * differences.std(ddof=1) / math.sqrt(3)
    assert result.differences == tuple(differences)
    assert same(result.interval[1] - result.mean, half)
    assert same(result.p_t, stats.ttest_1samp(differences, 0).pvalue)
    one_sided = [
        stats.ttest_1samp(differences, -0.01, alternative="greater").pvalue,
        stats.ttest_1samp(differences, 0.01, alternative="less").pvalue,
    ]
    assert same(result.equivalence_p, max(one_sided))
    assert result.equivalent == (max(one_sided) < 0.05)
    assert result.pooled_table == ((5100, 103), (90, 707))
    assert result.identical == 0
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["count"] == 3


def test_small_differences_one_way_add_up():
    """Five seeds, none significant alone, all the same way: Stouffer's signed sum finds it."""
    same_way = compare_seeds([compared(800, 30, 18, 152)] * 5)
    both_ways = compare_seeds([compared(800, 30, 18, 152), compared(800, 18, 30, 152)] * 3)
    assert not compared(800, 30, 18, 152).significant
    assert same_way.p_stouffer < 0.001
    other_way = compare_seeds([compared(800, 18, 30, 152)] * 5)
    assert other_way.p_stouffer == same_way.p_stouffer
    assert same(both_ways.p_stouffer, 1)


def test_identical_seeds_and_a_single_one():
    none = compare_seeds([compared(300, 0, 0, 20)] * 3)
    assert (none.p_fisher, none.p_stouffer, none.p_t) == (1, 1, 1)
    assert (none.equivalent, none.identical, none.spread) == (True, 3, 0)
    single = compare_seeds(compared(300, 2, 1, 20))
    assert single.interval is None
    assert single.equivalent is None
    assert single.to_dict()["equivalence_p"] is None
    assert str(single).endswith(
        "One seed shows no spread: equivalence over seeds cannot be judged."
    )


@pytest.mark.parametrize(
    ("comparisons", "error", "message"),
    [
        ([], ValueError, "got no comparisons"),
        (3, TypeError, "got 3; give a list"),
        ([0.3], TypeError, r"comparisons\[0\] is a float"),
        ([compared(3, 1, 0, 0), compared(3, 1, 0, 0, margin=0.02)], ValueError, "in margin, 0.01"),
        (
            [compared(3, 1, 0, 0), compared(3, 1, 0, 0, names=("a", "b"))],
            ValueError,
            "differ in names",
        ),
    ],
)
def test_seeds_that_do_not_go_together(comparisons, error, message):
    with pytest.raises(error, match=message):
        compare_seeds(comparisons)


# Rates ----------------------------------------------------------------------------------------


def test_rates_have_closed_ends():
    """No success in n trials: the upper limit is 1 - (alpha/2)^(1/n) (Clopper & Pearson 1934)."""
    none = rate(0, 1200)
    assert none.low == 0
    assert same(none.high, 1 - 0.025 ** (1 / 1200))
    assert same(rate(1200, 1200).low, 0.025 ** (1 / 1200))
    assert str(none) == "0 of 1,200 (0 %, 95 % interval 0 to 0.307 %)"
    assert str(rate(36, 36)) == "36 of 36 (100 %, 95 % interval 90.3 to 100 %)"
    empty = rate(0, 0)
    assert (empty.value, empty.low, empty.high) == (None, 0, 1)
    assert str(empty) == "0 of 0: nothing was tried"
    assert json.loads(json.dumps(rate(np.int64(3), 7).to_dict()))["successes"] == 3


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ((3, 2), ValueError, "successes must lie between 0 and trials"),
        ((-1, 2), ValueError, "between 0 and trials"),
        ((0.5, 2), TypeError, "both must be whole numbers"),
    ],
)
def test_what_is_no_rate(counts, error, message):
    with pytest.raises(error, match=message):
        rate(*counts)
