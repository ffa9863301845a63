"""Option ranges of torch's optimizers, and how one is examined: some steps of a small net."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from parity.findings import Report
from parity.outcomes import Array
from parity.specs import normal
from parity.sweeping.spaces import CaseDraw, Drawn, Draws, Layer, Sampler


class Affine:
    """The net whose parameters are stepped: y = x·Wᵀ + b, in the contract of a layer."""

    def __init__(self, wide: int, out: int) -> None:
        self.params = {"weight": np.zeros((out, wide)), "bias": np.zeros(out)}
        self.grads: dict[str, Array] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.grads = {}

    def forward(self, x: Array) -> Array:
        """Return y."""
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, grad_output: Array) -> Array:
        """Add to the gradients, and return that of x."""
        for name, new in (("weight", grad_output.T @ self.x), ("bias", grad_output.sum(axis=0))):
            self.grads[name] = self.grads[name] + new if name in self.grads else new
        return grad_output @ self.params["weight"]


class Squared:
    """The mean of squared differences."""

    def forward(self, prediction: Array, target: Array) -> Any:
        """Return the loss."""
        self.difference = prediction - target
        return np.mean(self.difference**2)

    def backward(self, grad_output: Any = 1.0) -> Array:
        """Return the gradient of the prediction."""
        return grad_output * (2 / self.difference.size) * self.difference


@dataclass(frozen=True)
class OptimizerLayer(Layer):
    """An optimizer of a space: ``mine`` is called with a model, ``theirs`` with parameters.

    Its two inputs are the steps' batches and targets: (steps, rows, features) each.
    """

    def build(self, drawn: Drawn) -> tuple[Any, Any]:
        """Return both factories; each has made one optimizer without raising."""
        import torch

        mine = partial(_made, self.mine, drawn)
        theirs = partial(_made, self.theirs, drawn)
        mine(Affine(1, 1))
        theirs(torch.nn.Linear(1, 1).parameters())
        return mine, theirs

    def _judge(self, draw: CaseDraw, mine: Any, theirs: Any) -> Report:
        import torch

        from parity.training import check_training

        rng = np.random.default_rng([draw.seed, 1])
        inputs, targets = (spec.draw(rng) for spec in draw.drawn.inputs)
        wide, out = inputs.shape[-1], targets.shape[-1]
        return check_training(
            Affine(wide, out),
            torch.nn.Linear(wide, out),
            loss=(Squared(), torch.nn.MSELoss()),
            optimizer=(mine, theirs),
            batches=list(zip(inputs, targets, strict=True)),
            seed=draw.seed,
            case=draw.name,
        )

    @classmethod
    def warm(cls) -> None:
        """Import what a case needs, without a line of the user's."""
        import torch

        one = normal(1, 1, 1)
        draw = CaseDraw("warm", Drawn((), {"lr": 0.1}, (one, one)), "train", 0, full=False)
        OptimizerLayer("warm", Descent, torch.optim.SGD, sgd).examine(draw)


class Descent:
    """Plain gradient descent, which needs nobody's code."""

    def __init__(self, model: Any, lr: float) -> None:
        self.model, self.lr = model, lr

    def step(self) -> None:
        """Move every parameter."""
        for name, grad in self.model.grads.items():
            self.model.params[name] -= self.lr * grad


def _made(maker: Any, drawn: Drawn, held: Any) -> Any:
    return maker(held, *drawn.args, **drawn.options)


def _steps(d: Draws) -> Drawn:
    steps, rows = d.size(2, 3), d.size(1, 4)
    return d.drawn((), normal(steps, rows, d.size(1, 4)), normal(steps, rows, d.size(1, 4)))


def _rate(d: Draws, *rates: float) -> None:
    d.option("lr", 1e-3, lambda: d.pick(*rates, float(d.rng.uniform(0.0, 0.5))), 0.8)
    d.option("weight_decay", 0, lambda: d.pick(0.0, 0.01, 0.5, float(d.rng.random())), 0.4)
    d.option("maximize", False, lambda: True, 0.3)


def sgd(d: Draws) -> Drawn:
    """SGD with every option; torch takes nesterov with momentum and without dampening alone."""
    _rate(d, 0.0, 0.1, 1.0)
    momentum = d.option("momentum", 0, lambda: d.pick(0.0, 0.5, 0.9, 1.0, float(d.rng.random())))
    if not (momentum and d.option("nesterov", False, lambda: True, 0.4)):
        d.option("dampening", 0, lambda: d.pick(0.1, 1.0, float(d.rng.random())), 0.4)
    return _steps(d)


def adam(d: Draws, decoupled: bool = False) -> Drawn:
    """Adam and AdamW with every option that torch documents; foreach and fused are its speed."""
    _rate(d, 0.0, 0.1, 1e-2)
    d.option("betas", (0.9, 0.999), lambda: (_beta(d), _beta(d)))
    d.option("eps", 1e-8, lambda: d.pick(1e-8, 1e-3, 0.1, 1.0), 0.4)
    d.option("amsgrad", False, lambda: True, 0.4)
    if decoupled:
        d.option("decoupled_weight_decay", False, lambda: True, 0.3)
    return _steps(d)


def _beta(d: Draws) -> float:
    return float(d.pick(0.0, 0.5, 0.9, 0.999, d.rng.random()))


def _adam(d: Draws) -> Drawn:
    import torch

    # an option that older versions of torch lack
    return adam(d, "decoupled_weight_decay" in signature(torch.optim.Adam).parameters)


OPTIMIZERS: dict[str, Sampler] = {"SGD": sgd, "AdamW": adam, "Adam": _adam}
