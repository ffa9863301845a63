"""The published study: its numbers stand in the pages and in the report, from one run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures import study
from fixtures.study_tables import BEGIN, END, contribute, filled, markdown, summary
from parity.session import Session

ROOT = Path(__file__).resolve().parent.parent
STUDY = json.loads((ROOT / "docs/study.json").read_text("utf-8"))


def rates():
    return {item["name"]: item for item in STUDY["rates"]}


@pytest.mark.parametrize(("name", "made"), [("docs/study.md", markdown), ("README.md", summary)])
def test_the_pages_show_the_published_run(name, made):
    page = (ROOT / name).read_text("utf-8")
    assert filled(page, made(STUDY), name) == page


def test_the_published_run_keeps_what_is_promised():
    found = rates()
    alarms = found["correct layers: false alarms"]
    assert alarms["successes"] == 0
    assert alarms["trials"] >= 20_000
    for title in ("own catalogue", "unseen faults"):
        assert found[f"{title}: killed"]["value"] == 1.0
        assert found[f"{title}: wrongly named first"]["successes"] == 0
        assert found[f"{title}: rightly named first"]["value"] >= 0.95
    assert STUDY["faults"]["own catalogue"] >= 120
    assert len({run["threads"] for run in STUDY["runs"]}) > 1
    assert len({run["capability"] for run in STUDY["runs"]}) >= 3


def test_the_report_shows_the_rates(monkeypatch):
    kept, keep = [], Session.contribute
    monkeypatch.setattr(
        Session,
        "contribute",
        lambda self, section, entry: (kept.append((section, entry)), keep(self, section, entry)),
    )
    contribute(STUDY["rates"])
    assert [(section, entry["name"]) for section, entry in kept] == [
        ("rates", item["name"]) for item in STUDY["rates"]
    ]
    for (_, shown), item in zip(kept, STUDY["rates"], strict=True):
        assert (shown["successes"], shown["trials"]) == (item["successes"], item["trials"])


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="has no lines"):
        filled("a page", "text")
    assert filled(f"a\n{BEGIN}\nold\n{END}\nb", "new\n") == f"a\n{BEGIN}\nnew\n{END}\nb"


def test_only_the_whole_study_is_published(capsys, tmp_path):
    with pytest.raises(SystemExit):
        study.main(["--publish", "--quick", "--output", str(tmp_path)])
    assert "takes the whole study" in capsys.readouterr().err


@pytest.mark.slow
def test_a_part_runs_by_itself(tmp_path):
    command = [sys.executable, "-m", "fixtures.study", "--part", "mutants", "--quick"]
    command += ["--seeds", "1", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "own catalogue: killed" in (tmp_path / "study.md").read_text("utf-8")
