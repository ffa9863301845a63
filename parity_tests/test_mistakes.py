"""What a user mistypes gets one line: what was given, what is possible, how to mend it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity
import parity.statistics
from parity import loading
from parity.findings import UsageError

SIZE = (5, 4)
PAGE = Path(__file__).resolve().parent.parent / "README.md"


def linear(**options):
    """Check a linear layer."""
    return parity.check(lambda: impl.Linear(4, 3), nn.Linear(4, 3), SIZE, **options)


def turned():
    """Check a wrong layer behind parity.axes."""
    mine = parity.axes(impl.ReLU(), inputs=(0, 1))
    return parity.check(mine, nn.Identity(), SIZE, rungs=["float64"], diagnose=False)


class Orphan(nn.Module):
    """A module that torch's constructor never saw."""

    def __init__(self):
        self.k = 2.0

    def forward(self, x):
        return self.k * x


def fails():
    """Make a layer, in vain."""
    raise ZeroDivisionError("no layer today")


MISTAKES = {
    "option": (lambda: linear(seeed=1), "unknown option 'seeed', did you mean 'seed'?"),
    "list": (
        lambda: parity.check(impl.Linear(4, 3), nn.Linear(4, 3), [5, 4]),
        "input 0 is a list; each input is a shape tuple such as (8, 4)",
    ),
    "negative": (
        lambda: parity.check(impl.Linear(4, 3), nn.Linear(4, 3), (-5, 4)),
        "got the size -5; sizes are non-negative integers",
    ),
    "class": (
        lambda: parity.check(impl.Linear(4, 3), nn.Linear, SIZE),
        "theirs is the class Linear; give an instance: Linear(…)",
    ),
    "weights-of-mine": (
        lambda: linear(weights={"wieght": "weight", "bias": "bias"}),
        "weights names 'wieght', did you mean 'weight'?; mine has: weight, bias",
    ),
    "weights-besides": (
        lambda: linear(weights={"extra": "bias"}),
        "weights names 'extra'; mine has: weight, bias",
    ),
    "rungs": (
        lambda: linear(rungs=["float64"], dtypes=["float32"]),
        "leaves nothing to compare",
    ),
    "seeds": (lambda: linear(seeds=-1), "seeds is -1; it must be a non-negative integer"),
    "strict": (lambda: linear(strict="no"), "strict is 'no'; it must be True or False"),
    "isolate": (lambda: linear(isolate="yes"), "isolate is 'yes'; it must be True or False"),
    "expects-zero": (lambda: linear(expects_zero=3), "expects_zero is 3; it must be True, a"),
    "gap": (
        lambda: linear(gaps={"grad_weight": None}),
        "gaps['grad_weight'] is None; say why: {quantity: reason}",
    ),
    "weights-name": (
        lambda: linear(weights={"weight": "wieght"}),
        "weights names 'wieght', did you mean 'weight'?; the reference has: weight, bias",
    ),
    "weights-array-name": (
        lambda: linear(weights={"wieght": np.ones((3, 4))}),
        "weights names 'wieght', did you mean 'weight'?; the reference has: weight, bias",
    ),
    "weights-shape": (
        lambda: linear(weights={"weight": np.ones((4, 3))}),
        "weights['weight'] has shape (4, 3); the reference's has (3, 4)",
    ),
    "weights-axes": (
        lambda: linear(weights={"weight": ("weight", (0, 3))}),
        "weights['weight'] has the axis order (0, 3); 'weight' has shape (3, 4), so it must be an "
        "order of (0, 1)",
    ),
    "weights-text": (
        lambda: linear(weights={"weight": np.array(["a"])}),
        "weights['weight'] is an array of dtype <U1; it must hold real numbers",
    ),
    "weights-ragged": (
        lambda: linear(weights={"weight": [[1.0], [1.0, 2.0]]}),
        "weights['weight'] is no array: ",
    ),
    "too-large": (
        lambda: parity.check(impl.Linear(4, 3), nn.Linear(4, 3), (10**12, 4)),
        "input 0 of shape (1000000000000, 4) takes 2.98e+04 GiB in float64, more than this "
        "machine's memory: give smaller shapes",
    ),
    "no-super": (
        lambda: parity.check(Orphan(), nn.Identity(), SIZE),
        "mine is Orphan, a torch.nn.Module whose __init__ leaves out torch's own: call "
        "super().__init__() first in it",
    ),
    "no-super-theirs": (
        lambda: parity.check(impl.ReLU(), Orphan(), SIZE),
        "theirs is Orphan, a torch.nn.Module whose __init__ leaves out torch's own",
    ),
    "axes-unused": (
        lambda: parity.check(
            parity.axes(impl.Linear(4, 3), inputs=(0, 3, 1, 2)), nn.Linear(4, 3), SIZE
        ),
        "axes got inputs=(0, 3, 1, 2); the inputs have the shapes (5, 4)",
    ),
    "axes-many": (
        lambda: parity.check(
            parity.axes(impl.Linear(4, 3), inputs=[(1, 0), None]), nn.Linear(4, 3), SIZE
        ),
        "axes got inputs=[(1, 0), None]; the inputs have the shapes (5, 4)",
    ),
    "weights-nan": (
        lambda: linear(weights={"weight": np.full((3, 4), np.nan)}),
        "weights['weight'] holds NaN or infinity, which would hide every difference",
    ),
    "expects-zero-name": (
        lambda: linear(expects_zero=["grad_wieght"]),
        "expects_zero names 'grad_wieght', did you mean 'grad_weight'?; possible: forward, ",
    ),
    "timeout": (
        lambda: linear(timeout=3),
        "timeout=3 needs isolate=True: only a process of its own can be held to it",
    ),
    "memory": (
        lambda: linear(memory=500),
        "memory=500 needs isolate=True: only a process of its own can be held to it",
    ),
    "timeout-true": (
        lambda: linear(timeout=True, isolate=True),
        "timeout is True; it must be a positive number",
    ),
    "device": (
        lambda: linear(device="cuda"),
        "device='cuda' is for a torch module under test; mine is Linear, which computes on the CPU",
    ),
    "sides-swapped": (
        lambda: parity.check(nn.Linear(4, 3), impl.Linear(4, 3), SIZE),
        "theirs is Linear, which has a backward of its own: it looks hand-written, and mine comes",
    ),
    "axes-number": (
        lambda: parity.axes(impl.Linear(4, 3), inputs=3),
        "axes got inputs=3; give an order such as (0, 2, 3, 1), or a list of them",
    ),
    "functions": (
        lambda: parity.functions(3, 4),
        "parity.functions takes two callables: functions(forward, backward)",
    ),
    "no-dtypes": (lambda: linear(dtypes=[]), "dtypes is empty; possible: float64, float32"),
    "preset-pair": (
        lambda: parity.preset("cs231n", (np.add, np.add, np.add)),
        "give (forward, backward)",
    ),
    "attributes-names": (
        lambda: parity.attributes(impl.Linear(4, 3), params=["W"]),
        "give torch's names: {'weight': 'W'}",
    ),
    "no-seeds": (
        lambda: parity.statistics.compare_seeds([]),
        "compare_seeds got no comparisons; give one or more",
    ),
    "text-masks": (
        lambda: parity.statistics.check_dropout_mask(["a"] * 100, 0.5),
        "masks holds strings; give numbers or booleans, zero where dropped",
    ),
    "no-python-file": (
        lambda: loading.build(loading.Recipe(f"{PAGE}:Name"), "mine"),
        "is no .py file; put the class into one",
    ),
    "script-of-axes": (
        lambda: parity.script(turned()),
        "no script is written for AxesSubject; save a bundle instead",
    ),
    "predictions-length": (
        lambda: parity.compare_predictions([1, 2], [1], [1, 2]),
        "predictions and truth differ in length: 2 for mine, 1 for torch, 2 for truth",
    ),
    "predictions-kind": (
        lambda: parity.compare_predictions(None, [1], [1]),
        "mine holds None; give labels of one kind, integers or strings",
    ),
    "predictions-margin": (
        lambda: parity.compare_predictions([1], [1], [1], margin="a"),
        "margin is 'a'; give a number, 0.01 for one percentage point",
    ),
    "factory": (
        lambda: parity.check(fails, nn.Linear(4, 3), SIZE),
        "mine is fails, which raised ZeroDivisionError: no layer today; it must make the layer",
    ),
    "input-function": (
        lambda: parity.check(impl.Linear(4, 3), nn.Linear(4, 3), lambda: np.ones(SIZE)),
        "it is given a NumPy Generator and returns an array: lambda rng:",
    ),
    "scale": (
        lambda: parity.normal(5, 4, scale="a"),
        "parity.normal got scale='a'; it must be a finite number",
    ),
    "low": (
        lambda: parity.uniform(5, low="a"),
        "parity.uniform got low='a'; it must be a finite number",
    ),
    "axis": (
        lambda: parity.probabilities(5, 4, axis=7),
        "axis=7 is none of shape (5, 4); it has 2 axes",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_one_line(name):
    mistake, words = MISTAKES[name]
    with pytest.raises(parity.UsageError) as answer:
        mistake()
    text = str(answer.value)
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize("dtypes", [np.float64, "float64", [torch.float64], np.dtype("float64")])
def test_dtype_objects_are_as_good_as_their_names(dtypes):
    assert linear(dtypes=dtypes).passed


def test_numbers_that_are_nan_throughout_prove_nothing():
    report = parity.check(impl.Linear(4, 3), nn.Linear(4, 3), np.full(SIZE, np.nan))
    assert not report.passed
    assert "the reference's output is NaN throughout" in str(report)


def test_a_gap_that_names_nothing_is_told_from_a_closed_one():
    report = linear(gaps={"grad_wieght": "not yet"}, rungs=["float64"])
    words = "the gap names 'grad_wieght', which is not compared, did you mean 'grad_weight'?"
    assert words in str(report)
    assert "is closed: delete its line" in str(linear(gaps={"grad_weight": "not yet"}))


class Affine:
    """A layer with one attribute that raises; `broken` says which."""

    broken = "params"

    def __init__(self):
        self._params = {"weight": np.zeros((3, 4)), "bias": np.zeros(3)}
        self._grads = {}

    def _get(self, name):
        if self.broken == name:
            raise ZeroDivisionError(f"no {name}")
        return {"params": self._params, "grads": self._grads, "buffers": {}}[name]

    params = property(lambda self: self._get("params"))
    grads = property(lambda self: self._get("grads"))
    buffers = property(lambda self: self._get("buffers"))

    def forward(self, x):
        return x @ self._params["weight"].T + self._params["bias"]

    def backward(self, grad):
        return grad @ self._params["weight"]


@pytest.mark.parametrize("broken", ["params", "grads", "buffers"])
@pytest.mark.parametrize("factory", [False, True])
def test_an_attribute_that_raises_is_a_finding(broken, factory):
    kind = type("Broken", (Affine,), {"broken": broken})
    report = parity.check(kind if factory else kind(), nn.Linear(4, 3), SIZE)
    assert [f.verdict.name for f in report.findings] == ["ERROR"]
    assert f"reading mine's attributes raised ZeroDivisionError: no {broken}" in str(report)
    assert "in _get" in report.findings[0].evidence["traceback"]
    with pytest.raises(parity.UsageError, match="raised ZeroDivisionError"):
        parity.localise(kind(), nn.Linear(4, 3), SIZE)


def test_a_gradient_that_cannot_be_read_before_backward_is_no_mistake():
    class Lazy:
        def __init__(self):
            self.W, self.b, self.x, self.g = np.zeros((4, 3)), np.zeros(3), None, None

        dW = property(lambda self: self.x.T @ self.g)
        db = property(lambda self: self.g.sum(axis=0))

        def forward(self, x):
            self.x = x
            return x @ self.W + self.b

        def backward(self, grad):
            self.g = grad
            return grad @ self.W.T

    assert parity.check(Lazy(), nn.Linear(4, 3), SIZE, rungs=["float64"]).passed


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (None, "returned None; an array was expected"),
        (np.array(["a"]), "returned an array of dtype <U1; real numbers are compared"),
        (np.ones((5, 3), complex), "returned an array of dtype complex128; real numbers"),
        (np.ones((5, 3)).tolist(), "forward returned a list of numbers; an array was expected"),
    ],
    ids=["none", "text", "complex", "list"],
)
def test_what_is_no_array_of_numbers_is_a_finding(output, words):
    class Layer(impl.Linear):
        def forward(self, x):
            return output

    report = parity.check(lambda: Layer(4, 3), nn.Linear(4, 3), SIZE, rungs=["float64"])
    assert words in str(report)


def test_functions_whose_backward_returns_nothing():
    def forward(x, w, b):
        return x @ w.T + b, (x, w)

    pair = parity.functions(forward, lambda g, cache: None)
    report = parity.check(pair, nn.Linear(4, 3), SIZE, rungs=["float64"])
    assert report.cause.sentence == (
        "backward returned None; it is to return the gradients of input 0, w, b"
    )
    silent = parity.functions(forward, lambda g, cache: None, returns=(), input_grads=False)
    report = parity.check(silent, nn.Linear(4, 3), SIZE, rungs=["float64"])
    assert report.passed, report


def test_outputs_that_the_declared_order_does_not_fit():
    mine = parity.axes(impl.Linear(4, 3), outputs=(0, 2, 3, 1))
    report = parity.check(mine, nn.Linear(4, 3), SIZE, rungs=["float64"])
    assert report.cause.sentence == (
        "axes got outputs=(0, 2, 3, 1); the outputs have the shapes (5, 3)"
    )


def test_memory_that_runs_out_in_the_harness_is_no_bare_error(monkeypatch):
    def full(*given):
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr("parity.examining.examine", full)
    with pytest.raises(UsageError, match=r"memory is too small for the inputs \(\(5, 4\) takes"):
        linear()
    monkeypatch.delattr("os.sysconf")
    assert parity.checking.physical_memory() == float("inf")


@pytest.mark.parametrize(
    ("returned", "said"),
    [(None, "None"), ((), "tuple"), ("array", "ndarray")],
    ids=["none", "empty", "array"],
)
def test_a_reference_that_returns_no_tensor_is_told_so(returned, said):
    def reference(x):
        return x.detach().numpy() if returned == "array" else returned

    text = str(parity.check(impl.ReLU(), reference, SIZE))
    assert f"the reference returned {said}, which holds no tensor; return a tensor" in text


def test_probes_alone_are_a_comparison():
    report = linear(rungs=["probes"])
    assert report.passed
    assert len(report.findings) > 10

    def double(x):
        return 2 * nn.functional.relu(x)

    assert not parity.check(impl.ReLU(), double, SIZE, rungs=["probes"], diagnose=False).passed


def test_gradients_that_nobody_asked_for_are_not_passed_over():
    class Generous(impl.ReLU):
        def backward(self, grad_output):
            return super().backward(grad_output), np.full((2, 2), np.nan)

    report = parity.check(Generous(), nn.ReLU(), SIZE)
    assert any("returned 2 values for 1 input" in note for note in report.notes)
