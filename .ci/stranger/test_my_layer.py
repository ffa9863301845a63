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


class MyMSE:
    """A loss of one's own: forward(prediction, target) and backward()."""

    def forward(self, prediction, target):
        self.off = prediction - target
        return np.mean(self.off**2)

    def backward(self, grad_output=1.0):
        return grad_output * 2 * self.off / self.off.size


class MyMomentum:
    """An optimizer of one's own: step(), and the state by name."""

    def __init__(self, model, lr, momentum):
        self.model, self.lr, self.momentum, self.state = model, lr, momentum, {}

    def step(self):
        for name, grad in self.model.grads.items():
            slot = self.state.setdefault(name, {"momentum_buffer": np.zeros_like(grad)})
            slot["momentum_buffer"] = self.momentum * slot["momentum_buffer"] + grad
            self.model.params[name] -= self.lr * slot["momentum_buffer"]

    def zero_grad(self):
        self.model.zero_grad()


class Backwards(MyMomentum):
    """Multiplies the new gradient by the momentum, not the old buffer."""

    def step(self):
        for name, grad in self.model.grads.items():
            slot = self.state.setdefault(name, {"momentum_buffer": np.zeros_like(grad)})
            slot["momentum_buffer"] = slot["momentum_buffer"] + self.momentum * grad
            self.model.params[name] -= self.lr * slot["momentum_buffer"]


def train(kind):
    import parity

    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((8, 4)), rng.standard_normal((8, 3))) for _ in range(5)]
    return parity.check_training(
        MyLinear(4, 3),
        torch.nn.Linear(4, 3),
        loss=(MyMSE(), torch.nn.MSELoss()),
        optimizer=(
            lambda model: kind(model, lr=0.1, momentum=0.9),
            lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        ),
        batches=batches,
        epochs=2,
    )


def test_my_loss(parity):
    parity(MyMSE(), torch.nn.MSELoss(), (8, 3), (8, 3))


def test_my_training_run():
    report = train(MyMomentum)
    assert report.passed, str(report)


def test_a_wrong_optimizer_is_caught():
    assert not train(Backwards).passed
