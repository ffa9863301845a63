"""Losses: a value from prediction and target, and the gradient for the prediction."""

from .base import Loss as Loss
from .binary import BCELoss as BCELoss
from .binary import BCEWithLogitsLoss as BCEWithLogitsLoss
from .classification import CrossEntropyLoss as CrossEntropyLoss
from .classification import NLLLoss as NLLLoss
from .classification import UnstableNLLLoss as UnstableNLLLoss
from .margin import MultiMarginLoss as MultiMarginLoss
from .regression import MSELoss as MSELoss
