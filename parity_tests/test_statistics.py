"""The statistics against published examples, formulas written out, and masks known to be wrong."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from parity import statistics
from parity.statistics import (
    check_dropout_mask,
    combine_pvalues,
    compare_predictions,
    compare_seeds,
    paired,
    rate,
)


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


def test_equal_sides_are_rarely_called_different():
    draws = np.random.default_rng(1).multinomial(500, (0.05, 0.05, 0.9), size=2000)
    tables, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    for test, allowed in ((paired.mcnemar_exact, 0.05), (paired.mcnemar_midp, 0.065)):
        rejected = [test(b, c) < 0.05 for b, c in tables.tolist()]
        assert times[rejected].sum() / 2000 < allowed


# What users hand over -------------------------------------------------------------------------


def test_no_discordant_items():
    labels = np.arange(2000) % 10
    result = compare_predictions(labels, labels.copy(), np.roll(labels, 3))
    assert result.identical
    assert result.agreement == 2000
    ps = (result.p_exact, result.p_midp, result.p_chi2, result.p_chi2_corrected)
    assert ps == (1, 1, 1, 1)
    assert (result.chi2, result.chi2_corrected, result.difference) == (0, 0, 0)
    assert result.equivalent
    assert result.notes == ()
    small = compare_predictions(labels[:100], labels[:100].copy(), labels[:100])
    assert not small.equivalent  # a hundred items cannot show one percentage point


def test_equally_wrong_is_not_identical():
    result = compare_predictions([0, 1, 2], [0, 1, 1], [0, 1, 0])
    assert (result.b, result.c, result.agreement, result.identical) == (0, 0, 2, False)
    assert result.statements[0] == (
        "mine and torch are right on the same items, p = 1 by definition, "
        "but predict different labels on 1 of 3."
    )


SCORES = np.array([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.0, 0.1, 0.9], [0.4, 0.4, 0.2]])


@pytest.mark.parametrize(
    "given",
    [
        SCORES,
        torch.tensor(SCORES, requires_grad=True),
        torch.tensor(SCORES, dtype=torch.bfloat16),
        [1, 0, 2, 0],
        np.array([1, 0, 2, 0], dtype=np.uint8),
        np.array([1.0, 0.0, 2.0, 0.0], dtype=np.float32),
        np.array([1, 0, 2, 0], dtype=object),
        torch.tensor([1, 0, 2, 0]),
        [torch.tensor(label) for label in (1, 0, 2, 0)],
        SCORES.tolist(),
    ],
)
def test_labels_and_scores_of_many_kinds(given):
    result = compare_predictions(given, [1, 0, 2, 1], torch.tensor([1, 0, 2, 0]))
    assert result.table == ((3, 1), (0, 0))


def test_string_and_boolean_labels():
    truth = ["cat", "dog", "cat"]
    mine = np.array(truth, dtype=object)
    theirs = np.array([b"cat", b"cat", b"cat"])
    assert compare_predictions(mine, theirs, truth).table == ((2, 1), (0, 0))
    assert compare_predictions([True, False], [1, 1], [True, False]).table == ((1, 1), (0, 0))


@pytest.mark.parametrize(
    ("mine", "truth", "error", "message"),
    [
        ([0, 1], [0, 1, 2], ValueError, "differ in length: 2 for mine, 3 for torch, 3 for truth"),
        ([], [0, 1, 2], ValueError, r"mine is empty, shape \(0,\); there is nothing to compare"),
        ([0, np.nan, 1], [0, 1, 2], ValueError, "mine holds nan at position 1, which is no class"),
        ([0.2, 0.7, 0.1], [0, 1, 2], ValueError, "mine holds 0.2 at position 0.*give whole numb"),
        (np.full((3, 4), np.nan), [0, 1, 2], ValueError, "mine has NaN scores in 3 rows"),
        (np.ones((3, 1)), [0, 1, 2], ValueError, "single column whose argmax is always 0"),
        (np.ones((3, 2, 2)), [0, 1, 2], ValueError, r"an array with shape \(3, 2, 2\); give lab"),
        (np.ones((3, 2)), [0, 1, 2], ValueError, "scores for 2 classes, labels 0 to 1, but truth"),
        (5, [0, 1, 2], ValueError, r"mine is an array with shape \(\); give labels"),
        (["a", "b", "c"], [0, 1, 2], TypeError, "mine holds strings where torch and truth holds"),
        ([0, None, 2], [0, 1, 2], TypeError, "mine holds None; give labels of one kind"),
        (None, [0, 1, 2], TypeError, "mine holds None"),
        ([[0, 1], [2]], [0, 1, 2], ValueError, "mine cannot be read as an array: "),
        ([1j, 0, 0], [0, 1, 2], TypeError, "mine has dtype complex128; give integers"),
        (np.ma.array([0, 1, 2], mask=[0, 1, 0]), [0, 1, 2], ValueError, "mine has masked entries"),
        ([0, 1, 2], np.eye(3), ValueError, r"truth has shape \(3, 3\); give labels \(N,\)"),
        ([0, 1, 2], [0, 1, np.inf], ValueError, "truth holds inf at position 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(mine, truth, error, message):
    with pytest.raises(error, match=message) as caught:
        compare_predictions(mine, [0, 1, 2], truth)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"margin": 0}, ValueError, "margin is 0; it must lie between 0 and 1, 0.01 for one"),
        ({"margin": 1}, ValueError, "margin is 1; .*one percentage point"),
        ({"margin": "1%"}, TypeError, "margin is '1%'; give a number"),
        ({"confidence": 95}, ValueError, "confidence is 95; .* 0.95 for 95 percent"),
        ({"confidence": math.nan}, ValueError, "confidence is nan"),
        ({"names": ("a", "a")}, ValueError, "give two different ones"),
        ({"names": "ab"}, TypeError, "names is 'ab'; give two strings"),
        ({"names": None}, TypeError, "names is None; give two strings"),
    ],
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        compare_predictions([0], [0], [0], **options)


def test_vacuous_agreement_is_said():
    labels = np.zeros(5, int)
    notes = compare_predictions(labels, labels, [0, 1, 0, 1, 0]).notes
    assert notes[0] == "mine and torch are one object: nothing was compared."
    assert notes[1] == "mine predicts 0 for every item."


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


# Seeds ----------------------------------------------------------------------------------------


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


# Dropout --------------------------------------------------------------------------------------

SHAPE = (20, 8, 4, 6, 6)  # calls, N, C, H, W


def draw(rng, p, shape=SHAPE):
    return rng.random(shape) >= p


def share(rng, p, *axes):
    """Masks that are equal along the given axes."""
    shape = [1 if axis in axes else size for axis, size in enumerate(SHAPE)]
    return np.broadcast_to(draw(rng, p, shape), SHAPE)


def exact_count(rng, p):
    ordered = np.arange(144) >= round(144 * p)
    return rng.permuted(np.tile(ordered, (160, 1)), axis=1).reshape(SHAPE)


def pool(rng, p):
    return draw(rng, p)[np.arange(20) % 5]


def periodic(rng, p):
    step = round(1 / min(p, 1 - p))
    few = (np.arange(math.prod(SHAPE)) % step == 0).reshape(SHAPE)
    return few if p > 0.5 else ~few


WRONG_MASKS = {
    "every-call": (lambda rng, p: share(rng, p, 0), "the mask is the same at every call"),
    "batch": (lambda rng, p: share(rng, p, 1), "the mask is shared along its axis 0"),
    "across-channels": (lambda rng, p: share(rng, p, 2), "the mask is shared along its axis 1"),
    "column": (lambda rng, p: share(rng, p, 3), "the mask is shared along its axis 2"),
    "row": (lambda rng, p: share(rng, p, 4), "the mask is shared along its axis 3"),
    "dropout2d": (lambda rng, p: share(rng, p, 3, 4), "the mask is shared along its axis 2"),
    "pool": (pool, None),
    "exact-count": (exact_count, None),
    "periodic": (periodic, None),
    "frozen": (lambda rng, p: draw(rng, p)[np.minimum(np.arange(20), 6)], None),
    "all-kept": (lambda rng, p: np.ones(SHAPE), "every element is kept"),
}


@pytest.mark.parametrize("p", [0.5, 0.2, 0.9])
@pytest.mark.parametrize("fault", WRONG_MASKS)
def test_wrong_masks_are_caught(fault, p):
    make, pattern = WRONG_MASKS[fault]
    result = check_dropout_mask(make(np.random.default_rng(3), p), p)
    assert not result.passed()
    assert result.failures()
    assert pattern is None or pattern in result.patterns
    assert str(result).startswith("dropout mask: wrong (kept ")


@pytest.mark.parametrize("p", [0.1, 0.4, 0.8])
def test_keeping_with_p_is_caught_and_named(p):
    result = check_dropout_mask(draw(np.random.default_rng(4), 1 - p), p)
    assert "kept fraction" in result.failures()
    assert result.patterns == ("elements are kept with probability p, not 1 - p",)


def test_alternating_masks_of_one_half():
    board = np.indices((16, 16)).sum(axis=0) % 2
    assert not check_dropout_mask(board[None], 0.5).passed()
    first = draw(np.random.default_rng(5), 0.5, (8, 16))
    assert not check_dropout_mask([first, ~first] * 4, 0.5).passed()


def test_right_masks_raise_no_alarm():
    """Small, long, flat and extreme masks: at level 0.01 fewer than one in a hundred fails."""
    rng = np.random.default_rng(6)
    shapes = [(20, 8, 16), (4, 4, 3, 8, 8), (64,), (10, 7), (3, 2, 50), (1, 100), (200, 1, 1)]
    results = [
        check_dropout_mask(draw(rng, p, shape), p)
        for shape in shapes
        for p in (0.5, 0.1, 0.01, 0.9)
        for _ in range(6)
    ]
    assert all(result.passed() for result in results)
    assert np.mean([not result.passed(0.01) for result in results]) < 0.01


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_torch_masks_pass(p):
    torch.manual_seed(0)
    layer = torch.nn.Dropout(p)
    masks = [layer(torch.ones(16, 4, 5)) for _ in range(10)]  # scaled by 1 / (1 - p)
    result = check_dropout_mask(masks, p)
    assert result.passed()
    assert (result.calls, result.shape, result.total) == (10, (16, 4, 5), 3200)
    assert str(result).startswith("dropout mask: as it should be (kept ")
    assert json.loads(json.dumps(result.to_dict()))["patterns"] == []


def test_a_torch_dropout2d_is_no_dropout():
    torch.manual_seed(0)
    assert not check_dropout_mask(
        torch.nn.Dropout2d(0.5)(torch.ones(8, 8, 6, 6))[None], 0.5
    ).passed()


def test_nothing_or_everything_dropped():
    ones = np.ones((4, 50))
    assert check_dropout_mask(ones, 0).passed()
    assert check_dropout_mask(0 * ones, 1).passed()
    assert not check_dropout_mask(ones, 1).passed()
    ones[0, 0] = 0
    assert not check_dropout_mask(ones, 0).passed()


@pytest.mark.parametrize(
    ("masks", "p", "error", "message"),
    [
        (np.ones((2, 3)), 0.5, ValueError, r"masks has 6 elements, shape \(2, 3\); below 64"),
        (np.ones((10, 10)), 1.5, ValueError, "p is 1.5; give the dropout probability"),
        (np.ones((10, 10)), "0.5", ValueError, "p is '0.5'; give"),
        (np.full((10, 10), np.nan), 0.5, ValueError, "masks has 100 NaN"),
        (
            [np.ones(90), np.ones(91)],
            0.5,
            ValueError,
            r"masks differ in shape, \(90,\) and \(91,\)",
        ),
        (["a"] * 80, 0.5, TypeError, "masks holds strings"),
    ],
)
def test_masks_that_cannot_be_judged(masks, p, error, message):
    with pytest.raises(error, match=message):
        check_dropout_mask(masks, p)


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


def test_everything_exported_exists():
    assert all(hasattr(statistics, name) for name in statistics.__all__)
