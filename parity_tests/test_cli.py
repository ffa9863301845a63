"""The command line: what may be typed, in any order, and one clear line for every mistake."""

import json
import subprocess
import sys

import numpy as np
import pytest

import parity
from parity import cli, doctor, literals
from parity.findings import UsageError

LAYERS = '''
import numpy as np
import torch


class Dense:
    """A linear layer; `wrong` halves the weight's gradient."""

    def __init__(self, width, out, bias=True, wrong=False):
        self.params = {"weight": np.zeros((out, width)), "bias": np.zeros(out)}
        self.grads, self.wrong = {}, wrong

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, g):
        for name, value in (("weight", g.T @ self.x / (1 + self.wrong)), ("bias", g.sum(0))):
            self.grads[name] = self.grads.get(name, 0) + value
        return g @ self.params["weight"]


class Leaky:
    def __init__(self, slope):
        self.slope = slope

    def forward(self, x):
        self.x = x
        return np.where(self.x > 0, x, self.slope * x)

    def backward(self, g):
        return np.where(self.x > 0, g, self.slope * g)


class Mean:
    """Mean squared error."""

    def forward(self, prediction, target):
        self.off = prediction - target
        return (self.off**2).mean()

    def backward(self, g=1.0):
        return 2 * self.off * g / self.off.size


class Interrupted:
    def __init__(self):
        raise KeyboardInterrupt


class Inner:
    class Dense(Dense):
        pass


instance = Dense(4, 3)


def make_linear(width, out):
    return torch.nn.Linear(width, out)


def relu():
    return Leaky(0.0)


print("a module that prints when it is imported")
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_layers.py").write_text(LAYERS)
    (tmp_path / "broken.py").write_text("x = 1\ny = nonsense\n")
    (tmp_path / "halved.py").write_text("def f(:\n")
    (tmp_path / "needy.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def run(capsys):
    def call(*words):
        status = cli.main(words)
        written = capsys.readouterr()
        return status, written.out, written.err

    return call


QUICK = ("--rungs", "float64", "--no-diagnose")
PAIR = ("my_layers.py:Dense", "torch.nn:Linear")


# ---- what runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        (*PAIR, "--args", "4", "3", "--input", "8,4", *QUICK),
        ("--input", "8,4", "--args", "4", "3", *PAIR, *QUICK),
        (*QUICK, "--args", "4", "3", *PAIR, "--input=8,4"),
        (PAIR[0], "--input", "8,4", PAIR[1], *QUICK, "--args=4", "3"),
        ("--args", "4", "3", "--input", "(8, 4)", *QUICK, "--seed", "3", "--", *PAIR),
        ("my_layers:Inner.Dense", PAIR[1], "--args", "4", "3", "--input", "8,4", *QUICK),
        ("my_layers.py:instance", PAIR[1], "--torch-args", "4", "3", "--input", "8,4", *QUICK),
        (PAIR[0], "my_layers.py:make_linear", "--args", "4", "3", "--input", "8,4", *QUICK),
        ("my_layers.py:relu", "torch.nn.functional:relu", "--input", "8,4", *QUICK),
        ("my_layers.py:Leaky", "torch.nn:LeakyReLU", "--args", "-1e-2", "--input", "8,", *QUICK),
        ("my_layers.py:Leaky", "torch.nn:LeakyReLU", "--args", "-1", "--input", "8", *QUICK),
        ("my_layers.py:Leaky", "torch.nn.functional:leaky_relu", "--mine-args", "0.2",
         "--torch-args", "negative_slope=0.2", "--input", "normal(8, 4, scale=2.0)", *QUICK),
        ("my_layers.py:Mean", "torch.nn:MSELoss", "--input", "8,4", "--input", "8,4", *QUICK),
        (*PAIR, "--args", "4", "3", "--input", "data.npy", *QUICK, "--seeds", "0,2"),
        (*PAIR, "--args", "4", "3", "--input", "8,4", "--dtypes", "float64,float32", "--strict",
         "--modes", "train", "--rungs", "float64", "float32", "--expects-zero", "all"),
    ],
    ids=lambda words: " ".join(words)[:60],
)  # fmt: skip
def test_names_and_options_may_stand_in_any_order(run, words):
    np.save("data.npy", np.random.default_rng(0).standard_normal((8, 4)))
    status, out, err = run("check", *words)
    assert status == 0, err
    assert "PASSED" in out
    assert "a module that prints" not in out  # standard output is the report's alone


def test_a_mismatch_ends_with_1_and_says_so(run):
    status, out, err = run("check", *PAIR, "--args", "4", "3", "--mine-args", "wrong=True", *QUICK,
                           "--input", "8,4")  # fmt: skip
    assert status == 1
    assert "grad of weight · MISMATCH" in out
    assert "Traceback" not in out + err


def test_json_is_all_that_stands_on_standard_output(run):
    wrong = ("--args", "4", "3", "--mine-args", "wrong=True", "--input", "8,4")
    status, out, _ = run("check", *PAIR, *wrong, *QUICK, "--json", "--script")
    data = json.loads(out)
    assert status == 1
    assert not data["passed"]
    assert data["counts"]["MISMATCH"]
    assert "import numpy" in data["script"]
    status, out, _ = run("check", *PAIR, "--args", "4", "3", "--input", "8,4", *QUICK, "--json")
    assert (status, json.loads(out)["passed"]) == (0, True)


def test_the_same_command_prints_the_same(run):
    words = ("check", *PAIR, "--args", "4", "3", "--mine-args", "wrong=True", "--input", "8,4")
    assert run(*words, *QUICK)[1] == run(*words, *QUICK)[1]


def test_names_that_differ_are_mapped(run, folder):
    text = LAYERS.replace('"weight": np.zeros((out, width))', '"W": np.zeros((width, out))')
    text = text.replace('params["weight"].T', 'params["W"]').replace(
        '("weight", g.T @ self.x /', '("W", self.x.T @ g /'
    )
    text = text.replace('g @ self.params["weight"]', 'g @ self.params["W"].T')
    (folder / "turned.py").write_text(text)
    words = ("check", "turned.py:Dense", PAIR[1], "--args", "4", "3", "--input", "8,4", *QUICK)
    assert run(*words, "--weights", "W=weight:1,0")[0] == 0


def test_version_help_and_no_command(run):
    assert run("--version")[:2] == (0, f"torch-parity {parity.__version__}\n")
    status, out, _ = run("--help")
    assert status == 0
    assert len(out.splitlines()) < 25
    for word in ("check", "doctor", "replay", "report", "exit status"):
        assert word in out
    assert run()[0] == 2
    status, out, _ = run("check", "--help")
    assert status == 0
    assert "--mine-args" in out


def test_ctrl_c_is_quiet(run):
    words = ("my_layers.py:Interrupted", "torch.nn:ReLU", "--input", "3")
    said = "a module that prints when it is imported\nparity: interrupted\n"
    assert run("check", *words) == (130, "", said)


@pytest.mark.slow
def test_python_m_parity_is_the_same(folder):
    done = subprocess.run(
        [sys.executable, "-m", "parity", "check", "nowhere.py:A", "torch.nn:ReLU", "--input", "3"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(cli.__file__).rpartition("/parity/")[0], "PATH": "/usr/bin"},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "there is no file nowhere.py" in done.stderr


# ---- what is refused -----------------------------------------------------------------------------

DENSE = ("--args", "4", "3", "--input", "8,4")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("chekc",), "unknown command 'chekc', did you mean 'check'?"),
        (("--verzion",), "unrecognized arguments: --verzion"),
        (("check",), "two names are needed, the hand-written and the torch one; got nothing"),
        (("check", PAIR[0], "--input", "3"), "got 'my_layers.py:Dense'"),
        (("check", *PAIR, "torch.nn:ReLU", "--input", "3"), "two names are needed"),
        (("check", *PAIR, "--args", "4", "3"), "no input is given; give a shape"),
        (("check", *PAIR, "--inputs", "3"), "unknown option '--inputs', did you mean '--input'?"),
        (("check", *PAIR, "--input"), "expected one argument"),
        (("check", *PAIR, "--seed", "--input", "3"), "expected one argument"),
        (("check", *PAIR, *DENSE, "-7"), "cannot read '-7'"),
        (("check", "my_layer.py:A", PAIR[1], "--input", "3"), "did you mean 'my_layers.py'?"),
        (("check", "my_layers.py:Dence", PAIR[1], *DENSE), "has no 'Dence', did you mean 'Dense'"),
        (("check", "my_layers.py:zzz", PAIR[1], *DENSE), "it offers: Dense, Leaky, Mean"),
        (("check", "my_layers.py", PAIR[1], *DENSE), "it offers: Dense, Leaky, Mean"),
        (("check", PAIR[0], "torch.nn.Linear", *DENSE), "did you mean torch.nn:Linear?"),
        (("check", PAIR[0], "torch.nn.Linear:Linear", *DENSE), "did you mean torch.nn:Linear?"),
        (("check", PAIR[0], "torch.n:Linear", *DENSE), "no module 'torch.n', did you mean 'nn'?"),
        (("check", PAIR[0], "torhc.nn:Linear", *DENSE), "no module 'torhc', did you mean 'torch'"),
        (("check", PAIR[0], "torch.nn:linear", *DENSE), "did you mean 'Linear'? It offers: "),
        (("check", PAIR[0], "Linear", *DENSE), "'Linear' names no object; write FILE_OR_MODULE"),
        (("check", "a b:C", PAIR[1], *DENSE), "'a b' is neither a .py file nor a module"),
        (("check", "./:C", PAIR[1], *DENSE), "is a folder; name the .py file in it"),
        (("check", "data.ipynb:C", PAIR[1], *DENSE), "there is no file data.ipynb"),
        (("check", "./notes.txt:C", PAIR[1], *DENSE), "notes.txt is no .py file"),
        (("check", "my_layers:Nope", PAIR[1], *DENSE), "my_layers has no 'Nope'"),
        (("check", "my_layerz:Dense", PAIR[1], *DENSE), "did you mean 'my_layers'?"),
        (("check", "broken.py:A", PAIR[1], *DENSE), "broken.py cannot be imported: NameError: name "
         "'nonsense' is not defined, line 2"),
        (("check", "halved.py:A", PAIR[1], *DENSE), "halved.py cannot be imported: SyntaxError"),
        (("check", "needy:A", PAIR[1], *DENSE), "needy cannot be imported: ModuleNotFoundError"),
        (("check", *PAIR, "--args", "4", "--input", "8,4"), "mine: Dense(4) raised TypeError"),
        (("check", *PAIR, "--args", "4", "--input", "8,4"), "signature is Dense(width, out, bias"),
        (("check", *PAIR, *DENSE, "--torch-args", "biass=1"), "torch: Linear(4, 3, biass=1)"),
        (("check", *PAIR, "--args", "a=1", "3", "--input", "3"), "'3' comes after a=…"),
        (("check", *PAIR, "--args", "a=1", "a=2", "--input", "3"), "argument a is given twice"),
        (("check", *PAIR, "--args", "(3,", "--input", "3"), "'(3,' is no Python literal"),
        (("check", "my_layers.py:instance", PAIR[1], *DENSE), "is an object, not a class"),
        (("check", *PAIR, *DENSE[:3], "--input", "8x4"), "cannot read the input '8x4'"),
        (("check", *PAIR, *DENSE[:3], "--input", "8,-4"), "no shape of non-negative sizes"),
        (("check", *PAIR, *DENSE[:3], "--input", "8.5,4"), "no shape of non-negative sizes"),
        (("check", *PAIR, *DENSE[:3], "--input", "99999,99999"), "9,999,800,001 elements"),
        (("check", *PAIR, *DENSE[:3], "--input", "lables(8)"), "did you mean 'labels'?"),
        (("check", *PAIR, *DENSE[:3], "--input", "labels(8)"), "missing 1 required keyword"),
        (("check", *PAIR, *DENSE[:3], "--input", "labels(8, classes=0)"), "positive integer"),
        (("check", *PAIR, *DENSE[:3], "--input", "normal(open('x'))"), "cannot read the input"),
        (("check", *PAIR, *DENSE[:3], "--input", "normal(**x)"), "only plain arguments are read"),
        (("check", *PAIR, *DENSE[:3], "--input", "nowhere.npy"), "nowhere.npy is not there"),
        (("check", *PAIR, *DENSE[:3], "--input", "a/b.csv"), "is no .npy file; write it with"),
        (("check", *PAIR, *DENSE[:3], "--input", "pickled.npy"), "cannot be read as a NumPy array"),
        (("check", *PAIR, *DENSE[:3], "--input", "cut.npy"), "cannot be read as a NumPy array"),
        (("check", *PAIR, *DENSE, "--seed", "nan"), "--seed got 'nan'; it must be an integer"),
        (("check", *PAIR, *DENSE, "--seed", "-1"), "seed is -1; it must be a non-negative"),
        (("check", *PAIR, *DENSE, "--seeds", "0"), "seeds is 0; at least one draw is needed"),
        (("check", *PAIR, *DENSE, "--seeds", "a"), "--seeds got 'a'; write a number, or a list"),
        (("check", *PAIR, *DENSE, "--timeout", "soon"), "--timeout got 'soon'; it must be"),
        (("check", *PAIR, *DENSE, "--dtypes", "float63"), "did you mean 'float64'?"),
        (("check", *PAIR, *DENSE, "--modes", "training"), "unknown mode 'training'"),
        (("check", *PAIR, *DENSE, "--rungs", "flaot64"), "did you mean 'float64'?"),
        (("check", *PAIR, *DENSE, "--weights", "W"), "--weights got 'W'; write mine=theirs"),
        (("check", *PAIR, *DENSE, "--weights", "W=w:0,0"), "got the axis order '0,0'"),
        (("replay",), "the following arguments are required: BUNDLE"),
        (("replay", "nowhere"), "it has no bundle.json; `parity check --bundle DIR` makes one"),
        (("report", "split", "a", "-o", "b"), "invalid choice: 'split'"),
        (("report", "merge", "a"), "no folder to write is named; add -o DIR"),
        (("report", "merge", "a", "-o", "b"), "is not there; give a report's folder"),
        (("doctor", "--jsn"), "unknown option '--jsn', did you mean '--json'?"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, tuple) else None,
)  # fmt: skip
def test_every_mistake_is_one_clear_line(run, words, says):
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("cut.npy", np.ones(100))
    with open("cut.npy", "r+b") as file:
        file.truncate(200)
    with open("notes.txt", "w") as file:
        file.write("notes")
    status, out, err = run(*words)
    lines = [line for line in err.splitlines() if not line.startswith("a module that prints")]
    assert status == 2
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("parity: ")
    assert says in lines[0]


def test_a_traceback_is_shown_where_it_is_asked_for(run):
    words = ("check", "broken.py:A", PAIR[1], *DENSE)
    assert "Traceback" not in run(*words)[2]
    assert "NameError" in run(*words, "--traceback")[2].partition("parity:")[0]


def test_inputs_that_torch_itself_refuses_could_not_run(run):
    status, out, _ = run("check", *PAIR, "--args", "4", "3", "--input", "8,5", *QUICK)
    assert status == 2
    assert "the reference refuses these inputs" in out


def test_a_fault_of_the_harness_is_said_in_one_line(run, monkeypatch):
    def broken():
        raise RuntimeError("no\nway")

    monkeypatch.setattr(doctor, "examine", broken)
    status, _, err = run("doctor")
    assert (status, err) == (
        2, "parity: the harness failed: RuntimeError: no; --traceback shows where\n"
    )  # fmt: skip


def test_a_command_that_is_not_installed_is_named(run, monkeypatch):
    command = cli.Command("parity.of_another_day", "not here")
    monkeypatch.setitem(cli.COMMANDS, "other", command)
    assert "`parity other` is not part of this installation" in run("other")[2]
    assert "other" not in run("--help")[1]


def test_a_folder_that_cannot_be_written_is_named(run, folder):
    (folder / "file").write_text("")
    words = ("check", *PAIR, *DENSE, "--mine-args", "wrong=True", *QUICK)
    status, _, err = run(*words, "--bundle", "file/below")
    assert status == 2
    assert "file" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_reports_are_merged(run, monkeypatch):
    from parity import reporting

    seen = []

    class Whole:
        runs = (1, 2)

    monkeypatch.setattr(
        reporting,
        "write_merged",
        lambda paths, out: (seen.append((*paths, out)), (Whole, ("a",)))[1],
    )
    status, out, _ = run("report", "merge", "A", "B", "-o", "C")
    assert (status, seen) == (0, [("A", "B", "C")])
    assert out == "2 runs merged into C: a\n"


# ---- the doctor ----------------------------------------------------------------------------------


def test_doctor_prints_what_a_comparison_depends_on(run):
    status, out, _ = run("doctor")
    assert status == 0
    for word in ("numpy", "torch", "BLAS", "threads", "float32 matmul precision", "distortions:"):
        assert word in out
    facts = json.loads(run("doctor", "--json")[1])
    assert set(facts) == {"versions", "machine", "torch", "environment", "distortions"}


SOUND = {
    "machine": {"cores": 2, "numpy subnormals": "kept"},
    "environment": {},
    "torch": {
        "float32 matmul precision": "highest",
        "TF32 matmul": False,
        "default dtype": "float32",
        "subnormals": "kept",
        "gradients": True,
        "threads": 2,
    },
}


@pytest.mark.parametrize(
    ("section", "change", "says"),
    [
        ("torch", {}, None),
        ("environment", {"ONEDNN_DEFAULT_FPMATH_MODE": "STRICT"}, None),
        ("torch", {"float32 matmul precision": "medium"}, "off by 2e-3"),
        ("environment", {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}, "in lower precision; unset it"),
        ("environment", {"NVIDIA_TF32_OVERRIDE": "1"}, "TF32 is on"),
        ("torch", {"default dtype": "float64"}, "set_default_dtype"),
        ("torch", {"subnormals": "flushed"}, "torch flush subnormal numbers"),
        ("machine", {"numpy subnormals": "flushed"}, "NumPy flush subnormal numbers"),
        ("torch", {"gradients": False}, "gradients are off"),
        ("torch", {"threads": 64}, "64 threads on 2 cores"),
        ("environment", {"ATEN_CPU_CAPABILITY": "avx2"}, "stands in for another processor"),
    ],
)
def test_doctor_names_what_would_distort(section, change, says):
    found = doctor.distortions({**SOUND, section: {**SOUND[section], **change}})
    assert len(found) == (says is not None)
    assert says is None or says in found[0]


def test_doctor_sees_this_process(run):
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert "default dtype is float64" in run("doctor")[1]
    finally:
        torch.set_default_dtype(before)


# ---- literals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("-1", -1), ("-1e-3", -0.001), ("(3, 3)", (3, 3)), ("True", True), ("None", None),
     ("same", "same"), ("'same'", "same"), ("3x", "3x"), ("__import__('os')", "__import__('os')"),
     ("{'a': 1}", {"a": 1}), ("", "")],
)  # fmt: skip
def test_a_literal_is_read_and_anything_else_is_text(text, value):
    assert literals.literal(text) == value
    assert type(literals.literal(text)) is type(value)


@pytest.mark.parametrize("text", ["(" * 500, "[1, 2", "'open", "{1: }"])
def test_an_open_bracket_is_no_text(text):
    with pytest.raises(UsageError, match="is no Python literal"):
        literals.literal(text)


def test_inputs_are_read():
    assert literals.one_input("2,3,8,8") == (2, 3, 8, 8)
    assert literals.one_input("8,") == literals.one_input("8") == (8,)
    assert literals.one_input("()") == ()
    assert literals.one_input(" (8, 4) ") == (8, 4)
    assert literals.one_input("parity.labels(8, classes=10)") == parity.labels(8, classes=10)
    assert literals.one_input("uniform(2, low=-1.0)") == parity.uniform(2, low=-1.0)
