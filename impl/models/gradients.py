"""The nets of the gradients by hand: a curve (C1), two classes (C2), photographs (C3)."""

from impl.activations import ReLU, Sigmoid
from impl.containers import Sequential
from impl.linear import Linear
from impl.shape import Normalize

MEAN, DEVIATION = (0.5074, 0.4867, 0.4411), (0.2011, 0.1987, 0.2025)  # CIFAR-100's colours


def universal_net(width=64):
    """Return C1's net, x (N, 1) to y (N, 1): as many kinks as hidden units."""
    return Sequential(Linear(1, width), ReLU(), Linear(width, 1))


def two_class_net(width=16):
    """Return C2's net, x (N, 2) to the probability (N, 1) of class 1."""
    return Sequential(Linear(2, width), Sigmoid(), Linear(width, 1), Sigmoid())


def photograph_net(widths=(10,), classes=3):
    """Return C3's net, x (N, 32, 32, 3) with pixels 0 to 255, to scores (N, classes)."""
    layers, size = [Normalize(MEAN, DEVIATION)], 32 * 32 * 3
    for width in widths:
        layers += [Linear(size, width), ReLU()]
        size = width
    return Sequential(*layers, Linear(size, classes))
