"""Losses: a value from prediction and target, and the gradient for the prediction."""

from impl.losses.base import Loss as Loss
from impl.losses.binary import BCELoss as BCELoss
from impl.losses.binary import BCEWithLogitsLoss as BCEWithLogitsLoss
from impl.losses.classification import CrossEntropyLoss as CrossEntropyLoss
from impl.losses.classification import NLLLoss as NLLLoss
from impl.losses.classification import UnstableNLLLoss as UnstableNLLLoss
from impl.losses.margin import MultiMarginLoss as MultiMarginLoss
from impl.losses.regression import MSELoss as MSELoss
