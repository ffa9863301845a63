"""The comparison of benchmark runs: a layer slowed by 30 % is named, honest runs are left alone."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("threadpoolctl", reason="needs the extra bench")

from benchmarks.compare import Unusable, combine, compare, main, markdown, read, warnings
from benchmarks.conftest import entry
from benchmarks.timing import Ratio, interleaved

ROWS = 60


def honest(seed, noise=0.03, drift=0.04, shift=1.0, rows=ROWS):
    """A made-up run: every row's rounds scatter by `noise`, its median by `drift` between runs."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(rows):
        centre = (0.2 + 0.05 * i) * shift * math.exp(drift * rng.standard_normal())
        rounds = centre * np.exp(noise * rng.standard_normal(15))
        low, median, high = np.percentile(rounds, [25, 50, 75])
        found.append(
            {
                "group": "a",
                "name": f"Layer{i // 2}",
                "what": ("forward", "both")[i % 2],
                "median": float(median),
                "low": float(low),
                "high": float(high),
                "rounds": 15,
            }
        )
    return {"threads": 1, "rows": found}


def slowed(run, name, factor=1.3):
    for row in run["rows"]:
        if row["name"] == name:
            for field in ("median", "low", "high"):
                row[field] *= factor
    return run


@pytest.fixture
def saved(tmp_path):
    def save(name, run):
        path = tmp_path / name
        path.write_text(json.dumps(run))
        return str(path)

    return save


def names(saved, before, after):
    comparison = compare(read(saved("before.json", before)), read(saved("after.json", after)))
    return {change.name for change in comparison.slower}


def test_two_honest_runs_raise_no_alarm(saved):
    alarms = [names(saved, honest(2 * i), honest(2 * i + 1)) for i in range(60)]
    assert sum(map(bool, alarms)) <= 2  # of 3,600 rows


def test_one_layer_slowed_by_30_percent_is_named(saved):
    found = [
        names(saved, honest(2 * i, drift=0.02), slowed(honest(2 * i + 1, drift=0.02), "Layer7"))
        for i in range(40)
    ]
    assert sum("Layer7" in each for each in found) >= 39


def test_a_slow_machine_is_no_alarm_but_a_slow_layer_on_it_is(saved):
    before, after = honest(1, drift=0.02), honest(2, drift=0.02, shift=1.4)
    assert names(saved, before, after) == set()
    assert names(saved, before, slowed(after, "Layer3", 1.4)) == {"Layer3"}


def test_noise_hides_what_it_hides_and_that_is_said(saved):
    before, after = honest(1, noise=0.3, drift=0.3), honest(2, noise=0.3, drift=0.3)
    comparison = compare(read(saved("a", before)), read(saved("b", after)))
    assert comparison.slower == []
    assert "too noisy to see a growth of 30 %" in markdown(comparison)


def test_a_faster_layer_is_told_and_fails_nothing(saved, capsys):
    before, after = honest(1, drift=0.02), slowed(honest(2, drift=0.02), "Layer5", 0.6)
    assert main([saved("a", before), saved("b", after)]) == 0
    out = capsys.readouterr().out
    assert "No layer is slower" in out
    assert "| Layer5 | both |" in out


def test_the_command_says_which_layer_and_how_much(saved, capsys):
    before, after = honest(1, drift=0.02), slowed(honest(2, drift=0.02), "Layer7")
    assert main([saved("a", before), saved("b", after), "--annotate"]) == 1
    out, err = capsys.readouterr()
    assert "Slower beyond the measured spread: Layer7" in out
    assert err.splitlines()
    assert all(line.startswith("::warning title=Layer7 is slower::") for line in err.splitlines())
    assert "a growth of 30 %" not in out


def test_several_runs_are_taken_as_one(saved, tmp_path):
    paths = [saved(str(i), honest(i)) for i in range(3)]
    threads, rows = combine(paths)
    single = read(paths[0])[1]
    key = ("Layer0", "both")
    assert threads == 1
    assert rows[key]["low"] <= single[key]["low"]
    assert rows[key]["high"] >= single[key]["high"]
    target = tmp_path / "all.json"
    assert main([paths[0], *paths, "--write", str(target)]) == 0
    assert read(target) == (threads, rows)


def test_rows_of_one_run_alone_are_named(saved):
    before, after = honest(1), honest(2)
    before["rows"][0]["name"], after["rows"][1]["name"] = "Gone", "Fresh"
    text = markdown(compare(read(saved("a", before)), read(saved("b", after))))
    assert "Rows that are gone: Gone (forward)" in text
    assert "Rows that are new: " in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not what"),
        ("[]", "is not what"),
        ('{"threads": 1, "rows": [{"name": "x"}]}', "is not what"),
        (
            '{"threads": 1, "rows": [{"name": "x", "what": "both", "median": NaN, "low": 1,'
            ' "high": 1, "rounds": 3}]}',
            "no positive number",
        ),
        ('{"threads": 2, "rows": []}', "threads"),
        ('{"threads": 1, "rows": []}', "no row in common"),
        (None, "cannot be read"),
    ],
    ids=["empty", "list", "fields", "nan", "threads", "nothing", "missing"],
)
def test_files_that_cannot_be_compared(saved, tmp_path, capsys, text, says):
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    assert main([saved("good", honest(1)), str(path)]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_unlike_thread_counts_are_refused(saved):
    with pytest.raises(Unusable, match="1 and 2 threads"):
        combine([saved("a", honest(1)), saved("b", {**honest(2), "threads": 2})])


def timed_rows(extra=None):
    """A small real run: products of several sizes in turns, one of them with `extra` work."""
    found = []
    for i, size in enumerate(range(60, 140, 8)):
        a = np.random.default_rng(i).standard_normal((size, size))

        def theirs(a=a):
            return a @ a

        def mine(a=a, again=bool(extra == i)):
            a @ a
            return a @ a if again else None

        ratio = interleaved(mine, theirs, 9)
        found.append({"name": f"product{i}", "what": "both", **ratio.to_dict()})
    return {"threads": 1, "rows": found}


@pytest.mark.slow
def test_a_small_real_run_with_one_row_at_twice_the_work(saved):
    before, after = timed_rows(), timed_rows(extra=4)
    comparison = compare(read(saved("a", before)), read(saved("b", after)))
    slow = next(change for change in comparison.changes if change.name == "product4")
    assert slow.growth == max(change.growth for change in comparison.changes)
    assert "product4" in {c.name for c in comparison.slower} or slow.limit > math.log(1.3)
    assert not list(warnings(compare(read(saved("a", before)), read(saved("a", before)))))


def test_a_row_of_the_report_stands_beside_the_baseline(saved):
    ratio = Ratio(0.5, 0.4, 0.6, mine=1e-3, theirs=2e-3, rounds=7)
    alone = entry("A1", 1, ratio, (0, {}))
    assert alone == {"name": "A1", "ratio": 0.5, "low": 0.4, "high": 0.6, "threads": 1,
                     "mine_ms": 1.0, "torch_ms": 2.0}  # fmt: skip
    row = {"name": "A1", "what": "both", "median": 0.25, "low": 0.2, "high": 0.3, "rounds": 7}
    stored = read(saved("baseline.json", {"threads": 1, "rows": [row]}))
    assert entry("A1", 1, ratio, stored) == {**alone, "baseline": 0.25}
    assert "baseline" not in entry("A1", 2, ratio, stored)  # of another number of threads
    assert "baseline" not in entry("A2", 1, ratio, stored)
