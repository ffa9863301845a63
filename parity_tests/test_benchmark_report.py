"""The tables of docs/speed.md, from made-up runs of the suite; the page itself has their place."""

import json

import pytest

pytest.importorskip("threadpoolctl", reason="needs the extra bench")

from benchmarks import report
from benchmarks.subjects import SUBJECTS


def run(folder, threads, number, **ratios):
    """Write what `pytest benchmarks --speed-output` writes; return its file."""
    rows = [
        {
            "group": group,
            "name": f"{group}-{name}",
            "what": what,
            "median": ratio,
            "low": 0.9 * ratio,
            "high": 1.1 * ratio,
            "rounds": 15,
        }
        for group, names in ratios.items()
        for name, ratio in names.items()
        for what in ("forward", "both")
    ]
    target = folder / f"{threads}-{number}.json"
    target.write_text(json.dumps({"threads": threads, "rows": rows}), encoding="utf-8")
    return target


def test_tables_hold_means_and_rows_of_either_thread_count(tmp_path):
    one = [
        run(tmp_path, 1, i, medium={"Conv2d": r, "Linear": 1.0}, optimizers={"SGD": 0.3})
        for i, r in enumerate((3.0, 4.0, 5.0))
    ]
    two = [run(tmp_path, 2, 0, medium={"Conv2d": 2.0, "Linear": 2.0}, optimizers={"SGD": 0.3})]
    lines = report.tables(report.columns({1: one, 2: two}))
    assert "| medium | 1.0 | 2.00 | 2.00 |" in lines
    assert "| optimizers | none | 0.30 | 0.30 |" in lines
    assert "| medium | Conv2d | 4.00 [2.70–5.50] | 2.00 [1.80–2.20] |" in lines


def test_the_page_keeps_what_stands_around_the_measured_part(tmp_path, monkeypatch):
    page = tmp_path / "speed.md"
    page.write_text(f"above\n{report.MARKS[0]}\nold\n{report.MARKS[1]}\nbelow\n", encoding="utf-8")
    monkeypatch.setattr(report, "PAGE", page)
    report.write(["new", "lines"])
    marks = report.MARKS
    assert page.read_text() == f"above\n{marks[0]}\n\nnew\nlines\n\n{marks[1]}\nbelow\n"


def test_the_real_page_has_one_place_for_it():
    text = report.PAGE.read_text(encoding="utf-8")
    assert [text.count(mark) for mark in report.MARKS] == [1, 1]


def test_every_row_has_a_name_of_its_own():
    names = [subject.name for subject in SUBJECTS]
    assert len(set(names)) == len(names)
