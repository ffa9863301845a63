"""Sweeps: the same bytes on one worker or many, nothing lost by a kill, failures named once."""

import json
import sys
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import impl
from fixtures.sweep_space import SPACE
from parity.cli import main
from parity.processes import answers
from parity.sweeping import grouping
from parity.sweeping import plan as plans
from parity.sweeping.grouping import grouped
from parity.sweeping.optimizers import OptimizerLayer
from parity.sweeping.plan import (
    DEFAULT_SPACE,
    Plan,
    draw_case,
    on_threads,
    run_case,
    settled,
)
from parity.sweeping.results import Results
from parity.sweeping.samplers import windows_see
from parity.sweeping.spaces import LONG, Drawn

pytestmark = pytest.mark.slow  # with the slow tests: the quick run stays under three minutes

ROOT = Path(__file__).resolve().parent.parent
OURS = settled(Plan(space=DEFAULT_SPACE))
FAST = ["--layer", "linear", "--layer", "relu", "--layer", "mseloss", "--layer", "maxpool2d"]

WRONG = """
    import numpy as np

    class Right:
        share = False

        def __init__(self, n_in, n_out):
            self.params = {"weight": np.zeros((n_out, n_in)), "bias": np.zeros(n_out)}
            self.grads = {}

        def zero_grad(self):
            self.grads = {}

        def forward(self, x):
            self.x = x
            return x @ self.params["weight"].T + self.params["bias"]

        def backward(self, g):
            x, rows = self.x.reshape(-1, self.x.shape[-1]), g.reshape(-1, g.shape[-1])
            count = len(rows) if self.share else 1
            for name, new in (("weight", rows.T @ x), ("bias", rows.sum(0) / count)):
                self.grads[name] = self.grads.get(name, 0) + new
            return g @ self.params["weight"]

    class Wrong(Right):
        share = True  # averages its bias gradient over a batch of more than one row

    class Deadly(Right):

        def forward(self, x):
            import os, time
            wide = x.shape[-1]
            if wide == 4:
                time.sleep(1000)
            if wide == 1:
                os.abort()
            if wide == 8:
                os._exit(4)
            return super().forward(x)
"""


MY_SGD = """
    class MySGD:

        def __init__(self, model, lr=1e-3, momentum=0.0):
            self.model, self.lr, self.momentum, self.speed = model, lr, momentum, {}

        def step(self):
            for name, grad in self.model.grads.items():
                share = 1 - self.momentum
                speed = self.momentum * self.speed.get(name, 0) + share * grad
                self.speed[name] = speed
                self.model.params[name] -= self.lr * speed
"""


def sweep(*words):
    return main(["sweep", *map(str, words)])


def lines(folder):
    return (folder / "results.jsonl").read_text().splitlines()


def records(folder):
    return [json.loads(line) for line in lines(folder)]


@pytest.fixture
def wrong(tmp_path):
    path = tmp_path / "my_layers.py"
    path.write_text(textwrap.dedent(WRONG))
    return path


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The results of 48 cases on one worker."""
    folder = tmp_path_factory.mktemp("sweep") / "alone"
    assert sweep("--cases", 48, "--output", folder, "--workers", 1, *FAST) == 0
    return folder


# ---- what is drawn ---------------------------------------------------------------------------


def test_everything_of_impl_that_torch_has_is_in_the_space():
    layers = {name.lower() for name in impl.__all__}
    assert set(SPACE) == layers - {"module", "sequential"}


@pytest.mark.parametrize("name", SPACE)
def test_torch_takes_what_is_drawn(name):
    """Both constructors and torch's forward accept it: an error in a sweep is a layer's fault."""
    for number in range(12):
        draw = draw_case(OURS, name, number)
        _, theirs = SPACE[name].build(draw.drawn)
        if isinstance(SPACE[name], OptimizerLayer):
            assert theirs(torch.nn.Linear(2, 2).parameters()).param_groups
            continue
        theirs.double().train(draw.mode == "train")
        rng = np.random.default_rng(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells that "same" costs it a copy
            theirs(*(torch.from_numpy(spec.draw(rng)) for spec in draw.drawn.inputs))


def test_a_case_follows_from_seed_and_number_alone():
    first = draw_case(OURS, "conv2d", 7)
    assert draw_case(OURS, "conv2d", 7) == first
    others = {str(draw_case(OURS, "conv2d", n).drawn.config()) for n in range(20)}
    assert len(others) == 20
    other_seed = settled(Plan(space=DEFAULT_SPACE, seed=1))
    assert draw_case(other_seed, "conv2d", 7) != first
    only = settled(Plan(space=DEFAULT_SPACE, layers=("conv2d",)))
    assert draw_case(only, "conv2d", 7) == first


def test_threads_are_drawn_and_put_back():
    """One of them is drawn more seldom; what is large is always divided."""
    draws = [draw_case(OURS, "relu", number) for number in range(400)]
    counted = Counter(draw.threads for draw in draws)
    assert set(counted) == {1, 2}
    large = [d for d in draws if np.prod(d.drawn.inputs[0].shape) >= LONG]
    assert large
    assert {d.threads for d in large} == {2}
    before = torch.get_num_threads()
    for draw in (large[0], next(d for d in draws if d.threads == 1)):
        report = run_case(OURS, "relu", draw)
        assert report.passed, report
        assert torch.get_num_threads() == before
    other = before + 1
    assert on_threads(other, torch.get_num_threads) == other
    with pytest.raises(ZeroDivisionError):
        on_threads(other, lambda: 1 / 0)
    assert torch.get_num_threads() == before


def test_two_threads_work_in_a_fork_of_a_process_whose_pool_was_used():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.ones(100_000).exp().sum()
        draw = next(d for d in (draw_case(OURS, "tanh", n) for n in range(99)) if d.threads == 2)
        (answer,) = answers([lambda: run_case(OURS, "tanh", draw).passed], timeout=30)
    finally:
        torch.set_num_threads(before)
    assert answer is True


def test_no_window_of_max_pooling_sees_padding_alone():
    for number in range(300):
        drawn = draw_case(OURS, "maxpool2d", number).drawn
        layer, _ = SPACE["maxpool2d"].build(drawn)
        assert layer._geometry(drawn.inputs[0].shape[-2:]).blind is None
    blind = Drawn((2,), {"padding": 1, "dilation": 3, "stride": 1}, ())
    from parity.specs import normal

    assert not windows_see(Drawn(blind.args, blind.options, (normal(1, 1, 2, 2),)))


def test_options_that_a_layer_lacks_keep_their_defaults(wrong):
    plan = settled(Plan(mine=f"{wrong}:Wrong", theirs="torch.nn:Linear"))
    for number in range(30):
        assert draw_case(plan, "wrong", number).drawn.options == {}


# ---- what is written -------------------------------------------------------------------------


def test_two_workers_write_the_same_bytes_as_one(alone, tmp_path):
    assert sweep("--cases", 48, "--output", tmp_path / "two", "--workers", 2, *FAST) == 0
    assert sorted(lines(tmp_path / "two")) == sorted(lines(alone))
    assert len(set(lines(alone))) == 48
    assert {r["verdict"] for r in records(alone)} == {"MATCH"}


def test_resume_continues_after_a_torn_line(alone, tmp_path, capsys):
    folder = tmp_path / "torn"
    folder.mkdir()
    (folder / "sweep.json").write_bytes((alone / "sweep.json").read_bytes())
    whole = (alone / "results.jsonl").read_bytes().splitlines(keepends=True)
    torn = b"".join(whole[:30]) + whole[30][:25]
    (folder / "results.jsonl").write_bytes(torn)
    assert sweep("--cases", 48, "--output", folder, "--workers", 1, *FAST) == 2
    assert "--resume continues it" in capsys.readouterr().err
    assert (folder / "results.jsonl").read_bytes() == torn
    assert sweep("--cases", 48, "--output", folder, "--workers", 1, "--resume", *FAST) == 0
    assert sorted(lines(folder)) == sorted(lines(alone))
    assert json.loads((folder / "summary.json").read_text())["run"]["cases"] == 18


def test_resume_refuses_another_sweep_and_what_is_none(alone, tmp_path, capsys):
    common = ["--output", alone, "--resume", "--workers", 1]
    assert sweep("--cases", 48, "--seed", 3, *common, *FAST) == 2
    assert "another seed" in capsys.readouterr().err
    assert sweep("--cases", 48, *common) == 2
    assert "another layers" in capsys.readouterr().err
    for text in ("", "[]", '{"format": 99, "plan": {}}', "[" * 100_000):
        (tmp_path / "sweep.json").write_text(text)
        assert sweep("--cases", 4, "--output", tmp_path, "--resume") == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_results_are_marked_once(tmp_path):
    plan = settled(Plan(space=DEFAULT_SPACE, layers=("relu",)))
    with Results(tmp_path, plan, resume=False) as results:
        assert results.add([(0, '{"id": "relu:0"}'), (0, '{"id": "relu:0"}')]) == 1
        assert results.add([(0, '{"id": "relu:0"}'), (9, '{"id": "relu:9"}')]) == 1
    with Results(tmp_path, plan, resume=True) as results:
        assert [n for n in range(20) if n in results.done] == [0, 9]


# ---- what fails ------------------------------------------------------------------------------


def test_failures_read_as_one_bug_with_its_smallest_case(wrong, tmp_path, capsys):
    folder = tmp_path / "out"
    words = [f"{wrong}:Wrong", "torch.nn:Linear", "--workers", 1]
    assert sweep(*words, "--cases", 12, "--output", folder) == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["verdicts"]["MISMATCH"] >= 4
    assert len(summary["groups"]) <= 3
    assert all("grad_bias" in g["quantities"] for g in summary["groups"])
    text = capsys.readouterr().out
    assert "smallest: (1, 1) on normal(" in text
    again = next(line for line in text.splitlines() if "again:" in line).split()
    name = again[again.index("--case") + 1]
    assert sweep(*words, "--case", name) == 1
    assert "grad of bias" in capsys.readouterr().out


def test_an_optimizer_of_ones_own_is_swept(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(MY_SGD))
    words = [f"{path}:MySGD", "torch.optim:SGD", "--workers", 1, "--cases", 24]
    assert sweep(*words, "--output", tmp_path / "out") == 1
    found = records(tmp_path / "out")
    assert all(set(r["options"]) <= {"lr", "momentum"} for r in found)
    # from the second step on the buffer counts: torch's is undamped, this one's is not
    wrong = {r["verdict"] for r in found if r["options"].get("momentum")}
    assert "MISMATCH" in wrong
    assert {r["verdict"] for r in found if not r["options"].get("momentum")} == {"MATCH"}
    assert "MySGD torch.optim:SGD --case mysgd:" in capsys.readouterr().out


def test_deadly_layers_are_findings_and_the_others_go_on(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(grouping, "PATIENCE", 0.0)
    folder = tmp_path / "out"
    words = [f"{wrong}:Deadly", "torch.nn:Linear", "--workers", 1, "--timeout", 3]
    assert sweep(*words, "--cases", 8, "--output", folder) == 1
    found = records(folder)
    ends = {4: "timed_out", 1: "crashed", 8: "exited"}
    assert {r["args"][0] for r in found} > set(ends)
    assert len(found) == 8
    for record in found:
        cause = record["failures"][0]["cause"] if record["failures"] else None
        assert cause == ends.get(record["args"][0]), record


def test_groups_do_not_depend_on_the_order_of_results(alone):
    failure = {"quantity": "forward", "dtype": "float64", "verdict": "MISMATCH", "cause": None}
    found = [
        {"id": f"relu:{n}", "verdict": "MISMATCH", "failures": [failure | {"text": str(n)}]}
        for n in range(5)
    ]
    one, other = grouped(found), grouped(reversed(found))
    assert [g.to_dict() for g in one[1]] == [g.to_dict() for g in other[1]]
    assert one[1][0].count == 5
    assert one[1][0].text == "0"


# ---- what is asked for -----------------------------------------------------------------------

REFUSED = {
    "no output": ([], "give a folder for the results: --output DIR"),
    "layer": (["--output", "x", "--layer", "conv2"], "unknown layer 'conv2', did you mean"),
    "cases": (["--output", "x", "--cases", "-3"], "--cases is '-3'"),
    "seed": (["--output", "x", "--seed", "nan"], "--seed is 'nan'"),
    "workers": (["--output", "x", "--workers", "0"], "--workers is '0'"),
    "timeout": (["--output", "x", "--timeout", "inf"], "--timeout is 'inf'"),
    "backend": (["--output", "x", "--backend", "dusk"], "'dusk', did you mean 'dask'?"),
    "address": (["--output", "x", "--address", "a:1"], "--address is for --backend dask or ray"),
    "id": (["--case", "conv2d"], "'conv2d' is no id of a case"),
    "id of no layer": (["--case", "conv:1"], "unknown layer 'conv'"),
    "one name": (["torch.nn:Linear"], "no names or two"),
    "two spaces": (["a:B", "torch.nn:Linear", "--space", "a:B"], "exclude each other"),
    "no ranges": (["torch.nn:Linear", "torch.nn:LSTM"], "no option ranges for LSTM"),
    "space": (["--space", "impl:Linear", "--case", "x:1"], "is no mapping of name"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line_and_write_nothing(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, says = REFUSED[name]
    assert sweep(*words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not any(path.name != "x" for path in tmp_path.iterdir())
    assert name == "address" or not (tmp_path / "x").exists()


@pytest.mark.parametrize(("backend", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_a_missing_cluster_package_is_named(backend, package, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert sweep("--output", tmp_path / "x", "--cases", 4, "--backend", backend) == 2
    assert f"--backend {backend} needs: pip install" in capsys.readouterr().err


def test_the_space_is_read_once():
    assert plans.layers_of(OURS) is plans.layers_of(OURS)
