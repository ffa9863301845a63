"""Localisation: the first layer, direction and step at which two models part, and whose fault."""

import numpy as np
import pytest
import torch

import impl
import parity
from parity.findings import UsageError
from parity.localising import trees

pytestmark = pytest.mark.slow  # with the slow tests: the quick run stays under three minutes

WIDTH = 6


class WrongForward(impl.Linear):
    def forward(self, x):
        return super().forward(x) * (1 + 1e-9)


class WrongInputGrad(impl.Linear):
    def backward(self, grad_output):
        return super().backward(grad_output) * 1.001


class WrongWeightGrad(impl.Linear):
    def backward(self, grad_output):
        grad = super().backward(grad_output)
        self.grads["weight"][...] *= 1.01
        return grad


class WrongBuffer(impl.BatchNorm1d):
    def forward(self, x):
        y = super().forward(x)
        if self.training:
            self.buffers["running_var"][...] *= 1.01
        return y


class WrongTanh(impl.Tanh):
    def backward(self, grad_output):
        return super().backward(grad_output) * 0.99


# class, its place in a block of three, how it is made, the direction it is wrong in
FAULTS = {
    "forward": (WrongForward, 0, (WIDTH, WIDTH), "forward"),
    "input-grad": (WrongInputGrad, 0, (WIDTH, WIDTH), "backward"),
    "weight-grad": (WrongWeightGrad, 0, (WIDTH, WIDTH), "backward"),
    "buffer": (WrongBuffer, 1, (WIDTH,), "forward"),
    "activation": (WrongTanh, 2, (), "backward"),
}


def nets(depth):
    mine, theirs = impl.Sequential(), torch.nn.Sequential()
    for _ in range(depth // 3):
        mine.extend([impl.Linear(WIDTH, WIDTH), impl.BatchNorm1d(WIDTH), impl.Tanh()])
        theirs.extend(
            torch.nn.Sequential(
                torch.nn.Linear(WIDTH, WIDTH), torch.nn.BatchNorm1d(WIDTH), torch.nn.Tanh()
            )
        )
    return mine, theirs


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("depth", [3, 21, 60])
def test_one_planted_fault_is_found_where_it_is(depth, place, fault):
    kind, offset, arguments, direction = FAULTS[fault]
    mine, theirs = nets(depth)
    block = {"first": 0, "middle": depth // 6, "last": depth // 3 - 1}[place]
    mine[3 * block + offset] = kind(*arguments)
    found = parity.localise(mine, theirs, (8, WIDTH))
    assert (found.layer, found.direction) == (str(3 * block + offset), direction)
    assert found.own_fault
    assert found.faulty == (found.layer,)
    assert found.step == 1
    assert f"layer {found.layer} ({kind.__name__}) is the first to part, in {direction}" in str(
        found
    )
    assert "it is its own fault: given torch's inputs it is still wrong" in str(found)


def test_it_costs_four_passes_at_most(monkeypatch):
    counts = {"mine": 0, "mine back": 0, "torch": 0}

    class Counting(impl.Tanh):
        def forward(self, x):
            counts["mine"] += 1
            return super().forward(x)

        def backward(self, grad_output):
            counts["mine back"] += 1
            return super().backward(grad_output)

    mine, theirs = nets(6)
    mine[5], mine[0] = Counting(), WrongInputGrad(WIDTH, WIDTH)
    forward = torch.nn.Tanh.forward

    def counted(self, x):
        counts["torch"] += 1
        return forward(self, x)

    pair = parity.checking.make_pair(mine, theirs, ((8, WIDTH),), parity.options.make_options({}))
    from parity.localising.concluding import _Locator

    locator = _Locator(pair, None)
    draw = pair.draw(0)
    monkeypatch.setattr(torch.nn.Tanh, "forward", counted)
    assert locator.locate(draw, 1).layer == "0"
    assert counts["mine"] == counts["mine back"] == 2  # the model once, each layer alone once
    assert counts["torch"] == 2 * 2  # two passes through two activations


def test_models_that_agree_part_nowhere():
    found = parity.localise(*nets(6), (8, WIDTH))
    assert not found
    assert found.layer is None
    assert str(found) == "both models agree here: no layer parts from its partner"


def test_several_faults_are_all_named():
    mine, theirs = nets(9)
    mine[1], mine[6] = WrongBuffer(WIDTH), WrongInputGrad(WIDTH, WIDTH)
    found = parity.localise(mine, theirs, (8, WIDTH))
    assert found.layer == "1"
    assert set(found.faulty) == {"1", "6"}
    assert "layer 6 (WrongInputGrad) parts too, in backward" in found.findings[1].cause.sentence


def test_nothing_is_touched():
    mine, theirs = nets(3)
    mine[0] = WrongForward(WIDTH, WIDTH)
    before = {name: array.copy() for name, array in mine.state_dict().items()}
    held = {name: set(vars(layer)) for name, layer in mine.named_modules()}
    parity.localise(mine, theirs, (8, WIDTH))
    assert all(np.array_equal(before[name], array) for name, array in mine.state_dict().items())
    assert {name: set(vars(layer)) for name, layer in mine.named_modules()} == held
    assert not any(module._forward_hooks for module in theirs.modules())


# ---- models of every make ------------------------------------------------------------------------


class Dense:
    def __init__(self, width, out, wrong=1.0):
        self.params = {"weight": np.zeros((out, width)), "bias": np.zeros(out)}
        self.grads, self.wrong = {}, wrong

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, g):
        for name, value in (("weight", g.T @ self.x), ("bias", g.sum(0))):
            self.grads[name] = self.grads.get(name, 0) + value
        return g @ self.params["weight"] * self.wrong


class Slotted:
    """A layer without a dict of its own."""

    __slots__ = ("keep", "wrong")

    def __init__(self, wrong=1.0):
        self.wrong = wrong

    def forward(self, x):
        self.keep = x > 0
        return x * self.keep

    def backward(self, g):
        return g * self.keep * self.wrong


class Net:
    """A list of layers, as a course writes it; `glue` multiplies between two of them."""

    def __init__(self, *layers, glue=1.0):
        self.layers, self.glue = list(layers), glue

    def _named(self, kind):
        items = ((i, layer) for i, layer in enumerate(self.layers) if hasattr(layer, kind))
        return {f"layers.{i}.{k}": a for i, layer in items for k, a in getattr(layer, kind).items()}

    params = property(lambda self: self._named("params"))
    grads = property(lambda self: self._named("grads"))

    def zero_grad(self):
        for layer in self.layers:
            if hasattr(layer, "grads"):
                layer.grads.clear()

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer.forward(x * self.glue if i == 3 else x)
        return x

    def backward(self, g):
        for i, layer in reversed(list(enumerate(self.layers))):
            g = layer.backward(g)
            g = g * self.glue if i == 3 else g
        return g


def reference():
    nn = torch.nn
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))


NAMES = {f"layers.{i}.{k}": f"{i}.{k}" for i in (0, 2, 4) for k in ("weight", "bias")}


def test_a_list_of_layers_with_other_paths():
    layers = [Dense(4, 5), Slotted(), Dense(5, 5, 2.0), Slotted(), Dense(5, 3)]
    found = parity.localise(Net(*layers), reference(), (8, 4), weights=NAMES)
    assert (found.layer, found.kind, found.direction, found.own_fault) == (
        "2", "Dense", "backward", True
    )  # fmt: skip
    layers[2], layers[1] = Dense(5, 5), Slotted(2.0)
    found = parity.localise(Net(*layers), reference(), (8, 4), weights=NAMES)
    assert (found.layer, found.kind, found.direction) == ("1", "Slotted", "backward")


def test_bad_input_is_told_from_an_own_fault():
    layers = [Dense(4, 5), Slotted(), Dense(5, 5), Slotted(), Dense(5, 3)]
    found = parity.localise(Net(*layers, glue=1.5), reference(), (8, 4), weights=NAMES)
    assert (found.layer, found.direction, found.own_fault) == ("3", "forward", False)
    assert found.faulty == ()
    assert "it was handed a wrong input: given torch's it is right" in str(found)


def test_paths_that_nobody_could_guess_are_declared():
    layers = [Dense(4, 5), Slotted(), Dense(5, 5, 2.0), Slotted(), Dense(5, 3)]
    declared = {"layers.2": "2", "layers.4": "4"}
    found = parity.localise(Net(*layers), reference(), (8, 4), weights=NAMES, layers=declared)
    assert (found.layer, len(found.units)) == ("2", 2)


class Branch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Tanh()

    def forward(self, x):
        h = self.act(self.a(x))
        return self.act(self.b(h)) + h


class MyBranch:
    """The same in NumPy: a branch, and one activation that stands at two places."""

    def __init__(self, wrong=""):
        self.a, self.b = Dense(4, 4, 1 + ("a" in wrong)), Dense(4, 4, 1 + ("b" in wrong))
        self.act, self.skip = impl.Tanh(), "skip" in wrong

    def _both(self, kind):
        pairs = (("a", self.a), ("b", self.b))
        return {f"{n}.{k}": v for n, layer in pairs for k, v in getattr(layer, kind).items()}

    params = property(lambda self: self._both("params"))
    grads = property(lambda self: self._both("grads"))

    def zero_grad(self):
        self.a.grads.clear()
        self.b.grads.clear()

    def forward(self, x):
        h = self.act.forward(self.a.forward(x))
        self.first = self.act._cache
        return self.act.forward(self.b.forward(h)) + h

    def backward(self, g):
        down = self.b.backward(self.act.backward(g))
        self.act._cache = self.first
        return self.a.backward(self.act.backward(down if self.skip else down + g))


@pytest.mark.parametrize(
    ("wrong", "layer", "own"),
    [("", None, None), ("a", "a", True), ("b", "b", True), ("skip", "act", False)],
)
def test_branches_and_shared_layers(wrong, layer, own):
    found = parity.localise(MyBranch(wrong), Branch(), (8, 4))
    assert (found.layer, found.own_fault) == (layer, own)
    assert found.direction == (None if layer is None else "backward")
    if own is False:
        assert "it was handed a wrong upstream gradient" in str(found)


class HalvedGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return g @ weight, g.T @ x / len(x), g.mean(0)


class HalvedLinear(torch.nn.Linear):
    def forward(self, x):
        return HalvedGrad.apply(x, self.weight, self.bias)


def test_a_torch_model_under_test():
    _, mine = nets(6)
    mine[3] = HalvedLinear(WIDTH, WIDTH)
    _, theirs = nets(6)
    found = parity.localise(mine, theirs, (8, WIDTH))
    assert (found.layer, found.kind, found.direction) == ("3", "HalvedLinear", "backward")
    assert found.own_fault


class Forgetful(impl.Linear):
    """Right at the first pass, wrong at every later one."""

    def backward(self, grad_output):
        seen = vars(self).setdefault("passes", [0])
        seen[0] += 1
        return super().backward(grad_output) * (1.0 if seen[0] < 3 else 1.5)


def test_a_fault_that_shows_at_a_later_step():
    mine, theirs = nets(6)
    mine[3] = Forgetful(WIDTH, WIDTH)
    assert not parity.localise(mine, theirs, (8, WIDTH))
    found = parity.localise(mine, theirs, (8, WIDTH), steps=5)
    assert (found.layer, found.step, found.direction) == ("3", 3, "backward")
    assert "at step 3" in str(found)


class Raising(impl.Tanh):
    def backward(self, grad_output):
        raise ZeroDivisionError("no way back")


def test_a_layer_that_raises_is_named():
    mine, theirs = nets(6)
    mine[2] = Raising()
    found = parity.localise(mine, theirs, (8, WIDTH))
    assert (found.layer, found.direction, found.own_fault) == ("2", "backward", True)
    assert "no way back" in str(found)


def test_a_model_with_dropout_and_labels():
    mine = impl.Sequential(impl.Linear(4, 5), impl.Dropout(0.5), WrongInputGrad(5, 3))
    theirs = torch.nn.Sequential(
        torch.nn.Linear(4, 5), torch.nn.Dropout(0.5), torch.nn.Linear(5, 3)
    )
    found = parity.localise(mine, theirs, (8, 4))
    assert (found.layer, found.direction, found.own_fault) == ("2", "backward", True)


class Keyword(torch.nn.Module):
    """A layer that is given its input by name."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.a, self.b, self.factor = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2), factor

    def forward(self, x):
        return self.b(input=self.a(x)) * self.factor


class OffLinear(torch.nn.Linear):
    def forward(self, input):
        return super().forward(input) * 1.5


def test_a_layer_that_cannot_be_run_alone_is_not_accused():
    mine = Keyword()
    mine.b = OffLinear(4, 2)
    found = parity.localise(mine, Keyword(), (8, 4))
    assert (found.layer, found.direction, found.own_fault) == ("b", "forward", None)
    assert "whose fault it is could not be tried" in str(found)
    assert not parity.localise(Keyword(2.0), Keyword(), (8, 4), modes="train").own_fault


class Attention(torch.nn.MultiheadAttention):
    """torch's attention written out: unlike torch's own it calls `out_proj`."""

    def __init__(self, factor=1.0):
        super().__init__(8, 2, batch_first=True)
        self.factor = factor

    def forward(self, x):
        shape = (*x.shape[:2], 2, 4)
        packed = x @ self.in_proj_weight.T + self.in_proj_bias
        q, k, v = (part.view(shape).transpose(1, 2) for part in packed.chunk(3, -1))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        return self.out_proj(mixed.transpose(1, 2).reshape(x.shape)) * self.factor


class Attending(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.m = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.m(x, x, x, need_weights=False)[0]


def test_a_partner_that_torch_never_calls_is_not_accused():
    names = {name: f"m.{name}" for name, _ in Attention().named_parameters()}
    found = parity.localise(Attention(), Attending(), (2, 5, 8), weights=names)
    assert str(found) == "both models agree here: no layer parts from its partner"
    report = parity.check(Attention(), Attending(), (2, 5, 8), weights=names)
    assert (report.passed, report.notes) == (True, ())
    found = parity.localise(Attention(2.0), Attending(), (2, 5, 8), weights=names)
    assert found.faulty == ()
    assert "no layer parts from its partner" in str(found)


# ---- inside a check ------------------------------------------------------------------------------


def test_a_failing_check_names_the_layer_first():
    mine, theirs = nets(6)
    mine[4] = impl.BatchNorm1d(WIDTH, momentum=0.9)
    report = parity.check(mine, theirs, (8, WIDTH), rungs=["float64"])
    first = report.failures[0]
    assert (first.layer, first.evidence["direction"]) == ("4", "forward")
    assert first.evidence["own_fault"]
    assert report.cause.name == "momentum_swapped"
    assert "layer 4 (BatchNorm1d) is the first to part, in forward" in str(report)
    assert "behaves exactly like BatchNorm1d(momentum=0.9)" in report.cause.sentence


def test_a_lone_layer_and_a_passing_model_name_no_layer():
    report = parity.check(WrongForward(4, 3), torch.nn.Linear(4, 3), (8, 4), rungs=["float64"])
    assert not report.passed
    assert not any(finding.layer for finding in report.findings)
    report = parity.check(*nets(3), (8, WIDTH), rungs=["float64"])
    assert report.passed
    assert not any(finding.layer for finding in report.findings)


def test_a_difference_between_the_layers_is_a_note():
    class Negated(impl.Sequential):
        def backward(self, grad_output):
            return -super().backward(grad_output)

    mine, theirs = nets(3)
    report = parity.check(Negated(*mine), theirs, (8, WIDTH), rungs=["float64"], diagnose=True)
    assert "no layer parts from its partner: the difference lies in what joins them" in report.notes


def test_layers_that_resist_being_looked_into_do_not_break_a_check():
    class Shy(impl.Sequential):
        def named_children(self):
            raise RuntimeError("do not look")

    mine, theirs = nets(3)
    report = parity.check(Shy(WrongForward(WIDTH, WIDTH), *mine[1:]), theirs, (8, WIDTH),
                          rungs=["float64"])  # fmt: skip
    assert not report.passed
    assert "the layers could not be looked into: RuntimeError: do not look" in report.notes


# ---- refusals and matching -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "theirs", "options", "says"),
    [
        (impl.Linear(4, 3), torch.nn.Linear(4, 3), {}, "mine has no layers inside"),
        (Net(Dense(4, 3)), torch.nn.Linear(4, 3), {}, "theirs has no layers inside"),
        (impl.Sequential(impl.Linear(4, 3)), torch.nn.Sequential(torch.nn.Linear(4, 3)),
         {"layers": {"1": "0"}}, "layers names '1', which mine has not; it has: 0"),
        (impl.Sequential(impl.Linear(4, 3)), torch.nn.Sequential(torch.nn.Linear(4, 3)),
         {"layers": {"0": "zero"}}, "layers names 'zero', which theirs has not"),
        (impl.Sequential(impl.Linear(4, 3)), torch.nn.Sequential(torch.nn.Linear(4, 3)),
         {"layers": ["0"]}, "it must map paths"),
        (impl.Sequential(impl.Linear(4, 3)), torch.nn.Sequential(torch.nn.Linear(4, 3)),
         {"steps": 0}, "steps is 0; it must be an integer from 1 to 100"),
        (impl.Sequential(impl.Linear(4, 3)), torch.nn.Sequential(torch.nn.Linear(5, 3)),
         {}, "the reference refuses these inputs"),
        (impl.Sequential({"x": impl.Tanh()}),
         torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU()), {}, "declare layers="),
    ],
)  # fmt: skip
def test_what_cannot_be_localised_is_said(mine, theirs, options, says):
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        parity.localise(mine, theirs, (8, 4), **options)


def test_layers_are_matched_by_name_else_by_order_and_kind():
    def net(**named):
        return dict(named)

    relu, dense = impl.ReLU(), impl.Linear(2, 2)
    by_name = trees.match(net(a=dense, b=relu), net(b=torch.nn.ReLU(), a=torch.nn.Linear(2, 2)))
    assert {(unit.mine, unit.theirs) for unit in by_name} == {("a", "a"), ("b", "b")}
    order = trees.match(net(x=dense, y=relu), net(a=torch.nn.Linear(2, 2), b=torch.nn.ReLU()))
    assert [(unit.mine, unit.theirs) for unit in order] == [("x", "a"), ("y", "b")]
    kinds = trees.match(
        net(x=dense, y=relu),
        net(a=torch.nn.Dropout(), b=torch.nn.Linear(2, 2), c=torch.nn.ReLU()),
    )
    assert [(unit.mine, unit.theirs) for unit in kinds] == [("x", "b"), ("y", "c")]
