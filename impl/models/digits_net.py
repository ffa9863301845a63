"""The digits' own architecture (A4): two convolutions, BatchNorm, pooling, dropout."""

from impl.activations import ReLU
from impl.containers import Sequential
from impl.convolution import Conv2d
from impl.dropout import Dropout
from impl.linear import Linear
from impl.normalisation import BatchNorm2d
from impl.pooling import MaxPool2d
from impl.shape import Flatten


def digits_net(channels=(16, 32), p=0.25):
    """Return A4's net, x (N, 1, 8, 8) to scores (N, 10)."""
    first, second = channels
    return Sequential(
        Conv2d(1, first, 3, padding=1),
        BatchNorm2d(first),
        ReLU(),
        Conv2d(first, second, 3, padding=1),
        BatchNorm2d(second),
        ReLU(),
        MaxPool2d(2),
        Dropout(p),
        Flatten(),
        Linear(second * 4 * 4, 10),
    )
