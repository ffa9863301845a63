"""What is timed: every layer, loss, optimizer and model, in the sizes of the workloads and up."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import nn

import impl
import impl.models.convolution as nets
import reference.models.convolution as torch_nets
from fixtures.weights import share

VECTOR = 4_000_000


@dataclass(frozen=True)
class Subject:
    """One pair to be timed on float32 inputs of ``shapes`` (an int alone: labels up to it)."""

    name: str
    group: str
    mine: Callable
    theirs: Callable
    shape: tuple[int, ...]
    labels: int = 0
    kind: str = "layer"


def _same(name, group, shape, *args, **config):
    """Return the subject of one class name on both sides."""
    return Subject(
        f"{group}-{name}-{'x'.join(map(str, shape))}",
        group,
        lambda: getattr(impl, name)(*args, **config),
        lambda: getattr(nn, name)(*args, **config),
        shape,
    )


def _loss(name, group, shape, labels=0, **config):
    return Subject(
        f"{group}-{name}-{'x'.join(map(str, shape))}",
        group,
        lambda: getattr(impl, name)(**config),
        lambda: getattr(nn, name)(**config),
        shape,
        labels,
        "loss",
    )


def _net(name, group, mine, theirs, shape, classes):
    return Subject(f"{group}-{name}", group, mine, theirs, shape, classes, "training")


def _dense(library, *sizes, activation="ReLU"):
    layers = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [library.Linear(a, b)]
        if i < len(sizes) - 2:
            layers += [getattr(library, activation)()]
    return library.Sequential(*layers)


WORKLOAD = (
    _same("Conv2d", "workload", (4, 1, 5, 5), 1, 4, 5),
    _same("Conv2d", "workload", (4, 1, 5, 5), 1, 4, 3),
    _same("Conv2d", "workload", (10, 1, 8, 8), 1, 4, 3),
    _same("BatchNorm2d", "workload", (4, 4, 3, 3), 4),
    _same("BatchNorm2d", "workload", (10, 4, 6, 6), 4),
    _same("AvgPool2d", "workload", (10, 4, 6, 6), 2),
    _same("MaxPool2d", "workload", (10, 4, 6, 6), 2),
    _same("ReLU", "workload", (10, 4, 6, 6)),
    _same("Linear", "workload", (10, 36), 36, 10),
    _same("Linear", "workload", (128, 2), 2, 2),
    _same("LogSoftmax", "workload", (128, 2), 1),
    _same("Sigmoid", "workload", (1000, 16)),
    _loss("CrossEntropyLoss", "workload", (10, 10), 10),
    _loss("NLLLoss", "workload", (128, 2), 2),
    _loss("MSELoss", "workload", (100, 1)),
    _loss("BCELoss", "workload", (1000, 1)),
    _net("A1", "workload", nets.line_net, torch_nets.line_net, (4, 1, 5, 5), 2),
    _net(
        "A2",
        "workload",
        lambda: nets.pooled_net(5, 2),
        lambda: torch_nets.pooled_net(5, 2),
        (4, 1, 5, 5),
        2,
    ),
    _net(
        "A3",
        "workload",
        lambda: nets.pooled_net(8, 10),
        lambda: torch_nets.pooled_net(8, 10),
        (10, 1, 8, 8),
        10,
    ),
    _net("B2", "workload", lambda: _dense(impl, 2, 2), lambda: _dense(nn, 2, 2), (128, 2), 2),
    _net(
        "B3",
        "workload",
        lambda: _dense(impl, 2, 100, 2),
        lambda: _dense(nn, 2, 100, 2),
        (128, 2),
        2,
    ),
)
DENSE = (
    _net(
        "B4",
        "dense",
        lambda: _dense(impl, 784, 128, 128, 10),
        lambda: _dense(nn, 784, 128, 128, 10),
        (128, 784),
        10,
    ),
    _net(
        "C1",
        "dense",
        lambda: _dense(impl, 1, 64, 2),
        lambda: _dense(nn, 1, 64, 2),
        (500, 1),
        2,
    ),
    _net(
        "C3",
        "dense",
        lambda: _dense(impl, 3072, 10, 3),
        lambda: _dense(nn, 3072, 10, 3),
        (128, 3072),
        3,
    ),
    _net("E", "dense", lambda: _dense(impl, 64, 10), lambda: _dense(nn, 64, 10), (256, 64), 10),
)
MEDIUM = (
    _same("Conv2d", "medium", (64, 16, 28, 28), 16, 32, 3, padding=1),
    _same("Conv2d", "medium", (64, 32, 28, 28), 32, 32, 3, padding=1),
    _same("Conv2d", "medium", (64, 32, 28, 28), 32, 16, 1),
    _same("Conv2d", "medium", (64, 16, 28, 28), 16, 32, 3, stride=2, padding=1),
    _same("BatchNorm2d", "medium", (64, 32, 28, 28), 32),
    _same("AvgPool2d", "medium", (64, 32, 28, 28), 2),
    _same("MaxPool2d", "medium", (64, 32, 28, 28), 2),
    _same("ReLU", "medium", (64, 32, 28, 28)),
    _same("Linear", "medium", (64, 784), 784, 256),
    _loss("CrossEntropyLoss", "medium", (4096, 100), 100),
)
LARGE = (
    _same("Conv2d", "large", (16, 64, 56, 56), 64, 64, 3, padding=1),
    _same("BatchNorm2d", "large", (16, 64, 56, 56), 64),
    _same("AvgPool2d", "large", (16, 64, 56, 56), 2),
    _same("MaxPool2d", "large", (16, 64, 56, 56), 2),
    _same("Linear", "large", (512, 1024), 1024, 1024),
)
OTHERS = (  # what has no target of its own
    _same("Conv2d", "others", (64, 32, 28, 28), 32, 32, 3, padding=1, groups=32),
    _same("BatchNorm1d", "others", (128, 128), 128),
    _same("Softmax", "others", (4096, 100), 1),
    _same("LogSoftmax", "others", (4096, 100), 1),
    _same("Flatten", "others", (10, 4, 6, 6)),
    _same("Threshold", "others", (64, 32, 28, 28), 0.1, 0.5),
    _loss("MultiMarginLoss", "others", (256, 10), 10),
    _loss("BCELoss", "others", (4096, 100)),
    _loss("BCEWithLogitsLoss", "others", (4096, 100)),
)
FUNCTIONS = ("ReLU", "LeakyReLU", "ELU", "Softplus", "Sigmoid", "Tanh")
ELEMENTWISE = (
    *(_same(name, "elementwise", (VECTOR,)) for name in FUNCTIONS),
    _loss("MSELoss", "elementwise", (VECTOR,)),
)


def _numbered(subjects):
    """Return the subjects, the second of one name called "name (2)": rows go by their names."""
    seen: dict[str, int] = {}
    for subject in subjects:
        count = seen[subject.name] = seen.get(subject.name, 0) + 1
        yield subject if count == 1 else replace(subject, name=f"{subject.name} ({count})")


SUBJECTS = tuple(_numbered((*WORKLOAD, *DENSE, *MEDIUM, *LARGE, *OTHERS, *ELEMENTWISE)))
OPTIMIZERS = {
    "SGD": {"lr": 0.01, "momentum": 0.9},
    "Adam": {"lr": 1e-3},
    "AdamW": {"lr": 1e-3},
}


@dataclass
class Passes:
    """The two sides of a subject as functions without arguments."""

    forward: tuple[Callable, Callable]
    both: tuple[Callable, Callable]


def passes(subject: Subject) -> Passes:
    """Build both sides with the same weights and inputs; check that they agree before timing."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    x = rng.standard_normal(subject.shape).astype(np.float32)
    mine, theirs = subject.mine(), subject.theirs()
    if subject.kind != "loss" and list(theirs.parameters()):
        share(theirs, mine)
    made = {"layer": _layer, "loss": _losses, "training": _training}[subject.kind]
    return made(subject, mine, theirs, x, rng)


def _layer(subject, mine, theirs, x, rng):
    t = torch.from_numpy(x.copy()).requires_grad_(True)
    y = mine(x)
    g = rng.standard_normal(y.shape).astype(np.float32)
    tg = torch.from_numpy(g)

    def own():
        mine.zero_grad()
        mine.forward(x)
        return mine.backward(g)

    def other():
        t.grad = None
        theirs.zero_grad()
        theirs(t).backward(tg)
        return t.grad

    def other_forward():
        with torch.no_grad():
            return theirs(t)

    _agree(own(), other())
    return Passes((lambda: mine.forward(x), other_forward), (own, other))


def _losses(subject, mine, theirs, x, rng):
    if subject.labels:
        target = rng.integers(0, subject.labels, (subject.shape[0],))
        if subject.name.split("-")[1] == "NLLLoss":
            x = np.log(np.exp(x) / np.exp(x).sum(1, keepdims=True))
    else:
        target = rng.standard_normal(subject.shape).astype(np.float32)
        if "BCE" in subject.name:
            target = rng.random(subject.shape, np.float32)
        if "BCELoss" in subject.name:
            x = 1 / (1 + np.exp(-x))
    t, y = torch.from_numpy(x.copy()).requires_grad_(True), torch.from_numpy(target)

    def own():
        mine.forward(x, target)
        return mine.backward()

    def other():
        t.grad = None
        theirs(t, y).backward()
        return t.grad

    def other_forward():
        with torch.no_grad():
            return theirs(t, y)

    _agree(own(), other())
    return Passes((lambda: mine.forward(x, target), other_forward), (own, other))


def _training(subject, mine, theirs, x, rng):
    target = rng.integers(0, subject.labels, (subject.shape[0],))
    t = torch.from_numpy(x.copy())

    def other_forward():
        with torch.no_grad():
            return theirs(t)

    steps = training_steps(mine, theirs, x, target)
    return Passes((lambda: mine.forward(x), other_forward), steps)


def training_steps(mine, theirs, x, target, lr=1e-3):
    """Return both sides' whole step, forward, loss, backward and SGD; each returns its loss."""
    loss, torch_loss = impl.CrossEntropyLoss(), nn.CrossEntropyLoss()
    step = impl.SGD(mine, lr=lr)
    torch_step = torch.optim.SGD(theirs.parameters(), lr=lr)
    t, y = torch.from_numpy(x.copy()), torch.from_numpy(target)

    def own():
        mine.zero_grad()
        value = loss.forward(mine.forward(x), target)
        mine.backward(loss.backward())
        step.step()
        return value

    def other():
        torch_step.zero_grad()
        value = torch_loss(theirs(t), y)
        value.backward()
        torch_step.step()
        return value

    return own, other


def _agree(mine, theirs):
    """Speed of a wrong answer is worth nothing: the first passes must be near each other."""
    other = theirs.detach().numpy()
    scale = np.abs(other).max()
    if mine.shape != other.shape or not np.abs(mine - other).max() <= 1e-3 * scale:
        raise AssertionError("the two sides of a benchmark compute different things")
