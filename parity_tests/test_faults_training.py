"""check_training against plain classes that import nothing of ours, right ones and wrong ones."""

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity

RNG = np.random.default_rng(7)
X = RNG.standard_normal((22, 5))
Y = RNG.integers(0, 3, 22)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 22, 8)]


class Net:
    """Linear, ReLU, Linear, as somebody writes it in a course: gradients add up until zeroed."""

    def __init__(self):
        self.params = {
            "0.weight": np.zeros((6, 5)), "0.bias": np.zeros(6),
            "2.weight": np.zeros((3, 6)), "2.bias": np.zeros(3),
        }  # fmt: skip
        self.zero_grad()

    def zero_grad(self):
        self.grads = {name: np.zeros_like(array) for name, array in self.params.items()}

    def forward(self, x):
        p = self.params
        self.x, self.h = x, x @ p["0.weight"].T + p["0.bias"]
        self.a = np.maximum(self.h, 0)
        return self.a @ p["2.weight"].T + p["2.bias"]

    def backward(self, grad):
        self.grads["2.weight"] += grad.T @ self.a
        self.grads["2.bias"] += grad.sum(0)
        grad = (grad @ self.params["2.weight"]) * (self.h > 0)
        self.grads["0.weight"] += grad.T @ self.x
        self.grads["0.bias"] += grad.sum(0)
        return grad @ self.params["0.weight"]


class CrossEntropy:
    def forward(self, prediction, target):
        shifted = prediction - prediction.max(1, keepdims=True)
        log = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        self.p, self.target = np.exp(log), target
        return -log[np.arange(len(target)), target].mean()

    def backward(self):
        grad = self.p.copy()
        grad[np.arange(len(grad)), self.target] -= 1
        return grad / len(grad)


class SGD:
    def __init__(self, model, lr=0.1, momentum=0.0, weight_decay=0.0):
        self.model, self.lr, self.m, self.wd = model, lr, momentum, weight_decay
        self.state = {}

    def zero_grad(self):
        self.model.zero_grad()

    def step(self):
        for name, p in self.model.params.items():
            g = self.model.grads[name] + self.wd * p
            p -= p.dtype.type(self.lr) * self.direction(name, g, p)

    def direction(self, name, g, p):
        if not self.m:
            return g
        slots = self.state.setdefault(name, {})
        old = slots.get("momentum_buffer")
        slots["momentum_buffer"] = g.copy() if old is None else self.mixed(old, g)
        return slots["momentum_buffer"]

    def mixed(self, old, g):
        return self.m * old + g


class Adam:
    inside = corrected = False

    def __init__(self, model, lr=0.01, betas=(0.9, 0.999), eps=1e-8):
        self.model, self.lr, self.betas, self.eps = model, lr, betas, eps
        self.state, self.t = {}, 0

    def step(self):
        self.t += 1
        b1, b2 = self.betas
        for name, p in self.model.params.items():
            g = self.model.grads[name]
            slots = self.state.setdefault(name, {"exp_avg": 0 * g, "exp_avg_sq": 0 * g})
            slots["exp_avg"] = m = b1 * slots["exp_avg"] + (1 - b1) * g
            slots["exp_avg_sq"] = v = b2 * slots["exp_avg_sq"] + (1 - b2) * g * g
            p -= self.update(m, v).astype(p.dtype)

    def corrections(self):
        return 1 - self.betas[0] ** self.t, 1 - self.betas[1] ** self.t

    def update(self, m, v):
        c1, c2 = self.corrections()
        return self.lr * (m / c1) / (np.sqrt(v / c2) + self.eps)


def reference():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


def train(
    model=None, loss=None, mine=SGD, theirs=torch.optim.SGD, options=None, given=None, **more
):
    """Run check_training with one side's parts replaced."""
    options = options or {"lr": 0.1}
    return parity.check_training(
        model or Net(),
        reference(),
        loss=(loss or CrossEntropy(), nn.CrossEntropyLoss()),
        optimizer=(
            lambda net: mine(net, **(options if given is None else given)),
            lambda params: theirs(params, **options),
        ),
        batches=more.pop("batches", BATCHES),
        epochs=more.pop("epochs", 2),
        **more,
    )


MOMENTUM = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}


@pytest.mark.parametrize(
    ("mine", "theirs", "options"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.1}),
        (SGD, torch.optim.SGD, MOMENTUM),
        (Adam, torch.optim.Adam, {"lr": 0.01}),
    ],
)
def test_plain_classes_pass(mine, theirs, options):
    report = train(mine=mine, theirs=theirs, options=options)
    assert report.passed, report
    assert set(report.counts()) == {"MATCH"}, report
    if options != {"lr": 0.1}:
        assert any(f.quantity.startswith("state_0.weight.") for f in report.findings)


def test_objects_of_the_user_are_not_touched():
    model, theirs = Net(), reference()
    kept = {n: t.clone() for n, t in theirs.state_dict().items()}
    parity.check_training(
        model, theirs, loss=(CrossEntropy(), nn.CrossEntropyLoss()),
        optimizer=(SGD, lambda params: torch.optim.SGD(params, lr=0.1)), batches=BATCHES,
    )  # fmt: skip
    assert not any(array.any() for array in [*model.params.values(), *model.grads.values()])
    assert not hasattr(model, "x")
    assert all(torch.equal(kept[n], t) for n, t in theirs.state_dict().items())
    assert all(p.grad is None for p in theirs.parameters())


# ---- faults: each a few lines that somebody has really written ----------------------------------


class NeverZeroed(Net):
    def __init__(self):
        super().__init__()
        self.zero_grad = lambda: None


class ForgetsToZero(SGD):
    def zero_grad(self):
        pass


class Stale(SGD):
    """Steps with the gradients of the step before."""

    def step(self):
        now = {n: g.copy() for n, g in self.model.grads.items()}
        self.model.grads = getattr(self, "last", now)
        self.last = now
        super().step()


class StaleNet(Net):
    """Hands out the gradients of the step before."""

    def backward(self, grad):
        out = super().backward(grad)
        now = self.grads
        self.grads = {n: g.copy() for n, g in getattr(self, "last", now).items()}
        self.last = now
        return out


class AveragedTwice(CrossEntropy):
    def forward(self, prediction, target):
        return super().forward(prediction, target) / len(target)

    def backward(self):
        return super().backward() / len(self.target)


class GradientAveragedTwice(CrossEntropy):
    def backward(self):
        return super().backward() / len(self.target)


class FixedBatch(CrossEntropy):
    """Divides by the batch size that it was written for, the last short batch too."""

    def forward(self, prediction, target):
        return super().forward(prediction, target) * len(target) / 8

    def backward(self):
        return super().backward() * len(self.target) / 8


class Reversed(CrossEntropy):
    def forward(self, prediction, target):
        return super().forward(prediction, target[::-1])


class Shuffled(CrossEntropy):
    def forward(self, prediction, target):
        return super().forward(prediction, np.random.default_rng(1).permutation(target))


class Swapped(SGD):
    def mixed(self, old, g):
        return (1 - self.m) * old + g


class Dampened(SGD):
    def mixed(self, old, g):
        return self.m * old + (1 - self.m) * g


class RateInside(SGD):
    """v = m·v + lr·g; p -= v: the same steps until the learning rate changes."""

    def step(self):
        for name, p in self.model.params.items():
            slots = self.state.setdefault(name, {"momentum_buffer": np.zeros_like(p)})
            g = self.model.grads[name] + self.wd * p
            slots["momentum_buffer"] = self.m * slots["momentum_buffer"] + self.lr * g
            p -= slots["momentum_buffer"].astype(p.dtype)


class DecaysAfter(SGD):
    """Weight decay is added to the step, after the momentum."""

    def step(self):
        for name, p in self.model.params.items():
            decay = self.wd * p
            p -= p.dtype.type(self.lr) * (self.direction(name, self.model.grads[name], p) + decay)


class Nesterov(SGD):
    def __init__(self, model, nesterov=True, **options):
        super().__init__(model, **options)

    def direction(self, name, g, p):
        return g + self.m * super().direction(name, g, p)


class NesterovWrong(Nesterov):
    """Adds the momentum to the gradient, where the buffer should be looked ahead from."""

    def direction(self, name, g, p):
        return SGD.direction(self, name, g, p) + self.m * g


class NesterovMissing(Nesterov):
    direction = SGD.direction


class Uncorrected(Adam):
    def corrections(self):
        return 1.0, 1.0


class HalfCorrected(Adam):
    def corrections(self):
        return 1 - self.betas[0] ** self.t, 1.0


class EpsInside(Adam):
    def update(self, m, v):
        c1, c2 = self.corrections()
        return self.lr * (m / c1) / np.sqrt(v / c2 + self.eps)


ADAM = {"mine": Adam, "theirs": torch.optim.Adam, "options": {"lr": 0.01}}
NESTEROV = {"lr": 0.1, "momentum": 0.8, "nesterov": True}
FAULTS = {
    "zero_grad-model": (dict(model=NeverZeroed()), 2, "gradients_not_zeroed"),
    "zero_grad-optimizer": (dict(mine=ForgetsToZero), 2, "gradients_not_zeroed"),
    "stale-optimizer": (dict(mine=Stale), 2, "stale_gradients"),
    "stale-model": (dict(model=StaleNet()), 2, "stale_gradients"),
    "averaged-twice": (dict(loss=AveragedTwice()), 1, "loss_averaged_twice"),
    "averaged-twice-grad": (dict(loss=GradientAveragedTwice()), 1, "loss_averaged_twice"),
    "short-batch": (dict(loss=FixedBatch()), 3, "short_batch_normalised"),
    "labels-reversed": (dict(loss=Reversed()), 1, "labels_misaligned"),
    "labels-shuffled": (dict(loss=Shuffled()), 1, None),
    "momentum-swapped": (dict(mine=Swapped, options=MOMENTUM), 2, "momentum_swapped"),
    "dampening": (dict(mine=Dampened, options=MOMENTUM), 2, "wrong_dampening"),
    "rate-in-buffer": (dict(mine=RateInside, options=MOMENTUM), 1, "lr_inside_buffer"),
    "decay-after": (dict(mine=DecaysAfter, options=MOMENTUM), 1, "weight_decay_after_momentum"),
    "decay-missing": (
        dict(options=MOMENTUM, given=MOMENTUM | {"weight_decay": 0.0}), 1, "weight_decay_ignored",
    ),
    "nesterov-wrong": (dict(mine=NesterovWrong, options=NESTEROV), 2, "nesterov_wrong"),
    "nesterov-missing": (dict(mine=NesterovMissing, options=NESTEROV), 1, "nesterov_ignored"),
    "bias-correction": (ADAM | dict(mine=Uncorrected), 1, "bias_correction_missing"),
    "bias-correction-half": (ADAM | dict(mine=HalfCorrected), 1, "bias_correction_missing"),
    "eps-inside": (ADAM | dict(mine=EpsInside), 1, "eps_inside_sqrt"),
    "lr": (dict(given={"lr": 0.2}), 1, "wrong_lr"),
}  # fmt: skip


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught_at_its_first_step(name):
    change, step, cause = FAULTS[name]
    report = train(**change)
    assert not report.passed, report
    wrong = [f for f in report.findings if f.verdict == "MISMATCH" and f.dtype == "float64"]
    assert min(f.step for f in wrong) == step, report
    assert (report.cause and report.cause.name) == cause, report


def test_nesterov_is_accepted_where_it_is_right():
    assert train(mine=Nesterov, options=NESTEROV).passed


class StepLR:
    """Halves the rate every ``size`` epochs, ``early`` epochs too soon."""

    def __init__(self, optimizer, size=2, early=0):
        self.optimizer, self.size, self.epoch, self.base = optimizer, size, early, optimizer.lr

    def step(self):
        self.epoch += 1
        self.optimizer.lr = self.base * 0.5 ** (self.epoch // self.size)


@pytest.mark.parametrize(("early", "passes"), [(0, True), (1, False)])
def test_schedule_off_by_one(early, passes):
    report = train(
        epochs=4,
        scheduler=(
            lambda optimizer: StepLR(optimizer, early=early),
            lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
        ),
    )
    assert report.passed is passes, report
    if not passes:
        # the fourth batch is the first of the second epoch, where the rate is halved too soon
        assert min(f.step for f in report.failures) == 4, report
        assert report.cause.name == "schedule_off_by_one", report


def test_rate_inside_the_buffer_shows_in_the_steps_once_the_rate_changes():
    report = train(
        mine=RateInside,
        options=MOMENTUM,
        epochs=3,
        scheduler=(
            lambda optimizer: StepLR(optimizer, 1),
            lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
        ),
    )
    assert not report.passed
    assert any(f.step == 5 for f in report.of("trajectory")), report


# ---- steps of another length ---------------------------------------------------------------------


class Clipped(torch.optim.SGD):
    """torch's SGD with the clipping inside its step."""

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        return super().step(closure)


class Tripling(torch.optim.SGD):
    """torch's SGD with something else inside its step."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = 3 * p.grad.abs()
        return super().step(closure)


class Around:
    """An optimizer around torch's, which is no class of torch's: it clips."""

    def __init__(self, params):
        self.held = list(params)
        self.inner = torch.optim.SGD(self.held, lr=0.1)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def step(self):
        torch.nn.utils.clip_grad_norm_(self.held, 0.1)
        self.inner.step()

    def zero_grad(self):
        self.inner.zero_grad()


class Fading(impl.SGD):
    """A rate that falls from step to step, with no schedule on either side."""

    def step(self):
        super().step()
        self.lr = self.lr / 1.3


class Partly(impl.SGD):
    """Its step leaves out the bias."""

    def step(self):
        before = self.model.params["bias"].copy()
        super().step()
        self.model.params["bias"][...] = before


def linear_run(mine, theirs, **options):
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((8, 4)), rng.standard_normal((8, 3))) for _ in range(4)]
    return parity.check_training(
        impl.Linear(4, 3), torch.nn.Linear(4, 3), loss=(impl.MSELoss(), torch.nn.MSELoss()),
        optimizer=(mine, theirs), batches=batches, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mine", "theirs", "name", "words"),
    [
        (impl.SGD, lambda p: Clipped(p, lr=0.1), "gradients_clipped",
         "torch's gradients are clipped to the norm 0.1 before the step, mine are not"),
        (impl.SGD, lambda p: Clipped(p, lr=0.1, momentum=0.9), "gradients_clipped",
         "torch's gradients are clipped to the norm 0.1 before the step, mine are not"),
        (impl.SGD, Around, "gradients_clipped",
         "torch's gradients are clipped to the norm 0.1 before the step, mine are not"),
        (impl.SGD, lambda p: Tripling(p, lr=0.1), "plain_step",
         "torch's optimizer (Tripling) does more in its step than SGD, mine not"),
        (Fading, lambda p: torch.optim.SGD(p, lr=0.1), "step_scaled",
         "the step is 0.769231 × torch's at step 2, for all parameters alike, and by other "
         "factors at other steps"),
        (Partly, lambda p: torch.optim.SGD(p, lr=0.1), "parameters_not_updated",
         "bias: the optimizer never updates it"),
    ],
)  # fmt: skip
def test_a_step_of_another_length_is_no_schedule(mine, theirs, name, words):
    momentum = theirs(torch.nn.Linear(4, 3).parameters()).param_groups[0]["momentum"]
    report = linear_run(lambda model: mine(model, lr=0.1, momentum=momentum), theirs)
    assert (report.cause.name, report.cause.sentence) == (name, words)


def test_a_rate_that_no_step_tells_from_clipping_is_not_called_clipping():
    report = linear_run(
        lambda model: impl.SGD(model, lr=0.05), lambda p: torch.optim.SGD(p, lr=0.1)
    )
    assert report.cause.name == "wrong_lr"


class Adamax:
    """Adamax that adds eps when it divides, torch before it takes the maximum."""

    def __init__(self, model):
        self.model, self.t = model, 0
        self.state = {n: {"exp_avg": 0 * p, "exp_inf": 0 * p} for n, p in model.params.items()}

    def zero_grad(self):
        self.model.zero_grad()

    def step(self):
        self.t += 1
        for name, param in self.model.params.items():
            g, held = self.model.grads[name], self.state[name]
            held["exp_avg"] = 0.9 * held["exp_avg"] + 0.1 * g
            held["exp_inf"] = np.maximum(0.999 * held["exp_inf"], np.abs(g))
            rate = 0.01 / (1 - 0.9**self.t)
            param -= rate * held["exp_avg"] / (held["exp_inf"] + 1e-8)


def test_a_candidate_is_never_torchs_own():
    report = linear_run(Adamax, lambda p: torch.optim.Adamax(p, lr=0.01))
    assert not report.passed
    assert report.cause is None, report
