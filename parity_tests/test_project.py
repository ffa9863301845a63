"""The project's own promises: one list of versions, a README that runs, the wheel tested."""

import configparser
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import types
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import parity

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = tomllib.loads((ROOT / ".ci" / "versions.toml").read_text(encoding="utf-8"))
LEGS = {leg["version"]: leg for leg in VERSIONS["torch"]}
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def script(name):
    """A script of .ci/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def release(version):
    """'2.13.0+cpu' -> (2, 13, 0); '1.13.0a0' -> (1, 13, 0)."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version)[0].split("."))


# --- what runs is what was asked for ------------------------------------------------------------


def test_torch_is_the_one_that_tox_asked_for():
    wanted = os.environ.get("PARITY_EXPECT_TORCH")
    if not wanted:
        pytest.skip("PARITY_EXPECT_TORCH is not set: any torch will do outside tox")
    wanted = release(wanted)
    assert release(torch.__version__)[: len(wanted)] == wanted


def test_parity_is_the_installed_one_in_tox():
    if not os.environ.get("PARITY_EXPECT_INSTALLED"):
        pytest.skip("PARITY_EXPECT_INSTALLED is not set: a checkout may be tested in place")
    assert {"site-packages", "dist-packages"} & set(Path(parity.__file__).parts)
    assert metadata.version("torch-parity") == pyproject()["project"]["version"]


def test_numpy_goes_with_torch():
    """Before torch 2.3, numpy 2 breaks torch.from_numpy."""
    assert torch.from_numpy(np.ones(3)).sum() == 3
    if release(torch.__version__) < (2, 3):
        assert release(np.__version__) < (2,)


def test_the_plugin_is_there_once(pytestconfig):
    manager = pytestconfig.pluginmanager
    module = importlib.import_module("parity.plugin")
    assert sum(plugin is module for plugin in manager.get_plugins()) == 1


# --- one list of versions -----------------------------------------------------------------------


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tox():
    config = configparser.RawConfigParser(strict=True)
    config.read(ROOT / "tox.ini", encoding="utf-8")
    return config


def test_versions_are_in_order_and_the_default_is_one_of_them():
    assert list(LEGS) == sorted(LEGS, key=release)
    assert VERSIONS["default"] in LEGS
    for version, leg in LEGS.items():
        assert leg["numpy"] == ("<2" if release(version) < (2, 3) else "")
        assert leg["support"] == ("yes" if release(version) >= (2, 0) else "best effort")


def test_tox_has_every_version_and_its_numpy(tox):
    deps = tox["testenv"]["deps"]
    pins = {version: pin for version, pin in re.findall(r"torch([\d.]+): torch==([\d.]+)", deps)}
    assert pins == {version: version for version in LEGS}
    numpy = dict(re.findall(r"torch([\d.]+): numpy(\S+)", deps))
    assert numpy == {version: leg["numpy"] for version, leg in LEGS.items() if leg["numpy"]}
    expected = re.findall(
        r"torch([\d.]+): PARITY_EXPECT_TORCH = ([\d.]+)", tox["testenv"]["set_env"]
    )
    assert dict(expected) == pins


def test_tox_runs_the_default_version_everywhere_else(tox):
    assert f"torch{VERSIONS['default']}" in tox["tox"]["env_list"]
    for section in tox.sections():
        deps = tox[section].get("deps", "")
        if section in {"testenv", "testenv:min"}:
            continue
        assert set(re.findall(r"torch==([\d.]+)", deps)) <= {VERSIONS["default"]}, section
    assert f"torch{VERSIONS['default']}: pytest" in tox["testenv"]["commands"]
    assert f"torch=={min(LEGS, key=release)}" in tox["testenv:min"]["deps"]


def test_the_lowest_allowed_torch_is_the_oldest_leg():
    bound = next(d for d in pyproject()["project"]["dependencies"] if d.startswith("torch>="))
    assert release(bound.removeprefix("torch>=")) == min(map(release, LEGS))[:2]


def test_the_workflow_runs_listed_versions():
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    matrix = json.loads(re.search(r"^ +torch: (\[.*\])$", text, re.MULTILINE)[1])
    assert matrix == VERSIONS["ci"]
    assert set(matrix) <= set(LEGS)
    assert {min(LEGS, key=release), max(LEGS, key=release)} <= set(matrix)


def test_the_readme_lists_every_version():
    rows = re.findall(r"^\| ([\d.]+) \| (\S+) \| ([a-z ]+) \| ([\w -]+) \|$", README, re.MULTILINE)
    assert rows == [
        (leg["version"], leg["numpy"] or "any", leg["support"], leg["tested"])
        for leg in LEGS.values()
    ]


# --- the README ---------------------------------------------------------------------------------


def commands():
    return dict(re.findall(r"<!-- command: (\w+) -->\n```sh\n(.+)\n```", README))


def test_the_two_commands_are_one_line_each_with_their_own_environment():
    lines = commands()
    assert set(lines) == {"report", "test"}
    for line in lines.values():
        steps = line.split(" && ")
        assert steps[0] == "python3 -m venv .venv"
        assert all(step.startswith(".venv/bin/") for step in steps[1:])
        assert f"torch=={VERSIONS['default']} " in line
        assert "'.[dev]'" in line
    assert "parity_tests" in lines["test"].split(" && ")[-1]
    assert "--parity-report" in lines["report"]


def test_ci_runs_the_readme_line():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "<!-- command: test -->" in text
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Runs the blocks of one page in one namespace, as a reader would, and prints what each wrote.
RUN_BLOCKS = """
import contextlib, io, json, sys
space, outputs = {"__name__": "__main__"}, []
for block in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as written:
        exec(compile(block, "<page>", "exec"), space)
    outputs.append(written.getvalue())
json.dump(outputs, sys.stdout)
"""

BLOCK = re.compile(
    r"(?P<skip><!-- not executed: .+? -->\n)?^```python\n(?P<code>.*?)^```\n"
    r"(?:\n<!-- output -->\n```\w*\n(?P<output>.*?)^```)?",
    re.MULTILINE | re.DOTALL,
)


def without_measured_numbers(text):
    """Digits of rounding differ from machine to machine; words, counts and verdicts do not."""
    return re.sub(r"-?\d+\.?\d*(e[+-]?\d+)|-?\d+\.\d+", "#", text).strip()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_markdown_code_blocks_run(page, tmp_path):
    """Every python block runs, and prints what the block after `<!-- output -->` says."""
    blocks = [b for b in BLOCK.finditer(page.read_text(encoding="utf-8")) if not b["skip"]]
    if not blocks:
        pytest.skip(f"{page.name} has no python block")
    environment = dict(os.environ)
    source = Path(parity.__file__).parent.parent
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(source), environment.get("PYTHONPATH")])
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN_BLOCKS],
        input=json.dumps([block["code"] for block in blocks]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for block, output in zip(blocks, json.loads(done.stdout), strict=True):
        if block["output"] is not None:
            assert without_measured_numbers(output) == without_measured_numbers(block["output"])


@pytest.mark.slow
def test_the_readmes_line_for_each_form_runs(monkeypatch):
    """The layers are those of docs/adapt.md; a form that the README shows stands on that page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^parity\.assert_parity\(.*$", readme, re.MULTILINE)
    assert len(lines) == 8
    page = (ROOT / "docs" / "adapt.md").read_text(encoding="utf-8")
    space = {"__name__": "adapt"}
    monkeypatch.setitem(sys.modules, "adapt", types.ModuleType("adapt"))
    for block in BLOCK.finditer(page):
        if not block["skip"]:
            exec(compile(block["code"], "<page>", "exec"), space)
    for line in lines:
        if "jax" not in line:
            exec(line, space)


def test_links_inside_the_repository_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


# --- pyproject, wheel, workflow -----------------------------------------------------------------


def test_extras_and_entry_points():
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"report", "data", "bench", "sweep", "jax", "dev"}
    assert "torch-parity[report,data,bench,sweep,jax]" in extras["dev"]
    # Named like the module, or a conftest that lists the plugin dies with "already registered".
    assert project["entry-points"]["pytest11"] == {"parity.plugin": "parity.plugin"}
    assert project["scripts"] == {"parity": "parity.cli:main"}
    assert pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["src/parity"]
    assert (Path(parity.__file__).parent / "py.typed").is_file()


GOOD_WHEEL = {
    "parity/__init__.py": "",
    "parity/py.typed": "",
    "torch_parity-1.dist-info/licenses/LICENSE": "MIT",
    "torch_parity-1.dist-info/entry_points.txt": (
        "[console_scripts]\nparity = parity.cli:main\n[pytest11]\nparity.plugin = parity.plugin\n"
    ),
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"impl/__init__.py": ""}, "impl/__init__.py does not belong"),
        ({"parity/py.typed": None}, "py.typed is missing"),
        ({"torch_parity-1.dist-info/entry_points.txt": ""}, "entry point"),
    ],
    ids=["good", "extra", "missing", "no-entry-point"],
)
def test_the_wheel_check(tmp_path, capsys, change, says):
    with zipfile.ZipFile(tmp_path / "torch_parity-1-py3-none-any.whl", "w") as archive:
        for name, text in (GOOD_WHEEL | change).items():
            if text is not None:
                archive.writestr(name, text)
    status = script("check_wheel").main(tmp_path)
    assert status == (says is not None)
    assert (says or "complete") in capsys.readouterr().out


def test_preflight_leaves_out_the_oldest_first():
    preflight = script("preflight")
    legs = list(LEGS.values())
    fit, left_out = preflight.plan(legs, free_gb=1000)
    assert len(fit) == len(legs)
    assert not left_out
    newest = max(LEGS, key=release)
    room = preflight.SPARE_GB + LEGS[newest]["disk_gb"]
    fit, left_out = preflight.plan(legs, free_gb=room)
    assert [leg["version"] for leg in fit] == [newest]
    assert len(left_out) == len(legs) - 1
    assert preflight.plan(legs, free_gb=0)[0] == []


def test_workflows_pin_actions_and_ask_for_little():
    assert WORKFLOWS
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        for action in re.findall(r"uses: +(\S+.*)", text):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", action), action
        assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE), path.name
        assert ": write" not in text
        assert "persist-credentials: false" in text
        for line in text.splitlines():
            # What a stranger can choose (a branch's name, a title) must never reach a shell.
            assert not ("github.event" in line and "run:" in line), line
