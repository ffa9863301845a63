"""Reports read back, refused where they are none, and merged."""

import json
import random

import pytest

from parity.findings import UsageError
from parity.reporting import load, merge, write, write_merged
from parity.reporting.markdown import markdown
from parity_tests.reports import sample


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


def test_a_run_of_benchmarks_is_neither_passed_nor_failed(tmp_path):
    write(sample(faulty=False), tmp_path / "checks")
    speed = sample(version="2.4.1")
    speed.parts = []
    speed.sections = {"speed": [{"run": 0, "name": "A1", "ratio": 0.4, "baseline": 0.5}]}
    write(speed, tmp_path / "speed")
    made, _ = write_merged([tmp_path / "checks", tmp_path / "speed"], tmp_path / "both")
    assert made.passed
    text = (tmp_path / "both" / "report.md").read_text("utf-8")
    assert text.count("| nothing compared | 0 |") == 1
    assert "| A1 |  |  | 0.4 |  | -20 % |" in text
    assert "nothing compared" in (tmp_path / "both" / "report.html").read_text("utf-8")


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
