"""The pytest plugin as a stranger meets it: in a project of their own, beside other plugins."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys

# Runs inside this process must find these loaded: pytester forgets what a run itself imported.
import matplotlib.backends.backend_svg  # noqa: F401
import pytest
import torch

import parity
import parity.checking
import parity.examining
import parity.parametrizing
import parity.probes
import parity.promises
import parity.reporting.page
import parity.statistics
import parity.torch_subject
from parity.session import Session, closed, current, opened

pytest_plugins = ["pytester"]

LAYERS = '''
import numpy as np

class MyLinear:
    """A linear map; `fault` names what is wrong with it."""

    def __init__(self, inputs=4, outputs=3, fault=None):
        self.params = {"weight": np.zeros((outputs, inputs)), "bias": np.zeros(outputs)}
        self.grads = {name: np.zeros_like(array) for name, array in self.params.items()}
        self.fault = fault

    def forward(self, x):
        if self.fault == "raises":
            raise RuntimeError("no forward today")
        if self.fault == "writes":
            x += 1.0
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, grad):
        self.grads["weight"] += grad.T @ self.x
        self.grads["bias"] += grad.mean(axis=0) if self.fault == "mean" else grad.sum(axis=0)
        return grad @ self.params["weight"]
'''
HEAD = """
import torch, parity as harness
from mylayers import MyLinear

def row(name, fault=None, **options):
    return harness.Case(name, MyLinear, torch.nn.Linear, ((8, 4),), args=(4, 3),
                        mine_config={"fault": fault}, options=options)
"""
TABLE = """
@harness.parametrize(CASES)
def test_layers(case, check):
    check(case)
"""
LAYERS_CHECKED = (
    "forward", "grad_input0", "grad_weight", "grad_bias",
    "untouched", "layouts", "repeat", "accumulate", "step",
)  # fmt: skip


@pytest.fixture
def project(pytester):
    """A stranger's project: one file of layers, one of tests, and a run of it in this process."""
    pytester.makepyfile(mylayers=LAYERS)
    pytester.syspathinsert()

    def run(tests, *arguments, head=HEAD):
        pytester.makepyfile(test_mine=head + tests)
        plain = ("-p", "parity.plugin", "-p", "no:cacheprovider", "-p", "no:randomly")
        return pytester.runpytest_inprocess(*plain, *arguments)

    return run


def outcomes(result, **expected):
    """Assert the counts of a run, and that there are no others."""
    found = {name: n for name, n in result.parseoutcomes().items() if not name.startswith("warn")}
    assert found == expected, result.stdout.str()


def command(pytester, *arguments):
    """Run pytest as a process of its own, as a person does."""
    plain = [sys.executable, "-m", "pytest", "-p", "parity.plugin", "-p", "no:cacheprovider"]
    paths = [os.path.dirname(os.path.dirname(parity.__file__)), str(pytester.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}
    return subprocess.run(
        [*plain, *arguments],
        cwd=pytester.path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


# --- the fixture --------------------------------------------------------------------------------


def test_fixture_checks_and_hands_on_the_module(project):
    tests = """
def test_right(parity):
    report = parity(MyLinear(), torch.nn.Linear(4, 3), (8, 4))
    assert report.passed and report.case == "test_right"
    assert report.rerun == "pytest 'test_mine.py::test_right' --parity-seeds 0"
    assert parity.labels is harness.labels and parity.Verdict is harness.Verdict

def test_wrong(parity):
    parity(MyLinear(fault="mean"), torch.nn.Linear(4, 3), parity.normal(8, 4))

def test_mistyped(parity):
    parity(MyLinear(), torch.nn.Linear(4, 3), (8, 4), dtype="float32")
"""
    result = project(tests)
    outcomes(result, passed=1, failed=2)
    text = result.stdout.str()
    block = re.search(
        r"E +test_wrong · grad of bias · MISMATCH \(float64\)\n"
        r"E +3 of 3 elements differ; worst at \(\d,\): mine \S+, torch \S+; off by \S+, "
        r"rounding explains \S+\n"
        r"E +cause: .+\n"
        r"E +again: pytest 'test_mine.py::test_wrong' --parity-seeds 0\n",
        text,
    )
    assert block, text
    assert "unknown option 'dtype', did you mean 'dtypes'?" in text
    # Tracebacks end in the user's line: no frame of ours is shown.
    assert re.findall(r"^(\S+):\d+: (\w+)$", text, re.MULTILINE) == [
        ("test_mine.py", "ParityError"),
        ("test_mine.py", "UsageError"),
    ]


def test_what_a_test_pins_stays(project):
    tests = """
def test_pinned(parity):
    report = parity(MyLinear(), torch.nn.Linear(4, 3), (8, 4), seeds=[5, 6], dtypes="float32")
    assert {f.seed for f in report.of("forward")} == {5, 6}
    assert "float64" not in {f.dtype for f in report.of("grad_weight") if "probe" not in f.evidence}

def test_asked_for(parity):
    assert {f.seed for f in parity(MyLinear(), torch.nn.Linear(4, 3), (8, 4)).findings} >= {2, 4}
"""
    result = project(tests, "--parity-seeds", "2,4")
    outcomes(result, passed=2)
    result.stdout.fnmatch_lines(["parity: numpy * against torch *, seeds 2,4"])


# --- one test a case and check ------------------------------------------------------------------


def test_one_test_for_each_case_and_check(project, pytester):
    tests = """
CASES = [row("right"), row("wrong", "mean"), row("writes", "writes"), row("raises", "raises"),
         harness.Rejects("refuses", lambda: None, lambda: None, TypeError, "callable"),
         row("float32", dtypes="float32")]
"""
    result = project(tests + TABLE, "-rA", "--parity-report", "out")
    text = result.stdout.str()
    ids = re.findall(r"^(PASSED|FAILED) test_mine.py::test_layers\[([^\]]+)\]", text, re.MULTILINE)
    passed = {name for how, name in ids if how == "PASSED"}
    failed = {name for how, name in ids if how == "FAILED"}
    assert {f"right-{name}" for name in LAYERS_CHECKED} <= passed
    assert {name for name in failed if name.startswith("wrong-")} == {"wrong-grad_bias"}
    assert "writes-untouched" in failed
    assert "raises-forward" in failed
    assert not any(name.startswith("raises-") for name in passed)
    assert "refuses-rejects" in passed
    # A case is examined once, and each of its findings belongs to exactly one test.
    parts = json.loads((pytester.path / "out" / "report.json").read_text("utf-8"))["parts"]
    whole = report_of_wrong("mean")
    told = [f for part in parts if part["case"] == "wrong" for f in part["findings"]]
    promised = {"untouched", "layouts"}
    told = sorted(json.dumps(f) for f in told if f["quantity"] not in promised)
    assert told == sorted(json.dumps(f.to_dict()) for f in whole.findings)


def test_a_test_without_check_is_told_what_it_takes(project):
    short = TABLE.replace("(case, check)", "(case)").replace("check(case)", "case.check()")
    result = project('CASES = [row("right")]\n' + short)
    outcomes(result, errors=1)
    assert "def test_layers(case, check): check(case)" in result.stdout.str()


def report_of_wrong(fault):
    """The report of case "wrong", made without pytest."""
    namespace = {}
    exec(LAYERS, namespace)  # the stranger's file, as text above
    row = parity.Case(
        "wrong", namespace["MyLinear"], torch.nn.Linear, ((8, 4),), args=(4, 3),
        mine_config={"fault": fault},
    )  # fmt: skip
    return row.report()


def test_a_row_that_cannot_be_built_does_not_take_the_others_along(project):
    tests = """
def refuse(*args):
    raise RuntimeError("cannot be built")

CASES = [row("right"), harness.Case("broken", MyLinear, refuse, ((8, 4),), args=(4, 3))]
"""
    result = project(tests + TABLE)
    outcomes(result, passed=len(LAYERS_CHECKED), failed=1)
    result.stdout.fnmatch_lines(["*broken · forward output · ERROR*", "*cannot be built*"])


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        (("--parity-seeds", "nan"), "--parity-seeds is 'nan'; it must be seeds"),
        (("--parity-seeds=-1",), "--parity-seeds is '-1'"),
        (("--parity-seeds", "5-2"), "--parity-seeds is '5-2'"),
        (("--parity-seeds", ""), "--parity-seeds is ''"),
        (("--parity-dtypes", "flaot64"), "unknown dtype 'flaot64', did you mean 'float64'?"),
        (("--parity-device", "cdua"), "--parity-device is 'cdua', did you mean 'cuda'?"),
        (("--parity-report", "mylayers.py"), "is a file; give a folder"),
        (("--parity-report", ""), "must be the name of a folder"),
    ],
)
def test_mistyped_options_end_in_one_line(project, flag, says):
    result = project("def test_it(): pass", *flag)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = [line for line in result.stderr.lines if line.strip()]
    assert len(lines) == 1
    assert says in lines[0]


def test_gaps_of_a_project_turn_red_when_they_close(project, pytester):
    gaps = '[tool.parity.gaps]\ngrad_bias = "averaged, as the course does"\n'
    pytester.makepyprojecttoml(gaps)
    tests = """
def test_open(parity):
    parity(MyLinear(fault="mean"), torch.nn.Linear(4, 3), (8, 4))

def test_closed(parity):
    parity(MyLinear(), torch.nn.Linear(4, 3), (8, 4))

def test_not_concerned(parity):
    class Relu:
        def forward(self, x):
            self.x = x
            return x * (x > 0)
        def backward(self, grad):
            return grad * (self.x > 0)
    parity(Relu(), torch.nn.ReLU(), (8, 4))
"""
    result = project(tests)
    outcomes(result, passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["*the gap 'grad_bias' (averaged, as the course does) is closed: delete its line*"]
    )


def test_strict_fails_what_is_rough_and_says_so_in_the_line(project):
    tests = """
class OnePass:
    def forward(self, x):
        self.x = x
        return (x * x).mean(0) - x.mean(0) ** 2
    def backward(self, grad):
        return 2 * (self.x - self.x.mean(0)) * grad / len(self.x)

def test_rough(parity):
    x = 1e3 + parity.normal(64, 4).draw(__import__("numpy").random.default_rng(0))
    parity(OnePass(), lambda x: x.var(0, unbiased=False), x)
"""
    outcomes(project(tests), passed=1)
    result = project(tests, "--parity-strict")
    outcomes(result, failed=1)
    result.stdout.fnmatch_lines(["*again: pytest *::test_rough' --parity-seeds 0 --parity-strict"])


# --- beside others, in processes of their own ---------------------------------------------------


def test_importing_the_plugin_is_light():
    code = "import sys, parity.plugin; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    source = os.path.dirname(os.path.dirname(parity.__file__))
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_workers_hand_over_every_finding_and_the_printed_line_runs(pytester):
    """With xdist, and beside cov, randomly and benchmark where they are installed."""
    pytest.importorskip("xdist")
    tests = """
CASES = [row("right"), row("it's wrong [1]", "mean", seed=3)]

def test_mine(parity):
    parity(MyLinear(), torch.nn.Linear(4, 3), (8, 4))
    harness.reporting.contribute("rates", {"name": "kills", "successes": 3, "trials": 3})
"""
    pytester.makepyfile(mylayers=LAYERS)
    head = HEAD + "import parity.reporting\n"
    pytester.makepyfile(test_mine=head + tests + TABLE)
    beside = ["--cov=mylayers"] if importlib.util.find_spec("pytest_cov") else []
    done = command(pytester, "-n", "2", "--parity-report", "out", *beside)
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads((pytester.path / "out" / "report.json").read_text("utf-8"))
    found = {(part["case"], part["check"]) for part in report["parts"]}
    both = ("right", "it's wrong [1]")
    assert found == {("test_mine", "")} | {(case, name) for case in both for name in LAYERS_CHECKED}
    assert report["sections"]["rates"][0]["successes"] == 3
    assert [part["nodeid"] for part in report["parts"]] == sorted(
        part["nodeid"] for part in report["parts"]
    )
    assert (pytester.path / "out" / "report.md").read_text("utf-8").startswith("# Parity report")

    line = re.search(r"again: pytest (.+)$", done.stdout, re.MULTILINE)[1]
    assert line.endswith("--parity-seeds 3")
    pytester.syspathinsert()
    again = pytester.runpytest_inprocess("-p", "parity.plugin", *shlex.split(line)).stdout.str()
    assert "1 failed" in again
    worst = re.compile(r"worst at .*")
    assert worst.search(again)[0] == worst.search(done.stdout)[0]


def test_without_the_plugin_tables_still_run(pytester):
    pytester.makepyfile(mylayers=LAYERS)
    pytester.makepyfile(test_mine=HEAD + 'CASES = [row("wrong", "mean")]\n' + TABLE)
    pytester.syspathinsert()
    alone = opened(Session())  # what is current where no plugin has opened a session
    try:
        result = pytester.runpytest_inprocess("-p", "no:parity.plugin", "-p", "no:randomly")
    finally:
        closed(alone)
    outcomes(result, passed=len(LAYERS_CHECKED) - 2, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*again: pytest 'test_mine.py::test_layers?wrong-grad_bias?'"])
    assert "parity: numpy" not in result.stdout.str()


def test_a_run_inside_a_run_leaves_this_one_alone(project):
    before = current()
    project("def test_it(parity): parity(MyLinear(), torch.nn.Linear(4, 3), (8, 4))")
    assert current() is before


def test_an_unwritable_report_is_said_and_costs_no_result(project, pytester):
    """The folder turns into a file while the tests run."""
    tests = """
def test_it(parity):
    parity(MyLinear(), torch.nn.Linear(4, 3), (8, 4))
    open("out", "w").close()
"""
    result = project(tests, "--parity-report", "out")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    outcomes(result, passed=1)
    result.stdout.fnmatch_lines(["parity: the report could not be written to *out*"])
