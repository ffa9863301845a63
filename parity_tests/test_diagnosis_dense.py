"""Faults of dense layers, activations, softmax, dropout, flatten and losses, each named."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity.quirks import holds

X = (6, 5)
RNG = np.random.default_rng(0)


RUNGS = ("exact", "float64", "probes")


def causes(mine, theirs, *inputs, **options):
    """The names of all causes that a check gives."""
    report = parity.check(mine, theirs, *inputs, rungs=RUNGS, **options)
    assert not report.passed
    return {f.cause.name if f.cause else None for f in report.failures}


class Linear:
    """A right Linear(5, 3), in small methods that a fault replaces."""

    shape = (3, 5)

    def __init__(self):
        self.params = {"weight": np.zeros(self.shape), "bias": np.zeros(self.shape[0])}
        self.grads = {}

    def zero_grad(self):
        self.grads = {}

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def weight_grad(self, g):
        return g.T @ self.x

    def bias_grad(self, g):
        return g.sum(0)

    def input_grad(self, g):
        return g @ self.params["weight"]

    def backward(self, g):
        for name, new in (("weight", self.weight_grad(g)), ("bias", self.bias_grad(g))):
            self.grads[name] = self.grads.get(name, 0) + new
        return self.input_grad(g)


def changed(base, **methods):
    """A subclass of ``base`` with some methods replaced."""
    return type(base.__name__, (base,), methods)


def linear_forward(formula):
    def forward(self, x):
        self.x = x
        return formula(x, self.params["weight"], self.params["bias"])

    return forward


def half(array):
    return array.astype(np.float32).astype(array.dtype)


LINEAR = {
    "batch_sum_not_averaged": {"weight_grad": lambda s, g: len(g) * (g.T @ s.x)},
    "averaged_over_batch": {"bias_grad": lambda s, g: g.mean(0)},
    "sign_flipped": {"input_grad": lambda s, g: -g @ s.params["weight"]},
    "doubled": {"bias_grad": lambda s, g: 2 * g.sum(0)},
    "halved": {"weight_grad": lambda s, g: g.T @ s.x / 2},
    "zero": {"bias_grad": lambda s, g: 0 * g.sum(0)},
    "constant_factor": {"weight_grad": lambda s, g: 1.37 * (g.T @ s.x)},
    "absolute_value": {"weight_grad": lambda s, g: np.abs(g.T @ s.x)},
    "clipped": {"weight_grad": lambda s, g: np.clip(g.T @ s.x, -0.5, 0.5)},
    "batch_not_reduced": {"bias_grad": lambda s, g: g},
    "transposed": {"weight_grad": lambda s, g: s.x.T @ g},
    "bias_ignored": {"forward": linear_forward(lambda x, w, b: x @ w.T)},
    "bias_added_twice": {"forward": linear_forward(lambda x, w, b: x @ w.T + 2 * b)},
    "bias_subtracted": {"forward": linear_forward(lambda x, w, b: x @ w.T - b)},
    "constant_offset": {"forward": linear_forward(lambda x, w, b: x @ w.T + b + 0.25)},
    "rounded_through_float32": {"forward": linear_forward(lambda x, w, b: half(x) @ w.T + b)},
    "sign_flipped+batch_sum_not_averaged": {"weight_grad": lambda s, g: -len(g) * (g.T @ s.x)},
    "weight_term_added": {"weight_grad": lambda s, g: g.T @ s.x + s.params["weight"]},
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", LINEAR)
def test_linear(name):
    assert causes(changed(Linear, **LINEAR[name])(), nn.Linear(5, 3), X) == {name}


def test_batch_size_is_told_from_channels():
    eight = changed(Linear, weight_grad=lambda s, g: 8 * (g.T @ s.x))
    assert causes(eight(), nn.Linear(5, 3), (8, 5)) == {"constant_factor"}
    report = parity.check(
        changed(Linear, **LINEAR["batch_sum_not_averaged"])(), nn.Linear(5, 3), (8, 5)
    )
    assert report.cause.sentence == (
        "weight.grad is 8 × torch's, and the batch size is 8: the batch sum was not averaged"
    )


class Function:
    """An activation given by its formula and its derivative d(x, y)."""

    def __init__(self, f, d):
        self.f, self.d = f, d

    def forward(self, x):
        self.x = x
        with np.errstate(all="ignore"):
            self.y = self.f(x)
        return self.y

    def backward(self, g):
        with np.errstate(all="ignore"):
            return g * self.d(self.x, self.y)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def relu(x):
    return x * (x > 0)


def elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


FUNCTIONS = [
    ("kink_derivative", nn.ReLU(), relu, lambda x, y: (x >= 0) * 1.0),
    ("kink_derivative", nn.ReLU(), relu, lambda x, y: (x > 0) + 0.5 * (x == 0)),
    ("derivative_one_everywhere", nn.ReLU(), relu, lambda x, y: np.ones_like(x)),
    ("cancellation", nn.ELU(), lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
     lambda x, y: np.where(x > 0, 1.0, np.exp(np.minimum(x, 0)))),
    ("alpha_ignored", nn.ELU(1.5), lambda x: elu(x),
     lambda x, y: np.where(x > 0, 1, np.exp(np.minimum(x, 0)))),
    ("wrong_alpha", nn.ELU(1.5), lambda x: elu(x, 0.7),
     lambda x, y: np.where(x > 0, 1, 0.7 * np.exp(np.minimum(x, 0)))),
    ("negative_slope_ignored", nn.LeakyReLU(0.2), lambda x: np.where(x > 0, x, 0.01 * x),
     lambda x, y: np.where(x > 0, 1, 0.01)),
    ("derivative_of_input", nn.Tanh(), np.tanh, lambda x, y: 1 - x * x),
    ("derivative_incomplete", nn.Tanh(), np.tanh, lambda x, y: 1 - y),
    ("derivative_of_input", nn.Sigmoid(), sigmoid, lambda x, y: x * (1 - x)),
    ("derivative_at_output", nn.Sigmoid(), sigmoid, lambda x, y: sigmoid(y) * (1 - sigmoid(y))),
    ("upstream_passed_through", nn.Sigmoid(), sigmoid, lambda x, y: np.ones_like(x)),
    ("beta_ignored", nn.Softplus(beta=2.0), lambda x: np.logaddexp(0, x) * (x <= 20) + x * (x > 20),
     lambda x, y: np.where(x > 20, 1, sigmoid(x))),
    ("divided_by_beta", nn.Softplus(beta=3.0),
     lambda x: np.where(3 * x > 20, x, np.logaddexp(0, 3 * x) / 3),
     lambda x, y: np.where(3 * x > 20, 1, sigmoid(3 * x)) / 3),
    ("boundary_value", nn.Threshold(1.0, 0.5), lambda x: np.where(x >= 1, x, 0.5),
     lambda x, y: (x > 1) * 1.0),
    ("another_function", nn.ReLU6(), relu, lambda x, y: (x > 0) * 1.0),
    ("threshold_ignored", nn.Softplus(threshold=2), lambda x: np.logaddexp(0, x) * (x <= 20)
     + x * (x > 20), lambda x, y: np.where(x > 20, 1, sigmoid(x))),
    ("overflow", nn.Sigmoid(), lambda x: np.exp(x) / (1 + np.exp(x)), lambda x, y: y * (1 - y)),
]  # fmt: skip


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("name", "theirs", "f", "d"),
    FUNCTIONS,
    ids=[f"{i}-{row[0]}" for i, row in enumerate(FUNCTIONS)],
)
def test_activation(name, theirs, f, d):
    if isinstance(theirs, nn.ELU) and holds("elu_cancels"):
        pytest.skip("this torch's own ELU loses digits")
    found = causes(Function(f, d), theirs, X)
    assert found == {name}


class Softmax:
    def __init__(self, axis=1, shift=True, rule=None):
        self.axis, self.shift, self.rule = axis, shift, rule

    def forward(self, x):
        with np.errstate(all="ignore"):
            e = np.exp(x - x.max(self.axis, keepdims=True) if self.shift else x)
            self.s = e / e.sum(self.axis, keepdims=True)
        return self.s

    def backward(self, g):
        with np.errstate(all="ignore"):
            if self.rule:
                return self.rule(self.s, g)
            return self.s * (g - (g * self.s).sum(self.axis, keepdims=True))


@pytest.mark.parametrize(
    ("name", "mine"),
    [
        ("wrong_dim", Softmax(axis=0)),
        ("overflow", Softmax(shift=False)),
        ("jacobian_diagonal_only", Softmax(rule=lambda s, g: g * s * (1 - s))),
        ("jacobian_sum_missing", Softmax(rule=lambda s, g: g * s)),
        ("upstream_passed_through", Softmax(rule=lambda s, g: g)),
    ],
)
def test_softmax(name, mine):
    assert causes(mine, nn.Softmax(1), X) == {name}


class Dropout:
    def __init__(self, p, scale=None, always=False):
        self.p, self.training, self.always = p, True, always
        self.scale = 1 / (1 - p) if scale is None else scale
        self.rng = np.random.default_rng(3)

    def forward(self, x):
        self.used = self.training or self.always
        self.mask = self.rng.random(x.shape) >= self.p
        return x * self.mask * self.scale if self.used else x

    def backward(self, g):
        return g * self.mask * self.scale if self.used else g


def test_dropout():
    assert "dropout_not_scaled" in causes(Dropout(0.3, 1.0), nn.Dropout(0.3), (16, 20))
    assert "dropout_scaled_twice" in causes(Dropout(0.3, 0.7**-2), nn.Dropout(0.3), (16, 20))
    assert "wrong_mode" in causes(Dropout(0.3, always=True), nn.Dropout(0.3), (16, 20))


class Flatten:
    def __init__(self, order="C", start=1):
        self.order, self.start = order, start

    def forward(self, x):
        self.shape = x.shape
        lead = x.shape[: self.start]
        if self.order == "F":
            return np.swapaxes(x, -1, -2).reshape(*lead, -1)
        return x.reshape(*lead, -1)

    def backward(self, g):
        if self.order == "F":
            swapped = (*self.shape[:-2], self.shape[-1], self.shape[-2])
            return np.swapaxes(g.reshape(swapped), -1, -2)
        return g.reshape(self.shape)


def test_flatten():
    assert causes(Flatten(start=2), nn.Flatten(), (4, 2, 3, 5)) <= {
        "start_dim_ignored",
        "wrong_start_dim",
    }
    assert "input_transposed" in causes(Flatten("F"), nn.Flatten(), (4, 2, 3, 5))


class Loss:
    """A loss as two formulas of (prediction, target)."""

    def __init__(self, value, grad):
        self.value, self.grad = value, grad
        self.buffers = {"weight": W}

    def forward(self, p, t):
        self.args = p, t
        with np.errstate(all="ignore"):
            return self.value(p, t)

    def backward(self, g=1.0):
        with np.errstate(all="ignore"):
            return g * self.grad(*self.args)


def log_softmax(x):
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def hot(p, t):
    return np.eye(p.shape[1])[t]


W = np.array([0.5, 2.0, 1.0, 0.25, 3.0])


def ce(smoothing=0.0, weight=None, by_count=False, scale=1.0, forward_scale=1.0):
    """Cross entropy with the mean over the weights (or over the batch alone)."""
    weight = np.ones(5) if weight is None else weight

    def targets(p, t):
        return ((1 - smoothing) * hot(p, t) + smoothing / 5) * weight

    def total(t):
        return len(t) if by_count else weight[t].sum()

    def value(p, t):
        return -(targets(p, t) * log_softmax(p)).sum() / total(t) * forward_scale

    def grad(p, t):
        q = targets(p, t)
        return (q.sum(1, keepdims=True) * np.exp(log_softmax(p)) - q) / total(t) * scale

    return Loss(value, grad)


class PerSample(Loss):
    """The gradient of a mean that forgets to divide."""

    def backward(self, g=1.0):
        return super().backward(g) * len(self.args[1])


MSE = {
    "batch_sum_not_averaged": (lambda p, t: ((p - t) ** 2).mean(),
                               lambda p, t: 2 * (p - t) / p.size * len(p)),
    "wrong_reduction": (lambda p, t: ((p - t) ** 2).sum(), lambda p, t: 2 * (p - t)),
    "halved": (lambda p, t: ((p - t) ** 2).mean(), lambda p, t: (p - t) / p.size),
    "sign_flipped": (lambda p, t: ((p - t) ** 2).mean(), lambda p, t: 2 * (t - p) / p.size),
    "mean_divides_by_batch": (lambda p, t: ((p - t) ** 2).sum() / len(p),
                              lambda p, t: 2 * (p - t) / len(p)),
}  # fmt: skip


@pytest.mark.parametrize("name", MSE)
def test_mse(name):
    value, grad = MSE[name]
    mine = Loss(value, grad)
    assert causes(mine, nn.MSELoss(), (4, 3), (4, 3)) == {name}


def weighted(**options):
    return nn.CrossEntropyLoss(torch.tensor(W), **options)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("name", "mine", "theirs"),
    [
        ("class_weight_ignored", ce(), weighted()),
        ("mean_divides_by_count", ce(weight=W, by_count=True), weighted()),
        ("label_smoothing_ignored", ce(), nn.CrossEntropyLoss(label_smoothing=0.2)),
        ("wrong_label_smoothing", ce(0.3), nn.CrossEntropyLoss(label_smoothing=0.2)),
        ("batch_sum_not_averaged", PerSample(ce().value, ce().grad), nn.CrossEntropyLoss()),
        ("ignore_index_ignored", ce(), nn.CrossEntropyLoss(ignore_index=2)),
        ("labels_shifted", Loss(lambda p, t: ce().value(p, (t + 1) % 5),
                                lambda p, t: ce().grad(p, (t + 1) % 5)), nn.CrossEntropyLoss()),
        ("sign_flipped", Loss(lambda p, t: -ce().value(p, t), lambda p, t: -ce().grad(p, t)),
         nn.CrossEntropyLoss()),
    ],
)  # fmt: skip
def test_cross_entropy(name, mine, theirs):
    assert causes(mine, theirs, (6, 5), parity.labels(6, classes=5)) == {name}


def hinge(p, t, margin=1.0, at=0.0, divisor=0):
    """Multi-margin loss of (N, C) and its gradient; ``at`` is the derivative on the margin."""
    rows = np.arange(len(p))
    z = margin - p[rows, t][:, None] + p
    z[rows, t] = -1
    d = ((z > 0) + at * (z == 0)) * 1.0
    d[rows, t] = -d.sum(1)
    count = len(p) * (p.shape[1] - divisor)
    return np.maximum(z, 0).sum() / count, d / count


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kink_derivative", {"at": 1.0}),
        ("wrong_margin", {"margin": 2.0}),
        ("divided_by_other_classes", {"divisor": 1}),
    ],
)
def test_multi_margin(name, options):
    mine = Loss(lambda p, t: hinge(p, t, **options)[0], lambda p, t: hinge(p, t, **options)[1])
    assert causes(mine, nn.MultiMarginLoss(), (6, 5), parity.labels(6, classes=5)) == {name}


def test_warnings_are_not_let_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parity.check(Softmax(shift=False), nn.Softmax(1), X)
