"""A test file as a user would write it, run against the installed wheel by `tox -e wheel`."""

import numpy as np
import pytest
import torch


class MyLinear:
    """A plain class: no import of parity, nothing inherited."""

    def __init__(self, inputs, outputs, scale=1.0):
        self.params = {"weight": np.zeros((outputs, inputs)), "bias": np.zeros(outputs)}
        self.grads = {}
        self.scale = scale

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, grad):
        # Added to what is there, as torch does; zero_grad empties the dict.
        self.grads["weight"] = self.grads.get("weight", 0) + self.scale * grad.T @ self.x
        self.grads["bias"] = self.grads.get("bias", 0) + grad.sum(axis=0)
        return grad @ self.params["weight"]

    def zero_grad(self):
        self.grads.clear()


def test_my_linear(parity):
    parity(MyLinear(4, 3), torch.nn.Linear(4, 3), (8, 4))


def test_a_fault_is_refused(parity):
    with pytest.raises(AssertionError, match="weight"):
        parity(MyLinear(4, 3, scale=1 / 8), torch.nn.Linear(4, 3), (8, 4))
