"""The workloads: the quick form of every study, its verdicts, its figures, and the command."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from fixtures.__main__ import main
from fixtures.data import DataMissing, Part
from fixtures.studies import command
from fixtures.studies.catalogue import STUDIES
from fixtures.studies.command import UnknownName, chosen, run_all, run_study
from fixtures.studies.reporting import page
from fixtures.studies.results import Results
from fixtures.studies.running import nudged, outputs, prepared, rounded
from fixtures.studies.storing import record_of
from fixtures.studies.study import INDEPENDENT, Bar, Run, Study, figure
from fixtures.studies.verdicts import APART, float32_row, trajectory_row
from fixtures.workloads import initial_module, optimizers, train_numpy, train_torch
from fixtures.workloads.first_steps import D2, D2_TWO_LAYERS, D3
from fixtures.workloads.gradients import C1, photographs
from fixtures.workloads.hinge import E


@cache
def quick(name):
    return run_study(STUDIES[name], quick=True, seeds=(0,))


def results_of(name):
    try:
        return quick(name)
    except DataMissing as error:
        pytest.skip(f"NOT TESTED: {error}")


@pytest.mark.parametrize("name", STUDIES)
def test_quick_form(name):
    """Every workload of a study: losses at every step, predictions, figures, further checks."""
    results = results_of(name)
    record = record_of(results)
    labels = [row["label"] for row in record["trajectories"]]
    assert set(labels) == set(results.workloads), "a workload without a trajectory"
    for row in record["trajectories"]:
        assert row["moved"], f"{row['label']}: the loss never moves"
        assert row["parted_step"] is None, row
        assert row["relative"] <= APART, row
    assert all(row["identical"] for row in record["predictions"] if row["dtype"] == "float64")
    assert all(row["holds"] is not False for row in [*record["reached"], *record["checks"]])
    if results.workloads:
        assert record["float32"]["holds"], record["float32"]["statement"]
    assert record["passed"]


def test_all_named_tasks_are_there():
    named = "A1 A2 A3 A4 B2 B3 B4 C1 C2 C3 D1 D2 D3 D4 D5 E".split()
    assert list(STUDIES) == named


def test_the_first_steps_fit_as_published_and_diverge_alike():
    results = results_of("D2")
    rows = {row["label"]: row for row in results.reached()}
    for side in ("numpy", "torch"):
        assert round(rows["one layer"][side][0], 4) == 0.2164
        assert round(rows["two layers"][side][0], 5) == 0.79912
    mine, theirs = results.pair("lr 0.1 to overflow")
    where = [np.isfinite(history.losses).argmin() for history in (mine, theirs)]
    assert where[0] == where[1] > 1000
    assert mine.losses[-1] == theirs.losses[-1] == np.inf


def test_the_curve_task_starts_on_every_kink():
    assert 0.0 in C1.data().x
    module = initial_module(C1, 0)
    assert not module[0].bias.detach().any()
    assert float(abs(module[0].weight.detach()).max()) <= 0.05


def test_the_hinge_loss_is_the_courses_sum():
    scores, labels = np.random.default_rng(0).standard_normal((4, 10)), np.array([1, 3, 0, 9])
    room = np.maximum(0, scores - scores[np.arange(4), labels][:, None] + 1)
    room[np.arange(4), labels] = 0
    value = float(E.loss[0]().forward(scores, labels))
    assert abs(value - room.sum()) <= 4 * np.spacing(room.sum())


def test_a_fixed_seed_repeats_every_number_and_another_does_not():
    first, again, other = (train_numpy(D2_TWO_LAYERS, seed=seed) for seed in (0, 0, 1))
    assert first.losses == again.losses
    assert first.losses != other.losses


def test_wrong_runs_do_not_hold():
    wrong = replace(D3, optimizer=(D3.optimizer[0], optimizers("SGD", lr=0.1001)[1]), epochs=5)
    row = trajectory_row(wrong, "wrong", 0, train_numpy(wrong), train_torch(wrong))
    assert row["parted_step"] == 2
    assert not row["holds"]
    still = replace(D3, optimizer=optimizers("SGD", lr=0.0), epochs=5)
    row = trajectory_row(still, "still", 0, train_numpy(still), train_torch(still))
    assert row["relative"] <= APART
    assert not row["holds"], "a loss that never moves proves nothing"


def test_a_wrong_float32_curve_leaves_the_envelope():
    short = replace(D3, epochs=20)
    exact = train_torch(rounded(short))
    plain = train_torch(short, dtype="float32")
    near = [train_torch(nudged(short, n), dtype="float32") for n in (1, 2)]
    right = train_numpy(short, dtype="float32")
    assert float32_row("right", right, plain, exact, near)["holds"]
    wrong = replace(right, losses=[loss * (1 + 1e-3) for loss in right.losses])
    row = float32_row("wrong", wrong, plain, exact, near)
    assert not row["holds"]
    assert "outside at step 1" in row["statement"]


def test_nudges_are_one_ulp_and_spare_zeros():
    start = initial_module(C1, 0).state_dict()
    moved = initial_module(nudged(C1, 1), 0).state_dict()
    assert not moved["0.bias"].any()
    ulps = np.abs(moved["0.weight"].numpy() - start["0.weight"].numpy())
    assert 0 < np.count_nonzero(ulps) < ulps.size
    assert (ulps <= np.spacing(np.abs(start["0.weight"].numpy()))).all()


def test_rounded_data_fit_into_float32():
    part = rounded(D2).parts()["train"]
    assert part.x.dtype == np.float32
    assert np.array_equal(part.x, D2.parts()["train"].x.astype(np.float32))


def test_outputs_of_a_saved_state_are_the_nets():
    history = train_numpy(D3, quick=True)
    x = D3.parts()["train"].x
    for side in ("numpy", "torch"):
        made = outputs(D3, side, history.state, x)
        assert np.abs(made - history.outputs["train"]).max() <= 8 * np.spacing(np.abs(made).max())


def test_figures():
    workload = replace(D2, data=lambda: Part(np.zeros((2, 1)), np.array([[1.0], [3.0]])))
    history = train_numpy(replace(workload, epochs=1))
    history.outputs["train"] = np.array([[1.0], [2.0]])
    assert figure("R²", workload, history, quick=False) == 0.5
    assert figure("loss", workload, history, quick=False) == history.losses[0]
    assert figure("test accuracy", workload, history, quick=False) is None


def test_bars_ask_every_seed():
    bar = Bar("x", "loss", "at most 0.1", high=0.1)
    assert bar.holds([0.1, 0.05])
    assert not bar.holds([0.05, 0.11])
    assert not bar.holds([float("nan")])
    assert not bar.holds([])
    assert Bar("x", "loss", "nothing").holds([5.0]) is None


@pytest.mark.parametrize("name", ["A4", "B2", "E"])
def test_the_full_form_has_five_initialisations_a_side(name):
    study = STUDIES[name]
    plan = study.plan(quick=False)
    assert len(plan) == len(set(plan))
    main_label = next(iter(study.workloads()))
    seeds = {
        side: {r.seed for r in plan if r.label == main_label and r.side == side}
        for side in ("numpy", "torch")
    }
    assert set(range(INDEPENDENT)) <= seeds["numpy"]
    assert set(range(INDEPENDENT, 2 * INDEPENDENT)) <= seeds["torch"]
    assert not any(run.seed == 3 for run in study.plan(quick=True))


def test_independent_initialisations_are_joined():
    study = replace(STUDIES["E"], workloads=lambda: {"summed": replace(E, epochs=2)}, bars=())
    results = run_study(study, quick=False)
    row = results.independent()
    assert row["seeds"] == [[i, i + INDEPENDENT] for i in range(INDEPENDENT)]
    assert len(set(map(tuple, row["accuracies"]))) > 1
    assert any("Equivalent within 1 percentage point" in line for line in row["statements"])
    assert "## Independent initialisations" in page(
        {"key": {"study": "E", "form": "full", "versions": {}, "warning": None}, "pictures": []}
        | record_of(results)
    )


def test_snapshots_are_closer_in_the_quick_form():
    run = Run("C1", "64 units", "numpy", "float64", 0, quick=True)
    assert prepared(STUDIES["C1"], run).snapshot_every == C1.quick_epochs // 5
    assert prepared(STUDIES["C1"], replace(run, quick=False)).snapshot_every == 10_000


def test_made_up_photographs_are_owned_up_to():
    warning = STUDIES["C3"].warning()
    if photographs().made_up:
        assert warning.startswith("NOT CIFAR-100")
    else:
        assert warning is None


def test_names():
    assert [s.name for s in chosen(["e", "B2"])] == ["B2", "E"]
    assert len(chosen([])) == len(chosen(["all"])) == len(STUDIES)
    with pytest.raises(UnknownName, match="no workload 'B22', did you mean 'B2'"):
        chosen(["B22"])
    with pytest.raises(UnknownName, match=r"'B4-scaled'.*did you mean 'B4'.*Possible: A1, A2"):
        chosen(["B4-scaled"])


@pytest.mark.slow
def test_the_command_writes_and_goes_on(tmp_path, capsys, monkeypatch):
    call = ["run", "D1", "D3", "D5", "--output", str(tmp_path), "--quiet", "--jobs", "1"]

    def interrupt(folder, results, store=command.store):
        if results.study.name == "D3":
            raise KeyboardInterrupt
        return store(folder, results)

    with monkeypatch.context() as patch:
        patch.setattr(command, "store", interrupt)
        assert main(call) == 130
    assert "goes on after the last finished" in capsys.readouterr().err
    first = (tmp_path / "D1/results.json").stat().st_mtime_ns
    assert not (tmp_path / "D3/results.json").exists()

    assert main(call) == 0
    assert "D1: finished before, kept" in capsys.readouterr().out
    assert (tmp_path / "D1/results.json").stat().st_mtime_ns == first
    for name in ("loss-two-sigmoids.png", "fit-two-sigmoids.svg", "losses.npz", "results.md"):
        assert (tmp_path / "D3" / name).stat().st_size > 0
    records = json.loads((tmp_path / "results.json").read_text())
    assert [record["key"]["study"] for record in records] == ["D1", "D3", "D5"]
    assert "[D5](D5/results.md)" in (tmp_path / "results.md").read_text()

    # other seeds or a damaged record are other results
    (tmp_path / "D1/results.json").write_text("{")
    assert main([*call[:2], *call[4:], "--seeds", "3"]) == 0
    assert "kept" not in capsys.readouterr().out


def test_infinities_are_written_as_words(tmp_path):
    soon = replace(D2, optimizer=optimizers("SGD", lr=10.0), epochs=200)
    records, _ = run_all([Study("D2", "overflow", lambda: {"soon": soon})], tmp_path, shown=False)
    text = (tmp_path / "D2/results.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
    assert records[0]["trajectories"][0]["overflow_step"] > 10
    assert records[0]["figures"][0]["loss"] == ["nan", "nan"]


@pytest.mark.slow
def test_workers_give_the_same_numbers(tmp_path):
    (record,), _ = run_all([STUDIES["D3"]], tmp_path, jobs=2, shown=False)
    mine, theirs = results_of("D3").pair("two sigmoids")
    loss = record["figures"][0]["loss"]
    assert loss == [mine.epoch_losses[-1], theirs.epoch_losses[-1]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "Z9"], "there is no workload 'Z9'"),
        (["run", "--jobs", "0"], "--jobs is 0; give 1 or more"),
        (["run", "--seeds", "-1"], "--seeds holds -1"),
        (["run", "D1", "--output", "/dev/null/x"], "--output /dev/null/x: Not a directory"),
    ],
)
def test_misuse_gets_one_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_missing_data_is_told_and_the_others_run(tmp_path, capsys, monkeypatch):
    def missing():
        raise DataMissing("Fashion-MNIST is not here: get it")

    lost = replace(STUDIES["B4"], workloads=lambda: {"lost": replace(D3, data=missing)}, bars=())
    monkeypatch.setitem(STUDIES, "B4", lost)
    call = ["run", "B4", "D1", "--output", str(tmp_path), "--quiet", "--jobs", "1"]
    assert main(call) == 1
    told = capsys.readouterr()
    assert "B4 was not run: Fashion-MNIST is not here" in told.err
    assert (tmp_path / "D1/results.json").exists()


def test_list(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "B4  Ten kinds of clothing" in out
    assert "cifar100: " in out


def test_results_find_no_pair_that_was_not_run():
    assert Results(STUDIES["E"], quick=True, seeds=(0,)).pair("summed") is None
