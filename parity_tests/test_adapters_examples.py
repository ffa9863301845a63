"""The examples run, and find what the texts beside them say."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def verdicts(text):
    """Headlines without counts, failing quantities and their causes: no measured numbers."""
    lines = [line.strip() for line in text.splitlines()]
    heads = [re.sub(r" \(.*", "", line) for line in lines if re.match(r"\w+: [A-Z]+ \(", line)]
    causes = [line for line in lines if line.startswith("cause: ") or " · " in line]
    return heads, [re.sub(r"-?\d+\.?\d*(e[+-]?\d+)?", "#", line) for line in causes]


@pytest.mark.parametrize(
    "example",
    [
        # JAX takes seconds to load and to compile
        pytest.param(path, marks=[pytest.mark.slow] if "jax" in path.stem else [], id=path.stem)
        for path in EXAMPLES
    ],
)
def test_an_example_prints_what_stands_beside_it(example, capsys):
    if "jax" in example.stem:
        pytest.importorskip("jax")
    runpy.run_path(str(example), run_name="__main__")
    printed = verdicts(capsys.readouterr().out)
    assert printed[0]
    assert printed == verdicts(example.with_suffix(".txt").read_text(encoding="utf-8"))


def test_there_is_an_example_of_every_kind():
    names = {path.stem for path in EXAMPLES}
    kinds = {"student_linear", "fused_kernel", "jax_layernorm", "course_functions", "cnn_port"}
    assert kinds <= names
