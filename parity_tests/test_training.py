"""check_training: what it takes, what it refuses, what it says, and what it must not fall for."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity

RNG = np.random.default_rng(3)
X = RNG.standard_normal((24, 6))
Y = RNG.integers(0, 3, 24)
TARGET = RNG.standard_normal((24, 1))
BATCHES = [(X[i : i + 10], Y[i : i + 10]) for i in range(0, 24, 10)]


def nets(norm=True):
    """Return the same net on both sides."""
    torch.manual_seed(11)
    if norm:
        return (
            impl.Sequential(impl.Linear(6, 8), impl.BatchNorm1d(8), impl.ReLU(), impl.Linear(8, 3)),
            nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        )
    return (
        impl.Sequential(impl.Linear(6, 8), impl.Tanh(), impl.Linear(8, 3)),
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
    )


def sgd(**options):
    options = {"lr": 0.1} | options
    return (
        lambda model: impl.SGD(model, **options),
        lambda params: torch.optim.SGD(params, **options),
    )


def adam(name="Adam", **options):
    return (
        lambda model: getattr(impl, name)(model, **options),
        lambda params: getattr(torch.optim, name)(params, **options),
    )


CROSS = (impl.CrossEntropyLoss(), nn.CrossEntropyLoss())


def train(model=None, reference=None, norm=True, **options):
    mine, theirs = nets(norm)
    given = {"loss": CROSS, "optimizer": sgd(), "batches": BATCHES, "epochs": 2} | options
    return parity.check_training(
        mine if model is None else model, theirs if reference is None else reference, **given
    )


# ---- what agrees --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        sgd(momentum=0.9, nesterov=True, weight_decay=0.01),
        sgd(momentum=0.9, dampening=0.3),
        adam(lr=0.01, weight_decay=0.1, amsgrad=True),
        adam("AdamW", lr=0.01),
    ],
    ids=["nesterov", "dampening", "amsgrad", "adamw"],
)
def test_optimizers_agree_in_state_and_steps(optimizer):
    report = train(norm=False, optimizer=optimizer, epochs=4)
    assert set(report.counts()) == {"MATCH"}, report
    assert not report.not_covered, report
    states = [f for f in report.findings if f.quantity.startswith("state_0.weight.")]
    assert states
    assert all(f.step == 12 for f in states)


def test_every_quantity_is_compared():
    report = train()
    names = {f.quantity for f in report.findings}
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"):
        assert {f"grad_{name}", f"parameter_{name}"} <= names
    assert {"trajectory", "predictions", "buffer_1.running_mean", "buffer_1.running_var"} <= names
    assert {f.dtype for f in report.of("trajectory")} == {"float64", "float32"}


def test_evidence_holds_the_curves_as_plain_data():
    report = train()
    double, single = report.of("trajectory")
    curves = double.evidence["curves"]
    assert len(curves["step"]) == len(curves["mine"]) == len(curves["noise"]) == 6
    assert max(curves["deviation"]) < max(single.evidence["curves"]["deviation"])
    assert double.evidence["total"] == sum(curves["deviation"])
    assert set(single.evidence["curves"]) == {
        "step", "mine", "theirs", "exact", "deviation", "width", "allowed",
    }  # fmt: skip
    json.dumps(report.to_dict())


@pytest.mark.slow
def test_long_runs_keep_short_curves():
    report = train(norm=False, batches=(X, Y), epochs=410, dtypes="float64")
    curves = report.of("trajectory")[0].evidence["curves"]
    assert len(curves["step"]) <= 400
    assert curves["step"][-1] == 410


def test_the_same_run_gives_the_same_findings():
    first, second = (train(optimizer=adam(lr=0.01)).to_dict() for _ in range(2))
    assert first == second


def test_adaptive_steps_on_rounding_noise_are_listed_and_not_compared():
    report = train(optimizer=adam(lr=0.01))
    assert report.passed, report
    assert not report.of("parameter_0.bias")
    assert not report.of("state_0.bias.exp_avg")
    assert any("0.bias" in note and "not compared" in note for note in report.notes)


def test_further_seeds_start_elsewhere():
    report = train(seeds=2, norm=False, dtypes="float64")
    assert report.passed, report
    one, two = (f.evidence["curves"]["mine"] for f in report.of("trajectory"))
    assert one[0] != two[0]


def test_a_torch_module_under_test():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 3)])

        def forward(self, x):
            return self.layers[1](torch.tanh(self.layers[0](x)))

    _, theirs = nets(norm=False)
    report = parity.check_training(
        Mine(), theirs, loss=(nn.CrossEntropyLoss(), nn.CrossEntropyLoss()),
        optimizer=(
            lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        ),
        batches=BATCHES,
        weights={
            "layers.0.weight": "0.weight", "layers.0.bias": "0.bias",
            "layers.1.weight": "2.weight", "layers.1.bias": "2.bias",
        },
    )  # fmt: skip
    assert set(report.counts()) == {"MATCH"}, report
    assert report.of("state_0.weight.momentum_buffer")


def test_a_pair_of_functions_with_transposed_weights():
    def forward(x, w, b):
        return x @ w + b, (x, w)

    def backward(grad, cache):
        x, w = cache
        return grad @ w.T, x.T @ grad, grad.sum(0)

    class Step:
        def __init__(self, model):
            self.model = model

        def step(self):
            for name, p in self.model.params.items():
                p -= 0.1 * self.model.grads[name]

    torch.manual_seed(1)
    report = parity.check_training(
        parity.functions(forward, backward, params=("w", "b")),
        nn.Linear(6, 3),
        loss=CROSS,
        optimizer=(Step, sgd()[1]),
        batches=BATCHES,
        weights={"w": ("weight", (1, 0)), "b": "bias"},
    )
    assert report.passed, report
    assert report.of("parameter_weight")


def test_dropout_masks_are_shared():
    torch.manual_seed(2)
    mine = impl.Sequential(impl.Linear(6, 20), impl.Dropout(0.4), impl.Linear(20, 3))
    theirs = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.4), nn.Linear(20, 3))
    assert train(mine, theirs).passed


def test_dropout_without_a_mask_is_an_error_that_says_so():
    class Opaque(impl.Dropout):
        mask = None

        def forward(self, x):
            self.kept = np.random.default_rng(0).random(x.shape) < 0.6
            return x * self.kept / 0.6

        def backward(self, grad):
            return grad * self.kept / 0.6

    mine = impl.Sequential(impl.Linear(6, 20), Opaque(0.4), impl.Linear(20, 3))
    theirs = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.4), nn.Linear(20, 3))
    report = train(mine, theirs)
    assert not report.passed
    assert report.cause.name == "mask_missing", report


def test_batches_come_in_many_forms():
    def epoch(number):
        order = np.random.default_rng(number).permutation(24)
        return [(X[rows], Y[rows]) for rows in np.array_split(order, 5)]

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y)), 7, shuffle=True
    )
    tensors = [(torch.tensor(x), torch.tensor(y)) for x, y in BATCHES]
    for batches in (epoch, loader, iter(BATCHES), tensors, (X, Y)):
        assert train(norm=False, batches=batches, dtypes="float64").passed


def test_a_float_target_and_a_summed_loss():
    mine, theirs = impl.Linear(6, 1), nn.Linear(6, 1)
    loss = (impl.MSELoss(reduction="sum"), nn.MSELoss(reduction="sum"))
    report = train(mine, theirs, loss=loss, optimizer=sgd(lr=0.01), batches=(X, TARGET), epochs=30)
    assert set(report.counts()) == {"MATCH"}, report


def test_a_diverging_run_is_compared_until_it_overflows():
    mine, theirs = impl.Linear(6, 1), nn.Linear(6, 1)
    loss = (impl.MSELoss(), nn.MSELoss())
    report = train(mine, theirs, loss=loss, optimizer=sgd(lr=1e4), batches=(X, TARGET), epochs=100)
    assert report.passed, report
    assert any("diverges" in note for note in report.notes)
    assert report.of("trajectory")[0].step < 100


def test_what_mine_does_not_show_is_not_covered():
    class Bare:
        def __init__(self, model):
            self.inner = impl.SGD(model, lr=0.1, momentum=0.9)
            self.step, self.zero_grad = self.inner.step, self.inner.zero_grad

    report = train(norm=False, optimizer=(Bare, sgd(momentum=0.9)[1]))
    assert report.passed, report
    assert any("optimizer state" in item for item in report.not_covered)
    assert not train(norm=False, optimizer=(Bare, sgd(momentum=0.9)[1]), strict=True).passed


# ---- what does not ------------------------------------------------------------------------------


class NeverTrains(impl.BatchNorm1d):
    def train(self, mode=True):
        return super().train(False)

    def __setattr__(self, name, value):
        super().__setattr__(name, False if name == "training" else value)


def test_wrong_mode_is_named():
    mine, _ = nets()
    mine[1] = NeverTrains(8)
    report = train(mine)
    assert not report.passed
    assert report.failures[0].step == 1
    assert report.cause.name == "wrong_mode", report


def test_evaluation_mode_that_is_never_entered_shows_in_the_predictions():
    class NeverEvaluates(impl.BatchNorm1d):
        def __setattr__(self, name, value):
            super().__setattr__(name, True if name == "training" else value)

    mine, _ = nets()
    mine[1] = NeverEvaluates(8)
    report = train(mine)
    wrong = {f.quantity for f in report.findings if f.verdict == "MISMATCH"}
    assert wrong == {"predictions"}, report


def test_consequences_are_not_reported_as_faults():
    report = train(norm=False, optimizer=(sgd(lr=0.2)[0], sgd()[1]))
    assert not report.passed
    wrong = {(f.quantity, f.step) for f in report.findings if f.verdict == "MISMATCH"}
    assert ("parameter_0.weight", 1) in wrong
    assert ("trajectory", 2) in wrong
    assert all(step == 1 for quantity, step in wrong if quantity != "trajectory")
    later = [f for f in report.findings if f.verdict == "SKIPPED"]
    assert any("had parted at step 1" in f.evidence["message"] for f in later)


def test_a_late_fault_is_found_at_its_step():
    class Tired(impl.SGD):
        count = 0

        def step(self):
            self.count += 1
            if self.count != 7:
                super().step()

    report = train(norm=False, epochs=4, optimizer=(lambda m: Tired(m, lr=0.1), sgd()[1]))
    assert not report.passed
    assert min(f.step for f in report.failures) == 7, report


def test_code_that_raises_is_a_finding_with_its_step():
    class Breaks(impl.SGD):
        count = 0

        def step(self):
            self.count += 1
            if self.count == 3:
                raise KeyError("velocity")
            super().step()

    report = train(norm=False, optimizer=(lambda m: Breaks(m, lr=0.1), sgd()[1]))
    (finding,) = report.failures
    assert (finding.verdict, finding.quantity, finding.step) == ("ERROR", "optimizer step", 3)
    assert "velocity" in str(finding)
    assert "Traceback" in finding.evidence["traceback"]


def test_a_parameter_without_a_partner_is_an_error():
    mine = impl.Sequential(impl.Linear(6, 3, bias=False))
    report = train(mine, nn.Sequential(nn.Linear(6, 3)))
    assert report.cause.name == "missing_partner", report


def test_parameters_that_become_double_are_found():
    class Widens(impl.SGD):
        def step(self):
            super().step()
            for name in list(self.model.params):
                self.model.params[name] = self.model.params[name].astype(np.float64)

    report = train(norm=False, optimizer=(lambda m: Widens(m, lr=0.1), sgd()[1]))
    assert not report.passed
    assert report.cause.name == "wrong_dtype", report


def test_a_coarse_float32_run_is_reported_and_does_not_decide():
    class Half(impl.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y.astype(np.float16).astype(y.dtype) if y.dtype == np.float32 else y

    report = train(impl.Sequential(Half(6, 3)), nn.Sequential(nn.Linear(6, 3)))
    assert report.passed, report
    (narrow,) = [f for f in report.of("trajectory") if f.dtype == "float32"]
    assert narrow.verdict == "INACCURATE"
    assert "leaves the envelope" in narrow.evidence["message"]


def test_a_float32_only_net_is_judged_against_the_envelope():
    class Single(impl.Linear):
        def forward(self, x):
            return super().forward(x).astype(np.float32)

    report = train(impl.Sequential(Single(6, 3)), nn.Sequential(nn.Linear(6, 3)))
    assert report.passed, report
    assert any("float32 only" in note for note in report.notes)


class HalfAtZero(impl.ReLU):
    """The derivative ½ at 0, as torch.maximum has it; torch's ReLU has 0 there."""

    def forward(self, x):
        self.x = x
        return super().forward(x)

    def backward(self, grad):
        return grad * ((self.x > 0) + 0.5 * (self.x == 0)).astype(grad.dtype)


@pytest.mark.parametrize(("relu", "passes"), [(impl.ReLU, True), (HalfAtZero, False)])
def test_a_start_on_the_kink_is_decided(relu, passes):
    torch.manual_seed(4)
    theirs = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 1))
    nn.init.zeros_(theirs[0].bias)
    mine = impl.Sequential(impl.Linear(1, 16), relu(), impl.Linear(16, 1))
    x = np.arange(-5, 6)[:, None] / 10
    loss = (impl.MSELoss(reduction="sum"), nn.MSELoss(reduction="sum"))
    report = train(mine, theirs, loss=loss, optimizer=sgd(lr=1e-2), batches=(x, x**2), epochs=5)
    assert report.passed is passes, report
    assert not any(f.verdict == "UNDECIDED" for f in report.findings), report
    if not passes:
        assert (report.failures[0].quantity, report.failures[0].step) == ("grad_0.bias", 1)


@pytest.mark.slow
def test_chaos_is_left_open_and_not_called_a_match():
    torch.manual_seed(5)
    mine = impl.Sequential(impl.Linear(6, 16), impl.Tanh(), impl.Linear(16, 1))
    theirs = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    loss = (impl.MSELoss(), nn.MSELoss())
    report = train(mine, theirs, loss=loss, optimizer=sgd(lr=0.3), batches=(X, TARGET), epochs=100)
    verdicts = [f for f in report.of("trajectory") if f.dtype == "float64"]
    assert [f.verdict for f in verdicts] == ["MATCH", "UNDECIDED"], report
    assert verdicts[1].step == verdicts[0].step + 1
    assert any("no longer tell" in note for note in report.notes)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("lr", [0.8, 1.2, 2.0])
def test_saturation_in_a_diverging_run_is_no_fault(lr):
    torch.manual_seed(5)
    mine = impl.Sequential(impl.Linear(6, 16), impl.Tanh(), impl.Linear(16, 1))
    theirs = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    loss = (impl.MSELoss(), nn.MSELoss())
    report = train(mine, theirs, loss=loss, optimizer=sgd(lr=lr), batches=(X, TARGET), epochs=25)
    assert report.passed, report


# ---- vacuous runs -------------------------------------------------------------------------------


def test_a_run_that_trains_nothing_is_vacuous():
    report = train(norm=False, optimizer=sgd(lr=0.0), batches=(X, Y))
    assert not report.passed
    assert {f.verdict for f in report.failures} == {"VACUOUS"}, report


def test_the_same_object_on_both_sides_is_vacuous():
    _, theirs = nets()
    report = parity.check_training(
        theirs, theirs, loss=(nn.CrossEntropyLoss(), nn.CrossEntropyLoss()),
        optimizer=(lambda model: torch.optim.SGD(model.parameters(), lr=0.1), sgd()[1]),
        batches=BATCHES,
    )  # fmt: skip
    assert [f.quantity for f in report.failures] == ["both"]


def test_a_gap_is_skipped_while_it_is_open_and_an_error_once_closed():
    wrong = (sgd(lr=0.2)[0], sgd()[1])
    names = {f.quantity for f in train(norm=False, optimizer=wrong).failures}
    gaps = dict.fromkeys(names, "the rate is another on purpose")
    assert not train(norm=False, optimizer=wrong, gaps=gaps).failures
    assert train(norm=False, gaps={"trajectory": "old"}).cause.name == "gap_closed"


# ---- what users mistype -------------------------------------------------------------------------

REFUSED = {
    "no-batches": (dict(batches=None), "no batches"),
    "empty": (dict(batches=[]), "empty"),
    "one-array": (dict(batches=X), "single array"),
    "not-pairs": (dict(batches=[X, X]), "pair"),
    "lengths": (dict(batches=[(X, Y[:3])]), "first axes"),
    "text": (dict(batches="train"), "str"),
    "strings": (dict(batches=[(np.array(["a"]), np.array([1]))]), "real numbers"),
    "zero-epochs": (dict(epochs=0), "positive integer"),
    "half-epoch": (dict(epochs=1.5), "positive integer"),
    "no-loss": (dict(loss=None), "pair"),
    "one-loss": (dict(loss=nn.CrossEntropyLoss()), "pair"),
    "loss-without-backward": (dict(loss=(3, nn.CrossEntropyLoss())), "forward"),
    "no-optimizer": (dict(optimizer=None), "pair"),
    "optimizer-made": (dict(optimizer=(impl.SGD(impl.Linear(2, 2), lr=1), sgd()[1])), "factory"),
    "no-step": (dict(optimizer=(lambda model: object(), sgd()[1])), "no step"),
    "not-torch": (dict(optimizer=(sgd()[0], lambda params: object())), "torch optimizer"),
    "reference": (dict(reference=3), "torch.nn.Module"),
    "no-parameters": (dict(reference=nn.ReLU()), "no parameters"),
    "option": (dict(dtype="float32"), "did you mean"),
    "labels": (dict(batches=[(X, Y + 0.5)]), "refuses"),
    "not-a-number": (dict(loss=(CROSS[0], nn.CrossEntropyLoss(reduction="none"))), "single number"),
    "scheduler": (dict(scheduler=3), "pair"),
    "optimizers-swapped": (
        dict(optimizer=(sgd()[1], sgd()[0])),
        r"optimizer\[1\] raised TypeError: .*; the second of the pair takes parameters and returns",
    ),
    "both-mine": (dict(optimizer=(sgd()[0], sgd()[0])), r"optimizer\[1\] raised TypeError"),
    "both-torch": (
        dict(optimizer=(sgd()[1], sgd()[1])),
        r"optimizer\[0\] raised TypeError: .*; the first of the pair is given the model",
    ),
    "optimizer-raises": (
        dict(optimizer=(sgd()[0], lambda params: 1 / 0)),
        r"optimizer\[1\] raised ZeroDivisionError: division by zero; the second of the pair",
    ),
    "scheduler-raises": (
        dict(scheduler=(lambda optimizer: None, lambda optimizer: 1 / 0)),
        r"scheduler\[1\] raised ZeroDivisionError: .*; the second of the pair takes torch's opt",
    ),
    "loss-class": (
        dict(loss=(impl.CrossEntropyLoss, nn.CrossEntropyLoss())),
        r"loss\[0\] is the class CrossEntropyLoss; give an instance: CrossEntropyLoss\(…\)",
    ),
    "torch-loss-class": (
        dict(loss=(CROSS[0], nn.CrossEntropyLoss)),
        r"loss\[1\] is the class CrossEntropyLoss; give an instance: CrossEntropyLoss\(…\)",
    ),
    "losses-swapped": (
        dict(loss=(nn.CrossEntropyLoss(), impl.CrossEntropyLoss())),
        r"loss\[1\] is CrossEntropyLoss, which has a backward of its own: it looks hand-written",
    ),
    "nan": (
        dict(batches=[(X, Y), (np.where(np.eye(*X.shape) > 0, np.nan, X), Y)]),
        r"batches\[1\] has nan in x at \(0, 0\): no number after it could be compared; leave out",
    ),
    "infinite-target": (
        dict(batches=[(X, np.full(X.shape, np.inf))]),
        r"batches\[0\] has inf in y at \(0, 0\)",
    ),
    "expects-zero": (
        dict(expects_zero=["grad_0.wieght"]),
        r"expects_zero names 'grad_0.wieght', did you mean 'grad_0.weight'\?; possible: traject",
    ),
    "option-misspelt": (
        dict(optimiser=None),
        r"unknown option 'optimiser', did you mean 'optimizer'\?; options: loss, optimizer, "
        r"batches, epochs, scheduler, seed, .*, strict, diagnose, case$",
    ),
    "option-elsewhere": (dict(epoch=2), r"unknown option 'epoch', did you mean 'epochs'\?"),
    "option-of-a-layer": (dict(seedz=2), r"unknown option 'seedz', did you mean 'seeds?'\?"),
    "weights": (
        dict(weights={"0.weight": "0.wieght"}),
        r"weights names '0.wieght', did you mean '0.weight'\?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_get_one_clear_line(name):
    change, text = REFUSED[name]
    with pytest.raises(parity.UsageError, match=text) as caught:
        train(**change)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_no_number_from_the_first_step_proves_nothing():
    class Undefined(impl.CrossEntropyLoss):
        def forward(self, prediction, target):
            return super().forward(prediction, target) * np.nan

    class Theirs(nn.CrossEntropyLoss):
        def forward(self, prediction, target):
            return super().forward(prediction, target) * float("nan")

    report = train(loss=(Undefined(), Theirs()))
    assert not report.passed
    assert "the reference's loss is nan at the first step" in str(report)


def test_a_gap_that_names_nothing_is_told_from_a_closed_one():
    report = train(gaps={"grad_0.wieght": "old"})
    assert "the gap names 'grad_0.wieght', which is not compared, did you mean" in str(report)


def test_batches_that_change_when_asked_again_are_refused():
    rng = np.random.default_rng(0)

    def epoch(number):
        return [(rng.standard_normal((5, 6)), Y[:5])]

    with pytest.raises(parity.UsageError, match="other numbers"):
        train(batches=epoch)


@pytest.mark.parametrize("option", [{"modes": "train"}, {"isolate": True}, {"rungs": "exact"}])
def test_options_of_a_single_layer_are_refused_by_name(option):
    with pytest.raises(NotImplementedError, match=next(iter(option))):
        train(**option)


def test_an_optimizer_of_the_users_own_objects_is_refused():
    mine, theirs = nets()
    with pytest.raises(parity.UsageError, match="never touches"):
        train(mine, theirs, optimizer=(lambda model: impl.SGD(mine, lr=1.0), sgd()[1]))
    with pytest.raises(parity.UsageError, match="another module"):
        train(
            mine,
            theirs,
            optimizer=(sgd()[0], lambda params: torch.optim.SGD(theirs.parameters(), lr=1.0)),
        )
