"""Promises of impl that a comparison of numbers leaves open: dtypes, states, names, references."""

import re

import numpy as np
import pytest
import torch

import impl
import reference
from fixtures.cases import LAYERS, LOSSES, nets
from fixtures.stepping import SHAPES, Steps, ordinary
from parity.quirks import holds
from parity.specs import as_spec

# one row of each class, with floating inputs: what holds for all rows is asked of each once
FIRST = {type(row.build_mine()).__name__: row for row in reversed((*LAYERS, *LOSSES))}
KINDS = sorted(FIRST)
LAYER_KINDS = sorted(kind for kind in KINDS if not kind.endswith("Loss"))
NETS = tuple(row for row in LAYERS if row.id.startswith("net-"))
OPTIMIZERS = ("SGD", "Adam", "AdamW")


def drawn(row, dtype, seed=0):
    """Return the arrays of a row's inputs, floating ones in ``dtype``."""
    rng = np.random.default_rng(seed)
    arrays = [as_spec(value, i).draw(rng) for i, value in enumerate(row.inputs)]
    return [array.astype(dtype) if array.dtype.kind == "f" else array for array in arrays]


def passed(subject, arrays, seed=1, spoil=False):
    """Run forward and backward; return (output, gradient for x, upstream)."""
    output = subject.forward(*arrays)
    upstream = np.random.default_rng(seed).standard_normal(np.shape(output))
    upstream = upstream.astype(np.asarray(output).dtype)
    kept = np.array(output)
    if spoil:
        output[...] = np.nan
    return kept, subject.backward(upstream), upstream


def fixed(subject):
    """Return the subject with every dropout mask drawn from one seed."""
    for module in subject.modules() if hasattr(subject, "modules") else ():
        if isinstance(module, impl.Dropout):
            module.rng = np.random.default_rng(5)
    return subject


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_have_the_dtype_of_the_parameters(kind, dtype):
    row = FIRST[kind]
    subject = row.build_mine().astype(dtype)
    output, dx, _ = passed(subject, drawn(row, dtype))
    assert np.asarray(output).dtype == dtype
    assert dx.dtype == dtype
    held = [*subject.params.values(), *subject.grads.values(), *subject.buffers.values()]
    assert {a.dtype.name for a in held if a.dtype.kind == "f"} <= {dtype}
    assert {name: g.shape for name, g in subject.grads.items()} == {
        name: p.shape for name, p in subject.params.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_layers_start_in_float32(kind):
    held = FIRST[kind].build_mine().params.values()
    assert {array.dtype.name for array in held} <= {"float32"}


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_upstream_gradient_are_left_alone(kind):
    row = FIRST[kind]
    arrays = drawn(row, "float32")
    for array in arrays:
        array.flags.writeable = False
    before = [array.copy() for array in arrays]
    subject = row.build_mine().astype("float32")
    output = subject.forward(*arrays)
    upstream = np.asarray(np.ones_like(output))
    upstream.flags.writeable = False
    subject.backward(upstream)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
    assert (upstream == 1).all()


def views(row):
    """Whether torch's output, too, is the input itself or a view of it."""
    x = torch.from_numpy(drawn(row, "float32")[0])
    return row.build_theirs().float()(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    "row", [FIRST[kind] for kind in LAYER_KINDS] + list(NETS), ids=lambda r: r.id
)
def test_scribbling_on_the_output_does_not_change_the_gradient(row):
    if views(row):
        pytest.skip("torch's output shares memory with its input as well")
    first, second = (fixed(row.build_mine().astype("float32")) for _ in range(2))
    second.load_state_dict(first.state_dict())
    _, dx, _ = passed(first, drawn(row, "float32"))
    _, spoilt, _ = passed(second, drawn(row, "float32"), spoil=True)
    assert np.array_equal(dx, spoilt, equal_nan=True)
    for name, grad in first.grads.items():
        assert np.array_equal(grad, second.grads[name], equal_nan=True), name


@pytest.mark.parametrize(
    "row",
    # the two places of a shared layer add up in another order the second time
    [FIRST[kind] for kind in LAYER_KINDS] + [row for row in NETS if "shared" not in row.id],
    ids=lambda row: row.id,
)
def test_gradients_add_up_until_they_are_zeroed(row):
    layer = fixed(row.build_mine().astype("float64"))
    layer.eval()  # no batch statistics move, no mask is drawn anew
    x = drawn(row, "float64")
    passed(layer, x)
    once = {name: grad.copy() for name, grad in layer.grads.items()}
    passed(layer, x)
    for name, grad in layer.grads.items():
        assert np.array_equal(grad, 2 * once[name], equal_nan=True), name  # doubling is exact
    layer.zero_grad(set_to_none=False)
    assert not any(grad.any() for grad in layer.grads.values())
    passed(layer, x)
    assert all(np.array_equal(layer.grads[name], once[name], equal_nan=True) for name in once)
    layer.zero_grad()
    assert not layer.grads


@pytest.mark.parametrize(
    "row", [FIRST[kind] for kind in LAYER_KINDS] + list(NETS), ids=lambda r: r.id
)
def test_state_dict_reads_like_torch_and_goes_both_ways(row):
    mine, theirs = row.build_mine(), row.build_theirs()
    state = theirs.state_dict()
    assert list(mine.state_dict()) == list(state)
    mine.load_state_dict({name: tensor.numpy() for name, tensor in state.items()})
    for name, array in mine.state_dict().items():
        assert np.array_equal(array, state[name].numpy()), name
        assert array.shape == tuple(state[name].shape), name
    passed(mine, drawn(row, "float32"))  # moves the statistics
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in mine.state_dict().items()})
    for name, tensor in theirs.state_dict().items():
        assert np.array_equal(tensor.numpy(), mine.state_dict()[name]), name


@pytest.mark.parametrize("row", NETS, ids=lambda r: r.id)
def test_state_dict_is_a_copy(row):
    net = row.build_mine()
    state = net.state_dict()
    for array in state.values():
        array[...] = 0
    assert all(array.any() for name, array in net.params.items() if name.endswith("weight"))


@pytest.mark.parametrize("row", NETS, ids=lambda r: r.id)
def test_writing_a_parameter_through_the_whole_takes_effect(row):
    net = fixed(row.build_mine().astype("float64").eval())
    if not net.params:
        pytest.skip("nothing to write")
    name = list(net.params)[-1]
    (x,) = drawn(row, "float64")
    before = np.array(net.forward(x))
    moved = net.params[name].copy()
    moved.flat[0] += 1.0  # one element: a softmax takes no notice of all moved alike
    net.params[name] = moved
    assert not np.array_equal(net.forward(x), before)
    assert np.array_equal(net.state_dict()[name], net.params[name])


def test_a_shared_layer_is_listed_once_and_stepped_once():
    net = nets.shared_linear(impl)
    assert list(net.params) == ["0.weight", "0.bias"]
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    before = net.params["0.weight"].copy()
    passed(net, [np.ones((3, 4), np.float32)])
    impl.SGD(net, lr=0.5).step()
    moved = before - np.float32(0.5) * net.grads["0.weight"]
    assert np.array_equal(net.params["0.weight"], moved)


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_backward_before_forward_says_so(kind):
    with pytest.raises(RuntimeError, match=rf"{kind}\.backward was called before forward"):
        FIRST[kind].build_mine().backward(np.ones((2, 2), np.float32))


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_an_upstream_gradient_of_another_shape_is_refused(kind):
    row = FIRST[kind]
    layer = row.build_mine().astype("float32")
    layer.forward(*drawn(row, "float32"))
    with pytest.raises(ValueError, match=r"grad_output with shape \(7, 7, 7\)"):
        layer.backward(np.ones((7, 7, 7), np.float32))


# torch leaves options of average pooling out, and newer versions add one to BatchNorm's
PRINTED = [
    row
    for row in LAYERS
    if re.match(
        r"(conv2d|dropout|elu|flatten|leakyrelu|linear|maxpool2d|softplus|threshold)-", row.id
    )
    and not (row.id.startswith("softplus") and holds("softplus_prints_whole_numbers"))
]


@pytest.mark.parametrize("row", PRINTED, ids=lambda row: row.id)
def test_a_layer_prints_as_in_torch(row):
    mine, theirs = (
        re.sub(r"[\s,]+", " ", repr(side)) for side in (row.build_mine(), row.build_theirs())
    )
    assert mine == theirs


@pytest.mark.parametrize("row", NETS, ids=lambda row: row.id)
def test_a_net_prints_its_tree(row):
    mine, theirs = (
        re.findall(r"^( *)\((\w+)\): (\w+)\(", repr(side), re.MULTILINE)
        for side in (row.build_mine(), row.build_theirs())
    )
    assert mine == theirs


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_keeps_float32(kind):
    row = Steps(kind, kind, {"lr": 0.1})
    rng = np.random.default_rng(0)
    draw = [
        {n: a.astype(np.float32) for n, a in ordinary(rng, k, SHAPES).items()} for k in range(4)
    ]
    for record in row._impl(draw):
        assert {array.dtype.name for array in record.values()} == {"float32"}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_goes_on_where_its_saved_state_left_off(kind):
    options = {"lr": 0.1, **({"momentum": 0.9} if kind == "SGD" else {"amsgrad": True})}
    straight, resumed = (impl.Linear(3, 2, rng=0) for _ in range(2))
    x = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    first, second = (getattr(impl, kind)(layer, **options) for layer in (straight, resumed))
    for step in range(4):
        if step == 2:  # a new object, from what the old one saved
            saved = second.state_dict()
            second = getattr(impl, kind)(resumed, lr=9.0)
            second.load_state_dict(saved)
        for layer, optimizer in ((straight, first), (resumed, second)):
            optimizer.zero_grad()
            passed(layer, [x], seed=step)
            optimizer.step()
    for name, array in straight.params.items():
        assert np.array_equal(array, resumed.params[name]), name


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_new_learning_rate_counts_from_the_next_step(kind):
    layer = impl.Linear(3, 2, rng=0)
    optimizer = getattr(impl, kind)(layer, lr=0.1)
    passed(layer, [np.ones((2, 3), np.float32)])
    optimizer.lr = 0.0
    before = layer.state_dict()
    optimizer.step()
    assert all(np.array_equal(before[name], array) for name, array in layer.params.items())
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.lr == 0.5
    optimizer.step()
    assert not np.array_equal(before["weight"], layer.params["weight"])


def test_impl_and_reference_export_the_same_names():
    assert set(reference.__all__) <= set(dir(impl))
    assert set(impl.__all__) == set(reference.__all__)
