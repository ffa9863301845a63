"""A course's pairs of functions: a layer that is right, and a loss that overflows."""

import numpy as np
import torch

import parity


def affine_forward(x, w, b):
    return x @ w + b, (x, w)


def affine_backward(dout, cache):
    x, w = cache
    return dout @ w.T, x.T @ dout, dout.sum(axis=0)


def softmax_loss(x, y):
    rows = np.arange(len(x))
    probabilities = np.exp(x)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    dx = probabilities.copy()
    dx[rows, y] -= 1
    return -np.log(probabilities[rows, y]).mean(), dx / len(x)


print(parity.check((affine_forward, affine_backward), torch.nn.Linear(4, 3), (8, 4)))
print()
labels = parity.labels(8, classes=5)
print(parity.check(softmax_loss, torch.nn.CrossEntropyLoss(), (8, 5), labels))
