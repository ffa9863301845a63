"""Neural-network layers, losses and optimizers in NumPy, forward and backward by hand."""

from impl.activations import (
    ELU,
    Heaviside,
    LeakyReLU,
    ReLU,
    Sigmoid,
    Softplus,
    Tanh,
    Threshold,
)
from impl.containers import Sequential
from impl.convolution import Conv2d
from impl.dropout import Dropout
from impl.linear import Linear
from impl.losses import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    MSELoss,
    MultiMarginLoss,
    NLLLoss,
    UnstableNLLLoss,
)
from impl.module import Module
from impl.normalisation import BatchNorm1d, BatchNorm2d
from impl.optimizers import SGD, Adam, AdamW
from impl.pooling import AvgPool2d, MaxPool2d
from impl.scaling import ChannelwiseScaling
from impl.shape import Flatten, Normalize
from impl.softmax import LogSoftmax, Softmax

__all__ = [
    "ELU",
    "SGD",
    "Adam",
    "AdamW",
    "AvgPool2d",
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "ChannelwiseScaling",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "Heaviside",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "MultiMarginLoss",
    "NLLLoss",
    "Normalize",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "Threshold",
    "UnstableNLLLoss",
]
