"""Tensor classes, Torch7, lists and JAX trees: convolution, batch norm and losses in each."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import parity
from parity.findings import Verdict

RNG = np.random.default_rng(0)
IMAGES = (2, 3, 5, 5)
ROWS = (8, 4)


class TensorConv:
    def __init__(self, wrong=1.0):
        self.w, self.b, self.wrong = torch.randn(4, 3, 3, 3), torch.zeros(4), wrong

    def forward(self, x):
        self.x = x
        return F.conv2d(x, self.w, self.b, padding=1)

    def backward(self, dout):
        self.dw = torch.nn.grad.conv2d_weight(self.x, self.w.shape, dout, padding=1) * self.wrong
        self.db = dout.sum(dim=(0, 2, 3))
        return torch.nn.grad.conv2d_input(self.x.shape, self.w, dout, padding=1)


class TensorBatchNorm:
    def __init__(self, wrong=0.0):
        self.gamma, self.beta, self.wrong = torch.ones(4), torch.zeros(4), wrong
        self.running_mean, self.running_var = torch.zeros(4), torch.ones(4)
        self.training = True

    def forward(self, x):
        mean, self.var = self.running_mean, self.running_var
        if self.training:
            mean, self.var = x.mean(dim=0), x.var(dim=0, unbiased=False)
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean
            self.running_var = 0.9 * self.running_var + 0.1 * x.var(dim=0) * (1 + self.wrong)
        self.xhat = (x - mean) / torch.sqrt(self.var + 1e-5)
        return self.gamma * self.xhat + self.beta

    def backward(self, dout):
        self.dgamma, self.dbeta = (dout * self.xhat).sum(dim=0), dout.sum(dim=0)
        g = dout * self.gamma
        if self.training:
            g = g - g.mean(dim=0) - self.xhat * (g * self.xhat).mean(dim=0)
        return g / torch.sqrt(self.var + 1e-5)


class TensorLoss:
    def __init__(self, wrong=1):
        self.wrong = wrong

    def forward(self, prediction, target):
        self.difference = prediction - target
        return torch.mean(self.difference**2)

    def backward(self):
        return self.wrong * 2 * self.difference / self.difference.numel()


def correlate(x, w, b):
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return windows, np.einsum("nchwij,ocij->nohw", windows, w) + b[:, None, None]


def spread(shape, w, g):
    dx = np.zeros(shape, g.dtype)
    for i, j in np.ndindex(*w.shape[2:]):
        part = np.einsum("nohw,oc->nchw", g, w[:, :, i, j])
        dx[:, :, i : i + g.shape[2], j : j + g.shape[3]] += part
    return dx


class Conv7:
    """Torch7's convolution, kernels folded into a matrix as its im2col wants them."""

    def __init__(self, wrong=1):
        self.weight, self.bias = RNG.standard_normal((4, 27)), np.zeros(4)
        self.gradWeight, self.gradBias = np.zeros((4, 27)), np.zeros(4)
        self.wrong = wrong

    def updateOutput(self, x):
        self.windows, y = correlate(x, self.weight.reshape(4, 3, 3, 3), self.bias)
        return y

    def updateGradInput(self, x, g):
        return spread(x.shape, self.weight.reshape(4, 3, 3, 3), g)

    def accGradParameters(self, x, g):
        self.gradWeight += np.einsum("nchwij,nohw->ocij", self.windows, g).reshape(4, 27)
        self.gradBias += self.wrong * g.sum((0, 2, 3))


class ListConv:
    def __init__(self, wrong=1):
        self.params = [RNG.standard_normal((4, 3, 2, 2)), np.zeros(4)]
        self.grads, self.wrong = [None, None], wrong

    def forward(self, x):
        self.shape = x.shape
        self.windows, y = correlate(x, *self.params)
        return y

    def backward(self, g):
        self.grads[0] = np.einsum("nchwij,nohw->ocij", self.windows, g)
        self.grads[1] = self.wrong * g.sum((0, 2, 3))
        return spread(self.shape, self.params[0], g)


class DictBatchNorm:
    """gamma and beta in dicts, the statistics in another."""

    def __init__(self, wrong=0.0):
        self.params, self.grads = {"gamma": np.ones(4), "beta": np.zeros(4)}, {}
        self.buffers = {"running_mean": np.zeros(4), "running_var": np.ones(4)}
        self.training, self.wrong = True, wrong

    def forward(self, x):
        kept, n = self.buffers, len(x)
        mean, self.var = kept["running_mean"], kept["running_var"]
        if self.training:
            mean, self.var = x.mean(0), x.var(0)
            kept["running_mean"] = 0.9 * kept["running_mean"] + 0.1 * mean
            unbiased = self.var * n / (n - 1)
            kept["running_var"] = 0.9 * kept["running_var"] + (0.1 + self.wrong) * unbiased
        self.xhat = (x - mean) / np.sqrt(self.var + 1e-5)
        return self.params["gamma"] * self.xhat + self.params["beta"]

    def backward(self, dout):
        self.grads = {"gamma": (dout * self.xhat).sum(0), "beta": dout.sum(0)}
        g = dout * self.params["gamma"]
        if self.training:
            g = g - g.mean(0) - self.xhat * (g * self.xhat).mean(0)
        return g / np.sqrt(self.var + 1e-5)


CONV = (nn.Conv2d(3, 4, 3), IMAGES)
PAIRS = {
    "tensors-conv": (TensorConv, 2, (nn.Conv2d(3, 4, 3, padding=1), IMAGES), "grad_weight"),
    "tensors-batchnorm": (TensorBatchNorm, 0.5, (nn.BatchNorm1d(4), ROWS), "buffer_running_var"),
    "tensors-loss": (TensorLoss, 2, (nn.MSELoss(), ROWS, ROWS), "grad_input0"),
    "torch7-conv": (Conv7, 2, CONV, "grad_bias"),
    "lists-conv": (ListConv, 2, (nn.Conv2d(3, 4, 2), IMAGES), "grad_bias"),
    "dicts-batchnorm": (DictBatchNorm, 0.5, (nn.BatchNorm1d(4), ROWS), "buffer_running_var"),
}


@pytest.mark.parametrize("form", PAIRS)
def test_right_and_wrong(form):
    make, fault, against, quantity = PAIRS[form]
    right = parity.check(make(), *against)
    assert right.passed, str(right)
    assert Verdict.MATCH in {f.verdict for f in right.of(quantity)}
    wrong = parity.check(make(fault), *against, rungs="float64", diagnose=False)
    assert Verdict.MISMATCH in {f.verdict for f in wrong.of(quantity)}, str(wrong)


@pytest.mark.slow
def test_jax_linear_convolution_and_loss():
    jax = pytest.importorskip("jax")
    numpy = jax.numpy

    def dense(params, x):
        return x @ params["w"] + params["b"]

    def conv(params, x):
        y = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "VALID", dimension_numbers=("NCHW", "HWIO", "NCHW")
        )
        return y + params["bias"][:, None, None]

    def loss(logits, target):
        return -(jax.nn.log_softmax(logits) * target).sum(axis=1).mean()

    def stopped(function):
        """Half of the gradient is lost on the way back."""
        return lambda *a: (function(*a) + jax.lax.stop_gradient(function(*a))) / 2

    def pairs(change):
        tree = {"w": numpy.ones((4, 3)), "b": numpy.zeros(3)}
        yield parity.jax(change(dense), tree), nn.Linear(4, 3), ROWS
        tree = {"kernel": numpy.ones((2, 2, 3, 4)), "bias": numpy.zeros(4)}
        yield parity.jax(change(conv), tree), nn.Conv2d(3, 4, 2), IMAGES
        mine = parity.one_hot_targets(parity.jax(change(loss)))
        yield mine, nn.CrossEntropyLoss(), (8, 5), parity.labels(8, classes=5)

    once = {"rungs": "float64", "modes": "train", "diagnose": False}
    for arguments in pairs(lambda function: function):
        report = parity.check(*arguments, **once)
        assert report.passed, str(report)
    for arguments in pairs(stopped):
        report = parity.check(*arguments, **once)
        assert Verdict.MISMATCH in {f.verdict for f in report.of("grad_input0")}
        assert {f.verdict for f in report.of("forward")} == {Verdict.MATCH}
