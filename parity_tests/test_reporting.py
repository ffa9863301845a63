"""Reports as data and Markdown: gathered, written whole, read with care, merged."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import parity
from parity.findings import Cause, Finding, Report, UsageError, Verdict, Worst
from parity.reporting import contribute, load, merge, record, write, write_merged
from parity.reporting import writing as files
from parity.reporting.heat import SIDE, error_map, svg
from parity.reporting.markdown import markdown
from parity.reporting.record import FORMAT, Record
from parity.reporting.sections import SECTIONS, entry
from parity.reporting.summary import closing, header
from parity.reporting.tables import as_finding, rows, trajectory
from parity.session import Session, closed, opened
from parity.settings import Settings

HOSTILE = "<script>alert('x')</script> \"q\" | `tick` [a](b) 名前\n# title \x00\x1b[31m"


def finding(case="linear", quantity="forward", verdict="MATCH", **facts):
    error = facts.pop("error", 1e-16)
    cause = facts.pop("cause", None)
    return Finding(
        case,
        quantity,
        verdict=Verdict(verdict),
        allowance=4e-16,
        worst=Worst((0, 1), 1.5, 1.25, 0.25),
        cause=cause,
        evidence={"error": error, "usage": error / 4e-16, "differing": 1, "size": 2, **facts},
    )


def sample(case="linear", faulty=True, version="2.13.0"):
    """A record of one case, one of whose quantities is wrong."""
    made = Record.of(Settings(seeds=(0, 3)))
    made.runs[0]["versions"] = {"torch": version, "numpy": "2.4.6", "python": "3.11.7"}
    cause = Cause("batch_sum_not_averaged", "weight.grad is 8 × torch's")
    parts = [
        finding(case),
        finding(case, "grad_weight", "MISMATCH", error=7.0, cause=cause)
        if faulty
        else finding(case, "grad_weight"),
    ]
    for part in parts:
        node = f"test_layers.py::test[{case}-{part.quantity}]"
        made.add(
            Report(case, (part,), rerun=f"pytest '{node}' --parity-seeds 0"), part.quantity, node
        )
    return made


@pytest.fixture
def session():
    """A session of its own, so that what is handed over does not enter this run's report."""
    own = opened(Session())
    yield own
    closed(own)


# --- gathering ----------------------------------------------------------------------------------


def heard(nodeid, outcome="passed", parts=(), sections=()):
    found = {"parts": list(parts), "sections": [list(item) for item in sections]}
    return SimpleNamespace(
        nodeid=nodeid, outcome=outcome, when="call", longrepr="E  boom\ntest.py:3: Error",
        parity=found,
    )  # fmt: skip


def part(name):
    return {**Report(name, (finding(name),)).to_dict(), "check": "", "nodeid": name}


def test_any_order_of_tests_gives_one_report():
    tests = [heard(name, parts=[part(name)]) for name in ("c", "a", "b")]
    tests.append(heard("a", parts=[part("a")]))  # run again after a failure: counted once
    texts = set()
    for order in (tests, tests[::-1]):
        made = Record(runs=[{"versions": {}}])
        for item in order:
            made.pytest_runtest_logreport(item)
        texts.add(json.dumps(made.settle().to_dict()))
    assert len(texts) == 1
    assert [p["case"] for p in json.loads(texts.pop())["parts"]] == ["a", "b", "c"]


def test_other_tests_that_fail_are_told():
    made = Record(runs=[{"versions": {}}])
    made.pytest_runtest_logreport(heard("a", parts=[part("a")]))
    assert made.settle().passed
    failing = heard("other", outcome="failed")
    failing.parity = None
    made.pytest_runtest_logreport(failing)
    assert not made.settle().passed
    assert made.runs[0]["tests"] == {"passed": 1, "failed": 1, "skipped": 0}
    assert made.runs[0]["others"] == [{"nodeid": "other", "text": "test.py:3: Error"}]
    assert "other" in markdown_of(made)


def markdown_of(made):
    for run in made.runs:
        run.setdefault("seeds", [0])
        run.setdefault("created", "")
    return markdown(made)


def test_nothing_compared_is_not_good():
    made = Record.of(Settings()).settle()
    assert not made.passed
    assert "Nothing was compared." in markdown(made)


def test_failures_are_told_once_and_the_gravest_first():
    made = sample()
    made.add(Report("linear", (finding("linear", "backward", "ERROR"),)))
    made.parts[1]["findings"] *= 2
    assert [data["quantity"] for _, data in made.failures] == ["backward", "grad_weight"]
    assert made.counts() == {"ERROR": 1, "MISMATCH": 2, "MATCH": 1}
    assert not made.passed


def test_strict_parts_fail_for_what_is_rough():
    rough = finding(verdict="INACCURATE")
    made = Record.of(Settings())
    made.add(Report("c", (finding(), rough)))
    assert made.passed
    made.add(Report("c", (rough,), strict=True))
    assert not made.passed


def test_numbers_of_a_row_are_those_of_what_fails():
    made = Record.of(Settings())
    made.add(
        Report(
            "c",
            (
                finding("c", error=2e-16),
                finding("c", error=math.inf, probe="batch of 0"),
                finding("c", verdict="MISMATCH", error=3.0),
            ),
        )
    )
    (row,) = rows(made)
    assert (row.verdict, row.error, row.findings, row.failed) == ("MISMATCH", 3.0, 3, True)


def test_a_finding_survives_its_plain_data():
    nan = Finding("c", "forward", worst=Worst((1,), math.nan, math.inf, math.inf), allowance=1e-9)
    again = as_finding(json.loads(json.dumps(nan.to_dict())))
    assert str(again) == str(nan)
    assert again.to_dict() == nan.to_dict()


# --- sections -----------------------------------------------------------------------------------


def test_entries_become_plain_data(session):
    contribute(
        "trajectories",
        {"title": "A1", "mine": np.array([1.0, np.nan]), "torch": torch.ones(2), "dtype": None},
    )
    truth = np.arange(20) % 3
    contribute("statistics", parity.compare_predictions(truth, (truth + (truth == 1)) % 3, truth))
    contribute("rates", {"name": "kills", "successes": np.int64(3), "trials": 3})
    record(Report("mine", (finding("mine"),)))
    taken = json.loads(json.dumps(session.take(), allow_nan=False))
    (_, curve), (_, statistics), _ = taken["sections"]
    assert curve == {"title": "A1", "mine": [1.0, "nan"], "torch": [1.0, 1.0]}
    assert statistics["table"][0][1] == 7
    assert [p["case"] for p in taken["parts"]] == ["mine"]
    assert session.take() is None


@pytest.mark.parametrize(
    ("section", "payload", "says"),
    [
        ("trajectory", {}, "unknown section 'trajectory', did you mean 'trajectories'"),
        (None, {}, "unknown section None"),
        ("speed", 3, "an entry of speed is int; it must be a mapping"),
        ("speed", {"name": "x"}, "lacks ratio; it has: name"),
        ("rates", {"name": "x", "successes": 1, "trials": 2, "lo": 0}, "unknown field 'lo'"),
        ("trajectories", {"title": "t", "mine": [1], "torch": [1, 2]}, "1 steps of mine and 2"),
        ("trajectories", {"title": "t", "mine": [], "torch": []}, "a loss for each step"),
        ("statistics", {"title": "t", "table": [1, 2]}, "a statistics table is"),
        ("figures", {"title": "t", "alt": "a"}, "needs svg"),
    ],
)
def test_entries_that_cannot_be_shown(section, payload, says):
    with pytest.raises(UsageError, match=says):
        entry(section, payload)


def test_differences_of_a_trajectory():
    curve = {"title": "t", "mine": [1.0, "inf", "nan"], "torch": [0.5, "inf", 1.0]}
    found = trajectory(entry("trajectories", curve))
    assert found["gaps"][:2] == [0.5, 0.0]
    assert math.isnan(found["gaps"][2])
    assert found["sum"] == 0.5


# --- files --------------------------------------------------------------------------------------


def test_all_forms_are_written(tmp_path):
    names = write(sample(), tmp_path / "deep" / "report")
    assert names == ("report.json", "report.md", "report.html")
    assert sorted(p.name for p in (tmp_path / "deep" / "report").iterdir()) == sorted(names)
    data = json.loads((tmp_path / "deep/report/report.json").read_text("utf-8"))
    assert data["format"] == FORMAT
    assert data["counts"] == {"MISMATCH": 1, "MATCH": 1}
    assert data["parts"][1]["findings"][0]["cause"]["name"] == "batch_sum_not_averaged"


def test_without_the_extra_the_page_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "has_extra", lambda: False)
    made = sample()
    made.folder = tmp_path
    made.written = write(made, tmp_path)
    assert made.written == ("report.json", "report.md")
    assert any("pip install 'torch-parity[report]'" in line for line, _ in closing(made))
    with pytest.raises(UsageError, match="jinja2 and matplotlib"):
        files.write_html(made, tmp_path / "report.html")


def test_nobody_sees_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("old", encoding="utf-8")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert path.read_text("utf-8") == "old"


def test_markdown_shows_hostile_text_as_text():
    made = Record.of(Settings())
    cause = Cause("raised", HOSTILE + "````")
    made.add(Report(HOSTILE, (finding(HOSTILE, verdict="ERROR", cause=cause, message=HOSTILE),)))
    made.sections["rates"] = [{"run": 0, "name": HOSTILE, "successes": 1, "trials": 2}]
    text = markdown(made)
    fence = text.index("`````text")
    outside = text[:fence] + text[text.index("\n`````\n", fence) :]
    assert "<script>" not in outside
    rates = text[text.index("## The harness's own rates") :].splitlines()
    assert len(rates) == 5  # heading, blank, head, rule, one row: no line break and no pipe got in
    assert rates[4].count("|") - rates[4].count("\\|") == 4


def test_markdown_leads_with_the_verdict():
    lines = markdown(sample()).splitlines()
    assert lines[2] == "**1 failures. 1 cases, 2 checks, 2 comparisons: 1 MISMATCH, 1 MATCH.**"
    text = markdown(sample())
    assert text.index("cause: weight.grad is 8 × torch's") < text.index("## Cases")
    assert "again: pytest 'test_layers.py::test[linear-grad_weight]' --parity-seeds 0" in text
    good = markdown(sample(faulty=False))
    assert "**All good. 1 cases" in good
    assert "What failed" not in good


def test_header_and_closing_lines():
    settings = Settings(seeds=(0, 1, 2), dtypes=("float32",), device="cpu", strict=True)
    line = header(settings)
    assert line.startswith("parity: numpy ")
    assert line.endswith(", seeds 0-2, float32, on cpu, strict")
    assert closing(sample())[0][0] == "parity: 1 case, 2 findings: 1 MISMATCH, 1 MATCH"
    assert closing(Record.of(settings)) == []


# --- merging ------------------------------------------------------------------------------------


def test_merging_keeps_runs_apart_and_counts_a_run_once(tmp_path):
    write(sample(faulty=False), tmp_path / "new")
    write(sample(version="2.4.1"), tmp_path / "old")
    made, names = write_merged(
        [tmp_path / "new", tmp_path / "old" / "report.json", tmp_path / "new"], tmp_path / "both"
    )
    assert len(names) == 3
    assert [run["versions"]["torch"] for run in made.runs] == ["2.13.0", "2.4.1"]
    assert [p["run"] for p in made.parts] == [0, 0, 1, 1]
    assert not made.passed
    text = (tmp_path / "both" / "report.md").read_text("utf-8")
    assert "| linear | grad of weight | torch 2.4.1 | **MISMATCH** |" in text
    assert merge([tmp_path / "both"]).to_dict() == made.to_dict()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: "{", "is not JSON"),
        (lambda d: "[" * 100_000, "is not JSON"),
        (lambda d: [], "is not a report of torch-parity"),
        (lambda d: {**d, "format": "other"}, "is not a report of torch-parity"),
        (lambda d: {**d, "version": 2}, "format version 2; this torch-parity reads up to 1"),
        (lambda d: {**d, "parts": 3}, "the report.parts is 3, not a list"),
        (lambda d: {**d, "runs": [3]}, r"runs\[0\] is 3, not a table"),
        (lambda d: {**d, "parts": [3]}, r"parts\[0\] is 3, not a table"),
        (lambda d: {**d, "parts": [{**d["parts"][0], "run": 7}]}, "belongs to run 7, of 1 runs"),
        (lambda d: {**d, "parts": [{**d["parts"][0], "case": 7}]}, r"parts\[0\]\.case is 7"),
        (lambda d: {**d, "sections": {"other": [{"run": 0}]}}, "unknown section 'other'"),
    ],
)
def test_reports_that_cannot_be_read(tmp_path, change, says):
    write(sample(), tmp_path)
    path = tmp_path / "report.json"
    changed = change(json.loads(path.read_text("utf-8")))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed), encoding="utf-8")
    with pytest.raises(UsageError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reports_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match="is not there; give a report's folder"):
        load(tmp_path)
    with pytest.raises(UsageError, match="nothing to merge"):
        merge([])
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not JSON"):
        load(tmp_path)


def leaves(value, path=()):
    """Every place in JSON data."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, key))
    if isinstance(value, list):
        for i in range(len(value)):
            yield from leaves(value[i], (*path, i))


def test_a_report_that_was_tampered_with_is_shown_or_refused(tmp_path):
    made = sample()
    made.sections = {"rates": [{"run": 0, "name": "x", "successes": 1, "trials": 2, "low": 0.1}]}
    made.sections["speed"] = [{"run": 0, "name": "x", "ratio": 1.0, "baseline": 2.0}]
    made.sections["trajectories"] = [{"run": 0, "title": "t", "mine": [1.0], "torch": [1.0]}]
    made.sections["statistics"] = [{"run": 0, "title": "t", "table": [[1, 2], [3, 4]]}]
    data = made.to_dict()
    places = [place for place in leaves(data) if place]
    choice = random.Random(0)
    refused = 0
    for _ in range(600):
        changed = json.loads(json.dumps(data))
        place = choice.choice(places)
        holder = changed
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = choice.choice([None, -1, 1e400, "", "x", [], {}, [[]], {"a": 1}, True])
        path = tmp_path / "report.json"
        path.write_text(json.dumps(changed), encoding="utf-8")
        try:
            assert markdown(load(path))
        except UsageError:
            refused += 1
    assert 0 < refused < 600


# --- where the error is -------------------------------------------------------------------------


def test_error_map_shows_where_the_error_is():
    theirs = np.zeros((2, 3, 40, 60))
    mine = theirs.copy()
    mine[1, 2, 39, 59] = 5.0
    found = error_map(mine, theirs)
    cells = np.array(found["cells"])
    assert cells.shape == (SIDE, SIDE)
    assert np.flatnonzero(cells).tolist() == [SIDE * SIDE - 1]
    assert cells[-1, -1] == 5.0
    assert found["shape"] == [2, 3, 40, 60]
    assert "1 of 576 cells differ, the largest by 5" in svg(found)


def test_error_map_of_numbers_that_are_none():
    found = error_map(np.array([np.nan, np.inf, np.nan, 1.0]), np.array([0.0, np.inf, np.nan, 1.0]))
    assert found["cells"] == [["inf", 0.0, 0.0, 0.0]]
    assert "heat6" in svg(found)
    assert error_map(np.ones(2), np.ones(3)) is None
    assert error_map(np.ones(0), np.ones(0)) is None
    assert error_map(None, np.ones(1)) is None
    assert error_map(np.float64(2.0), np.float64(1.0))["cells"] == [[1.0]]


@pytest.mark.parametrize("bad", [None, 3, {}, {"cells": 3}, {"cells": []}, {"cells": [[]]}])
def test_a_map_from_a_file_may_be_anything(bad):
    assert svg(bad) == ""


def test_findings_that_fail_carry_a_map():
    reference = torch.nn.Linear(4, 3)
    other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Hardtanh(-0.1, 0.1))
    names = {"0.weight": "weight", "0.bias": "bias"}
    report = parity.check(other, reference, (8, 4), weights=names, diagnose=False)
    maps = [f.evidence["heat"] for f in report.of("forward") if "heat" in f.evidence]
    assert len(maps) == 1
    assert np.array(maps[0]["cells"]).shape == (8, 3)


def test_every_section_is_shown_in_markdown():
    made = sample(faulty=False)
    made.sections = {
        "trajectories": [{"run": 0, "title": "A1 run", "mine": [1.0, 0.5], "torch": [1.0, 0.5]}],
        "statistics": [{"run": 0, "title": "A3 pairs", "table": [[1, 2], [3, 4]]}],
        "speed": [{"run": 0, "name": "Conv2d(1, 2, 3)", "ratio": 0.5, "baseline": 0.4}],
        "rates": [{"run": 0, "name": "kills", "successes": 99, "trials": 100}],
        "versions_ledger": [{"run": 0, "quantity": "softmax", "version": "2.2", "ulp": 3}],
    }
    text = markdown(made)
    for words in ("A1 run", "A3 pairs", "Conv2d(1, 2, 3)", "+25 %", "99 of 100 (99 %)", "softmax"):
        assert words in text
    assert set(SECTIONS) - set(made.sections) == {"figures"}  # pictures stand in the page
