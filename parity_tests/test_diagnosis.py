"""The diagnosis as a whole: mappings, steps, two faults at once, models, and what has no name."""

import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity.checking import make_pair
from parity.options import make_options
from parity.torch_side import TorchSide

X = (6, 5)


def causes(mine, theirs, *inputs, **options):
    """The names of all causes that a check gives."""
    report = parity.check(mine, theirs, *inputs, **options)
    assert not report.passed
    return {f.cause.name if f.cause else None for f in report.failures}


class Linear:
    """A right Linear(5, 3) whose faults are given as functions."""

    def __init__(self, forward=None, weight=None, bias=None, x=None, shape=(3, 5), names=None):
        self.names = names or ("weight", "bias")
        self.shape, self.faults = shape, (forward, weight, bias, x)
        self.params = {self.names[0]: np.zeros(shape), self.names[1]: np.zeros(3)}
        self.grads = {}

    def zero_grad(self):
        self.grads = {}

    @property
    def w(self):
        w = self.params[self.names[0]]
        return w if self.shape == (3, 5) else w.T

    def forward(self, x):
        self.x = x
        formula = self.faults[0]
        b = self.params[self.names[1]]
        return formula(x, self.w, b) if formula else x @ self.w.T + b

    def backward(self, g):
        _, weight, bias, of_x = self.faults
        dw = weight(g, self.x, self.w) if weight else g.T @ self.x
        dw = dw if self.shape == (3, 5) else dw.T
        db = bias(g, self.x, self.w) if bias else g.sum(0)
        for name, new in zip(self.names, (dw, db), strict=True):
            self.grads[name] = self.grads.get(name, 0) + new
        return of_x(g, self.x, self.w) if of_x else g @ self.w


UNKNOWN = {
    "sine added": {"forward": lambda x, w, b: x @ w.T + b + 1e-3 * np.sin(x).sum(1, keepdims=True)},
    "one entry off": {"weight": lambda g, x, w: g.T @ x + np.eye(3, 5) * g[0, 0]},
    "cubed upstream": {"x": lambda g, x, w: (g**3) @ w},
    "every third sample left out": {"weight": lambda g, x, w: g.T @ x - g[::3].T @ x[::3]},
    "weights smoothed": {"x": lambda g, x, w: g @ (0.7 * w + 0.3 * np.tanh(w))},
    "noise of the data": {"bias": lambda g, x, w: g.sum(0) * (1 + 1e-5 * np.cos(x[0, 0]))},
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("row", UNKNOWN)
def test_unknown_faults_get_no_name(row):
    report = parity.check(Linear(**UNKNOWN[row]), nn.Linear(5, 3), X)
    assert not report.passed
    assert report.cause is None
    assert all(f.evidence["hint"] for f in report.failures if f.dtype == "float64")
    assert "cause: none that is known fits" in str(report)


def test_samples_left_out_are_named():
    for name, part in (("last_item_missing", slice(0, -1)), ("only_first_item", slice(0, 1))):
        mine = Linear(weight=lambda g, x, w, part=part: g[part].T @ x[part])
        assert parity.check(mine, nn.Linear(5, 3), X).cause.name == name


def test_backward_that_contradicts_forward():
    report = parity.check(Linear(**UNKNOWN["cubed upstream"]), nn.Linear(5, 3), X)
    (facts,) = {f.evidence["self_consistency"] for f in report.failures}
    assert facts == "backward_contradicts_forward"
    assert "your backward contradicts your forward, which is torch's" in str(report)


class Cube:
    """A consistent layer that is not torch's ReLU."""

    def forward(self, x):
        self.x = x
        return x + 0.1 * x**3

    def backward(self, g):
        return g * (1 + 0.3 * self.x**2)


def test_forward_that_is_consistent_but_not_torchs():
    report = parity.check(Cube(), nn.Tanh(), X, rungs=("float64",))
    assert {f.evidence["self_consistency"] for f in report.failures} == {"consistent"}
    assert "your backward is that of your forward; your forward is not torch's" in str(report)
    assert report.cause is None


def test_where_it_differs():
    def forward(x, w, b):
        y = x @ w.T + b
        y[-1] = np.sin(y[-1])
        return y

    report = parity.check(Linear(forward=forward), nn.Linear(5, 3), (6, 5))
    assert report.cause is None
    assert {
        f.evidence.get("where") for f in report.failures if f.evidence.get("probe") is None
    } == {"only in the last sample"}


# ---- the weights' mapping ------------------------------------------------------------------------


def test_transposed_weights_are_a_wrong_mapping():
    report = parity.check(Linear(shape=(5, 3)), nn.Linear(5, 3), X)
    assert report.cause.name == "wrong_mapping"
    assert report.cause.sentence == (
        "the layer is right, the mapping is wrong: give weights={'weight': ('weight', (1, 0))}"
    )
    mended = parity.check(
        Linear(shape=(5, 3)), nn.Linear(5, 3), X, weights={"weight": ("weight", (1, 0))}
    )
    assert mended.passed


class Scale:
    """y = x · weight + bias by column, with the two names exchanged."""

    def __init__(self):
        self.params = {"weight": np.zeros(5), "bias": np.ones(5)}
        self.grads = {}

    def forward(self, x):
        mean, var = x.mean(1, keepdims=True), x.var(1, keepdims=True)
        self.inverse = 1 / np.sqrt(var + 1e-5)
        self.hat = (x - mean) * self.inverse
        return self.hat * self.params["bias"] + self.params["weight"]

    def backward(self, g):
        self.grads = {"weight": g.sum(0), "bias": (g * self.hat).sum(0)}
        g = g * self.params["bias"]
        slope = (g * self.hat).mean(1, keepdims=True)
        return (g - g.mean(1, keepdims=True) - self.hat * slope) * self.inverse


def test_exchanged_names_are_a_wrong_mapping():
    report = parity.check(Scale(), nn.LayerNorm(5), X, rungs=("float64",))
    assert report.cause.name == "wrong_mapping"
    assert "'weight': 'bias'" in report.cause.sentence
    assert "'bias': 'weight'" in report.cause.sentence


def test_a_wrong_layer_is_not_a_wrong_mapping():
    assert causes(Linear(shape=(5, 3), forward=lambda x, w, b: x @ w.T), nn.Linear(5, 3), X) == {
        "missing_partner"
    }


# ---- what an object remembers --------------------------------------------------------------------


class FirstInput(Linear):
    """Backward works with the input of the first pass."""

    def backward(self, g):
        self.first = getattr(self, "first", self.x)
        self.x = self.first
        return super().backward(g)


class OldGradients(Linear):
    """Zeroing empties the dict, and not the store that backward adds to."""

    def backward(self, g):
        dx = super().backward(g)
        self.store = getattr(self, "store", None) or {n: 0 * a for n, a in self.grads.items()}
        for name in self.grads:
            self.store[name] = self.store[name] + self.grads[name]
            self.grads[name] = self.store[name]
        return dx


class OldWeights(Linear):
    """The weight is copied at the first pass and never again."""

    @property
    def w(self):
        self.kept = getattr(self, "kept", None)
        if self.kept is None:
            self.kept = self.params["weight"].copy()
        return self.kept


@pytest.mark.parametrize(
    ("name", "mine"),
    [
        ("stale_input", FirstInput),
        ("gradient_not_zeroed", OldGradients),
        ("stale_weights", OldWeights),
    ],
)
def test_memory(name, mine):
    report = parity.check(mine(), nn.Linear(5, 3), X)
    named = {f.cause.name for f in report.failures if f.cause and f.quantity in ("step", "repeat")}
    assert named == {name}


# ---- two faults, models, functions ---------------------------------------------------------------


def test_two_faults_in_two_quantities():
    mine = Linear(weight=lambda g, x, w: -g.T @ x, bias=lambda g, x, w: g.mean(0))
    report = parity.check(mine, nn.Linear(5, 3), X)
    assert {f.cause.name for f in report.of("grad_weight") if f.failed} == {"sign_flipped"}
    assert {f.cause.name for f in report.of("grad_bias") if f.failed} == {"averaged_over_batch"}


def test_two_faults_in_one_quantity():
    mine = Linear(forward=lambda x, w, b: 2 * (x @ w.T))
    assert causes(mine, nn.Linear(5, 3), X) == {"bias_ignored+doubled"}


class Softsign:
    """LeakyReLU(0.2) with slope 0.1 and a sign too many in backward."""

    def forward(self, x):
        self.x = x
        return np.where(x > 0, x, 0.1 * x)

    def backward(self, g):
        return -np.where(self.x > 0, g, 0.1 * g)


def test_two_faults_of_one_function():
    report = parity.check(Softsign(), nn.LeakyReLU(0.2), X)
    assert {f.cause.name for f in report.of("forward") if f.failed} == {"wrong_negative_slope"}
    assert {f.cause.name for f in report.of("grad_input0") if f.failed} == {
        "wrong_negative_slope+sign_flipped"
    }


class TorchBlock(nn.Module):
    """A block under test whose normalisation has another eps."""

    def __init__(self, eps):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.LayerNorm(4, eps=eps)

    def forward(self, x):
        return torch.tanh(self.b(self.a(x)))


def test_a_layer_within_a_model():
    report = parity.check(TorchBlock(1e-2), TorchBlock(1e-5), X)
    found = {f.cause for f in report.of("forward") if f.failed and f.layer is None}
    assert {cause.name for cause in found} == {"wrong_eps"}
    assert all("LayerNorm(eps=0.01) as layer 'b'" in cause.sentence for cause in found)


def test_pair_of_functions():
    pair = parity.functions(lambda x, w: x @ w.T, lambda g: None, params=("weight",), returns=())
    free = parity.functions(lambda x, w: -x @ w.T, None, params=("weight",))
    assert parity.check(free, nn.Linear(5, 3, bias=False), X).cause.name == "sign_flipped"
    assert pair.params == ("weight",)


def test_causes_are_kept_and_options_obeyed():
    mine = Linear(weight=lambda g, x, w: 2 * g.T @ x)
    report = parity.check(mine, nn.Linear(5, 3), X, diagnose=False)
    assert not report.passed
    assert report.cause is None


class OnePass:
    """LayerNorm without parameters, its variance by E[x²] - E[x]²: rougher, not wrong."""

    def forward(self, x):
        mean = x.mean(1, keepdims=True)
        var = (x * x).mean(1, keepdims=True) - mean * mean
        self.inverse = 1 / np.sqrt(var + 1e-5).astype(x.dtype)
        self.hat = (x - mean) * self.inverse
        return self.hat

    def backward(self, g):
        slope = (g * self.hat).mean(1, keepdims=True)
        return (g - g.mean(1, keepdims=True) - self.hat * slope) * self.inverse


def test_rougher_is_not_given_a_cause():
    report = parity.check(
        OnePass(), nn.LayerNorm(40, elementwise_affine=False), parity.normal(6, 40, mean=100.0)
    )
    assert report.counts().get("INACCURATE")
    assert report.cause is None


@pytest.mark.parametrize(
    ("mine", "theirs", "shape"),
    [
        (Linear(), nn.Linear(5, 3), X),
        (nn.Tanh(), nn.Sequential(nn.Tanh()), X),
        (nn.GroupNorm(1, 5, eps=1e-4), nn.GroupNorm(1, 5, eps=1e-4), (4, 5, 3)),
    ],
)
def test_right_layers_have_no_cause(mine, theirs, shape):
    report = parity.check(mine, theirs, shape)
    assert report.cause is None


def test_cost(monkeypatch):
    """A fault without a name, for which everything is tried, takes no more than the check did."""
    runs, spent = [], {}
    once = TorchSide.run
    monkeypatch.setattr(TorchSide, "run", lambda *a, **k: runs.append(1) or once(*a, **k))
    mine, theirs = Linear(**UNKNOWN["one entry off"]), nn.Linear(5, 3)
    for wanted in (False, True):
        runs.clear()
        parity.check(mine, theirs, X, diagnose=wanted)
        spent[wanted] = len(runs)
    assert spent[False] < spent[True] <= 2 * spent[False]


def test_draws_are_in_c_order_and_other_layouts_have_a_name():
    pair = make_pair(nn.Flatten(), nn.Flatten(), ((3, 4, 5),), make_options({}))
    for label in ("generic", "integers", "magnitudes", "extreme", "large", "small", "constant"):
        assert pair.draw(label=label).inputs[0].flags.c_contiguous, label

    class Flatten:
        def forward(self, x):
            self.shape = x.shape
            return x.ravel(order="K").reshape(len(x), -1)

        def backward(self, g):
            return g.reshape(self.shape)

    report = parity.check(Flatten(), nn.Flatten(), (3, 4, 5))
    assert [f.cause.name for f in report.failures] == ["memory_layout"]
    assert report.cause.sentence == "differs for Fortran-ordered arrays, not for contiguous ones"


# ---- sizes: named where one axis decides, and nowhere else ---------------------------------------


class Sized(nn.Module):
    """The identity, but for inputs whose shape is a wrong one."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong

    def forward(self, x):
        return x * (1.0 + 0.1 * torch.sin(x)) if self.wrong(x) else x * 1.0


def hint_of(wrong, shape):
    report = parity.check(Sized(wrong), nn.Identity(), shape, rungs=["float64", "probes"])
    hints = [f.evidence.get("hint", "") for f in report.failures if f.quantity == "forward"]
    assert hints, report
    return hints[0]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("wrong", "shape", "words"),
    [
        (lambda x: x.shape[2] % 2 or x.shape[3] % 2, (2, 3, 6, 6),
         "only for a size of axis 2 or 3 that is odd"),
        (lambda x: x.shape[2] % 2, (2, 3, 6, 6), "only for a size of axis 2 that is odd"),
        (lambda x: x.shape[0] < 4, (8, 5), "only for a batch of at most 3 (right from "),
        (lambda x: x.shape[0] == 1, (8, 5), "only for a batch of at most 1 (right from 2)"),
        (lambda x: x.shape[0] > 8, (8, 5), "only for a batch of at least 9 (right up to 8)"),
        (lambda x: x.shape[2] != x.shape[3], (2, 3, 6, 6), "only where height and width differ"),
    ],
    ids=["odd", "odd-rows", "small-batch", "one", "large-batch", "not-square"],
)  # fmt: skip
def test_the_axis_that_decides_is_named(wrong, shape, words):
    assert words in hint_of(wrong, shape)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("wrong", "shape"),
    [
        (lambda x: x.shape[2] != x.shape[3], (2, 3, 6, 6)),  # two axes together
        (lambda x: bool(x.abs().max() > 2.4), (8, 5)),  # a value, which large arrays rather hold
        (lambda x: x.shape[0] % 3 == 1, (8, 5)),
    ],
    ids=["not-square", "values", "thirds"],
)
def test_no_axis_is_blamed_that_does_not_decide(wrong, shape):
    told = hint_of(wrong, shape)
    assert "batch" not in told
    assert "axis" not in told


def test_a_clipped_softmax_is_no_matter_of_the_batch():
    class Softmax:
        def forward(self, x):
            e = np.exp(x - x.max(1, keepdims=True))
            self.y = np.clip(e / e.sum(1, keepdims=True), 1e-12, 1)
            return self.y

        def backward(self, g):
            return self.y * (g - (g * self.y).sum(1, keepdims=True))

    report = parity.check(Softmax(), nn.Softmax(dim=1), (8, 5))
    assert "batch" not in "".join(f.evidence.get("hint", "") for f in report.failures)


# ---- the advice fits what was done ---------------------------------------------------------------


def test_a_logarithm_of_softmax_is_not_told_to_subtract_the_maximum():
    class LogOfSoftmax:
        def forward(self, x):
            e = np.exp(x - x.max(1, keepdims=True))
            self.p = e / e.sum(1, keepdims=True)
            return np.log(self.p)

        def backward(self, g):
            return g - self.p * g.sum(1, keepdims=True)

    class Naive(LogOfSoftmax):
        def forward(self, x):
            self.p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
            return x - np.log(np.exp(x).sum(1, keepdims=True))

    cause = parity.check(LogOfSoftmax(), nn.LogSoftmax(1), (8, 5)).cause
    assert cause.name == "overflow"  # of what a number can hold: one name for both ends
    assert "takes the logarithm of what underflows to 0" in cause.sentence
    cause = parity.check(Naive(), nn.LogSoftmax(1), (8, 5)).cause
    assert cause.name == "overflow"
    assert "subtract the maximum" in cause.sentence


@pytest.mark.parametrize("width", [4, 3])
def test_a_missing_scale_between_two_inputs_is_not_laid_to_one_of_them(width):
    def scores(q, k):
        return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)

    class Unscaled(nn.Module):
        def forward(self, q, k):
            return torch.softmax(q @ k.transpose(-1, -2), -1)

    report = parity.check(Unscaled(), scores, (2, 5, width), (2, 5, width))
    assert report.cause.name == "scale_missing"
    assert report.cause.sentence == (
        "the product of inputs 0 and 1 is √d times torch's, d the size of the last axis"
    )
