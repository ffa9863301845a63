"""Notebooks and docs: the example notebook executed, reports as HTML, the pages all listed."""

import os
import re
from pathlib import Path

import pytest

import parity

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Jupyter's own
def test_the_example_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs the notebook: install it")
    nbformat = pytest.importorskip("nbformat", reason="nbformat reads the notebook: install it")
    pytest.importorskip("ipykernel", reason="ipykernel runs the notebook's cells: install it")
    source = Path(parity.__file__).parent.parent
    paths = filter(None, [str(source), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(DOCS / "notebooks" / "start.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # none are stored
    nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    table = code[1].outputs[0]["data"]["text/html"]
    assert "Linear: failed" in table
    assert "the batch size is 8: it was averaged where torch sums" in table
    assert "averaged" in code[2].outputs[0]["text"]
    assert code[3].outputs == []
    assert "# paste Linear here" in code[4].outputs[0]["text"]


def test_a_report_escapes_what_users_named():
    finding = parity.Finding(
        case="<script>alert(1)</script>",
        quantity="grad_<b>",
        verdict=parity.Verdict.ERROR,
        cause=parity.Cause("raised", "<img src=x onerror=alert(1)>"),
    )
    report = parity.Report("<script>alert(1)</script>", (finding,), notes=("<i>note</i>",))
    html = report._repr_html_()
    assert not re.search(r"<(script|img|b|i)\b", html)
    assert "&lt;script&gt;" in html


def test_the_site_lists_every_page():
    text = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^  - .+: (\S+\.md)$", text, re.MULTILINE)
    assert listed[:2] == ["index.md", "start.md"]
    assert sorted(listed) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))
