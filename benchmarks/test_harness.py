"""What a verdict costs: parity.check beside gradcheck and a comparison written by hand."""

import numpy as np
import torch
from torch import nn

import impl
import parity
from benchmarks.timing import interleaved, threads

SHAPE = (2, 3, 16, 16)


def by_hand(mine, theirs, x, g):
    """Compare forward and gradients with assert_close, as many projects do."""
    t = torch.from_numpy(x).requires_grad_(True)
    theirs.zero_grad()
    y = theirs(t)
    y.backward(torch.from_numpy(g))
    mine.zero_grad()
    own = mine.forward(x)
    dx = mine.backward(g)
    for a, b in (
        (own, y.detach()),
        (dx, t.grad),
        (mine.grads["weight"], theirs.weight.grad),
        (mine.grads["bias"], theirs.bias.grad),
    ):
        # guessed, as ever: the default tolerances refuse torch's own rounding now and then
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-4, atol=1e-4)


def test_a_check_is_far_cheaper_than_gradcheck(benchmark, rows, request):
    """gradcheck(fast_mode=False) moves every input by itself; parity compares more, for less."""
    conv = nn.Conv2d(3, 8, 3)
    mine = impl.Conv2d(3, 8, 3)

    def check():
        return parity.check(mine, conv, SHAPE)

    double = nn.Conv2d(3, 8, 3).double()
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)

    def gradcheck():
        return torch.autograd.gradcheck(double, (x,), fast_mode=False)

    with threads(request.config.getoption("--speed-threads")):
        ratio = interleaved(check, gradcheck, 5)
        benchmark.extra_info["ratio"] = ratio.to_dict()
        benchmark.pedantic(check, rounds=5, iterations=1, warmup_rounds=1)
    rows.append(("harness", "check / gradcheck", "both", ratio))


def test_a_check_beside_a_comparison_by_hand(benchmark, rows, request):
    """The price of rungs, probes and promises, in units of one hand-written comparison."""
    conv, mine = nn.Conv2d(3, 8, 3), impl.Conv2d(3, 8, 3)
    for name, parameter in conv.named_parameters():
        mine.params[name] = parameter.detach().numpy().copy()
    rng = np.random.default_rng(0)
    x = rng.standard_normal(SHAPE).astype(np.float32)
    g = rng.standard_normal((2, 8, 14, 14)).astype(np.float32)
    with threads(request.config.getoption("--speed-threads")):
        ratio = interleaved(
            lambda: parity.check(mine, conv, SHAPE), lambda: by_hand(mine, conv, x, g), 9
        )
        benchmark.extra_info["ratio"] = ratio.to_dict()
        benchmark.pedantic(lambda: parity.check(mine, conv, SHAPE), rounds=5, iterations=1)
    rows.append(("harness", "check / by hand", "both", ratio))
