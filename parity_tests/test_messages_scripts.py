"""Scripts of failures: each prints what shows the failure, or a message says why none is."""

import numpy as np
import pytest
from torch import nn

import impl
import parity
from parity.cli import main
from parity.findings import Cause, Finding, Report, Verdict
from parity.reproducing import remember

LINEAR = nn.Linear(4, 3)


def check(mine, theirs=LINEAR, shape=(8, 4), **options):
    return parity.check(mine, theirs, shape, **{"rungs": ["float64"], "diagnose": False, **options})


# ---- what a script shows -------------------------------------------------------------------------


class Half:
    """A linear layer whose gradient of the weight is half of torch's, as attributes."""

    def __init__(self):
        self.W, self.b = np.zeros((3, 4)), np.zeros(3)

    def forward(self, x):
        self.x = x
        return x @ self.W.T + self.b

    def backward(self, g):
        self.dW, self.db = g.T @ self.x / 2, g.sum(0)
        self.slope = self.dW
        return g @ self.W


class Dicts:
    """Weights in a dict, gradients as attributes."""

    def __init__(self):
        self.params = {"weight": np.zeros((3, 4)), "bias": np.zeros(3)}

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, g):
        self.dweight, self.dbias = g.T @ self.x / 2, g.sum(0)
        return g @ self.params["weight"]


class Around:
    """Layers in a list."""

    def __init__(self):
        self.layers = [Half()]

    def forward(self, x):
        return self.layers[0].forward(x)

    def backward(self, g):
        return self.layers[0].backward(g)


class Statistics:
    """Batch normalisation in evaluation: running statistics as attributes, the mean is ignored."""

    def __init__(self):
        self.params, self.grads = {"weight": np.ones(3), "bias": np.zeros(3)}, {}
        self.running_mean, self.running_var = np.zeros(3), np.ones(3)

    def forward(self, x):
        self.sd = np.sqrt(self.running_var + 1e-5)
        self.hat = x / self.sd
        return self.params["weight"] * self.hat + self.params["bias"]

    def backward(self, g):
        self.grads.update(weight=(g * self.hat).sum(0), bias=g.sum(0))
        return g * self.params["weight"] / self.sd


class Dead:
    """Wrong for numbers that few draws hold."""

    def forward(self, x):
        return np.where(np.abs(x) < 1e-2, 2 * x, x)

    def backward(self, g):
        return g


class Counting(impl.Linear):
    """Right once: every later answer is another."""

    calls = 0

    def __init__(self):
        super().__init__(4, 3)

    def forward(self, x):
        self.calls += 1
        return super().forward(x) + (self.calls > 1)


class Reusing(impl.Linear):
    """Hands out the same array again and again."""

    def __init__(self):
        super().__init__(4, 3)
        self.held = {}

    def forward(self, x):
        y = super().forward(x)
        held = self.held.setdefault((y.shape, y.dtype.name), y)
        held[...] = y
        return held


class Clearing(impl.Linear):
    """Writes to the upstream gradient."""

    def __init__(self):
        super().__init__(4, 3)

    def backward(self, grad_output):
        dx = super().backward(grad_output)
        grad_output *= 0
        return dx


class Speechless(impl.Linear):
    """Returns a text from backward."""

    def __init__(self):
        super().__init__(4, 3)

    def backward(self, grad_output):
        return "nothing"


class Unlike:
    """Another shape of the same numbers."""

    def forward(self, x):
        return x[None]

    def backward(self, g):
        return g[0]


def affine(x, w, b):
    return x @ w.T + b, (x, w)


def affine_back(g, cache):
    x, w = cache
    return {"dx": g @ w, "dw": g.T @ x / 2, "db": g.sum(0)}


NAMED = {"weight": ("W", "slope"), "bias": ("b", "db")}
INNER = {"weight": ("layers.0.W", "layers.0.dW"), "bias": "layers.0.b"}
FULL = {"rungs": ["float64", "promises"]}
BATCH = nn.BatchNorm1d(3)

SHOWN = {
    "attribute of a dict": (lambda: check(Dicts()), "grad of weight is off by"),
    "named": (lambda: check(parity.attributes(Half(), NAMED)), "grad of weight is off by"),
    "named inside": (lambda: check(parity.attributes(Around(), INNER)), "grad of weight is off"),
    "returned as a dict": (lambda: check((affine, affine_back)), "grad of weight is off by"),
    "statistics": (lambda: check(Statistics(), BATCH, (6, 3), modes="eval"), "forward output is"),
    "rare": (lambda: check(Dead(), nn.Identity()), "forward output is off by"),
    "repeat": (lambda: check(Counting(), **FULL), "another forward is off by"),
    "workspace": (lambda: check(Reusing(), **FULL), "the output handed out is overwritten by"),
    "upstream": (lambda: check(Clearing()), "inputs or upstream gradient changed by"),
    "text": (lambda: check(Speechless()), r"backward returned [('str', ())]"),
    "shape": (lambda: check(Unlike(), nn.Identity()), "has shape (1, 8, 4) torch (8, 4)"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_shown(name, capsys):
    run, says = SHOWN[name]
    script = parity.script(run())
    assert len(script.splitlines()) <= 15
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert says in said
    if says.endswith("by"):
        assert float(said.split()[-1]) > 1e-6


# ---- what a script refuses -----------------------------------------------------------------------


class NoStatistics:
    """Batch normalisation that keeps no running statistics."""

    def forward(self, x):
        self.sd = np.sqrt(x.var(0) + 1e-5)
        self.hat = (x - x.mean(0)) / self.sd
        return self.hat

    def backward(self, g):
        return (g - g.mean(0) - self.hat * (g * self.hat).mean(0)) / self.sd


class Methods(Half):
    """A list of arrays behind a method."""

    def __init__(self):
        self.first, self.second = np.zeros((3, 4)), np.zeros(3)

    def params(self):
        return [self.first, self.second]

    def forward(self, x):
        self.x = x
        return x @ self.first.T + self.second

    def backward(self, g):
        return g @ self.first


class NoGradients(Half):
    def backward(self, g):
        return g @ self.W


class Flat(impl.Linear):
    """Wrong for arrays that are views of others."""

    def __init__(self):
        super().__init__(4, 3)

    def forward(self, x):
        return super().forward(x) * (1 if x.base is None else 2)


def found(quantity, verdict=Verdict.MISMATCH, cause=None):
    """A report with one finding of one's own."""
    cause = cause and Cause(cause, "")
    report = Report("case", (Finding("case", quantity, verdict=verdict, cause=cause),), strict=True)
    remember(report, impl.Linear(4, 3), LINEAR, ((8, 4),), {})
    return report


REFUSED = {
    "inputs": (lambda: check(impl.Linear(4, 3), LINEAR, (5, 7)),
        "torch itself refuses these inputs: RuntimeError: .*5x7 and 4x3.*: give inputs that torch"),
    "no buffer": (lambda: check(NoStatistics(), nn.BatchNorm1d(3, affine=False), (6, 3),
                                modes=["train"]),
        "NoStatistics keeps no buffer 'running_mean', so .*; keep it in NoStatistics.buffers, or"),
    "no gradient": (lambda: check(NoGradients()),
        "no script shows grad of weight: what mine has for it cannot be reached by a line; save a"),
    "out of reach": (lambda: check(Methods()),
        r"no script can write 'params\[0\]' of Methods, whose own arrays are: first, second, x"),
    "layout": (lambda: check(Flat(), rungs=["probes"]),
        "no script shows forward output: only arrays of another memory layout are off; save a"),
    "weights": (lambda: check(impl.Linear(4, 5)),
        "no script shows weights: torch's weights cannot be given to mine, and nothing was run"),
    "vacuous": (lambda: found("forward", Verdict.VACUOUS),
        "no script shows forward output: nothing differs there; save a bundle instead"),
    "process": (lambda: found("process"), "it would hang, crash or fill the memory"),
    "steps": (lambda: found("step"), "no script shows optimizer steps: it shows one pass, and"),
    "right": (lambda: found("forward"),
        "no script shows forward output: other weights than those of the check do not show it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    run, says = REFUSED[name]
    with pytest.raises(parity.UsageError, match=says) as refusal:
        parity.script(run())
    assert "\n" not in str(refusal.value)


def test_a_bundle_of_inputs_that_torch_refuses(tmp_path):
    with pytest.raises(parity.UsageError, match="torch itself refuses these inputs"):
        parity.save_bundle(check(impl.Linear(4, 3), LINEAR, (5, 7)), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_refused_script_still_lets_the_report_be_seen(capsys):
    sides = ["impl:Linear", "torch.nn:Linear", "--mine-args", "4", "5", "--torch-args", "4", "3"]
    assert main(["check", *sides, "--input", "8,4", "--script", "--no-diagnose"]) == 2
    out, err = capsys.readouterr()
    assert "Linear: FAILED" in out
    assert err.startswith("parity: no script shows weights: ")
