"""Paired proportions: McNemar's tests, intervals, equivalence, power, from discordant counts.

Throughout, of n items b are right on the first side alone and c on the second side alone.

- McNemar 1947, Psychometrika 12: the test, chi-square with one degree of freedom.
- Edwards 1948, Psychometrika 13: its continuity correction.
- Fagerland, Lydersen & Laake 2013, BMC Medical Research Methodology 13:91: exact and mid-p forms.
- Tango 1998, Statistics in Medicine 17: score test and interval for the difference.
- Newcombe 1998, Statistics in Medicine 17: square-and-add interval, method 10.
- Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15: two one-sided tests.
- Connor 1987, Biometrics 43: sample size of McNemar's test.
"""

import math

from scipy import optimize, stats


def mcnemar_exact(b, c):
    """Two-sided exact p-value: b of b + c against one half; 1 where no item is discordant."""
    return float(stats.binomtest(min(b, c), b + c, 0.5).pvalue) if b + c else 1.0


def mcnemar_midp(b, c):
    """Mid-p value: the exact one less half the probability of what was seen, both tails.

    With b = c the two tails meet in one point, so only half of it is taken off (Fagerland 2013).
    """
    if not b + c:
        return 1.0
    point = float(stats.binom.pmf(min(b, c), b + c, 0.5))
    return max(mcnemar_exact(b, c) - (point / 2 if b == c else point), 0.0)


def mcnemar_chi2(b, c, correction):
    """Statistic and p-value, (|b - c| - 1)² / (b + c) with Edwards's correction and without the 1.

    The correction never turns b = c into evidence, and nothing discordant gives (0, 1).
    """
    if not b + c:
        return 0.0, 1.0
    statistic = max(abs(b - c) - bool(correction), 0) ** 2 / (b + c)
    return statistic, float(stats.chi2.sf(statistic, 1))


def odds_ratio(b, c, confidence):
    """Conditional odds ratio b / c and its exact interval.

    Where either count is zero, Haldane's half is added to both: (b + 1/2) / (c + 1/2). The interval
    is Clopper-Pearson's for b of b + c, carried over by p / (1 - p); it agrees with the exact test
    and is unbounded above where c = 0.
    """
    ratio = b / c if b and c else (b + 0.5) / (c + 0.5)
    if not b + c:
        return ratio, (0.0, math.inf)
    share = stats.binomtest(b, b + c).proportion_ci(confidence, method="exact")
    low, high = float(share.low), float(share.high)
    return ratio, (low / (1 - low), high / (1 - high) if c else math.inf)


def _score_parts(b, c, n, delta):
    """Numerator and standard error of Tango's score statistic for a true difference `delta`."""
    linear = -b - c + (2 * n - b + c) * delta
    root = math.sqrt(max(linear**2 + 8 * n * c * delta * (1 - delta), 0.0))
    smaller = (root - linear) / (
        4 * n
    )  # likeliest probability of the second side alone being right
    variance = n * (2 * smaller + delta * (1 - delta))
    return b - c - n * delta, math.sqrt(max(variance, 0.0))


def score_interval(b, c, n, confidence):
    """Tango's score interval for the difference of the paired proportions, (b - c) / n."""
    return -_score_upper(c, b, n, confidence), _score_upper(b, c, n, confidence)


def _score_upper(b, c, n, confidence):
    z = float(stats.norm.isf((1 - confidence) / 2))
    if b - c == n:
        return 1.0

    def beyond(delta):
        gap, error = _score_parts(b, c, n, delta)
        return gap + z * error

    # Where the variance vanishes at the estimate (no discordant item, or all on the second side)
    # the estimate is a root of its own; a start beside it leaves the root that bounds.
    start = (b - c) / n + 1e-12
    return float(optimize.brentq(beyond, start, 1.0, xtol=1e-15, rtol=1e-14))


def newcombe_interval(table, confidence):
    """Newcombe's square-and-add interval (method 10) from the table ((a, b), (c, d))."""
    (a, b), (c, d) = table
    n = a + b + c + d
    first, second = _wilson_arms(a + b, n, confidence), _wilson_arms(a + c, n, confidence)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    excess = a * d - b * c
    # Method 10 shrinks a positive correlation by n/2, its continuity correction.
    excess = max(excess - n / 2, 0) if excess > 0 else excess
    phi = excess / math.sqrt(margins) if margins else 0.0

    def arm(x, y):
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    centre = (b - c) / n
    return centre - arm(first[0], second[1]), centre + arm(first[1], second[0])


def _wilson_arms(count, n, confidence):
    """How far Wilson's interval reaches below and above count / n."""
    wilson = stats.binomtest(count, n).proportion_ci(confidence, method="wilson")
    return count / n - float(wilson.low), float(wilson.high) - count / n


def equivalence_pvalue(b, c, n, margin):
    """Larger p-value of the two one-sided score tests that the difference lies inside ±margin.

    At level alpha it says the same as a score interval of confidence 1 - 2 alpha inside the margin.
    """
    low, low_error = _score_parts(b, c, n, -margin)
    high, high_error = _score_parts(b, c, n, margin)
    below = float(stats.norm.sf(low / low_error)) if low_error else float(low <= 0)
    above = float(stats.norm.cdf(high / high_error)) if high_error else float(high >= 0)
    return max(below, above)


def detectable_difference(b, c, n, confidence, power=0.8):
    """Smallest true difference that McNemar's test finds with the given power, None if none.

    Solves sqrt(n) d = z_alpha/2 sqrt(r) + z_power sqrt(r - d²) for d, r being the discordant rate
    (Connor 1987). A difference cannot exceed the rate; where the seen rate is too small to be
    detected at all, the answer is the difference that would be if all disagreements fell on one
    side.
    """
    level, reach = float(stats.norm.isf((1 - confidence) / 2)), float(stats.norm.ppf(power))
    seen = (b + c) / n

    def shortfall(d, discordant):
        spread = math.sqrt(max(discordant - d * d, 0.0))
        return math.sqrt(n) * d - level * math.sqrt(discordant) - reach * spread

    if shortfall(seen, seen) > 0:
        return float(optimize.brentq(shortfall, 0.0, seen, args=(seen,)))
    if shortfall(1.0, 1.0) <= 0:
        return None
    # Divided by sqrt(d), which takes the trivial root at d = 0 away.
    return float(
        optimize.brentq(lambda d: math.sqrt(n * d) - level - reach * math.sqrt(1 - d), 0.0, 1.0)
    )
