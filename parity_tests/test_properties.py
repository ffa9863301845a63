"""Random layers, options, shapes: correct ones pass, mutated fail; a shrunk row to paste."""

import contextlib
from dataclasses import replace

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import impl
import parity
import reference
from fixtures.cases.rows import loss
from fixtures.mutants.row import changed, input_gradient, output

RUNGS = ("exact", "float64", "float32")
SHORT = settings(
    max_examples=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@contextlib.contextmanager
def as_row(kind, config, *inputs):
    """Note the case row of a failing example, ready to paste into a case table."""
    options = "".join(f", {name}={value!r}" for name, value in config.items())
    shapes = ", ".join(map(repr, inputs))
    note(f'layer("{kind}", "found", {shapes}{options}),')
    yield


def report(kind, config, *inputs, mine=None):
    make = mine or getattr(impl, kind)
    pair = make(**config), getattr(reference, kind)(**config)
    return parity.check(*pair, *inputs, rungs=RUNGS, diagnose=False)


@st.composite
def convolutions(draw):
    groups = draw(st.integers(1, 2))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    config = {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 2)),
        "kernel_size": kernel,
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }
    size = tuple(max(d * (k - 1) + 1, 3) + draw(st.integers(0, 3))
                 for k, d in zip(kernel, dilation, strict=True))  # fmt: skip
    return config, (draw(st.integers(1, 3)), config["in_channels"], *size)


@st.composite
def poolings(draw):
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    config = {
        "kernel_size": kernel,
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel),
        "ceil_mode": draw(st.booleans()),
    }
    size = tuple(k + draw(st.integers(0, 4)) for k in kernel)
    return config, (draw(st.integers(1, 3)), draw(st.integers(1, 2)), *size)


@st.composite
def functions(draw):
    """A function without parameters with any of its options, and a shape of any rank."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    number = st.floats(0.05, 3.0)
    kind, config = draw(st.one_of(
        st.sampled_from([("ReLU", {}), ("Sigmoid", {}), ("Tanh", {})]),
        number.map(lambda a: ("LeakyReLU", {"negative_slope": a})),
        number.map(lambda a: ("ELU", {"alpha": a})),
        st.tuples(number, st.floats(1.0, 30.0)).map(
            lambda ab: ("Softplus", {"beta": ab[0], "threshold": ab[1]})),
        st.tuples(st.sampled_from(["Softmax", "LogSoftmax"]), st.integers(0, len(shape) - 1)).map(
            lambda given: (given[0], {"dim": given[1]})),
    ))  # fmt: skip
    return kind, config, shape


@st.composite
def losses(draw):
    """A loss with any of its options, and inputs of any number of samples and classes."""
    samples, classes = draw(st.integers(1, 6)), draw(st.integers(2, 5))
    config = {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    shape, labels = (samples, classes), parity.labels(samples, classes=classes)
    kind = draw(st.sampled_from(["CrossEntropyLoss", "NLLLoss", "MSELoss", "BCELoss"]))
    scores = {"NLLLoss": parity.log_probabilities, "BCELoss": parity.uniform}
    prediction = scores.get(kind, parity.normal)(*shape)
    if kind in ("MSELoss", "BCELoss"):
        return kind, config, (prediction, scores.get(kind, parity.normal)(*shape))
    if draw(st.booleans()):
        weights = st.lists(st.floats(0.1, 4.0), min_size=classes, max_size=classes)
        config["weight"] = draw(weights)
    if kind == "CrossEntropyLoss":
        config["label_smoothing"] = draw(st.floats(0.0, 0.9))
    return kind, config, (prediction, labels)


@SHORT
@given(functions())
def test_functions_match_and_a_moved_output_fails(case):
    kind, config, shape = case
    with as_row(kind, config, shape):
        assert report(kind, config, shape).passed
        moved = output(getattr(impl, kind), lambda s, y, x: y * y.dtype.type(1 + 1e-6))
        wrong = report(kind, config, shape, mine=moved)
        # one class alone: its softmax is 1 and its log-softmax 0, which no factor moves
        if kind != "LogSoftmax" or shape[config["dim"]] > 1:
            assert "forward" in {f.quantity for f in wrong.failures}


@SHORT
@given(losses())
def test_losses_match_and_a_halved_gradient_fails(case):
    kind, config, inputs = case
    row = loss(kind, "found", *inputs, **config)
    with as_row(kind, config, *inputs):
        assert row.report(rungs=RUNGS, diagnose=False).passed
        half = input_gradient(getattr(impl, kind), lambda s, d, g: d / 2)
        wrong = replace(row, mine=half).report(rungs=RUNGS, diagnose=False)
        assert {f.quantity for f in wrong.failures} == {"grad_input0"}


@SHORT
@given(convolutions())
def test_convolutions_match(case):
    config, shape = case
    with as_row("Conv2d", config, shape):
        assert report("Conv2d", config, shape).passed


@SHORT
@given(poolings(), st.sampled_from(["AvgPool2d", "MaxPool2d"]))
def test_poolings_match(case, kind):
    config, shape = case
    with as_row(kind, config, shape):
        assert report(kind, config, shape).passed


@SHORT
@given(
    st.lists(st.integers(1, 4), min_size=0, max_size=3),
    st.integers(1, 6),
    st.integers(1, 5),
    st.booleans(),
)
def test_linear_matches_for_every_rank(lead, wide, out, bias):
    config = {"in_features": wide, "out_features": out, "bias": bias}
    with as_row("Linear", config, (*lead, wide)):
        assert report("Linear", config, (*lead, wide)).passed


@SHORT
@given(convolutions())
def test_convolutions_with_a_doubled_weight_gradient_fail(case):
    config, shape = case
    doubled = changed(impl.Conv2d, _accumulate=lambda s, name, grad: impl.Conv2d._accumulate(
        s, name, 2 * grad if name == "weight" else grad))  # fmt: skip
    with as_row("Conv2d", config, shape):
        found = report("Conv2d", config, shape, mine=doubled)
        assert {f.quantity for f in found.failures} == {"grad_weight"}


@SHORT
@given(st.integers(2, 8), st.integers(1, 4), st.floats(1e-6, 1e-2), st.floats(0.05, 0.45))
def test_batchnorm_matches_and_a_swapped_momentum_fails(items, channels, eps, momentum):
    config = {"num_features": channels, "eps": eps, "momentum": momentum}
    swapped = changed(impl.BatchNorm1d, __init__=lambda s, **given: impl.BatchNorm1d.__init__(
        s, **{**given, "momentum": 1 - given["momentum"]}))  # fmt: skip
    with as_row("BatchNorm1d", config, (items, channels)):
        assert report("BatchNorm1d", config, (items, channels)).passed
        wrong = report("BatchNorm1d", config, (items, channels), mine=swapped)
        assert {f.quantity for f in wrong.failures} == {
            "buffer_running_mean", "buffer_running_var"
        } or "step" in {f.quantity for f in wrong.failures}  # fmt: skip


def test_a_failing_example_prints_its_row(capsys):
    lines = []

    @settings(SHORT, max_examples=3, phases=settings.default.phases)
    @given(st.integers(1, 2))
    def fails(wide):
        config = {"in_features": wide, "out_features": 1}
        with as_row("Linear", config, (2, wide)):
            raise AssertionError("on purpose")

    try:
        fails()
    except AssertionError as error:
        lines = error.__notes__
    assert any('layer("Linear", "found", (2, 1), in_features=1' in line for line in lines), lines
