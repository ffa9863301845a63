"""Recurrent layers by hand: nested outputs, gates in another order, weights kept as (in, out)."""

import ast

import numpy as np
import pytest
import torch
from torch import nn

import fixtures.population_numpy as own
import impl
import parity
from fixtures.population import hidden
from fixtures.recurrent import GRU, KINDS, LSTM
from parity import literals

QUICK = {"rungs": ["float64"]}
SIZE = (4, 6, 3)


def compare(kind, order, turned=False, batch_first=True, **options):
    mine, theirs = KINDS[kind]
    layer = mine(3, 5, order, batch_first=batch_first, turned=turned)
    return parity.check(layer, theirs(3, 5, batch_first=batch_first), SIZE, **options)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("kind", "order"), [("lstm", "ifgo"), ("gru", "rzn")])
def test_a_correct_layer_matches_with_all_its_outputs(kind, order, batch_first):
    report = compare(kind, order, batch_first=batch_first)
    assert report.passed, report
    found = {f.quantity for f in report.findings}
    outputs = {"lstm": 3, "gru": 2}[kind]
    assert {f"forward{i}" for i in range(outputs)} | {"grad_weight_hh_l0", "grad_input0"} <= found


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("kind", "seed"), [("lstm", 1016), ("lstm", 1682), ("gru", 1085), ("gru", 1125)]
)
def test_saturated_gates_raise_no_alarm(kind, seed):
    """Weights of one in a hundred: inputs of 1e4 leave no more of s·(1 - s) than last bits."""
    torch.manual_seed(seed)
    report = compare(kind, {"lstm": "ifgo", "gru": "rzn"}[kind], batch_first=False, diagnose=False)
    assert report.passed, str(report)
    assert "large values" in str(report)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("mine", "theirs", "seed"), [
    (own.SigmoidByTanh, nn.Sigmoid, 1), (own.SigmoidByTanh, nn.Sigmoid, 2),
    (own.TanhByExp, nn.Tanh, 8),
])  # fmt: skip
@pytest.mark.parametrize("wrong", [1.0, 1.001])
def test_saturated_activations_raise_no_alarm_and_hide_no_fault(mine, theirs, seed, wrong):
    class Factor(mine):
        def backward(self, g):
            return wrong * super().backward(g)

    torch.manual_seed(seed)
    for inputs in ((4, 6), parity.uniform(4, 6, low=0.0, high=255.0)):
        pair = hidden(impl, Factor)(), hidden(nn, theirs)()
        assert parity.check(*pair, inputs, diagnose=False).passed is (wrong == 1.0)


def mapping(report):
    """The mapping that the diagnosis hands over to be pasted."""
    (cause,) = {f.cause for f in report.failures}
    assert cause.name == "wrong_mapping"
    assert cause.sentence.startswith("the layer is right, the mapping is wrong: give weights={")
    return ast.literal_eval(cause.sentence.partition("weights=")[2])


@pytest.mark.one_in(3)
@pytest.mark.parametrize("turned", [False, True], ids=["as-torch", "transposed"])
@pytest.mark.parametrize(
    ("kind", "order", "blocks"),
    [
        ("lstm", "ifog", (0, 1, 3, 2)),
        ("lstm", "gifo", (2, 0, 1, 3)),  # no order is its own way back here
        ("gru", "zrn", (1, 0, 2)),
    ],
)
def test_gates_in_another_order_are_named_with_the_mapping_that_works(kind, order, blocks, turned):
    found = mapping(compare(kind, order, turned, **QUICK))
    for name, value in found.items():
        axes = [(1, 0)] if turned and name.startswith("weight") else []
        whole = ("blocks", *blocks)
        assert value == ((name, whole, *axes) if axes else whole)
    assert set(found) == {f"{k}_{n}_l0" for k in ("weight", "bias") for n in ("ih", "hh")}
    assert compare(kind, order, turned, weights=found, **QUICK).passed
    right = {"lstm": "ifgo", "gru": "rzn"}[kind]
    assert not compare(kind, right, turned, weights=found, diagnose=False, **QUICK).passed


class Named:
    """Weights as attributes, (in, 4 · hidden), under names of its own and gates as i, f, o, g."""

    def __init__(self):
        self.inner = None
        self.Wx, self.Wh = np.zeros((3, 20)), np.zeros((5, 20))
        self.bx, self.bh = np.zeros(20), np.zeros(20)

    def forward(self, x):
        self.inner = LSTM(3, 5, "ifog", batch_first=True, turned=True)
        names = {"weight_ih_l0": self.Wx, "weight_hh_l0": self.Wh}
        self.inner.params = names | {"bias_ih_l0": self.bx, "bias_hh_l0": self.bh}
        return self.inner.forward(x)

    def backward(self, dout, dstate):
        dx = self.inner.backward(dout, dstate)
        grads = self.inner.grads
        self.dWx, self.dWh = grads["weight_ih_l0"], grads["weight_hh_l0"]
        self.dbx, self.dbh = grads["bias_ih_l0"], grads["bias_hh_l0"]
        return dx


def test_gates_of_a_layer_with_names_of_its_own():
    theirs = nn.LSTM(3, 5, batch_first=True)
    found = mapping(parity.check(Named(), theirs, SIZE, **QUICK))
    assert found["Wx"] == ("weight_ih_l0", ("blocks", 0, 1, 3, 2), (1, 0))
    assert parity.check(Named(), theirs, SIZE, weights=found, **QUICK).passed


def test_a_layer_that_is_wrong_beyond_its_gates_gets_no_mapping():
    class Wrong(GRU):
        def backward(self, dout, dh):
            return super().backward(dout, dh) * 2

    mine = Wrong(3, 5, "zrn", batch_first=True)
    report = parity.check(mine, nn.GRU(3, 5, batch_first=True), SIZE, **QUICK)
    assert not report.passed
    assert all(f.cause is None or f.cause.name != "wrong_mapping" for f in report.failures)


def test_one_backward_may_take_the_gradients_nested_flat_or_by_star():
    class Flat(LSTM):
        def backward(self, dout, dh, dc):
            return super().backward(dout, (dh, dc))

    class Starred(LSTM):
        def backward(self, *grads):
            return super().backward(*grads)

    class Part(LSTM):
        def backward(self, dout):
            raise AssertionError("never called")

    theirs = nn.LSTM(3, 5)
    for kind in (Flat, Starred):
        assert parity.check(kind(3, 5), theirs, SIZE, **QUICK).passed
    report = parity.check(Part(3, 5), theirs, SIZE, **QUICK)
    assert "takes 1 of the 2 gradients, one for each output; take them all" in str(report)


def test_a_pair_of_functions_returns_nested_outputs_and_a_cache():
    def forward(x, w, b):
        y = x @ w + b
        return y, (y * 2, y * 3), (x, w)

    def backward(dy, dmore, cache):
        g, (x, w) = dy + 2 * dmore[0] + 3 * dmore[1], cache
        return g @ w.T, x.T @ g, g.sum(axis=0)

    class Tripled(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y, (y * 2, y * 3)

    report = parity.check((forward, backward), Tripled(4, 3), (8, 4), **QUICK)
    assert report.passed, report


def test_blocks_travel_in_bundles_and_scripts(tmp_path, capsys):
    class Late(LSTM):
        def backward(self, dout, dstate):
            return super().backward(dout, dstate) * 2

    found = {n: ("blocks", 0, 1, 3, 2) for n in ("weight_ih_l0", "weight_hh_l0")}
    found |= {n: ("blocks", 0, 1, 3, 2) for n in ("bias_ih_l0", "bias_hh_l0")}
    mine, theirs = Late(3, 5, "ifog"), nn.LSTM(3, 5)
    report = parity.check(mine, theirs, SIZE, weights=found, diagnose=False, **QUICK)
    assert {f.quantity for f in report.failures} == {"grad_input0"}
    again = parity.replay(parity.save_bundle(report, tmp_path / "b"), mine, theirs)
    assert [f.to_dict() for f in again.failures] == [f.to_dict() for f in report.failures]
    text = parity.script(report)
    assert len(text.splitlines()) <= 15
    assert "mine.backward(g[0], (g[1], g[2]))" in text
    first = text.index("mine, theirs =")
    lines = "\n".join(["import numpy as np, torch", "rng = np.random.default_rng(0)"])
    told = text[first:].partition("\n")
    exec(lines + "\nmine, theirs = made\n" + told[2], {"made": (mine, theirs.double())})
    said, off = capsys.readouterr().out.strip().rsplit(" ", 1)
    assert said == "grad of input 0 is off by"
    assert float(off) > 1e-3


def test_what_blocks_cannot_be_is_said():
    for value, words in (
        (("blocks", 0, 1, 3), "it must be torch's name, a pair (torch's name, axis order)"),
        (("weight_ih_l0", ("blocks", 0, 0, 1)), "blocks of the first axis in your order such as"),
        (("weight_ih_l0", ("blocks", 0, 1), ("blocks", 1, 0)), "blocks of the first axis"),
        (("blocks", *range(7)), "has 7 blocks; 'weight_ih_l0' has shape (20, 3), whose first axis"),
    ):
        with pytest.raises(parity.UsageError) as answer:
            compare("lstm", "ifgo", weights={"weight_ih_l0": value})
        assert words in str(answer.value)
    read = literals.name_map(["W=weight_ih_l0:1,0:blocks,0,1,3,2", "U=weight_hh_l0:blocks,1,0,2"])
    assert read == {
        "W": ("weight_ih_l0", (1, 0), ("blocks", 0, 1, 3, 2)),
        "U": ("weight_hh_l0", ("blocks", 1, 0, 2)),
    }
    with pytest.raises(parity.UsageError, match="got the order of blocks 'blocks,1,1'"):
        literals.name_map(["W=w:blocks,1,1"])
