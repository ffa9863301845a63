"""A student's NumPy Linear whose bias gradient is averaged over the batch: a bug, named."""

import numpy as np
import torch

import parity


class Linear:
    def __init__(self, n_in, n_out):
        self.W = np.random.default_rng(0).standard_normal((n_in, n_out)) * 0.1
        self.b = np.zeros(n_out)

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dout):
        self.dW = self.x.T @ dout
        self.db = dout.mean(axis=0)  # the loss has averaged already: this should be a sum
        return dout @ self.W.T


print(parity.check(Linear(4, 3), torch.nn.Linear(4, 3), (8, 4)))
