"""The import arrows between the folders, read from the source; and what an import loads."""

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Distributions whose module has another name.
MODULE_NAMES = {"scikit-learn": "sklearn", "pytest-xdist": "xdist", "torch-parity": "parity"}


def modules(requirements):
    """The top-level modules of a list of requirements."""
    names = [re.match(r"[A-Za-z0-9._-]+", requirement)[0] for requirement in requirements]
    return frozenset(MODULE_NAMES.get(name, name.replace("-", "_")) for name in names)


RUNTIME = modules(PYPROJECT["dependencies"])
OPTIONAL = PYPROJECT["optional-dependencies"]
EXTRAS = frozenset().union(*(modules(extra) for extra in OPTIONAL.values()))
# Clusters are named by the user of a sweep (`--backend dask`), notebooks bring their own IPython.
BROUGHT_BY_THE_USER = frozenset({"dask", "distributed", "ray", "IPython"})
PEERS = {"benchmarks": frozenset({"numpy_ml", "tinygrad"})}  # timed where they are installed
OURS = frozenset({"impl", "reference", "fixtures", "parity"})


@dataclass(frozen=True)
class Arrow:
    """What the files of one folder may import beside the standard library."""

    folder: str
    package: str  # the name under which the folder itself is imported
    allowed: frozenset
    lazy: frozenset = frozenset()  # allowed inside a function, a try or TYPE_CHECKING
    files: dict = field(default_factory=dict)  # file name -> what it may import as well


ARROWS = (
    Arrow("impl", "impl", frozenset({"impl", "numpy"})),
    Arrow("reference", "reference", frozenset({"reference", "torch"})),
    Arrow(
        "src/parity",
        "parity",
        frozenset({"parity", "numpy", "scipy", "torch"}),
        lazy=modules(OPTIONAL["report"] + OPTIONAL["data"] + OPTIONAL["bench"])
        | modules(OPTIONAL["sweep"] + OPTIONAL["jax"])
        | BROUGHT_BY_THE_USER,
        files={"plugin.py": frozenset({"pytest"})},
    ),
    # atheris is asked for by --atheris alone: its wheels are few, so that no extra names it
    Arrow(
        "fixtures",
        "fixtures",
        OURS | (RUNTIME - {"pytest"}) | EXTRAS,
        files={"fuzz.py": {"atheris"}},
    ),
)


def imports(path, package):
    """Yield (line, top-level module, lazy) for every import in a file.

    Relative imports count as the package's own; `importlib.import_module("name")` and
    `__import__("name")` count like the statement.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    yield from _imports(tree, package, lazy=False)


def _imports(node, package, lazy):
    for child in ast.iter_child_nodes(node):
        for name in _names(child, package):
            yield child.lineno, name.split(".")[0], lazy
        yield from _imports(child, package, lazy or _is_lazy(child))


def _is_lazy(node):
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.dump(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Try)


def _names(node, package):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [package if node.level else node.module]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func)
        name = node.args[0].value
        importers = {"__import__", "import_module", "importlib.import_module"}
        if called in importers and isinstance(name, str):
            return [package if name.startswith(".") else name]
    return []


def stray(root, arrow):
    """One sentence for every import in `root/arrow.folder` that goes against the arrow."""
    folder = root / arrow.folder
    for path in sorted(folder.rglob("*.py")):
        extra = arrow.files.get(path.relative_to(folder).as_posix(), frozenset())
        for line, name, lazy in imports(path, arrow.package):
            if name in sys.stdlib_module_names or name in arrow.allowed | extra:
                continue
            where = f"{path.relative_to(root).as_posix()}:{line}: imports {name}"
            if name in arrow.lazy:
                if not lazy:
                    yield f"{where} when it is loaded; an extra is imported inside a function"
                continue
            may = ", ".join(sorted(arrow.allowed | extra))
            yield f"{where}; {arrow.folder} may import {may} and the standard library"


@pytest.mark.parametrize("arrow", ARROWS, ids=lambda arrow: arrow.package)
def test_arrows(arrow):
    assert list((ROOT / arrow.folder).rglob("*.py")), f"{arrow.folder} holds no Python file"
    found = list(stray(ROOT, arrow))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["parity_tests", "benchmarks", "examples"])
def test_everything_imported_is_declared(folder):
    """Whoever installs the dev extra can run everything here."""
    own = {path.stem for path in (ROOT / folder).rglob("*.py")} | {folder}
    allowed = OURS | {"benchmarks"} | RUNTIME | EXTRAS | frozenset(own)
    lazy = _importorskip(ROOT / folder) | PEERS.get(folder, frozenset())
    found = list(stray(ROOT, Arrow(folder, folder, allowed, lazy=lazy)))
    assert not found, "\n".join(found)


def _importorskip(folder):
    """Modules that a folder asks for with pytest.importorskip, and may then import in a test."""
    names = set(BROUGHT_BY_THE_USER)
    for path in folder.rglob("*.py"):
        names.update(re.findall(r'importorskip\(\s*"(\w+)', path.read_text(encoding="utf-8")))
    return frozenset(names)


PLANTED = {
    "plain": ("impl", "import numpy\nimport torch\n", "impl/bad.py:2: imports torch"),
    "from": ("impl", "from parity.report import Report\n", "impl/bad.py:1: imports parity"),
    "in a function": ("reference", "def f():\n    import impl\n", "bad.py:2: imports impl"),
    "by name": ("impl", "import importlib\nimportlib.import_module('torch.nn')\n", "bad.py:2"),
    "dunder": ("reference", "numpy = __import__('parity')\n", "bad.py:1: imports parity"),
    "impl in parity": ("src/parity", "from impl import Linear\n", "bad.py:1: imports impl"),
    "pytest in parity": ("src/parity", "def f():\n    import pytest\n", "bad.py:2: imports pytest"),
    "eager extra": ("src/parity", "import matplotlib\n", "inside a function"),
    "undeclared": ("src/parity", "def f():\n    import pandas\n", "bad.py:2: imports pandas"),
    "type only": (
        "impl",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
        "impl/bad.py:3: imports torch; impl may import impl, numpy and the standard library",
    ),
}


@pytest.mark.parametrize(("folder", "source", "says"), PLANTED.values(), ids=PLANTED)
def test_a_stray_import_is_found(tmp_path, folder, source, says):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "bad.py").write_text(source)
    arrow = next(arrow for arrow in ARROWS if arrow.folder == folder)
    found = list(stray(tmp_path, arrow))
    assert len(found) == 1
    assert says in found[0]


def test_allowed_imports_pass(tmp_path):
    folder = tmp_path / "src" / "parity"
    folder.mkdir(parents=True)
    (folder / "plugin.py").write_text("import pytest\n")
    (folder / "page.py").write_text(
        "import json, numpy\nfrom . import words\ndef draw():\n    import matplotlib.pyplot\n"
    )
    arrow = next(arrow for arrow in ARROWS if arrow.package == "parity")
    assert not list(stray(tmp_path, arrow))


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        (
            "parity",
            {"torch", "pytest", "matplotlib", "jinja2", "sklearn", "joblib", "impl", "fixtures"},
        ),
        ("parity.plugin", {"torch", "matplotlib", "jinja2", "sklearn", "joblib"}),
        ("impl", {"torch", "parity", "pytest", "scipy"}),
        ("reference", {"impl", "parity", "pytest"}),
    ],
)
def test_an_import_loads_no_more_than_needed(module, unwanted):
    """In a fresh interpreter: what is loaded counts, however it was asked for."""
    names = sorted(unwanted - {module})
    code = f"import sys; sys.path[:0] = {sys.path!r}; import {module}\n"
    code += f"print(*(name for name in {names!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
