"""Every subject, forward and forward+backward, NumPy and torch in turns in one run."""

import numpy as np
import pytest
import torch
from torch import nn

import impl
from benchmarks.subjects import OPTIMIZERS, SUBJECTS, passes
from benchmarks.timing import interleaved, peak_bytes, threads
from fixtures.weights import share


@pytest.mark.parametrize("what", ["forward", "both"])
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
def test_speed(subject, what, benchmark, rows, request):
    """pytest-benchmark stores NumPy's times; the ratio to torch goes into its extra_info."""
    made = passes(subject)
    mine, theirs = getattr(made, what)
    with threads(request.config.getoption("--speed-threads")):
        ratio = interleaved(mine, theirs, request.config.getoption("--speed-rounds"))
        benchmark.extra_info["ratio"] = ratio.to_dict()
        if what == "both":
            benchmark.extra_info["peak_bytes"] = peak_bytes(mine)
        benchmark.pedantic(mine, rounds=5, iterations=1, warmup_rounds=1)
    rows.append((subject.group, subject.name, what, ratio))


@pytest.mark.parametrize("size", [(100, 10), (1000, 1000)], ids=["small", "million"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name, size, benchmark, rows, request):
    """One step on one Linear layer's parameters."""
    theirs = nn.Linear(*size)
    mine = impl.Linear(*size)
    share(theirs, mine)
    rng = np.random.default_rng(0)
    for key, parameter in theirs.named_parameters():
        grad = rng.standard_normal(tuple(parameter.shape)).astype(np.float32)
        parameter.grad = torch.from_numpy(grad)
        mine.grads[key] = grad.copy()
    own = getattr(impl, name)(mine, **OPTIMIZERS[name])
    other = getattr(torch.optim, name)(theirs.parameters(), **OPTIMIZERS[name])
    with threads(request.config.getoption("--speed-threads")):
        ratio = interleaved(own.step, other.step, request.config.getoption("--speed-rounds"))
        benchmark.extra_info["ratio"] = ratio.to_dict()
        benchmark.pedantic(own.step, rounds=5, iterations=1, warmup_rounds=1)
    rows.append(("optimizers", f"{name}-{size[0]}x{size[1]}", "both", ratio))
