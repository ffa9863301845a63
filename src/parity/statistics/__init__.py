"""Statistics of predictions, seeds, dropout masks and rates, to stand beside the verdict."""

from parity.statistics.comparison import PredictionComparison, compare_predictions
from parity.statistics.dropout import DropoutCheck, check_dropout_mask
from parity.statistics.rates import Rate, rate
from parity.statistics.seeds import (
    CombinedPValues,
    SeedComparison,
    combine_pvalues,
    compare_seeds,
)

__all__ = [
    "CombinedPValues",
    "DropoutCheck",
    "PredictionComparison",
    "Rate",
    "SeedComparison",
    "check_dropout_mask",
    "combine_pvalues",
    "compare_predictions",
    "compare_seeds",
    "rate",
]
