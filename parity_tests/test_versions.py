"""Versions: the table of quirks against what is installed, fingerprints, and the ledger of runs."""

import inspect
import json
import pickle

import numpy as np
import pytest
import torch

import parity
from fixtures.cases import LAYERS, LOSSES
from parity.checking import make_pair
from parity.options import make_options
from parity.quirks import QUIRKS, holds, release
from parity.reporting import contribute, merge, write, write_merged
from parity.reporting.ledger import FILE, fingerprint, fingerprints, ledger, ulp_between
from parity_tests.reports import sample

# --- quirks -------------------------------------------------------------------------------------


def _zero_grad_fills_zeros():
    layer = torch.nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    layer.zero_grad()
    return layer.weight.grad is not None


def _load_runs_code(folder):
    path = folder / "function.pt"
    torch.save({"function": _takes}, path)
    try:
        torch.load(path)
    except pickle.UnpicklingError:
        return False
    return True


def _takes(function, name):
    return name in inspect.signature(function).parameters


def _refused(call):
    try:
        call()
    except (RuntimeError, ValueError):
        return True
    return False


def _half_on_cpu():
    return not _refused(lambda: torch.nn.Linear(2, 1).half()(torch.ones(1, 2).half()))


def _mse_of_integers():
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    torch.nn.MSELoss()(x, torch.arange(3)).backward()


def _numpy_two_is_unknown():
    # seen where NumPy 2 is installed beside an old torch, which the environments avoid
    return release(np.__version__) >= (2,) and _refused(lambda: torch.from_numpy(np.ones(1)))


OBSERVED = {
    "zero_grad_fills_zeros": _zero_grad_fills_zeros,
    "load_runs_code": _load_runs_code,
    "sgd_needs_lr": lambda: (
        not isinstance(inspect.signature(torch.optim.SGD).parameters["lr"].default, float)
    ),
    "sgd_is_fused": lambda: _takes(torch.optim.SGD, "fused"),
    "adam_is_decoupled": lambda: _takes(torch.optim.Adam, "decoupled_weight_decay"),
    "half_on_cpu": _half_on_cpu,
    "device_is_context": lambda: hasattr(torch.device, "__enter__"),
    "numpy_two_is_unknown": _numpy_two_is_unknown,
    "elu_cancels": lambda: (
        torch.nn.functional.elu(torch.tensor(-1e-9, dtype=torch.float64)).item() != np.expm1(-1e-9)
    ),
    "softplus_prints_whole_numbers": lambda: "beta=1," in repr(torch.nn.Softplus()),
    "mse_wants_one_dtype": lambda: _refused(_mse_of_integers),
    "batch_norm_takes_any_eps": lambda: (
        not _refused(lambda: torch.nn.BatchNorm1d(2, eps=0.0)(torch.ones(3, 2)))
    ),
    "circular_wants_a_batch": lambda: _refused(
        lambda: torch.nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")(torch.ones(1, 4, 4))
    ),
    "compile_wants_older_python": lambda: (
        not hasattr(torch, "compile")
        or _refused(lambda: torch.compile(torch.nn.ReLU(), backend="eager"))
    ),
    "scalars_widen": lambda: (np.ones((), np.float32) * 0.1).dtype == np.float64,
}


@pytest.mark.filterwarnings("ignore")  # torch 2.4 warns of its own default
@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.name)
def test_a_quirk_is_there_exactly_where_the_table_says(quirk, tmp_path):
    look = OBSERVED[quirk.name]
    seen = look(tmp_path) if inspect.signature(look).parameters else look()
    if quirk.name == "numpy_two_is_unknown" and release(np.__version__) < (2,):
        assert not seen
    else:
        assert seen == holds(quirk.name)


def test_every_quirk_has_a_reason_and_a_range():
    assert [quirk.name for quirk in QUIRKS] == list(OBSERVED)
    for quirk in QUIRKS:
        assert quirk.what
        assert quirk.instead
        assert quirk.since or quirk.until
        assert not (quirk.since and quirk.until) or release(quirk.since) < release(quirk.until)


@pytest.mark.parametrize(
    ("installed", "there"),
    [("1.13.1", True), ("2.5.1+cpu", True), ("2.6.0", False), ("2.6.0a0+git1", False)],
)
def test_ranges_end_before_their_last_version(installed, there):
    assert holds("load_runs_code", installed) is there


# --- fingerprints -------------------------------------------------------------------------------

FINGERPRINTED = [case for case in (*LAYERS, *LOSSES) if isinstance(case, parity.Case)]


@pytest.mark.parametrize("case", FINGERPRINTED, ids=lambda case: case.id)
def test_the_reference_leaves_its_fingerprints(case):
    """The same seeded draw on every version; the report of several runs compares the bits."""
    pair = make_pair(case.build_mine(), case.build_theirs(), case.inputs, make_options({}))
    draw = pair.draw(0, training=case.options.get("modes") != "eval")
    for dtype in ("float64", "float32"):
        found = fingerprints(case.id, pair.theirs(draw.rounded(dtype), dtype).quantities, dtype)
        assert found
        assert found[0]["quantity"].endswith(f"({dtype})")
        for item in found:
            contribute("fingerprints", item)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("Adam", {"amsgrad": True}),
        ("AdamW", {"weight_decay": 0.1}),
    ],
)
def test_torchs_optimizers_leave_their_fingerprints(name, options):
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(40), rng.standard_normal((3, 40))
    for dtype in ("float64", "float32"):
        parameter = torch.nn.Parameter(torch.from_numpy(start.astype(dtype)))
        optimizer = getattr(torch.optim, name)([parameter], lr=0.1, foreach=False, **options)
        for gradient in gradients:
            parameter.grad = torch.from_numpy(gradient.astype(dtype))
            optimizer.step()
        moved = parameter.detach().numpy()
        assert (moved != start.astype(dtype)).all()
        for item in fingerprints(name, {"after 3 steps": moved}, dtype):
            contribute("fingerprints", item)


# --- what they say ------------------------------------------------------------------------------


def ulps(before, after):
    return ulp_between(fingerprint("x", np.asarray(before)), fingerprint("x", np.asarray(after)))


def test_a_change_is_counted_in_ulp_of_the_largest_value():
    values = np.linspace(-1, 1, 9)
    assert ulps(values, values.copy()) == 0
    moved = values.copy()
    moved[0] += 3 * np.spacing(1.0)
    assert ulps(values, moved) == 3
    tiny = np.array([1.0, 1e-16])
    assert ulps(tiny, np.array([1.0, 2e-16])) == 1  # next to 1 this is nothing
    single = values.astype(np.float32)
    assert ulps(single, single + np.spacing(np.float32(1)) * 2) == 2


def test_what_cannot_be_counted_is_said():
    many = np.arange(1000.0)
    moved = many.copy()
    moved[1] += 1
    assert ulps(many, moved) == "not in the sample"
    assert "NaN" in ulps([1.0, 2.0], [1.0, np.nan])
    assert ulps([np.nan, 1.0], [-np.nan, 1.0]) == 0  # torch's NaN has no sign worth a word
    assert "shape" in ulps([1.0, 2.0], [1.0])
    assert "dtype" in ulps(np.float32([1, 2]), np.float64([1, 2]))
    assert ulps(np.zeros((0, 3)), np.zeros((0, 3))) == 0
    assert ulps([0.0, 0.0], [0.0, 5e-324]) == 1
    assert ulps(np.array([1, 2]), np.array([1, 3])) != 0


def run_of(version, values):
    made = sample(faulty=False, version=version)
    made.sections["fingerprints"] = [
        {"run": 0, **fingerprint(name, np.asarray(array))} for name, array in values.items()
    ]
    return made


def test_the_ledger_of_merged_runs(tmp_path):
    """Runs are compared in the order of torch's releases, 2.9 before 2.13."""
    base = np.linspace(0.5, 1, 5)
    moved = base + np.spacing(1.0) * 4
    runs = {
        "2.13.0": {"relu": base, "softmax": moved, "new": base},
        "2.0.1": {"relu": base, "softmax": base},
        "2.9.1+cpu": {"relu": base, "softmax": moved},
    }
    for version, values in runs.items():
        write(run_of(version, values), tmp_path / version)
    record = merge([tmp_path / version for version in runs])
    entries = [(e["quantity"], e["version"], e["against"], e["ulp"]) for e in ledger(record)]
    assert entries == [
        ("1 of 2 quantities", "torch 2.9.1+cpu", "torch 2.0.1", 0),
        ("softmax", "torch 2.9.1+cpu", "torch 2.0.1", 4),
        ("2 of 2 quantities", "torch 2.13.0", "torch 2.9.1+cpu", 0),
    ]
    _, names = write_merged([tmp_path / version for version in runs], tmp_path / "all")
    assert FILE in names
    text = (tmp_path / "all" / "report.md").read_text(encoding="utf-8")
    assert "| softmax | torch 2.9.1+cpu | torch 2.0.1 | 4 |" in text
    data = json.loads((tmp_path / "all" / FILE).read_text(encoding="utf-8"))
    assert [step["changed"] for step in data["steps"]] == [[{"quantity": "softmax", "ulp": 4}], []]
    assert len(data["runs"]) == 3


def test_a_long_ledger_is_cut_and_says_so():
    values = {f"q{i:03}": np.array([1.0 + i]) for i in range(100)}
    one, two = run_of("2.0.1", values), run_of("2.4.1", {n: v + 1 for n, v in values.items()})
    one.runs += two.runs
    one.sections["fingerprints"] += [{**e, "run": 1} for e in two.sections["fingerprints"]]
    entries = ledger(one)
    assert len(entries) == 62
    assert entries[-1]["quantity"].startswith("40 more changed")


def test_a_run_without_fingerprints_has_no_ledger(tmp_path):
    assert ledger(sample()) == []
    assert FILE not in write(sample(), tmp_path)


def test_hostile_fingerprints_do_no_harm():
    """A report from elsewhere may hold anything under these names."""
    good = fingerprint("x", np.ones(3))
    for change in (
        {"dtype": "O"},
        {"dtype": "float64,int8"},
        {"dtype": "no such"},
        {"scale": "much"},
        {"samples": ["a", None, {}]},
        {"scale": 1e308, "dtype": "float16"},
    ):
        bad = {**good, "digest": "other", "samples": [2.0, 2.0, 2.0], **change}
        assert ulp_between(bad | {"digest": "another", "samples": [1.0, 2.0, 2.0]}, bad) != 0
