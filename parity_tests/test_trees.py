"""A walk over a tree of layers is remembered; every change of any tree is seen all the same."""

import copy
import pickle

import numpy as np
import pytest

import impl


class Net(impl.Module):
    def __init__(self):
        self.block = impl.Sequential(impl.Sequential(impl.Linear(2, 3)))
        self.last = impl.Linear(3, 1)


def walked(net):
    """Return the paths, all ways of walking having said the same."""
    modules = list(net.named_modules())
    assert [module for _, module in modules] == list(net.modules())
    prefixed = [path for path, _ in net.named_modules("net")]
    assert prefixed == ["net" + ("." + path if path else "") for path, _ in modules]
    owners = {path for path, module in modules if module._params}
    assert {name.rpartition(".")[0] for name in net.params} == owners
    return [path for path, _ in modules]


@pytest.fixture
def net():
    net = Net()
    assert walked(net) == ["", "block", "block.0", "block.0.0", "last"]
    return net


CHANGES = {
    "attribute": (lambda n: setattr(n, "more", impl.ReLU()), {"more"}, set()),
    "replaced": (lambda n: setattr(n, "last", impl.Sequential(impl.ReLU())), {"last.0"}, set()),
    "deleted": (lambda n: delattr(n, "last"), set(), {"last"}),
    "forgotten": (lambda n: setattr(n, "last", None), set(), {"last"}),
    "appended, deep down": (lambda n: n.block[0].append(impl.ReLU()), {"block.0.1"}, set()),
    "inserted": (lambda n: n.block.insert(0, impl.ReLU()), {"block.1", "block.1.0"},
                 {"block.0.0"}),
    "item": (lambda n: n.block.__setitem__(0, impl.ReLU()), set(), {"block.0.0"}),
    "popped": (lambda n: n.block[0].pop(0), set(), {"block.0.0"}),
    "extended": (lambda n: n.block.extend([impl.ReLU()]), {"block.1"}, set()),
    "named": (lambda n: setattr(n.block, "act", impl.ReLU()), {"block.act"}, set()),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_by_the_next_walk(net, change):
    before = set(walked(net))
    act, added, gone = CHANGES[change]
    act(net)
    assert set(walked(net)) == (before | added) - gone


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_a_copy_walks_its_own_tree(net, how):
    other = how(net)
    assert walked(other) == walked(net)
    if how is not copy.copy:
        assert not set(map(id, other.modules())) & set(map(id, net.modules()))
    other.more = impl.ReLU()
    assert walked(other) == [*walked(net), "more"]


def test_a_step_reaches_a_layer_that_came_after_the_first_step(net):
    optimizer = impl.SGD(net, lr=1.0)
    net.more = impl.Linear(1, 1)
    net.more.grads["weight"] = np.ones((1, 1), np.float32)
    before = net.more.params["weight"].copy()
    optimizer.step()
    assert net.more.params["weight"] == before - 1
    net.zero_grad()
    assert not net.more.grads


def test_modes_and_dtypes_reach_all_that_is_there_now(net):
    net.block[0].append(impl.BatchNorm1d(3))
    net.eval()
    assert not net.block[0][1].training
    assert net.astype("float64").block[0][1].params["weight"].dtype == np.float64
