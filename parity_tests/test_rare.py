"""Numbers that usual draws do not hold: every fault they show is caught, and no right layer."""

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity
from fixtures.mutants.rare import MUTANTS, NarrowNorm
from fixtures.mutants.row import tried
from fixtures.recurrent import GRU
from parity.checking import make_pair
from parity.draws import ZEROS, with_tails
from parity.options import make_options
from parity_tests.several import seeds

SEEDS = seeds(3, first=20)
N = (8, 4)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_a_fault_that_rare_numbers_show_is_caught_and_named(mutant, seed):
    trial = tried(mutant, seed=seed)
    assert trial.killed
    assert trial.named, trial.names


class Clipping(torch.autograd.Function):
    """Hands its input on, and back a gradient that is clipped on purpose."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-5, 5)


class Clips:
    def forward(self, x):
        return x.copy()

    def backward(self, grad):
        return np.clip(grad, -5, 5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("mine", "theirs", "inputs"),
    [
        (Clips, Clipping.apply, (N,)),
        (lambda: GRU(3, 4, batch_first=True), nn.GRU(3, 4, batch_first=True), ((2, 5, 3),)),
        (lambda: impl.Dropout(0.5), nn.Dropout(0.5), (N,)),
        (impl.BCELoss, nn.BCELoss(), (parity.uniform(*N, low=0.1, high=0.9), parity.uniform(*N))),
    ],
    ids=["clips-as-torch-does", "gru", "dropout", "loss"],
)
def test_large_gradients_accuse_no_right_layer(mine, theirs, inputs, seed):
    report = parity.check(mine(), theirs, *inputs, seed=seed, strict=False)
    assert report.passed, report
    assert "large gradients" in report.covers


class NarrowLayer:
    """A layer of ours, or a correct one of the population, that knows float32 alone."""

    def __init__(self, layer):
        self.layer, self.grads, self.training = layer, {}, True
        for name in ("params", "buffers"):
            held = getattr(layer, name, {})
            setattr(self, name, {key: array.astype(np.float32) for key, array in held.items()})

    def _give(self):
        self.layer.training = self.training
        for name in ("params", "buffers"):
            for key, array in getattr(self, name).items():
                whole = array.dtype.kind != "f"
                getattr(self.layer, name)[key] = array if whole else array.astype(np.float32)

    def forward(self, *inputs):
        self._give()
        y = self.layer.forward(*map(narrowed, inputs))
        for key in self.buffers:
            self.buffers[key] = narrowed(np.asarray(self.layer.buffers[key]))
        return narrowed(y)

    def backward(self, *grads):
        for key in self.params:
            self.layer.grads[key] = np.zeros(self.params[key].shape, np.float32)
        dx = self.layer.backward(*map(narrowed, grads))
        for key in self.params:
            new = narrowed(np.asarray(self.layer.grads[key]))
            self.grads[key] = self.grads[key] + new if key in self.grads else new
        return tuple(map(narrowed, dx)) if isinstance(dx, tuple) else narrowed(dx)

    def zero_grad(self):
        self.grads.clear()


def narrowed(array):
    return np.float32(array) if np.asarray(array).dtype.kind == "f" else array


@pytest.mark.one_in(9)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("eps", [0.0, 1e-6, 1e-4])
def test_a_layer_of_float32_alone_is_judged_on_small_values_too(eps, seed):
    report = parity.check(NarrowNorm(6, eps=eps), nn.LayerNorm(6), (4, 6), seed=seed)
    assert not report.passed
    assert any("float32 only" in note for note in report.notes)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("mine", "theirs", "inputs"),
    [
        (lambda: NarrowNorm(6), nn.LayerNorm(6), ((4, 6),)),
        (lambda: NarrowLayer(impl.BatchNorm1d(4)), nn.BatchNorm1d(4), ((8, 4),)),
        (lambda: NarrowLayer(impl.Linear(4, 3)), nn.Linear(4, 3), ((5, 4),)),
        (lambda: NarrowLayer(impl.Softplus()), nn.Softplus(), (N,)),
        (lambda: NarrowLayer(impl.ReLU()), nn.ReLU(), (N,)),
        (lambda: NarrowLayer(impl.BCEWithLogitsLoss()), nn.BCEWithLogitsLoss(),
         (N, parity.uniform(*N))),
    ],
    ids=["layer-norm", "batch-norm", "linear", "softplus", "relu", "bce-with-logits"],
)  # fmt: skip
def test_a_right_layer_of_float32_alone_is_tried_everywhere(mine, theirs, inputs, seed):
    report = parity.check(mine(), theirs, *inputs, seed=seed)
    assert report.passed, report
    assert any("float32 only" in note for note in report.notes)
    assert {"small values", "constant channels", "large gradients"} <= set(report.covers)
    if list(theirs.parameters()):
        assert any(text.startswith("3 steps") for text in report.covers)


def test_a_layer_of_float32_alone_that_goes_stale_is_caught_by_its_steps():
    class Stale(NarrowLayer):
        """Keeps the weight of its first pass."""

        def _give(self):
            first = {name: array.astype(np.float32) for name, array in self.params.items()}
            self.held = getattr(self, "held", first)
            self.layer.params.update(self.held)

    report = parity.check(Stale(impl.Linear(4, 3)), nn.Linear(4, 3), (5, 4))
    assert any(f.quantity == "step" for f in report.failures), report


def test_a_layer_of_float32_alone_that_reads_the_layout_wrongly_is_caught():
    class Flat:
        def forward(self, x):
            self.x = np.frombuffer(x.tobytes("A"), x.dtype).reshape(x.shape).astype(np.float32)
            return np.maximum(self.x, 0)

        def backward(self, g):
            return (g * (self.x > 0)).astype(np.float32)

    report = parity.check(Flat(), nn.ReLU(), (5, 4))
    assert {f.cause.name for f in report.failures} == {"memory_layout"}, report


class Squares:
    """A sum of high powers, which overflows in float32 on both sides."""

    def forward(self, x):
        self.x = x
        with np.errstate(over="ignore"):
            return x**15

    def backward(self, g):
        with np.errstate(over="ignore"):
            return g * 15 * self.x**14


class Norm:
    """The norm of each row, with torch's gradient of 0 at 0."""

    def forward(self, x):
        self.x, self.n = x, np.sqrt((x * x).sum(1))
        return self.n.copy()

    def backward(self, g):
        return g[:, None] * self.x / np.where(self.n > 0, self.n, 1)[:, None]


class UnguardedNorm(nn.Module):
    def forward(self, x):
        return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("mine", "theirs", "shape"),
    [
        (Squares, lambda x: x**15, N),
        (impl.Sigmoid, nn.Sigmoid(), N),
        (lambda: impl.Softmax(1), nn.Softmax(1), N),
        (Norm, lambda x: x.norm(dim=1), N),
        (UnguardedNorm, lambda x: x / x.norm(dim=1, keepdim=True), N),
        (Norm, lambda x: x.norm(dim=1), (1, 3)),
    ],
    ids=["overflows-on-both-sides", "sigmoid", "softmax", "norm", "unguarded-on-both", "one-row"],
)
def test_where_torch_breaks_down_too_mine_may(mine, theirs, shape, seed):
    report = parity.check(mine(), theirs, shape, seed=seed)
    assert report.passed, report
    assert "rows of zeros" in report.covers


def test_rows_of_zeros_are_drawn_for_both_inputs_and_each():
    pair = make_pair(Norm, torch.cosine_similarity, (N, N), make_options({}))
    rows = [set(np.flatnonzero((a == 0).all(1))) for a in pair.draw(label=ZEROS).inputs]
    assert rows == [{0, 1}, {0, 2}]


class Mish:
    """By logaddexp, with a sigmoid of either sign."""

    def forward(self, x):
        self.x, self.t = x, np.tanh(np.logaddexp(x, 0))
        return x * self.t

    def backward(self, g):
        e = np.exp(-np.abs(self.x))
        s = np.where(self.x > 0, 1, e) / (1 + e)
        return g * (self.t + self.x * (1 - self.t**2) * s)


@pytest.mark.parametrize("seed", seeds(10))
@pytest.mark.parametrize("shape", [N, (3,), (2, 5)])
def test_a_right_tail_is_taken_for_right(shape, seed):
    assert parity.check(Mish(), nn.Mish(), shape, seed=seed, rungs=["float64", "probes"]).passed


@pytest.mark.parametrize("size", [2, 3, 4, 8, 32, 1000])
def test_every_draw_of_magnitudes_reaches_both_far_tails(size):
    for seed in range(20):
        drawn = with_tails(np.full(size, 1e-9), np.random.default_rng(seed))
        far = np.sqrt(1000)
        assert (drawn < -far).any()
        assert (drawn > far).any()
        assert np.abs(drawn).max() <= 100
        if size >= 8:
            for sign in (-1, 1):
                tail = sign * drawn
                assert ((tail >= 1) & (tail <= 10)).any()
        assert (drawn == 1e-9).sum() == size - max(2, size // 2)


class GELUByErfc(nn.Module):
    """Keeps its digits below -8, where torch's 1 + erf has none left."""

    def forward(self, x):
        return x * torch.erfc(-x / 2**0.5) / 2


@pytest.mark.parametrize("seed", seeds(8))
def test_who_keeps_the_digits_that_torch_loses_is_right(seed):
    assert parity.check(GELUByErfc(), nn.GELU(), N, seed=seed).passed
