"""Adapters at their edges: what is declared, what cannot be adapted, and what is said then."""

import copy
import sys
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import parity
from parity import UsageError
from parity.adapting import adapt
from parity.findings import Verdict
from parity.quirks import holds

RNG = np.random.default_rng(0)
LINEAR = (nn.Linear(4, 3), (8, 4))


class Plain:
    """The plain contract."""

    def __init__(self):
        self.params = {"weight": RNG.standard_normal((3, 4)), "bias": np.zeros(3)}
        self.grads = {}

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, g):
        for name, grad in (("weight", g.T @ self.x), ("bias", g.sum(0))):
            self.grads[name] = self.grads.get(name, 0) + grad
        return g @ self.params["weight"]


# ---- unusual owners of arrays ------------------------------------------------------------------


class Slotted:
    __slots__ = ("W", "b", "dW", "db", "x")

    def __init__(self):
        self.W, self.b = RNG.standard_normal((4, 3)), np.zeros(3)

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, g):
        self.dW, self.db = self.x.T @ g, g.sum(0)
        return g @ self.W.T


@dataclass
class Data:
    weight: np.ndarray = field(default_factory=lambda: RNG.standard_normal((3, 4)))
    bias: np.ndarray = field(default_factory=lambda: np.zeros(3))
    grads: dict = field(default_factory=dict)
    x: object = None

    def forward(self, x):
        self.x = x
        return x @ self.weight.T + self.bias

    def backward(self, g):
        self.grads = {"weight": g.T @ self.x, "bias": g.sum(0)}
        return g @ self.weight


class Twice(Plain):
    """Every array is an attribute and a dict entry."""

    def __init__(self):
        super().__init__()
        self.W, self.b = self.params["weight"], self.params["bias"]

    def forward(self, x):
        self.x = x
        return x @ self.W.T + self.b

    def backward(self, g):
        super().backward(g)
        return g @ self.W


class Scaling:
    """A NumPy scalar for a parameter."""

    def __init__(self):
        self.params, self.grads = {"weight": np.float32(1.5)}, {}

    def forward(self, x):
        self.x = x
        return self.params["weight"] * x

    def backward(self, g):
        self.grads["weight"] = self.grads.get("weight", 0) + (g * self.x).sum()
        return g * self.params["weight"]


class TorchScaling(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return x * self.weight


class FlatBuffer(Plain):
    def __init__(self):
        super().__init__()
        self.flat = RNG.standard_normal(15)
        self.params = {"weight": self.flat[:12].reshape(3, 4), "bias": self.flat[12:]}


def from_main():
    """A class as a notebook's cell or a script defines it."""
    space = {"__name__": "__main__", "np": np}
    exec(
        "class Cell:\n"
        "    def __init__(self): self.W, self.b = np.ones((4, 3)), np.zeros(3)\n"
        "    def forward(self, x): self.x = x; return x @ self.W + self.b\n"
        "    def backward(self, g):\n"
        "        self.dW, self.db = self.x.T @ g, g.sum(0); return g @ self.W.T\n",
        space,
    )
    return space["Cell"]()


@pytest.mark.parametrize(
    "layer",
    [Slotted(), Data(), Twice(), from_main(), Plain, lambda: Plain(), FlatBuffer],
    ids=[
        "slots",
        "dataclass",
        "attribute-and-dict",
        "notebook",
        "class",
        "factory",
        "flat-factory",
    ],
)
def test_unusual_owners_of_arrays(layer):
    report = parity.check(layer, *LINEAR)
    assert report.passed, str(report)


def test_numpy_scalars_are_cast():
    layer = Scaling()
    assert parity.check(layer, TorchScaling(), (5, 3)).passed
    assert isinstance(layer.params["weight"], np.float32)
    assert not layer.grads


def test_views_into_one_buffer_are_sent_to_a_factory():
    layer = FlatBuffer()
    before = layer.flat.tobytes()
    with pytest.raises(UsageError, match=r"share memory.*factory instead: lambda: FlatBuffer\(…\)"):
        parity.check(layer, *LINEAR)
    assert layer.flat.tobytes() == before


SHARED = Plain()
KEPT = SHARED.params


class Hoarder(Plain):
    def __init__(self):
        super().__init__()
        self.params = KEPT


@pytest.mark.parametrize(
    ("factory", "says"),
    [(lambda: SHARED, "returned the same object twice"), (Hoarder, "objects that share arrays")],
)
def test_a_factory_that_hands_out_the_same_thing_twice_is_refused(factory, says):
    with pytest.raises(UsageError, match=says):
        parity.check(factory, *LINEAR)


# ---- findings, not exceptions ------------------------------------------------------------------


class Anew(Plain):
    def __init__(self):
        super().__init__()
        self._held = self.params

    params = property(
        lambda self: {n: a.copy() for n, a in self._held.items()},
        lambda self, value: setattr(self, "_held", dict(value)),
    )


class Frozen(Plain):
    def __init__(self):
        super().__init__()
        arrays = {name: np.array(a) for name, a in self.params.items()}
        for array in arrays.values():
            array.flags.writeable = False
        self.params = MappingProxyType(arrays)

    def astype(self, dtype):
        return self

    def __deepcopy__(self, memo):
        return Frozen()


class NoBias(Plain):
    def __init__(self):
        super().__init__()
        del self.params["bias"]


class Forgets(Plain):
    def backward(self, g):
        return g @ self.params["weight"]


class CopiesLists:
    def __init__(self):
        self.a, self.c = RNG.standard_normal((4, 3)), np.zeros(3)

    def forward(self, x):
        return x @ self.a + self.c

    def backward(self, g):
        return g @ self.a.T

    def get_parameters(self):
        return [self.a.copy(), self.c.copy()]

    def get_gradients(self):
        return []


def unfit(x, w, b):
    return x @ w + b, (x, w)


def unfit_backward(dout, cache):
    return dout, dout, dout


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (Anew(), "params is made anew at every reading"),
        (Frozen(), "params is a mappingproxy that cannot be written to"),
        (NoBias(), "parameter 'bias' of the reference has no partner; mine has: weight"),
        (Forgets(), "backward leaves no grad of weight"),
        (CopiesLists(), r"get_parameters\(\)\[0\] was written, yet reads back as something else"),
        ((unfit, unfit_backward), r"backward returned 3 gradients of shapes|shape \(8, 3\)"),
        ((unfit, lambda dout, cache: (dout,) * 5), "backward returned 5 gradients of shapes"),
    ],
    ids=["anew", "frozen", "no-bias", "forgets", "copied-lists", "shapes", "too-many"],
)
def test_what_a_layer_does_wrong_is_a_finding(layer, says):
    import re

    report = parity.check(layer, *LINEAR)
    assert not report.passed
    assert re.search(says, str(report)), str(report)


def test_an_extra_parameter_is_named():
    class Extra(Slotted):
        __slots__ = ("gamma",)

        def __init__(self):
            super().__init__()
            self.gamma = np.ones(7)

    report = parity.check(Extra(), *LINEAR)
    assert "no partner in the reference, left as it is: gamma" in report.notes


# ---- what no adapter takes ---------------------------------------------------------------------


class Fprop:
    def fprop(self, x):
        return x

    def bprop(self, g):
        return g


class OnlyForward:
    def forward(self, x):
        return x


class OnlyBackprop:
    def backprop(self, g):
        return g


class ListParams(Plain):
    def __init__(self):
        super().__init__()
        self.params = {"weight": [[1.0, 2.0]], "bias": np.zeros(1)}


class TextInList(Plain):
    def __init__(self):
        super().__init__()
        self.params = [np.zeros((3, 4)), "bias"]


class TextInDict(Plain):
    def __init__(self):
        super().__init__()
        self.params = {"W": np.zeros((3, 4)), "b": None}


def needs(x, w):
    return x


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        (Fprop(), r"has fprop and bprop; say so with parity.attributes\(layer, forward='fprop'"),
        (OnlyForward(), "it has forward, yet no backward"),
        (OnlyBackprop(), "it has backprop, yet no forward"),
        (object(), r"Looked for: the plain contract.*updateOutput.*get_params.*parity.jax"),
        ([Plain()], r"a sequence of layers needs an object with forward and backward around it"),
        (3.0, r"mine is float, which no adapter takes"),
        (None, r"mine is NoneType, which no adapter takes"),
        ({"W": np.ones(3)}, r"mine is dict, which no adapter takes"),
        (ListParams(), r"params\['weight'\] is \[\[1.0, 2.0\]\], a list; it must be a floating"),
        (TextInList(), r"params holds a str at 1; every entry must be a floating array"),
        (TextInDict(), r"params\['b'\] is a NoneType; it must be a floating NumPy array"),
        (needs, r"needs, which cannot be called without arguments .* parity.functions"),
        (nn.Linear, r"Linear, which cannot be called without arguments .*lambda: Linear\(…\)"),
        (lambda: 3, r"mine is int, which no adapter takes"),
    ],
)
def test_what_no_adapter_takes_is_told_the_shortest_way(mine, says):
    with pytest.raises(UsageError, match=says):
        parity.check(mine, *LINEAR)


# ---- parity.attributes -------------------------------------------------------------------------


class Named:
    def __init__(self):
        self.theta, self.c = RNG.standard_normal((4, 4)), np.zeros(4)
        self.name = "named"

    def fprop(self, x):
        self.x = x
        return x @ self.theta + self.c

    def bprop(self, g):
        self.delta, self.gc = self.x.T @ g, g.sum(0)
        return g @ self.theta.T


MAPPED = {"weight": ("theta", "delta"), "bias": ("c", "gc")}
SQUARE = (nn.Linear(4, 4), (8, 4))


@pytest.mark.parametrize("transpose", [None, {"weight": (1, 0)}])
@pytest.mark.parametrize("layer", [Named(), Named, lambda: Named()], ids=["it", "class", "factory"])
def test_attributes_by_a_small_dict(layer, transpose):
    mine = parity.attributes(
        layer, params=MAPPED, forward="fprop", backward="bprop", transpose=transpose
    )
    assert parity.check(mine, *SQUARE).passed


def test_a_declared_transpose_is_believed():
    """With the wrong axis order declared nothing is tried: the declaration decides."""
    mine = parity.attributes(
        Named(), params=MAPPED, forward="fprop", backward="bprop", transpose={"weight": (0, 1)}
    )
    assert not parity.check(mine, *SQUARE, rungs="float64", diagnose=False).passed


def test_attributes_of_children_by_dots():
    class Net:
        def __init__(self):
            self.fc = Slotted()

        def forward(self, x):
            return self.fc.forward(x)

        def backward(self, g):
            return self.fc.backward(g)

    paths = {"weight": ("fc.W", "fc.dW"), "bias": "fc.b"}
    assert parity.check(parity.attributes(Net(), params=paths), *LINEAR).passed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"forward": "fporp"}, r"Named has no method 'fporp', did you mean 'fprop'\?"),
        ({"params": {"weight": "thetta"}}, r"no attribute 'thetta', did you mean 'theta'\?; arr"),
        ({"params": {"weight": 3}}, r"'weight' is mapped to 3; give the attribute's name"),
        ({"params": {"weight": "name"}}, r"Named.name is a str; it must be a floating array"),
    ],
)
def test_attributes_says_what_is_not_there(options, says):
    with pytest.raises(UsageError, match=says):
        parity.attributes(Named(), **{"forward": "fprop", "backward": "bprop"} | options)


def test_attributes_of_a_class_with_arguments():
    with pytest.raises(UsageError, match=r"Linear needs .*in_features, out_features; give an inst"):
        parity.attributes(nn.Linear)


# ---- presets -----------------------------------------------------------------------------------


def affine(x, w, b):
    return x @ w + b, (x, w)


def affine_back(dout, cache):
    x, w = cache
    return dout @ w.T, x.T @ dout, dout.sum(0)


class Thin:
    """Torch7's three methods and nothing else."""

    def __init__(self):
        self.weight, self.bias = RNG.standard_normal((3, 4)), np.zeros(3)
        self.gradWeight, self.gradBias = np.zeros((3, 4)), np.zeros(3)

    def updateOutput(self, x):
        return x @ self.weight.T + self.bias

    def updateGradInput(self, x, g):
        return g @ self.weight

    def accGradParameters(self, x, g):
        self.gradWeight += g.T @ x
        self.gradBias += g.sum(0)


class OnTensors:
    def forward(self, x):
        self.x = x
        return x.relu()

    def backward(self, g):
        return g * (self.x > 0)


@pytest.mark.parametrize(
    ("made", "against"),
    [
        (lambda: parity.preset("torch7", Thin()), LINEAR),
        (lambda: parity.preset("cs231n", affine, affine_back), LINEAR),
        (lambda: parity.preset("cs231n", (affine, affine_back)), LINEAR),
        (lambda: parity.preset("attributes", Slotted()), LINEAR),
        (lambda: parity.preset("plain", Plain()), LINEAR),
        (lambda: parity.preset("tensors", OnTensors()), (nn.ReLU(), (5, 7))),
    ],
    ids=["torch7", "cs231n", "cs231n-tuple", "attributes", "plain", "tensors"],
)
def test_presets_by_name(made, against):
    assert parity.check(made(), *against).passed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("torch8", Thin()), r"unknown preset 'torch8', did you mean 'torch7'\?; presets: attr"),
        (("torch7", Plain()), r"Plain is not in Torch7's form: it needs updateOutput\(input\)"),
        (("attributes", Thin()), r"Thin has no forward and backward; name its own with"),
    ],
)
def test_presets_say_what_does_not_fit(arguments, says):
    with pytest.raises(UsageError, match=says):
        parity.preset(*arguments)


# ---- function pairs ----------------------------------------------------------------------------


def no_dx(dout, cache):
    return affine_back(dout, cache)[1:]


def by_name(dout, cache):
    dx, dw, db = affine_back(dout, cache)
    return {"db": db, "dw": dw, "dx": dx}


def alone(x, w, b):
    return x @ w + b


def with_arguments(dout, x, w):
    return dout @ w.T, x.T @ dout, dout.sum(0)


def two_out(x, w):
    y = x @ w
    return y, np.tanh(y), (x, w, y)


def two_back(dy, dz, cache):
    x, w, y = cache
    g = dy + dz / np.cosh(y) ** 2
    return g @ w.T, x.T @ g


class TwoOut(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y, torch.tanh(y)


def scaled(a, b, w):
    return a * w + b, (a, w)


def scaled_back(g, cache):
    a, w = cache
    return g * w, g, (g * a).sum(0)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, a, b):
        return a * self.weight + b


@pytest.mark.parametrize(
    ("pair", "theirs", "inputs"),
    [
        ((affine, no_dx), *LINEAR),
        ((affine, by_name), *LINEAR),
        ((alone, with_arguments), *LINEAR),
        (
            parity.functions(
                affine, affine_back, params=("weight", "bias"), transpose={"weight": (1, 0)}
            ),
            *LINEAR,
        ),
        (parity.functions(affine, no_dx, transpose={"w": (1, 0)}), *LINEAR),
        ((two_out, two_back), TwoOut(4, 3, bias=False), (8, 4)),
        ((scaled, scaled_back), Scaled(), ((8, 4), (8, 4))),
    ],
    ids=["no-dx", "by-name", "no-cache", "declared", "transposed", "two-outputs", "two-inputs"],
)
def test_function_pairs(pair, theirs, inputs):
    shapes = inputs if isinstance(inputs[0], tuple) else (inputs,)
    report = parity.check(pair, theirs, *shapes)
    assert report.passed, str(report)
    assert "grad_weight" in {f.quantity for f in report.findings if f.verdict is Verdict.MATCH}


def test_a_gradient_that_is_not_returned_is_skipped():
    report = parity.check((affine, no_dx), *LINEAR)
    assert {f.verdict for f in report.of("grad_input0")} == {Verdict.SKIPPED}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: parity.functions(3), "takes two callables"),
        (lambda: parity.functions(affine, params="weight"), r'give a tuple: params=\("weight",\)'),
        (
            lambda: parity.functions(affine, params=("w",), returns=("v",)),
            r"returns names 'v', which is not among params=\('w',\)",
        ),
        (
            lambda: parity.functions(affine, transpose={"q": (1, 0)}),
            r"transpose names 'q', which is not among params=\('x', 'w', 'b'\)",
        ),
        (
            lambda: parity.check((affine, lambda dout, cache, extra: dout), *LINEAR),
            r"takes 'extra', which nothing provides; it can be given",
        ),
    ],
)
def test_functions_say_what_is_wrong(call, says):
    with pytest.raises(UsageError, match=says):
        call()


def zeros_forward(x, w, b):
    out = np.zeros((len(x), w.shape[1]))
    out += x @ w + b
    return out, (x, w)


def test_a_course_layer_that_widens_is_told_so_and_passes():
    """np.zeros is float64 whatever comes in: a fault of the plain contract, a note elsewhere."""
    report = parity.check((zeros_forward, affine_back), *LINEAR)
    assert report.passed, str(report)
    assert any("output is float64 for float32 input" in note for note in report.notes)

    class Wide(Plain):
        def forward(self, x):
            return super().forward(x).astype(np.float64)

    assert not parity.check(Wide(), *LINEAR, diagnose=False).passed


# ---- one-hot targets, axes, weights ------------------------------------------------------------


class MeanOfPicked:
    def forward(self, logs, target):
        self.target = target
        return -(logs * target).sum() / len(logs)

    def backward(self):
        return -self.target / len(self.target)


def test_one_hot_targets_for_labels():
    mine = parity.one_hot_targets(MeanOfPicked())
    inputs = (parity.log_probabilities(8, 5), parity.labels(8, classes=5))
    assert parity.check(mine, nn.NLLLoss(), *inputs).passed


def test_one_hot_targets_refuses():
    with pytest.raises(UsageError, match="classes=0; it must be a positive integer"):
        parity.one_hot_targets(MeanOfPicked(), classes=0)
    mine = parity.one_hot_targets(MeanOfPicked(), classes=3)
    inputs = (parity.log_probabilities(8, 5), parity.labels(8, classes=5))
    assert "not from 0 to 2" in str(parity.check(mine, nn.NLLLoss(), *inputs))


class ChannelsLast:
    """A 1 × 1 convolution on (N, H, W, C)."""

    def __init__(self):
        self.W, self.b = RNG.standard_normal((3, 5)), np.zeros(5)

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, g):
        self.dW = np.einsum("nhwi,nhwo->io", self.x, g)
        self.db = g.sum((0, 1, 2))
        return g @ self.W.T


@pytest.mark.parametrize("order", [(0, 2, 3, 1), [(0, 2, 3, 1)]])
def test_axes_elsewhere(order):
    mine = parity.axes(ChannelsLast(), inputs=order, outputs=order)
    assert parity.check(mine, nn.Conv2d(3, 5, 1), (2, 3, 4, 4)).passed


def test_axes_refuses():
    with pytest.raises(UsageError, match="an order names every axis once"):
        parity.axes(ChannelsLast(), inputs=(0, 2, 2))
    with pytest.raises(UsageError, match="permute inside a module's forward instead"):
        parity.axes(nn.Linear(2, 2), inputs=(1, 0))


def test_a_mapping_of_ones_own_goes_before_the_habits():
    """weights= names and turns; a wrong order is not put right behind the user's back."""
    mine = Slotted()
    assert parity.check(mine, *LINEAR, weights={"W": ("weight", (1, 0)), "b": "bias"}).passed
    swapped = parity.check(mine, *LINEAR, weights={"W": "weight"}, diagnose=False)
    assert "declare the axis order" in str(swapped)


# ---- torch modules -----------------------------------------------------------------------------


class AveragingLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return g @ weight, g.T @ x / len(x), g.mean(0)


class Averages(nn.Linear):
    def forward(self, x):
        return AveragingLinear.apply(x, self.weight, self.bias)


class BiasedVariance(nn.BatchNorm1d):
    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(x.mean(0), 0.1)
                self.running_var.lerp_(x.var(0, unbiased=False), 0.1)
                self.num_batches_tracked += 1
        mean = x.mean(0) if self.training else self.running_mean
        var = x.var(0, unbiased=False) if self.training else self.running_var
        return (x - mean) / torch.sqrt(var + self.eps) * self.weight + self.bias


def test_faults_of_torch_modules_are_caught():
    report = parity.check(Averages(4, 3), *LINEAR)
    for name in ("grad_weight", "grad_bias"):
        assert Verdict.MISMATCH in {f.verdict for f in report.of(name)}
    biased = parity.check(BiasedVariance(4), nn.BatchNorm1d(4), (8, 4))
    assert Verdict.MISMATCH in {f.verdict for f in biased.of("buffer_running_var")}


def test_a_module_of_another_output_shape_is_a_finding():
    class Narrow(nn.Module):
        def forward(self, x):
            return x[:, :2]

    report = parity.check(Narrow(), nn.ReLU(), (4, 3))
    assert "the output has shape (4, 2), torch's is (4, 3)" in str(report)


@pytest.mark.skipif(holds("compile_wants_older_python"), reason="this torch cannot compile here")
def test_a_compiled_module_goes_by_the_names_inside():
    mine = torch.compile(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), backend="eager")
    theirs = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    report = parity.check(mine, theirs, (8, 4), rungs="float64", modes="train")
    assert report.passed, str(report)
    assert report.of("grad_0.weight")


class Conv(nn.Conv2d):
    """Its own way forward, kept channels last."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias)


def test_memory_formats():
    mine = Conv(3, 4, 3).to(memory_format=torch.channels_last)
    assert parity.check(mine, nn.Conv2d(3, 4, 3), (2, 3, 6, 6)).passed


# ---- JAX ---------------------------------------------------------------------------------------


def test_jax_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(UsageError, match=r"not installed: pip install 'torch-parity\[jax\]'"):
        parity.jax(lambda x: x)


def test_jax_takes_a_function():
    with pytest.raises(UsageError, match=r"got a float; it takes a function and its tree of para"):
        parity.jax(3.0)


@pytest.mark.slow
def test_jax_layers():
    jax = pytest.importorskip("jax")
    numpy = jax.numpy

    def norm(params, x):
        mean = x.mean(-1, keepdims=True)
        var = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) / numpy.sqrt(var + 1e-5) * params["scale"] + params["offset"]

    def wrong(params, x):
        return norm(params, x) + 1e-5

    def mlp(x, params):
        hidden = numpy.tanh(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
        return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]

    tree = {"scale": np.ones(6), "offset": np.zeros(6, np.float32)}
    before = jax.config.read("jax_enable_x64")
    once = {"rungs": "float64", "modes": "train", "diagnose": False}
    report = parity.check(parity.jax(norm, tree), nn.LayerNorm(6), (4, 6), modes="train",
                          rungs=("float64", "float32"))  # fmt: skip
    assert report.passed, str(report)
    assert {f.dtype for f in report.findings} == {"float64", "float32"}
    report = parity.check(parity.jax(wrong, tree), nn.LayerNorm(6), (4, 6), **once)
    assert not report.passed
    assert jax.config.read("jax_enable_x64") == before
    assert tree["offset"].dtype == np.float32

    def dense(n, m):
        return {"kernel": numpy.ones((n, m)), "bias": numpy.zeros(m)}

    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    mine = parity.jax(mlp, {"Dense_0": dense(4, 4), "Dense_1": dense(4, 3)})
    assert parity.check(mine, net, (8, 4), **once).passed
    with pytest.raises(UsageError, match="parameter 'n' of the JAX function is an array"):
        parity.jax(mlp, {"n": 3})
    assert parity.check(parity.jax(jax.nn.silu), nn.SiLU(), (5, 7), **once).passed


# ---- functional optimizers ---------------------------------------------------------------------


def sgd_dicts(params, grads, config, state):
    """A dict for the model, in place; momentum under torch's name."""
    for name in params:
        slot = state.setdefault(name, {})
        old = slot.get("momentum_buffer")
        new = grads[name] if old is None else config["momentum"] * old + grads[name]
        slot["momentum_buffer"] = np.array(new)
        params[name] -= config["lr"] * slot["momentum_buffer"]


def sgd_each(w, dw, config=None):
    """cs231n's form."""
    config["v"] = config["momentum"] * config.get("v", 0) - config["lr"] * dw
    return w + config["v"], config


def sgd_new(params, grads, config, state):
    """Returns new arrays; no momentum, which is a fault here."""
    return {name: params[name] - config["lr"] * grads[name] for name in params}


def sgd_nested(variables, gradients, config, state):
    """Lists of lists, as Torch7-style courses hand them out."""
    kept = state.setdefault("kept", {})
    index = 0
    for values, grads in zip(variables, gradients, strict=True):
        for value, grad in zip(values, grads, strict=True):
            old = kept.setdefault(index, np.zeros_like(value))
            np.add(config["momentum"] * old, grad, out=old)
            value -= config["lr"] * old
            index += 1


class Net7:
    """A lone Torch7 layer in a model that hands out nested lists."""

    def __init__(self):
        self.modules = [Thin()]

    def updateOutput(self, x):
        return self.modules[0].updateOutput(x)

    def updateGradInput(self, x, g):
        return self.modules[0].updateGradInput(x, g)

    def accGradParameters(self, x, g):
        self.modules[0].accGradParameters(x, g)

    def zeroGradParameters(self):
        self.modules[0].gradWeight[...] = 0
        self.modules[0].gradBias[...] = 0

    def getParameters(self):
        return [[m.weight, m.bias] for m in self.modules]

    def getGradParameters(self):
        return [[m.gradWeight, m.gradBias] for m in self.modules]


class Squares:
    def forward(self, prediction, target):
        self.delta = prediction - target
        return (self.delta**2).mean()

    def backward(self):
        return 2 * self.delta / self.delta.size


@pytest.mark.parametrize(
    ("function", "model", "right"),
    [
        (sgd_dicts, Plain(), True),
        (sgd_each, Plain(), True),
        (sgd_each, Slotted(), True),
        (sgd_nested, Net7(), True),
        (sgd_new, Plain(), False),
    ],
    ids=["dicts", "each", "each-attributes", "nested-lists", "no-momentum"],
)
def test_functional_optimizers_in_training(function, model, right):
    rng = np.random.default_rng(1)
    batches = [(rng.standard_normal((8, 4)), rng.standard_normal((8, 3))) for _ in range(3)]
    before = copy.deepcopy(model)
    report = parity.check_training(
        model,
        nn.Linear(4, 3),
        loss=(Squares(), nn.MSELoss()),
        optimizer=(
            parity.optimizer(function, {"lr": 0.1, "momentum": 0.9}),
            lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        ),
        batches=batches,
        epochs=2,
    )
    assert report.passed == right, str(report)
    if isinstance(model, Plain):
        assert model.params["weight"].tobytes() == before.params["weight"].tobytes()


def test_a_functional_optimizer_by_hand():
    """On an object in a known form, without the harness around it."""
    layer = Slotted()
    x, g = RNG.standard_normal((8, 4)), RNG.standard_normal((8, 3))
    layer.forward(x)
    layer.backward(g)
    before, step = layer.W.copy(), layer.dW.copy()
    optimizer = parity.optimizer(sgd_new, {"lr": 0.5})(layer)
    optimizer.step()
    assert np.array_equal(layer.W, before - 0.5 * step)
    optimizer.zero_grad()
    assert not layer.dW.any()


@pytest.mark.parametrize("function", [3, lambda params: None])
def test_optimizer_says_what_it_takes(function):
    with pytest.raises(UsageError, match=r"takes a function of \(params, grads, config, state\)"):
        parity.optimizer(function)


def test_every_public_adapter_is_found_lazily():
    for name in (
        "attributes",
        "axes",
        "functions",
        "jax",
        "one_hot_targets",
        "optimizer",
        "preset",
    ):
        assert callable(getattr(parity, name))
        assert getattr(parity, name).__doc__
    assert adapt(Plain()).title == "Plain"
