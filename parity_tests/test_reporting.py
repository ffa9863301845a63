"""Reports as data and Markdown: gathered, told, and written whole."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import parity
from parity.findings import Cause, Finding, Report, UsageError, Worst
from parity.reporting import contribute, record, write
from parity.reporting import writing as files
from parity.reporting.markdown import markdown
from parity.reporting.record import FORMAT, Record
from parity.reporting.sections import SECTIONS, entry
from parity.reporting.summary import closing, header
from parity.reporting.tables import rows, trajectory
from parity.session import Session, closed, opened
from parity.settings import Settings
from parity_tests.reports import finding, sample

HOSTILE = "<script>alert('x')</script> \"q\" | `tick` [a](b) 名前\n# title \x00\x1b[31m"


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
    again = Finding.from_dict(json.loads(json.dumps(nan.to_dict())))
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
    # pictures stand in the page; fingerprints are told of by the ledger of several runs
    assert set(SECTIONS) - set(made.sections) == {"figures", "fingerprints"}
