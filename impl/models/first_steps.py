"""The nets of the first steps: a neuron (D1), two fits (D2, D3), moons (D4)."""

from impl.activations import Sigmoid, Tanh
from impl.containers import Sequential
from impl.linear import Linear


def neuron(inputs=3, outputs=2, bias=True):
    """Return D1's layer, x (N, inputs) to y (N, outputs)."""
    return Linear(inputs, outputs, bias=bias)


def fit_net():
    """Return D2's straight line, x (N, 1) to y (N, 1)."""
    return Linear(1, 1)


def two_layer_fit_net():
    """Return D2's second net, x (N, 1) to y (N, 1): two layers, yet still a straight line."""
    return Sequential(Linear(1, 2), Linear(2, 1))


def curve_net():
    """Return D3's net, x (N, 1) to y (N, 1): a sum of two sigmoid steps."""
    return Sequential(Linear(1, 2), Sigmoid(), Linear(2, 1))


def moons_net(widths=(20, 20), activation=Tanh):
    """Return D4's net, x (N, 2) to the probability (N, 1) of class 1."""
    layers, size = [], 2
    for width in widths:
        layers += [Linear(size, width), activation()]
        size = width
    return Sequential(*layers, Linear(size, 1), Sigmoid())
