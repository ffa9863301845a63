"""A small CNN ported to NumPy, kernels as (height, width, in, out), against torch's."""

import numpy as np
from torch import nn

import parity

rng = np.random.default_rng(0)


class Conv:
    def __init__(self, n_in, n_out, size):
        self.kernel = rng.standard_normal((size, size, n_in, n_out)) * 0.1
        self.bias = np.zeros(n_out)

    def forward(self, x):
        size = self.kernel.shape[0]
        self.windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
        self.shape = x.shape
        y = np.einsum("nchwij,ijco->nohw", self.windows, self.kernel)
        return y + self.bias[:, None, None]

    def backward(self, grad):
        self.kernel_grad = np.einsum("nchwij,nohw->ijco", self.windows, grad)
        self.bias_grad = grad.sum(axis=(0, 2, 3))
        dx = np.zeros(self.shape, grad.dtype)
        height, width = grad.shape[2:]
        for i, j in np.ndindex(*self.kernel.shape[:2]):
            spread = np.einsum("nohw,co->nchw", grad, self.kernel[i, j])
            dx[:, :, i : i + height, j : j + width] += spread
        return dx


class ReLU:
    def forward(self, x):
        self.on = x > 0
        return x * self.on

    def backward(self, grad):
        return grad * self.on


class Flatten:
    def forward(self, x):
        self.shape = x.shape
        return x.reshape(len(x), int(np.prod(x.shape[1:])))

    def backward(self, grad):
        return grad.reshape(self.shape)


class Dense:
    def __init__(self, n_in, n_out):
        self.W = rng.standard_normal((n_in, n_out)) * 0.1
        self.b = np.zeros(n_out)

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, grad):
        self.dW, self.db = self.x.T @ grad, grad.sum(axis=0)
        return grad @ self.W.T


class Net:
    def __init__(self, *layers):
        self.layers = layers

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, grad):
        for layer in reversed(self.layers):
            grad = layer.backward(grad)
        return grad


mine = Net(Conv(1, 4, 3), ReLU(), Conv(4, 2, 3), ReLU(), Flatten(), Dense(32, 10))
theirs = nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)
)
print(parity.check(mine, theirs, (4, 1, 8, 8)))
