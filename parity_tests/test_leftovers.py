"""What a pass leaves behind: parameters, caches, gradients, memory; and dropped channels."""

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity
from parity_tests.several import seeds

X = (8, 4)


def causes(mine, theirs, *inputs, **options):
    """Return the names of the causes of a check without its probes, which are not asked here."""
    report = parity.check(mine, theirs, *inputs, diagnose=False, **options)
    return {f.cause.name for f in report.failures if f.cause}


# ---- parameters ----------------------------------------------------------------------------------


class StepsInBackward(impl.Linear):
    def backward(self, grad_output):
        dx = super().backward(grad_output)
        for name, param in self.params.items():
            self.params[name] = param - np.asarray(0.01 * self.grads[name], param.dtype)
        return dx


class DecaysInForward(impl.Linear):
    def forward(self, input):
        y = super().forward(input)
        self.params["weight"] *= 0.9
        return y


class Attributes:
    def __init__(self):
        self.W, self.b = np.zeros((4, 3)), np.zeros(3)

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, g):
        self.dW, self.db = self.x.T @ g, g.sum(0)
        dx = g @ self.W.T
        self.W = self.W - 0.01 * self.dW
        return dx


class Normalises(nn.Embedding):
    def forward(self, labels):
        y = super().forward(labels)
        data = self.weight.data  # past autograd, which would notice a change of the weight itself
        self.weight.data = data / data.norm(dim=1, keepdim=True)
        return y


@pytest.mark.parametrize(
    ("mine", "phase"),
    [(StepsInBackward(4, 3), "backward"), (DecaysInForward(4, 3), "forward"),
     (Attributes(), "backward")],
)  # fmt: skip
def test_a_layer_that_changes_its_parameters(mine, phase):
    report = parity.check(mine, nn.Linear(4, 3), X)
    (found,) = [f for f in report.failures if f.quantity == "untouched"]
    assert found.cause.name == "parameter_modified"
    assert f"weight was changed by {phase}" in found.cause.sentence


def test_a_module_that_changes_its_parameters():
    labels = parity.labels(6, classes=10)
    assert causes(Normalises(10, 3), nn.Embedding(10, 3), labels) >= {"parameter_modified"}
    renormed = nn.Embedding(10, 3, max_norm=0.5)  # torch's own pass changes them: so may mine
    other = nn.Embedding(10, 3, max_norm=0.5)
    assert "parameter_modified" not in causes(other, renormed, labels)


# ---- caches --------------------------------------------------------------------------------------


class FirstMask:
    mask = None

    def forward(self, x):
        if self.mask is None or self.mask.shape != x.shape:
            self.mask = x > 0
        return x * self.mask

    def backward(self, g):
        return g * self.mask


class SharedTanh:
    cache = {}  # noqa: RUF012  of all instances: that is the fault

    def forward(self, x):
        self.cache["y"] = np.tanh(x)
        return self.cache["y"]

    def backward(self, g):
        return g * (1 - self.cache["y"] ** 2)


class OwnTanh(SharedTanh):
    def __init__(self):
        self.cache = {}


WORKSPACE = {}


def relu_into_workspace(x):
    y = WORKSPACE.setdefault((x.shape, x.dtype), np.empty_like(x))
    np.maximum(x, 0, out=y)
    return y, x


class SharedBuffer(torch.autograd.Function):
    kept = None

    @staticmethod
    def forward(ctx, x):
        SharedBuffer.kept = x.tanh()
        return SharedBuffer.kept.clone()

    @staticmethod
    def backward(ctx, g):
        return g * (1 - SharedBuffer.kept**2)


class WritesUpstream(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g.mul_(1 - y * y)


class AssumesContiguous(WritesUpstream):
    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return torch.as_strided(g, g.shape, y.stride()) * (1 - y * y)


class RightTanh(WritesUpstream):
    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y * y)


class Applies(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


RELU = (relu_into_workspace, lambda g, x: g * (x > 0))
FAULTS = [
    (FirstMask(), nn.ReLU(), "state_kept"),
    (SharedTanh(), nn.Tanh(), "workspace_shared"),
    (RELU, nn.ReLU(), "workspace_shared"),
    (Applies(SharedBuffer), nn.Tanh(), "workspace_shared"),
    (Applies(WritesUpstream), nn.Tanh(), "upstream_modified"),
    (Applies(AssumesContiguous), nn.Tanh(), "memory_layout"),
]


@pytest.mark.parametrize(("mine", "theirs", "cause"), FAULTS, ids=[row[2] for row in FAULTS])
@pytest.mark.parametrize("seed", seeds(3))
def test_what_one_pass_leaves_for_the_next(mine, theirs, cause, seed):
    assert cause in causes(mine, theirs, X, seed=seed)


@pytest.mark.parametrize(
    "mine", [OwnTanh(), impl.Tanh(), Applies(RightTanh), impl.Sequential(impl.Tanh())]
)
def test_right_layers_leave_nothing(mine):
    report = parity.check(mine, nn.Tanh(), X)
    assert report.passed, str(report)


def test_statistics_that_are_tracked_are_no_leftovers():
    report = parity.check(impl.BatchNorm1d(4), nn.BatchNorm1d(4), X)
    assert report.passed, str(report)


# ---- gradients -----------------------------------------------------------------------------------


class StartsAnew(impl.Linear):
    def forward(self, input):
        self.grads.clear()
        return super().forward(input)


def test_gradients_that_start_anew_at_every_forward():
    report = parity.check(StartsAnew(4, 3), nn.Linear(4, 3), X)
    (found,) = report.failures
    assert found.cause.name == "gradient_overwritten"
    assert "second forward and backward" in found.cause.sentence


class Wide(impl.Linear):
    def backward(self, grad_output):
        return super().backward(grad_output).astype(np.float64)


def test_gradients_in_another_precision_are_told():
    report = parity.check(Wide(4, 3), nn.Linear(4, 3), X)
    assert report.passed
    assert any("grad_input0 is float64 for float32 input" in note for note in report.notes)


# ---- dropped channels ----------------------------------------------------------------------------


class Drops:
    """Drops with probability p, ``together`` trailing axes at a time."""

    def __init__(self, p, together):
        self.p, self.together, self.training = p, together, True

    def forward(self, x):
        self.mask = np.ones(x.shape, x.dtype)
        if self.training:
            kept = x.ndim - self.together
            random = np.random.random(x.shape[:kept] + (1,) * self.together)
            self.mask = self.mask * ((random >= self.p) / (1 - self.p)).astype(x.dtype)
        return x * self.mask

    def backward(self, g):
        return g * self.mask


CHANNELS = [
    (nn.Dropout1d(0.4), 1, (4, 6, 5)),
    (nn.Dropout2d(0.4), 2, (4, 6, 5, 5)),
    (nn.Dropout3d(0.2), 3, (4, 6, 3, 3, 3)),
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("theirs", "together", "shape"), CHANNELS, ids=lambda v: str(v))
def test_whole_channels_are_dropped_at_the_right_rate(theirs, together, shape):
    right = parity.check(Drops(theirs.p, together), theirs, shape)
    assert right.passed, str(right)
    assert any(f.quantity == "dropout_mask" for f in right.findings)
    for wrong in (Drops(theirs.p, 0), Drops(0.1, together), Drops(theirs.p, together - 1)):
        assert causes(wrong, theirs, shape) == {"dropout_mask"}


def test_a_module_that_drops_elements_for_channels():
    assert causes(nn.Dropout(0.4), nn.Dropout2d(0.4), (4, 6, 5, 5)) == {"dropout_mask"}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("p", [0.02, 0.1])
def test_a_low_rate_on_a_small_draw_is_taken_for_no_channel(p):
    for seed in range(12):
        report = parity.check(impl.Dropout(p), nn.Dropout(p), (1, 2), seed=seed)
        assert report.passed, str(report)
