"""Failures that travel: bundles written, refused and replayed; scripts that run on their own."""

import hashlib
import importlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save

import parity
from parity import bundling, describing
from parity.bundling import arrays as bundled
from parity.bundling import writing
from parity.cli import main
from parity.findings import UsageError

LAYERS = '''
import numpy as np
import torch


class Dense:
    def __init__(self, width, out, wrong=True):
        self.params = {"weight": np.zeros((out, width)), "bias": np.zeros(out)}
        self.grads, self.wrong, self.width, self.out = {}, wrong, width, out

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, g):
        for name, value in (("weight", g.T @ self.x / (1 + self.wrong)), ("bias", g.sum(0))):
            self.grads[name] = self.grads.get(name, 0) + value
        return g @ self.params["weight"]


class Attributes:
    """Weights as attributes, (in, out)."""

    def __init__(self, width, out):
        self.W, self.b, self.width, self.out = np.zeros((width, out)), np.zeros(out), width, out

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, g):
        self.dW, self.db = self.x.T @ g / len(g), g.sum(0)
        return g @ self.W.T


class Norm:
    """Batch normalisation that keeps the biased variance."""

    def __init__(self, num_features):
        self.num_features = num_features
        self.params = {"weight": np.ones(num_features), "bias": np.zeros(num_features)}
        self.buffers = {"running_mean": self.params["bias"] * 1}
        self.buffers["running_var"] = np.ones(num_features)
        self.grads, self.training = {}, True

    def forward(self, x):
        mean, var = self.buffers["running_mean"], self.buffers["running_var"]
        if self.training:
            mean, var = x.mean(0), x.var(0)
            for name, value in (("running_mean", mean), ("running_var", var)):
                self.buffers[name] = 0.9 * self.buffers[name] + 0.1 * value
        self.std = np.sqrt(var + 1e-5)
        self.hat = (x - mean) / self.std
        return self.params["weight"] * self.hat + self.params["bias"]

    def backward(self, g):
        self.grads = {"weight": (g * self.hat).sum(0), "bias": g.sum(0)}
        g = g * self.params["weight"]
        if self.training:
            g = g - g.mean(0) - self.hat * (g * self.hat).mean(0)
        return g / self.std


class Evaluating(Dense):
    """Wrong in evaluation mode alone."""

    def __init__(self, width, out):
        super().__init__(width, out, wrong=False)
        self.training = True

    def forward(self, x):
        return super().forward(x) * (1 if self.training else 2)


class Loss:
    def forward(self, scores, target):
        self.p = np.exp(scores - scores.max(1, keepdims=True))
        self.p /= self.p.sum(1, keepdims=True)
        self.target = target
        return -np.log(self.p[np.arange(len(target)), target]).mean()

    def backward(self, g=1.0):
        grad = self.p.copy()
        grad[np.arange(len(grad)), self.target] -= 1
        return grad * g  # not averaged


class Chain:
    """Layers one by one, as torch.nn.Sequential takes them."""

    def __init__(self, *layers):
        self.layers = layers

    def children(self):
        return iter(self.layers)

    def _all(self, kind):
        pairs = [(i, getattr(layer, kind)) for i, layer in enumerate(self.layers)]
        return {f"{i}.{name}": array for i, held in pairs for name, array in held.items()}

    params = property(lambda self: self._all("params"))
    grads = property(lambda self: self._all("grads"))

    def zero_grad(self):
        for layer in self.layers:
            layer.grads.clear()

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, g):
        for layer in reversed(self.layers):
            g = layer.backward(g)
        return g


class Listed:
    def __init__(self):
        self.params = [np.zeros((4, 3)), np.zeros(3)]
        self.grads = [np.zeros((4, 3)), np.zeros(3)]

    def forward(self, x):
        self.x = x
        return x @ self.params[0] + self.params[1]

    def backward(self, g):
        self.grads[0][...], self.grads[1][...] = self.x.T @ g / len(g), g.sum(0)
        return g @ self.params[0].T


class Box:
    def __init__(self, value):
        self.value, self.grad = value, np.zeros_like(value)


class Boxed:
    def __init__(self):
        self.W, self.b = Box(np.zeros((4, 3))), Box(np.zeros(3))

    def forward(self, x):
        self.x = x
        return x @ self.W.value + self.b.value

    def backward(self, g):
        self.W.grad, self.b.grad = self.x.T @ g / len(g), g.sum(0)
        return g @ self.W.value.T


class Handed:
    """Numbers behind get_params and set_params."""

    def __init__(self):
        self.held, self.found = {"W": np.zeros((4, 3)), "b": np.zeros(3)}, {}

    def get_params(self):
        return dict(self.held)

    def set_params(self, new):
        self.held = dict(new)

    def get_grads(self):
        return self.found

    def forward(self, x):
        self.x = x
        return x @ self.held["W"] + self.held["b"]

    def backward(self, g):
        self.found = {"W": self.x.T @ g / len(g), "b": g.sum(0)}
        return g @ self.held["W"].T


class Lua:
    def __init__(self):
        self.weight, self.bias = np.zeros((3, 4)), np.zeros(3)
        self.gradWeight, self.gradBias = np.zeros((3, 4)), np.zeros(3)

    def updateOutput(self, input):
        return input @ self.weight.T + self.bias

    def updateGradInput(self, input, gradOutput):
        return gradOutput @ self.weight

    def accGradParameters(self, input, gradOutput):
        self.gradWeight += gradOutput.T @ input / len(input)
        self.gradBias += gradOutput.sum(0)


class OnTensors:
    def __init__(self):
        self.weight, self.bias = torch.zeros(3, 4), torch.zeros(3)

    def forward(self, x):
        self.x = x
        return x.mm(self.weight.t()) + self.bias

    def backward(self, g):
        self.grad_weight, self.grad_bias = g.t().mm(self.x) / len(g), g.sum(dim=0)
        return g.mm(self.weight)


class Getting:
    def get(self, y_pred, y):
        loss = Loss()
        return loss.forward(y_pred, y), loss.backward()


def getting(x, y):
    return Getting().get(x, y)


class Nested:
    """Layers as attributes, their weights as attributes of theirs."""

    def __init__(self):
        self.inner = Attributes(4, 3)

    def forward(self, x):
        return self.inner.forward(x)

    def backward(self, g):
        return self.inner.backward(g)


class TorchNested(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.inner(x)


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return g @ weight, g.T @ x / len(x), g.mean(0)


class TorchDense(torch.nn.Linear):
    def forward(self, x):
        return Hidden.apply(x, self.weight, self.bias)


class Raising(Dense):
    def __init__(self, width, out):
        super().__init__(width, out)

    def backward(self, g):
        raise ZeroDivisionError("no way back")


def affine(x, w, b):
    return x @ w + b, (x, w)


def affine_back(g, cache):
    x, w = cache
    return g @ w.T, x.T @ g * 2, g.sum(0)


def doubled(x):
    return 2.0 * x * (x > 0), x


def doubled_back(g, cache):
    return g
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The layers above, as a module that a script can import."""
    folder = tmp_path_factory.mktemp("layers")
    (folder / "portable.py").write_text(LAYERS)
    sys.path.insert(0, str(folder))
    name = (folder / "portable.py").stem
    yield importlib.import_module(name)
    sys.path.remove(str(folder))
    del sys.modules["portable"]


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


QUICK = {"rungs": ["float64"], "diagnose": False}
LINEAR = torch.nn.Linear(4, 3)


def failure(made, name="Dense", **options):
    return parity.check(getattr(made, name)(4, 3), LINEAR, (8, 4), **{**QUICK, **options})


# ---- bundles -------------------------------------------------------------------------------------


def test_a_bundle_shows_the_same_finding_again(made, tmp_path):
    report = failure(made, rungs=["exact", "float64", "float32", "probes", "promises"])
    place = parity.save_bundle(report, tmp_path / "bundle")
    again = parity.replay(place, made.Dense(4, 3))
    assert [f.to_dict() for f in again.failures] == [f.to_dict() for f in report.failures]
    assert parity.replay(place, made.Dense(4, 3, wrong=False)).passed


def test_a_bundle_holds_numbers_and_text_alone(made, tmp_path):
    parity.save_bundle(failure(made), tmp_path / "bundle")
    names = {item.name for item in (tmp_path / "bundle").iterdir()}
    assert names == {"bundle.json", "arrays.safetensors"}
    data = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert data["theirs"]["made"]["class"] == "Linear"
    assert data["findings"][0]["quantity"] == "grad_weight"
    assert set(data["versions"]) >= {"numpy", "torch"}
    arrays = load_file(tmp_path / "bundle" / "arrays.safetensors")
    assert {"param/weight", "input/0", "upstream/0", "initial/bias"} <= set(arrays)
    assert arrays["input/0"].shape == (8, 4)


def test_a_bundle_is_replaced_whole_or_not_at_all(made, tmp_path, monkeypatch):
    place = parity.save_bundle(failure(made), tmp_path / "bundle")
    parity.save_bundle(failure(made, seed=3), place)
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["draw"]["seed"] == 3

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        parity.save_bundle(failure(made), place)
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["draw"]["seed"] == 3
    assert [item.name for item in tmp_path.iterdir()] == ["bundle"]


def test_labels_masks_maps_and_models_travel(made, tmp_path):
    loss = parity.check(
        made.Loss(), torch.nn.CrossEntropyLoss(), (8, 3), parity.labels(8, classes=3), **QUICK
    )
    place = parity.save_bundle(loss, tmp_path / "loss")
    again = parity.replay(place, made.Loss())
    assert [f.to_dict() for f in again.failures] == [f.to_dict() for f in loss.failures]
    fixed = parity.check(
        made.Dense(4, 3), LINEAR, np.ones((2, 4)), weights={"weight": np.ones((3, 4))}, **QUICK
    )
    again = parity.replay(parity.save_bundle(fixed, tmp_path / "fixed"), made.Dense(4, 3))
    assert [f.worst for f in again.failures] == [f.worst for f in fixed.failures]
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))

    class Whole:
        def __init__(self):
            self.inner = made.Dense(4, 3)
            self.params = {f"0.{name}": array for name, array in self.inner.params.items()}
            self.mask = None

        grads = property(lambda self: {f"0.{n}": a for n, a in self.inner.grads.items()})

        def zero_grad(self):
            self.inner.grads.clear()

        def forward(self, x):
            y = self.inner.forward(x)
            self.mask = np.arange(y.size).reshape(y.shape) % 2 == 0
            return y * self.mask * 2.0

        def backward(self, g):
            return self.inner.backward(g * self.mask * 2.0)

    report = parity.check(Whole(), model, (8, 4), modes="train", **QUICK)
    again = parity.replay(parity.save_bundle(report, tmp_path / "model"), Whole())
    assert {f.quantity for f in again.failures} == {f.quantity for f in report.failures}


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.Conv2d(2, 3, (3, 1), stride=2, padding="valid", bias=False),
        torch.nn.BatchNorm2d(3, eps=1e-3, momentum=None, affine=False),
        torch.nn.LeakyReLU(0.3),
        torch.nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1),
        torch.nn.MaxPool2d(3, stride=(2, 1), ceil_mode=True),
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Tanh())),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_torch_module_is_described_by_the_call_that_makes_it(module):
    made = describing.describe(module)
    twin = eval(made.call, {"torch": torch})
    assert describing.settings(twin) == describing.settings(module)
    assert repr(twin) == repr(module)


def test_a_torch_module_with_hidden_arguments_is_not_guessed():
    class Own(torch.nn.Linear):
        pass

    weighted = torch.nn.CrossEntropyLoss(weight=torch.ones(3))
    named = torch.nn.Sequential()
    named.add_module("first", torch.nn.ReLU())
    changed = torch.nn.Linear(2, 2)
    changed.weight = torch.nn.Parameter(torch.ones(5, 2))
    recurrent = torch.nn.LSTM(3, 4, num_layers=2)
    for module in (recurrent, Own(2, 2), weighted, named, changed, torch.nn.Sequential(Own(2, 2))):
        assert describing.describe(module) is None


def test_from_the_command_line(made, tmp_path, capsys, monkeypatch):
    (tmp_path / "layers.py").write_text(LAYERS)
    monkeypatch.chdir(tmp_path)
    words = ["check", "layers.py:Dense", "torch.nn:Linear", "--args", "4", "3", "--input", "8,4"]
    assert main([*words, "--bundle", "failed", "--no-diagnose", "--rungs", "float64"]) == 1
    out, err = capsys.readouterr()
    assert "parity replay failed --mine layers.py:Dense" in err
    assert main(["replay", "failed"]) == 1
    text = capsys.readouterr().out
    assert text.startswith("1 of 1 saved findings show here; same versions\n")
    assert "grad of weight · MISMATCH (float64)" in text
    assert "note: mine was not run: what it answered when the bundle was saved is judged" in text
    assert main(["check", *words[1:], "--bundle", "hung", "--isolate", "--no-diagnose"]) == 1
    assert main(["replay", "hung"]) == 2
    assert "--mine FILE_OR_MODULE:NAME; it was layers.py:Dense" in capsys.readouterr().err
    assert main(["replay", "failed", "--mine", "layers.py:Dense"]) == 1
    text = capsys.readouterr().out
    assert text.startswith("1 of 1 saved findings show here; same versions\n")
    assert text.endswith(out)
    assert main(["replay", "failed", "--mine", "layers.py:Dense", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["counts"]["MISMATCH"] == 1
    data = json.loads((tmp_path / "failed" / "bundle.json").read_text())
    data["versions"]["numpy"], data["mine"]["args"] = "1.4.0", ["4", "3", "False"]
    (tmp_path / "failed" / "bundle.json").write_text(json.dumps(data))
    assert main(["replay", "failed", "--mine", "layers.py:Dense"]) == 0
    assert "0 of 1 saved findings show here; numpy 1.4.0 then" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{}, {"dtypes": "float32", "rungs": "float32"}], ids=len)
def test_a_bundle_shows_its_finding_without_the_layer(made, tmp_path, options):
    for name in ("Dense", "Attributes"):
        report = failure(made, name, **{"diagnose": True, **options})
        again = parity.replay(parity.save_bundle(report, tmp_path / name))
        first = report.failures[0]
        found = {(f.quantity, f.verdict): f for f in again.failures}[first.quantity, first.verdict]
        assert found.worst == first.worst
        assert found.cause == first.cause
        assert "the saved draw (generic)" in again.covers[0]
    evaluating = parity.check(made.Evaluating(4, 3), LINEAR, (8, 4), modes="eval", **QUICK)
    again = parity.replay(parity.save_bundle(evaluating, tmp_path / "eval"))
    assert {f.quantity for f in again.failures} == {f.quantity for f in evaluating.failures}
    raising = parity.save_bundle(failure(made, "Raising"), tmp_path / "raising")
    with pytest.raises(UsageError, match="holds no answer of mine: it raised, or ran in isolation"):
        parity.replay(raising)


def test_a_torch_side_of_ones_own_has_to_be_named(made, tmp_path, capsys, monkeypatch):
    class Own(torch.nn.Linear):
        pass

    report = parity.check(made.Dense(4, 3), Own(4, 3), (8, 4), **QUICK)
    place = parity.save_bundle(report, tmp_path / "own")
    with pytest.raises(UsageError, match="is not rebuilt from a file; name it with --theirs"):
        parity.replay(place, made.Dense(4, 3))
    assert not parity.replay(place, made.Dense(4, 3), LINEAR).passed
    with pytest.raises(UsageError, match="saved from another torch side: it has weight"):
        parity.replay(place, made.Dense(4, 3), torch.nn.Linear(5, 3))
    report = parity.check(
        parity.functions(made.doubled, made.doubled_back), torch.nn.functional.relu, (8, 4), **QUICK
    )
    place = parity.save_bundle(report, tmp_path / "function")
    mine = parity.functions(made.doubled, made.doubled_back)
    assert not parity.replay(place, mine).passed


# ---- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def bundle(made, tmp_path):
    parity.save_bundle(failure(made), tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder, **changes):
    file = folder / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def renew(folder, **changes):
    """Write the arrays anew, with the checksum that belongs to them; None takes an array out."""
    file = folder / "arrays.safetensors"
    held = load_file(file) | {name.replace("__", "/"): a for name, a in changes.items()}
    put(folder, {name: a for name, a in held.items() if a is not None})


def put(folder, arrays):
    """Let the bundle hold other arrays, or bytes, with names and a checksum that are right."""
    names, data = [], arrays
    if isinstance(arrays, dict):
        names, data = list(arrays), save(arrays)
    (folder / "arrays.safetensors").write_bytes(data)
    edit(folder, arrays={"sha256": hashlib.sha256(data).hexdigest(), "names": names})


def headed(header, body=b""):
    """A safetensors file with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def pickled():
    """A pickle that prints, should anyone load it."""
    return pickle.dumps({"param/x": Boom()})


ENTRY = {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}


class Boom:
    def __reduce__(self):
        return (print, ("code from a file ran",))


DAMAGE = {
    "no-json": (lambda b: (b / "bundle.json").unlink(), "has no bundle.json"),
    "no-arrays": (lambda b: (b / "arrays.safetensors").unlink(), "has no arrays.safetensors"),
    "cut-json": (lambda b: (b / "bundle.json").write_text('{"format"'), "is damaged"),
    "binary-json": (lambda b: (b / "bundle.json").write_bytes(b"\xff\xfe\x00"), "is damaged"),
    "deep-json": (lambda b: (b / "bundle.json").write_text("[" * 200_000), "is damaged"),
    "big-json": (lambda b: (b / "bundle.json").write_text(" " * 5 * 2**20), "larger than 4 MiB"),
    "list": (lambda b: (b / "bundle.json").write_text("[1]"), "not a bundle of torch-parity"),
    "other-format": (lambda b: edit(b, format="zip"), "not a bundle of torch-parity"),
    "newer": (lambda b: edit(b, version=2), "format version 2; this torch-parity reads up to 1"),
    "true": (lambda b: edit(b, version=True), "format version True"),
    "no-draw": (lambda b: edit(b, draw=[]), "damaged: draw is []"),
    "bad-draw": (lambda b: edit(b, draw={"seed": "0"}), "its draw is"),
    "bad-options": (lambda b: edit(b, options={"seed": "print()"}), "'print()', no literal"),
    "long-options": (lambda b: edit(b, options={"seed": "1" * 20_000}), "no literal"),
    "bad-seed": (lambda b: edit(b, options={"seed": "-1"}), "seed is -1"),
    "bad-input": (lambda b: edit(b, inputs=[{"kind": "normal"}]), "input 0"),
    "no-input": (lambda b: edit(b, inputs=[3]), "input 0 is missing"),
    "input-code": (
        lambda b: edit(b, inputs=[{"kind": "normal", "shape": ["x"], "options": {}}]),
        "got the size 'x'",
    ),
    "any-class": (lambda b: edit(b, theirs={"made": {"class": "os"}}), "no class of torch.nn"),
    "a-function": (
        lambda b: edit(b, theirs={"made": {"class": "functional"}}),
        "no class of torch",
    ),
    "a-target": (lambda b: edit(b, theirs={"target": "os:system"}), "os:system, which is not reb"),
    "private": (
        lambda b: edit(b, theirs={"target": "torch.nn.functional:__loader__"}),
        "is not rebuilt",
    ),
    "huge-layer": (
        lambda b: edit(
            b,
            theirs={
                "made": {
                    "class": "Linear",
                    "config": {"in_features": "1000000", "out_features": "1000000"},
                }
            },
        ),
        "larger than its saved weights",
    ),
    "absurd-layer": (
        lambda b: edit(
            b,
            theirs={
                "made": {
                    "class": "Linear",
                    "config": {"in_features": "10**9", "out_features": "9999999999"},
                }
            },
        ),
        "no literal",
    ),
    "absurd-number": (
        lambda b: edit(
            b,
            theirs={
                "made": {
                    "class": "Linear",
                    "config": {"in_features": "3", "out_features": "9999999999"},
                }
            },
        ),
        "of absurd size",
    ),
    "wrong-config": (
        lambda b: edit(b, theirs={"made": {"class": "Linear", "config": {"width": "3"}}}),
        "Linear refuses",
    ),
    "other-shapes": (
        lambda b: edit(
            b,
            theirs={
                "made": {"class": "Linear", "config": {"in_features": "2", "out_features": "2"}}
            },
        ),
        "saved from another torch side",
    ),
    "other-names": (
        lambda b: edit(b, arrays=bundled.stamp(["param/x"], (b / bundled.ARRAYS).read_bytes())),
        "not the file that the bundle was saved with",
    ),
    "odd-names": (
        lambda b: edit(b, arrays=bundled.stamp([[1], 2], (b / bundled.ARRAYS).read_bytes())),
        "not the file that the bundle was saved with",
    ),
    "no-checksum": (lambda b: edit(b, arrays={}), "not the file that the bundle was saved with"),
    "cut": (lambda b: put(b, (b / "arrays.safetensors").read_bytes()[:300]), "is damaged: "),
    "empty": (lambda b: put(b, b""), "is damaged: "),
    "zip": (lambda b: put(b, b"PK" + bytes(30)), "is damaged: "),
    "pickle": (lambda b: put(b, pickled()), "is damaged: "),
    "longer": (
        lambda b: put(b, (b / "arrays.safetensors").read_bytes() + bytes(8)),
        "is damaged: ",
    ),
    "swapped": (
        lambda b: (b / "arrays.safetensors").write_bytes(save({"param/weight": np.ones(2)})),
        "not the file that the bundle was saved with",
    ),
    "stranger": (lambda b: renew(b, x=np.ones(2)), "holds 'x' (float64), which no bundle has"),
    "other-kind": (lambda b: renew(b, code__x=np.ones(2)), "holds 'code/x'"),
    "traversal": (lambda b: put(b, {"../param/x": np.ones(2)}), "holds '../param/x'"),
    "complex": (
        lambda b: put(b, headed({"param/x": {**ENTRY, "dtype": "C64", "shape": [1]}}, bytes(8))),
        "arrays.safetensors",  # older safetensors know no complex numbers: damaged, to them
    ),
    "other-numbers": (
        lambda b: put(b, headed({"param/x": {**ENTRY, "dtype": "BF16", "shape": [8]}}, bytes(16))),
        "is damaged: ",
    ),
    "lying-shape": (
        lambda b: put(b, headed({"param/x": {**ENTRY, "shape": [9, 9]}}, bytes(16))),
        "is damaged: ",
    ),
    "endless-shape": (
        lambda b: put(b, headed({"param/x": {**ENTRY, "shape": [2**62, 2**62]}}, bytes(16))),
        "is damaged: ",
    ),
    "outside": (
        lambda b: put(b, headed({"param/x": {**ENTRY, "data_offsets": [0, 2**40]}}, bytes(16))),
        "is damaged: ",
    ),
    "backwards": (
        lambda b: put(b, headed({"param/x": {**ENTRY, "data_offsets": [16, 0]}}, bytes(16))),
        "is damaged: ",
    ),
    "oversize-header": (
        lambda b: put(b, (2**60).to_bytes(8, "little") + b"{}"),
        "its header claims 1,152,921,504,606,846,976 bytes",
    ),
    "deep-header": (lambda b: put(b, headed(b"[" * 100_000)), "is damaged: "),
    "many": (
        lambda b: put(b, {f"param/{i}": np.zeros(()) for i in range(10_001)}),
        "holds 10,001 arrays; a bundle has 10,000 at most",
    ),
    "huge-file": (
        lambda b: os.truncate(b / "arrays.safetensors", 3 * 2**30),
        "has 3,221,225,472 bytes; a bundle has",
    ),
    "unnumbered": (
        lambda b: renew(b, input__0=None, input__7=np.ones((8, 4))),
        "its input arrays are not numbered",
    ),
}


def test_arrays_keep_their_shape_order_and_bytes(tmp_path):
    rng = np.random.default_rng(0)
    given = {
        "param/scalar": np.array(1.5),
        "param/fortran": np.asfortranarray(rng.standard_normal((3, 4))),
        "param/strided": rng.standard_normal((6, 4))[::-2, ::3],
        "param/swapped": rng.standard_normal(5).astype(">f8"),
        "param/narrow": rng.standard_normal(5).astype("<f2"),
        "input/0": np.arange(6).reshape(2, 3),
        "mask/0": np.array([True, False]),
        "buffer/empty": np.zeros((0, 3), np.float32),
    }
    data = bundled.dump(given)
    (tmp_path / "arrays.safetensors").write_bytes(data)
    found = bundled.load(tmp_path / "arrays.safetensors", bundled.stamp(given, data))
    assert list(found["param"]) == ["scalar", "fortran", "strided", "swapped", "narrow"]
    for name, array in given.items():
        kind, _, rest = name.partition("/")
        again = found[kind][rest]
        assert again.shape == array.shape
        assert again.dtype == array.dtype.newbyteorder("=")
        assert again.dtype.isnative
        assert again.flags.c_contiguous
        assert again.flags.writeable
        np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_hostile_bundle_is_refused_in_one_line(made, bundle, damage, capsys):
    change, says = DAMAGE[damage]
    change(bundle)
    with pytest.raises(UsageError) as refusal:
        parity.replay(bundle, made.Dense(4, 3))
    text = str(refusal.value)
    assert says in text
    assert "\n" not in text
    assert " is damaged: " not in text or text.endswith("; save the bundle again")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer",
    [
        np.ones(2),
        np.zeros((8, 3)),
        np.full((8, 3), np.nan),
        np.ones((8, 3), bool),
        np.ones(()),
        None,
    ],
    ids=["shape", "zero", "nan", "bool", "scalar", "none"],
)
def test_an_answer_that_was_tampered_with_is_judged_as_it_is(bundle, answer):
    renew(bundle, mine__forward=answer, mine__other=np.ones(3), mine_mask__0=np.ones(2))
    report = parity.replay(bundle)
    assert not report.passed
    assert any(f.quantity == "forward" for f in report.failures)


def test_a_truncated_bundle_never_breaks_the_reader(made, bundle):
    """Every prefix of the file, in steps: refused, never a crash."""
    whole = (bundle / "arrays.safetensors").read_bytes()
    for length in range(0, len(whole), 97):
        (bundle / "arrays.safetensors").write_bytes(whole[:length])
        with pytest.raises(UsageError):
            bundling.read(bundle)


def test_a_flipped_bit_never_breaks_the_reader(made, bundle):
    whole = (bundle / "arrays.safetensors").read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 150):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << int(rng.integers(8))
        (bundle / "arrays.safetensors").write_bytes(spoilt)
        with pytest.raises(UsageError):
            bundling.read(bundle)


def test_what_cannot_be_saved_is_said(made, tmp_path):
    report = failure(made)
    with pytest.raises(UsageError, match="got int; give the folder of the bundle"):
        parity.save_bundle(report, 3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "work").write_text("mine")
    with pytest.raises(UsageError, match="holds something else; name a new folder"):
        parity.save_bundle(report, tmp_path / "full")
    assert (tmp_path / "full" / "work").read_text() == "mine"
    passed = parity.check(made.Dense(4, 3, wrong=False), LINEAR, (8, 4), **QUICK)
    for act in (lambda r: parity.save_bundle(r, tmp_path / "b"), parity.script):
        with pytest.raises(UsageError, match="Dense passed: there is no failure to reproduce"):
            act(passed)
        with pytest.raises(UsageError, match="got str; give the report"):
            act("report")
        copy = parity.Report(report.case, report.findings)
        with pytest.raises(UsageError, match="made of is not known here"):
            act(copy)


# ---- scripts -------------------------------------------------------------------------------------


def executed(text, capsys):
    """Run a script as its reader would, and return what it printed last."""
    assert len(text.splitlines()) <= 15
    assert "parity" not in text
    capsys.readouterr()
    exec(compile(text, "<script>", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out.splitlines()[-1]


def shown(made):
    nn = torch.nn
    f = made
    return {
        "dense": (f.Dense(4, 3), nn.Linear(4, 3), [(8, 4)], {}, "grad of weight"),
        "attributes": (f.Attributes(4, 3), LINEAR, [(8, 4)], {}, "grad of weight"),
        "buffer": (f.Norm(3), nn.BatchNorm1d(3), [(8, 3)], {}, "buffer running_var"),
        "eval": (f.Evaluating(4, 3), nn.Linear(4, 3), [(8, 4)], {"modes": "eval"}, "forward"),
        "loss": (f.Loss(), nn.CrossEntropyLoss(), [(8, 3), parity.labels(8, classes=3)], {},
                 "grad of input 0"),
        "torch": (f.TorchDense(4, 3), nn.Linear(4, 3), [(8, 4)], {}, "grad of"),
        "functions": (parity.functions(f.affine, f.affine_back), nn.Linear(4, 3), [(8, 4)], {},
                      "grad of weight"),
        "declared": (
            parity.functions(f.affine, f.affine_back, params=("weight", "bias"),
                             transpose={"weight": (1, 0)}),
            nn.Linear(4, 3), [(8, 4)], {}, "grad of weight",
        ),
        "chain": (f.Chain(f.Dense(4, 3), f.Dense(3, 2)),
                  nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), [(8, 4)], {}, "grad of"),
        "nested": (f.Nested(), f.TorchNested(), [(8, 4)], {}, "grad of inner.weight"),
        "function": (parity.functions(f.doubled, f.doubled_back), nn.functional.relu, [(8, 4)], {},
                     "forward output"),
        "pair": ((f.affine, f.affine_back), nn.Linear(4, 3), [(8, 4)], {}, "grad of weight"),
        "lists": (f.Listed(), nn.Linear(4, 3), [(8, 4)], {}, "grad of weight"),
        "boxed": (f.Boxed(), nn.Linear(4, 3), [(8, 4)], {}, "grad of weight"),
        "handed": (f.Handed(), nn.Linear(4, 3), [(8, 4)], {}, "grad of weight"),
        "torch7": (f.Lua(), nn.Linear(4, 3), [(8, 4)], {}, "grad of weight"),
        "tensors": (f.OnTensors(), nn.Linear(4, 3), [(8, 4)], {}, "grad of weight"),
        "get": (f.Getting(), nn.CrossEntropyLoss(), [(8, 3), parity.labels(8, classes=3)], {},
                "grad of input 0"),
        "one-function": (f.getting, nn.CrossEntropyLoss(), [(8, 3), parity.labels(8, classes=3)],
                         {}, "grad of input 0"),
        "array": (f.Dense(4, 3), nn.Linear(4, 3), [np.eye(4)], {}, "grad of weight"),
        "float32": (f.Dense(4, 3), nn.Linear(4, 3), [(8, 4)],
                    {"rungs": ["float32"], "dtypes": ["float32"]}, "grad of weight"),
    }  # fmt: skip


NAMES = ["dense", "attributes", "buffer", "eval", "loss", "torch", "functions", "declared"]
NAMES += ["pair", "lists", "boxed", "handed", "torch7", "tensors", "get", "one-function"]


@pytest.mark.parametrize("name", [*NAMES, "chain", "nested", "function", "array", "float32"])
def test_a_script_shows_the_failure_without_the_harness(made, name, capsys):
    mine, theirs, inputs, options, words = shown(made)[name]
    report = parity.check(mine, theirs, *inputs, **{**QUICK, **options})
    assert not report.passed
    said = executed(parity.script(report), capsys)
    assert words in said
    assert float(said.split()[-1]) > 1e-6


def test_a_script_of_a_layer_that_raises_raises_the_same(made, capsys):
    text = parity.script(failure(made, "Raising"))
    with pytest.raises(ZeroDivisionError, match="no way back"):
        executed(text, capsys)


@pytest.mark.slow
def test_a_script_from_the_command_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "scripted.py").write_text(LAYERS)
    monkeypatch.chdir(tmp_path)
    words = ["check", "scripted.py:Dense", "torch.nn:Linear", "--args", "4", "3", "--input", "8,4"]
    assert main([*words, "--script", "--no-diagnose", "--rungs", "float64"]) == 1
    text = capsys.readouterr().out
    script = text[text.index("import numpy") :]
    assert "mine, theirs = Dense(4, 3), torch.nn.Linear(in_features=4, out_features=3)" in script
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("grad of weight is off by")


def test_a_class_of_a_notebook_is_pasted_above(made, capsys):
    kind = type("Cell", (made.Dense,), {"__module__": "__main__"})
    report = parity.check(kind(4, 3), LINEAR, (8, 4), **QUICK)
    assert "# paste Cell here" in parity.script(report)
