"""Promises of impl as a Python library: keywords, copies, names, byte orders, losses as Modules."""

import copy
import pickle

import numpy as np
import pytest
import torch

import impl
from parity_tests.test_contract import FIRST, KINDS, LAYER_KINDS, OPTIMIZERS, drawn, fixed, passed

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda subject: pickle.loads(pickle.dumps(subject))}
WEIGHTED = {
    "NLLLoss": {"weight": [0.5, 2.0]},
    "CrossEntropyLoss": {"weight": [0.5, 2.0]},
    "BCELoss": {"weight": [0.5, 2.0]},
    "BCEWithLogitsLoss": {"weight": [0.5, 2.0], "pos_weight": [3.0, 1.0]},
    "MultiMarginLoss": {"weight": [0.5, 2.0]},
    "MSELoss": {},
}


def named():
    """Return a chain whose layers have names of their own."""
    return impl.Sequential({"first": impl.Linear(3, 4), "act": impl.Tanh()})


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_remembers_the_forward_and_shares_nothing(kind, how):
    subject = fixed(FIRST[kind].build_mine().astype("float64"))
    arrays = drawn(FIRST[kind], "float64")
    _, dx, upstream = passed(subject, arrays)
    twin = COPIES[how](subject)
    np.testing.assert_array_equal(twin.backward(upstream), dx)
    assert repr(twin) == repr(subject)
    for name, array in twin.params.items():
        assert not np.shares_memory(array, subject.params[name])


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_forward_understands_the_keyword_input(kind):
    (x,) = drawn(FIRST[kind], "float32")
    one, other, called = (fixed(FIRST[kind].build_mine()) for _ in range(3))
    for subject in (other, called):
        subject.load_state_dict(one.state_dict())
    wanted = one.forward(x)
    np.testing.assert_array_equal(other.forward(input=x), wanted)
    np.testing.assert_array_equal(called(input=x), wanted)


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_either_byte_order_gives_the_same_numbers(kind):
    (x,) = drawn(FIRST[kind], "float32")
    subject = fixed(FIRST[kind].build_mine()).eval()
    wanted = subject.forward(x)
    found = subject.forward(x.astype(x.dtype.newbyteorder("S")))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_loss_keeps_its_weights_as_torch_does(kind):
    options = {name: np.array(value) for name, value in WEIGHTED[kind].items()}
    mine = getattr(impl, kind)(**options)
    theirs = getattr(torch.nn, kind)(**{k: torch.tensor(v) for k, v in options.items()})
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert not mine.eval().training
    assert mine.train().training
    mine.load_state_dict({name: 2 * array for name, array in options.items()})
    for name, array in options.items():
        np.testing.assert_array_equal(getattr(mine, name), 2 * array)


def test_a_model_that_holds_its_loss_shows_the_weights():
    model = impl.Module()
    model.layer, model.loss = impl.Linear(2, 2), impl.CrossEntropyLoss(np.ones(2))
    assert list(model.state_dict()) == ["layer.weight", "layer.bias", "loss.weight"]
    assert list(model.params) == ["layer.weight", "layer.bias"]
    assert not model.eval().loss.training


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_half_precision_loss_sums_without_overflow(reduction):
    ones = np.ones(70_000, np.float16)
    scale = np.float16(2**-8)  # its square is exact; the sum in half precision would stall
    value = impl.MSELoss(reduction=reduction)(ones * scale, 0 * ones)
    assert value.dtype == np.float16
    assert value == np.float16({"mean": 2**-16, "sum": 70_000 * 2**-16}[reduction])


def test_the_layers_of_a_chain_are_reached_by_name():
    chain = named()
    assert chain.first is chain[0]
    with pytest.raises(AttributeError, match="no attribute or layer 'second'"):
        _ = chain.second


def test_assigning_a_layer_to_a_chain_replaces_or_adds_it():
    chain, new = named(), impl.Linear(3, 2)
    chain.first = new
    chain.last = impl.ReLU()
    assert [name for name, _ in chain.named_children()] == ["first", "act", "last"]
    assert chain[0] is new
    assert chain(np.ones((1, 3), np.float32)).shape == (1, 2)
    with pytest.raises(TypeError, match="Sequential takes layers"):
        chain.first = 3


def test_chains_are_joined_in_place_and_repeated():
    chain, layer = impl.Sequential(impl.ReLU()), impl.Linear(2, 2)
    joined = chain
    joined += impl.Sequential(layer)
    assert joined is chain
    assert list(chain * 2) == list(2 * chain) == [*chain, *chain]
    assert list((chain * 2).params) == ["1.weight", "1.bias"]
    with pytest.raises(ValueError, match="1 or more"):
        chain * 0


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_forgets_gradients_or_fills_them_with_zeros(kind):
    layer = impl.Linear(2, 2)
    optimizer = getattr(impl, kind)(layer, lr=0.1)
    layer.grads["weight"] = grad = np.ones((2, 2), np.float32)
    optimizer.zero_grad(set_to_none=False)
    assert layer.grads["weight"] is grad
    assert not grad.any()
    optimizer.zero_grad()
    assert not layer.grads


def test_option_pairs_may_be_arrays_and_whole_options_numpy_numbers():
    conv = impl.Conv2d(np.int64(2), np.int32(3), np.array([3, 2]), stride=np.array(2))
    assert conv.kernel_size == (3, 2)
    assert conv.stride == (2, 2)
    assert impl.MaxPool2d(np.array([2, 3])).stride == (2, 3)
    assert impl.Linear(np.int64(4), np.int8(3)).params["weight"].shape == (3, 4)


@pytest.mark.parametrize(
    "ask",
    [
        lambda layer: impl.SGD([{"params": layer}, {"params": layer}], lr=0.1),
        lambda layer: impl.SGD(layer, lr=0.1).add_param_group({"params": layer}),
        lambda layer: impl.SGD(layer, lr=0.1).load_state_dict({"param_groups": [{}, {}]}),
    ],
    ids=["made", "added", "loaded"],
)  # fmt: skip
def test_a_second_group_of_parameters_is_not_supported_and_says_so(ask):
    with pytest.raises(NotImplementedError, match="SGD supports one parameter group alone"):
        ask(impl.Linear(4, 3))
