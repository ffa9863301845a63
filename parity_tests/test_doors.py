"""Every door against what a user mistypes, a disk that is full, and Ctrl-C at any moment."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity
from fixtures import data, states
from fixtures.data import fashion, idx
from fixtures.data.base import DataError
from parity.options import Options
from parity.reporting import write
from parity_tests.processes import python
from parity_tests.reports import sample

pytestmark = pytest.mark.slow  # hundreds of small checks, and processes of their own

ROOT = Path(__file__).resolve().parent.parent
ODD = (
    None, True, -1, 0, 1.5, float("nan"), float("inf"), "", "nope", "float46", b"x", [], {}, (),
    ["x"], {"x": 1}, {"": ""}, object(), lambda: 1, lambda x: x, np.array(3), np.array([np.nan]),
    10**30, "0,3", [0, -1], [float("nan")], {"weight": float("nan")}, [None], np.float64("nan"),
    torch.tensor(1.0), ..., print,
)  # fmt: skip
REFUSALS = (parity.UsageError, NotImplementedError, DataError)
QUICK = {"rungs": ["float64"], "diagnose": False}
THEIRS = nn.Linear(4, 3)
BATCH = [(np.ones((3, 4)), np.ones((3, 3)))]
TRAINING = {
    "loss": (impl.MSELoss(), nn.MSELoss()),
    "optimizer": (lambda m: impl.SGD(m, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "batches": BATCH,
    "epochs": 1,
    "scheduler": None,
}
OPTIONS = tuple(field.name for field in fields(Options))


def mine():
    return impl.Linear(4, 3)


def check(**options):
    return parity.check(mine, THEIRS, (5, 4), **{**QUICK, **options})


def train(**options):
    return parity.check_training(mine(), THEIRS, **{**TRAINING, **options})


def options_of(call, names):
    return {f"{call.__name__} {name}": lambda v, n=name: call(**{n: v}) for name in names}


def first(pair):
    return lambda v: train(**{pair: (v, TRAINING[pair][1])})


def second(pair):
    return lambda v: train(**{pair: (TRAINING[pair][0], v)})


TRUTH, GUESS = np.array([0, 1, 1, 0, 1]), np.array([0, 1, 0, 0, 1])
DOORS = {
    **options_of(check, OPTIONS),
    "check mine": lambda v: parity.check(v, THEIRS, (5, 4), **QUICK),
    "check theirs": lambda v: parity.check(mine, v, (5, 4), **QUICK),
    "check input": lambda v: parity.check(mine, THEIRS, v, **QUICK),
    **options_of(train, (*OPTIONS, *TRAINING)),
    "train mine": lambda v: parity.check_training(v, THEIRS, **TRAINING),
    "train theirs": lambda v: parity.check_training(mine(), v, **TRAINING),
    "train loss 0": first("loss"),
    "train loss 1": second("loss"),
    "train optimizer 0": first("optimizer"),
    "train optimizer 1": second("optimizer"),
    "train batch": lambda v: train(batches=[v]),
    "train target": lambda v: train(batches=[(np.ones((3, 4)), v)]),
    "compare mine": lambda v: parity.compare_predictions(v, GUESS, TRUTH),
    "compare theirs": lambda v: parity.compare_predictions(GUESS, v, TRUTH),
    "compare truth": lambda v: parity.compare_predictions(GUESS, GUESS, v),
    "compare margin": lambda v: parity.compare_predictions(GUESS, GUESS, TRUTH, margin=v),
    "compare confidence": lambda v: parity.compare_predictions(GUESS, GUESS, TRUTH, confidence=v),
    **{
        f"{name} size": lambda v, n=name: getattr(parity, n)(3, v)
        for name in (
            "normal",
            "uniform",
            "integers",
            "probabilities",
            "log_probabilities",
            "one_hot",
        )
    },
    "labels size": lambda v: parity.labels(v, classes=3),
    "labels classes": lambda v: parity.labels(3, classes=v),
    "normal scale": lambda v: parity.normal(3, scale=v),
    "normal mean": lambda v: parity.normal(3, mean=v),
    "uniform low": lambda v: parity.uniform(3, low=v),
    "uniform high": lambda v: parity.uniform(3, high=v),
    "integers low": lambda v: parity.integers(3, low=v),
    "integers high": lambda v: parity.integers(3, high=v),
    "probabilities axis": lambda v: parity.probabilities(3, 4, axis=v),
    "functions": lambda v: parity.functions(v),
    "functions backward": lambda v: parity.functions(lambda x: x, v),
    "optimizer": lambda v: parity.optimizer(v),
    "preset": lambda v: parity.preset(v, mine()),
    "preset layer": lambda v: parity.preset("cs231n", v),
    "axes": lambda v: parity.axes(mine(), v),
    "axes layer": lambda v: parity.axes(v, (0, 1)),
    "attributes": lambda v: parity.attributes(v),
    "attributes params": lambda v: parity.attributes(mine(), params=v),
    "one_hot_targets": lambda v: parity.one_hot_targets(v),
    "localise mine": lambda v: parity.localise(v, THEIRS, (5, 4)),
    "localise theirs": lambda v: parity.localise(mine(), v, (5, 4)),
    "localise input": lambda v: parity.localise(mine(), THEIRS, v),
    "replay": lambda v: parity.replay(v, mine()),
    "save_bundle": lambda v: parity.save_bundle(v, "bundle"),
    "script": lambda v: parity.script(v),
    "parametrize": lambda v: parity.parametrize(v),
    "parametrize row": lambda v: parity.parametrize([v]),
    **{
        f"data {name}": getattr(data, name)
        for name in (
            "fashion_mnist",
            "cifar100",
            "digits",
            "blobs",
            "moons",
            "xor",
            "line",
            "curve",
        )
    },
    "digits sizes": lambda v: data.digits(sizes=v),
    "blobs samples": lambda v: data.blobs(samples=v),
    "read_idx": idx.read_idx,
    "read_csv": fashion.read_csv,
    "load_npz": states.load_npz,
    "load_safetensors": states.load_safetensors,
    "load_torch": states.load_torch,
    "restricted_loads": lambda v: data.restricted_loads(v if isinstance(v, bytes) else b"?"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch, on odd sizes
@pytest.mark.parametrize("door", DOORS)
def test_what_is_mistyped_is_answered_in_one_line_or_taken(door, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if door.startswith(("data", "digits", "blobs")):
        pytest.importorskip("sklearn", reason="pip install 'torch-parity[data]'")
    for value in ODD:
        if door.endswith(("isolate", "epochs", "samples")) and value in (True, 10**30):
            continue  # these are asked for, and take their time
        try:
            DOORS[door](value)
        except REFUSALS as error:
            text = str(error)
        except Exception as error:
            raise AssertionError(f"{door} of {value!r} raised {error!r}") from error
        else:
            continue
        assert text, (door, value)
        assert "\n" not in text, text


# ---- processes -----------------------------------------------------------------------------------

WRONG = """
import numpy as np


class Wrong:

    def __init__(self, wide, out):
        self.params = {"weight": np.zeros((out, wide)), "bias": np.zeros(out)}
        self.grads = {}

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"].T

    def backward(self, g):
        self.grads = {"weight": g.T @ self.x, "bias": g.sum(0)}
        return g @ self.params["weight"]
"""
PAIR = ("wrong.py:Wrong", "torch.nn:Linear")
SWEEP = ("sweep", *PAIR, "--cases", "96", "--workers", "1", "--output", "out")
CHECK = ("check", *PAIR, "--args", "4", "3", "--input", "5,4", "--rungs", "float64")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    return tmp_path


LIMITED = """
import os, resource, sys
room = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # cut off at that size, it would break later imports
os.execv(sys.argv[2], sys.argv[2:])
"""


def start(folder, *words, room=None):
    """Start the command; a file may not grow beyond ``room`` bytes, as on a disk that is full."""
    command = ["-m", "parity", *words]
    if room is not None:  # not by preexec_fn: JAX, where a test before has loaded it, warns of that
        command = ["-c", LIMITED, room, sys.executable, *command]
    return python(*command, cwd=folder, stdout=subprocess.PIPE)


def ended(process):
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def reports(folder):
    for number, version in enumerate(("2.13.0", "2.4.1")):
        write(sample(version=version), folder / f"run{number}")
    return "report", "merge", "run0", "run1", "-o", "merged"


def hidden(folder):
    return [path.name for path in folder.rglob(".*") if path.name != ".pytest_cache"]


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing_half_written(folder):
    for words in ((*CHECK, "--bundle", "bundle"), reports(folder)):
        status, _, err = ended(start(folder, *words, room=100))
        assert status == 2
        assert err.count("\n") == 1, err
        assert hidden(folder) == []
    assert not (folder / "bundle" / "bundle.json").exists()


def test_a_sweep_on_a_full_disk_keeps_whole_lines_and_goes_on(folder):
    status, _, err = ended(start(folder, *SWEEP, room=4000))
    assert status == 2
    assert "results.jsonl cannot be written: File too large" in err
    assert err.count("\n") == 1
    kept = (folder / "out" / "results.jsonl").read_text()
    assert kept == "" or kept.endswith("\n")
    status, _, err = ended(start(folder, *SWEEP, "--resume"))
    assert status == 1, err
    lines = (folder / "out" / "results.jsonl").read_text().splitlines()
    found = [json.loads(line)["id"] for line in lines]
    assert len(found) == len(set(found)) == 96


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_at_any_moment_is_one_line_and_status_130(folder):
    bundle = start(folder, *CHECK, "--bundle", "saved")
    assert ended(bundle)[0] == 1
    commands = [
        SWEEP,
        ("sweep", *PAIR, "--case", "wrong:3"),
        (*CHECK, "--bundle", "bundle"),
        (*CHECK, "--isolate"),
        ("replay", "saved", "--mine", PAIR[0]),
        reports(folder),
        ("doctor",),
    ]
    interrupted = 0
    for words in commands:
        for moment in (0.0, 0.1, 0.4, 0.8, 1.3, 2.0):
            process = start(folder, *words, *(("--resume",) if words is SWEEP else ()))
            while process.poll() is None and "numpy" not in maps(process.pid):
                time.sleep(0.01)  # before that, Python itself is loading
            time.sleep(moment)
            running = process.poll() is None
            process.send_signal(signal.SIGINT)
            status, _, err = ended(process)
            # a shell says 130 of both: where Ctrl-C falls into an exec of a string, Python itself
            # ends by the signal, although the exception was caught
            if status in (130, -signal.SIGINT):
                interrupted += 1
                assert err in ("parity: interrupted\n", ""), err  # a sweep says it on the way out
            else:
                assert status in (0, 1), (words, moment, running, status, err)
            assert hidden(folder) == []
    assert interrupted > len(commands)


def maps(pid):
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""
