"""The small convolution nets: lines in 5×5 images (A1, A2) and handwritten digits (A3)."""

from impl.activations import ReLU
from impl.containers import Sequential
from impl.convolution import Conv2d
from impl.linear import Linear
from impl.normalisation import BatchNorm2d
from impl.pooling import AvgPool2d
from impl.shape import Flatten


def line_net():
    """Return A1's net, x (N, 1, 5, 5) to scores (N, 2): one window as large as the image."""
    return Sequential(Conv2d(1, 4, 5), ReLU(), Flatten(), Linear(4, 2))


def pooled_net(size, classes, eps=1e-5):
    """Return the net of A2 and A3, x (N, 1, size, size) to scores (N, classes)."""
    return Sequential(
        Conv2d(1, 4, 3),
        BatchNorm2d(4, eps=eps),
        ReLU(),
        AvgPool2d(2, stride=2),
        Flatten(),
        Linear(4 * ((size - 2) // 2) ** 2, classes),
    )
