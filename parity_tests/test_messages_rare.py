"""Messages that few people meet: what was given, what is possible, how to mend it."""

import hashlib
import json
import os
import re
import sys
import threading
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity
from parity.cli import main
from parity.findings import Verdict
from parity.literals import MOST_ELEMENTS
from parity.reporting import contribute
from parity.settings import read_settings

LINEAR = nn.Linear(4, 3)


def check(mine, theirs=LINEAR, *inputs, **options):
    quick = {"rungs": ["float64"], "diagnose": False, **options}
    return parity.check(mine, theirs, *(inputs or ((5, 4),)), **quick)


def train(model=None, theirs=LINEAR, *, loss=None, optimizer=None, x=None, **options):
    return parity.check_training(
        model or impl.Linear(4, 3),
        theirs,
        loss=(loss or impl.MSELoss(), nn.MSELoss()),
        optimizer=(optimizer or (lambda m: impl.SGD(m, lr=0.1)), lambda p: torch.optim.SGD(p, 0.1)),
        batches=[(np.ones((2, 4)) if x is None else x, np.ones((2, 3)))],
        **options,
    )


# ---- what is found -------------------------------------------------------------------------------


class Dense:
    """A linear layer whose names tell nobody what they are."""

    def __init__(self):
        self.first, self.second, self.found = np.zeros((3, 4)), np.zeros(3), []

    def forward(self, x):
        self.x = x
        return x @ self.first.T + self.second

    def backward(self, g):
        self.found = [g.T @ self.x, g.sum(0)]
        return g @ self.first


class Copies(Dense):
    def get_parameters(self):
        return [self.first.astype("float32"), self.second.astype("float32")]

    def get_gradients(self):
        return self.found


class Tuples(Dense):
    params = property(lambda self: (self.first.astype("float32"), self.second.astype("float32")))
    grads = property(lambda self: self.found)


class Ending(nn.Linear):
    """A torch layer with something else at its end."""

    def __init__(self, end):
        super().__init__(4, 3)
        self.end = end

    def forward(self, x):
        return self.end(super().forward(x))


class Turned(nn.Module):
    """A torch layer that keeps its weight as (in, out)."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(3))


class LossAlone:
    def get(self, y_pred, y):
        return float(((y_pred - y) ** 2).mean())


def each_item(y_pred, y):
    return (y_pred - y) ** 2


def affine(x, w, b):
    return x @ w.T + b, (x, w)


def affine_back(g, cache):
    return g @ cache[1]


def one_way(y):
    y.register_hook(lambda g: g.no_way_back)
    return y


def removing(model):
    return SimpleNamespace(step=lambda: model.params.pop("weight"))


FINDINGS = {
    "loss without gradient": (lambda: check(LossAlone(), nn.MSELoss(), (4, 3), (4, 3)),
        r"returned float, and no gradient; return \(loss, gradient\) from get"),
    "too few returned": (lambda: check(parity.functions(affine, affine_back, params=("w", "b"))),
        "backward returned 1 gradient; its last ones are to be those of w, b: return them all"),
    "copies": (lambda: check(Copies()),
        r"get_parameters\(\)\[0\] is an array of shape \(3, 4\) and dtype float32 and cannot be "
        r"written in place for an array of shape \(3, 4\) and dtype float64; hand out the layer's"),
    "tuples": (lambda: check(Tuples()),
        "params is a tuple, whose entries cannot be replaced; make it a list of arrays"),
    "backward of mine": (lambda: check(Ending(one_way)),
        "backward raised AttributeError: .*no_way_back"),
    "backward of torch": (lambda: check(impl.Linear(4, 3), Ending(one_way)),
        "the reference refuses these inputs: AttributeError: .*no_way_back"),
    "no tensor of mine": (lambda: check(Ending(str)),
        "^forward returned str, which holds no tensor; return a tensor, or a tuple, list"),
    "no tensor of torch": (lambda: check(impl.Linear(4, 3), Ending(str)),
        "the reference returned str, which holds no tensor; return a tensor"),
    "turned": (lambda: check(Turned()),
        r"'weight' has shape \(4, 3\), the reference's 'weight' \(3, 4\); declare the axis order "
        r"with weights=\{'weight': \('weight', axes\)\}"),
    "loss of each item": (lambda: train(loss=each_item),
        r"^loss returned an array of shape \(2, 3\), where a single number is wanted; return"),
    "removed": (lambda: train((affine, affine_back), optimizer=removing),
        "optimizer step raised TypeError: parameter 'weight' cannot be removed"),
}  # fmt: skip


@pytest.mark.parametrize("name", FINDINGS)
def test_findings(name):
    run, says = FINDINGS[name]
    (finding,) = run().failures
    assert finding.verdict is Verdict.ERROR
    assert re.search(says, finding.cause.sentence), finding.cause.sentence
    if name in ("loss without gradient", "no tensor of mine", "loss of each item"):
        assert not finding.evidence["traceback"]  # it would lead into the harness


# ---- what is refused -----------------------------------------------------------------------------


class Locked(impl.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.lock = threading.Lock()


class Narrow(impl.Linear):
    def forward(self, x):
        return super().forward(x).astype("float32")


def declared():
    """A failure: no gradients are declared. The weight is no attribute, by its name in torch."""
    return check(parity.attributes(Dense(), {"weight": "first", "bias": "second"}))


def row():
    """The first test of a table whose one row cannot be checked."""
    table = parity.parametrize([parity.Case("a", object(), LINEAR, ((5, 4),))])
    case, first = table.mark.args[1][0].values
    return first(case)


CURVE = {"title": "t", "mine": [1.0], "torch": [1.0]}
TABLE = {"title": "t", "table": [[1, 2], [3, 4]]}
PRINT = {"quantity": "q", "digest": "d"}

CALLS = {
    "no input": (lambda: parity.check(impl.Linear(4, 3), LINEAR),
        r"check got no input; give a shape for each input, as in check\(mine, theirs, \(8, 4\)\)"),
    "lock": (lambda: check(Locked()),
        r"Locked cannot be copied \(TypeError: .*lock.*\); give a factory .*lambda: Locked\(…\)"),
    "row": (row, "mine is object, which no adapter takes"),
    "narrow": (lambda: train(Narrow(4, 3), dtypes=["float64"]),
        "mine computes in float32 only; leave float32 among dtypes"),
    "empty": (lambda: train(x=np.ones((2, 0))),
        r"batches\[0\] holds no item: x has shape \(2, 0\)"),
    "ragged": (lambda: train(x=[[1.0], [1.0, 2.0]]),
        r"batches\[0\] cannot be made an array \(.*inhomogeneous.*\); batches wants a list of"),
    "two tensors": (lambda: train(theirs=Ending(lambda y: (y, y))),
        "the reference returned 2 tensors, where a loss takes one; wrap it in a module whose"),
    "envelope": (lambda: contribute("trajectories", CURVE | {"envelope": 3}),
        "a trajectory's envelope must be a list with a width for each step"),
    "names": (lambda: contribute("statistics", TABLE | {"names": ["a"]}),
        "a statistics entry's names, and each of its rows, are two texts"),
    "statements": (lambda: contribute("statistics", TABLE | {"statements": "s"}),
        "a statistics entry's statements must be a list of sentences"),
    "samples": (lambda: contribute("fingerprints", PRINT | {"samples": 3}),
        "a fingerprint's samples must be a list of numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    wrong, says = CALLS[name]
    with pytest.raises(parity.UsageError, match=says) as refusal:
        wrong()
    assert "\n" not in str(refusal.value)


def test_a_report_folder_that_is_write_protected(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    says = f"--parity-report is 'out', but {tmp_path} cannot be written to"
    with pytest.raises(parity.UsageError, match=re.escape(says)):
        read_settings({"report": "out"}, tmp_path, tmp_path)


# ---- the command line ----------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a command in a folder of its own; return the one line with which it is refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*words):
        assert main([*words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def hole(name, size):
    """Make a file that claims a size and takes no room."""
    Path(name).touch()
    os.truncate(name, size)


def unreadable(name):
    """Make a file that is there and cannot be read, by root neither."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs Linux's /proc")
    Path(name).unlink(missing_ok=True)
    Path(name).symlink_to("/proc/self/mem")  # nothing is mapped at its start


ARGS = ("--args", "4", "3", "--input")
DENSE = ("check", "impl:Linear", "torch.nn:Linear", *ARGS)
BROKEN = ("check", "broken_here:A", "torch.nn:Linear", *ARGS, "5,4")
MERGE = ("report", "merge", "report.json", "-o", "both")
SWEEP = ("sweep", "--layer", "relu", "--workers", "1", "--cases", "2", "--output", "out")


COMMANDS = {
    "size": (lambda: hole("big.npy", 8 * MOST_ELEMENTS + 5000), (*DENSE, "big.npy"),
        "has 1,073,746,824 bytes; an input has 1,073,745,920 at most: save a part of it"),
    "elements": (lambda: None, (*DENSE, "99999,99999"),
        "has 9,999,800,001 elements; the most is 134,217,728: give a smaller shape"),
    "refused": (lambda: None, (*DENSE, "5,5", "--bundle", "out"),
        "torch itself refuses these inputs: .*5x5 and 4x3.*: give inputs that torch takes"),
    "refused script": (lambda: None, (*DENSE, "5,5", "--script"),
        "torch itself refuses these inputs: .*5x5 and 4x3.*: give inputs that torch takes"),
    "archive": (lambda: Path("some.npy").write_bytes(b"PK\x03\x04"), (*DENSE, "some.npy"),
        "some.npy cannot be read .*: it is an archive; write one array with numpy.save"),
    "import": (lambda: Path("broken_here.py").write_text("raise SystemExit(3)"), BROKEN,
        "broken_here cannot be imported: SystemExit: 3"),
    "report's size": (lambda: hole("report.json", 2**29 + 1), MERGE,
        "has 536,870,913 bytes; a report has 536,870,912 at most: give the report.json that a run"),
    "report": (lambda: unreadable("report.json"), MERGE,
        "report.json cannot be read: Input/output error"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(refused, name):
    make, words, says = COMMANDS[name]
    make()
    assert re.search(says, refused(*words))


def test_isolation_without_a_fork(refused, monkeypatch):
    monkeypatch.delattr(os, "fork")
    says = f"needs os.fork, which {sys.platform} lacks; leave it out there"
    with pytest.raises(NotImplementedError, match=says):
        check(impl.Linear(4, 3), isolate=True)
    line = refused(*DENSE, "5,4", "--timeout", "9")
    assert re.match(r"parity: a process of its own \(.*--timeout .*\) " + says, line)


def test_isolation_where_cuda_is_in_use(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(NotImplementedError, match="not to be had once CUDA is initialised"):
        check(impl.Linear(4, 3), isolate=True)
    says = r"parity: a process of its own \(.*\) is not to be had once CUDA .* without it"
    assert re.match(says, refused(*DENSE, "5,4", "--isolate"))


# ---- sweeps --------------------------------------------------------------------------------------


@pytest.fixture
def workers(monkeypatch):
    """Replace what the workers of a sweep do."""
    pytest.importorskip("joblib")
    pytest.importorskip("tqdm")
    return lambda run: monkeypatch.setattr("parity.sweeping.running.Pool.run", run)


@pytest.mark.usefixtures("workers")
def test_a_sweep_into_a_file(refused):
    Path("out").touch()
    assert "out is a file; --output names a folder" in refused(*SWEEP)


@pytest.mark.usefixtures("workers")
def test_a_sweep_into_a_link_that_leads_nowhere(refused):
    Path("out").symlink_to("gone")
    assert "out is a link to gone, which is not there; --output names" in refused(*SWEEP)


@pytest.mark.usefixtures("workers")
def test_a_sweep_without_tqdm(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert "a sweep needs tqdm: pip install 'torch-parity[sweep]'" in refused(*SWEEP)
    assert not Path("out").exists()  # else the same command is refused once tqdm is there


def test_a_sweep_whose_workers_all_die(refused, workers):
    rounds = []

    def dies(*_):
        rounds.append(1)
        raise BrokenProcessPool("one was killed")

    workers(dies)
    says = r"workers died 5 times without a result \(one was killed\); out keeps .*, --resume cont"
    assert re.search(says, refused(*SWEEP))
    assert len(rounds) == 5


def test_a_summary_that_cannot_be_written(refused, workers):
    workers(lambda *_: iter(()))
    Path("out/summary.json").mkdir(parents=True)
    assert "out/summary.json cannot be written: Is a directory" in refused(*SWEEP)
    assert not list(Path("out").glob(".*"))


# ---- bundles -------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path):
    parity.save_bundle(declared(), tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder, part, **changes):
    file = folder / "bundle.json"
    data = json.loads(file.read_text())
    data[part] |= changes
    file.write_text(json.dumps(data))


def widen(folder):
    """Let the input be one that torch does not take, in a file that is otherwise whole."""
    from safetensors.numpy import load_file, save

    file = folder / "arrays.safetensors"
    held = load_file(file) | {"input/0": np.ones((5, 7))}
    file.write_bytes(save(held))
    edit(folder, "arrays", sha256=hashlib.sha256(file.read_bytes()).hexdigest(), names=list(held))


CHAIN = {"class": "Sequential", "children": "x"}
MINE = ("--mine", "impl:Linear")


AGAIN = "; save the bundle again"


@pytest.mark.parametrize(
    ("spoil", "words", "says"),
    [
        (lambda b: unreadable(b / "arrays.safetensors"), (), f"cannot be read: .*{AGAIN}"),
        (lambda b: edit(b, "theirs", made=CHAIN), (), f"of Sequential are 'x', no list{AGAIN}"),
        (widen, (), f"torch refuses the saved numbers: RuntimeError: .*5x7 and 4x3.*{AGAIN}"),
        (lambda b: edit(b, "mine", args="4"), MINE, f"the args of mine are '4', no list{AGAIN}"),
        (lambda b: edit(b, "mine", config=[]), MINE, rf"config of mine are \[\], no dict{AGAIN}"),
    ],
    ids=["unreadable", "children", "refused", "args", "config"],
)
def test_bundles(bundle, refused, spoil, words, says):
    spoil(bundle)
    assert re.search(says, refused("replay", "bundle", *words))
