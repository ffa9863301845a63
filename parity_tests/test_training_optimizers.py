"""check_training against optimizers written from torch's documentation, right ones and wrong."""

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity

RNG = np.random.default_rng(0)
BATCHES = [(RNG.standard_normal((8, 4)), RNG.standard_normal((8, 3))) for _ in range(4)]


class Written:
    """An optimizer as somebody writes it: constants are class attributes, to be got wrong."""

    late = 0  # how far the step count is ahead
    kept = staticmethod(float)  # the precision of the bookkeeping

    def __init__(self, model):
        self.model, self.t = model, 0
        self.state = {name: {} for name in model.params}

    def zero_grad(self):
        self.model.zero_grad()

    def step(self):
        self.t += 1
        for name, p in self.model.params.items():
            self.update(p, self.model.grads[name], self.state[name], self.t + self.late)


class NAdam(Written):
    lr, b1, b2, eps, momentum_decay = 2e-3, 0.9, 0.999, 1e-8, 4e-3

    def momentum(self, t):
        return self.b1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay))

    def update(self, p, g, s, t):
        if not s:
            s |= {"exp_avg": 0 * g, "exp_avg_sq": 0 * g, "mu_product": self.kept(1.0)}
        mu, following = self.momentum(t), self.momentum(t + 1)
        s["mu_product"] = self.kept(s["mu_product"] * self.kept(mu))
        product = float(s["mu_product"])
        s["exp_avg"] = self.b1 * s["exp_avg"] + (1 - self.b1) * g
        s["exp_avg_sq"] = self.b2 * s["exp_avg_sq"] + (1 - self.b2) * g * g
        root = np.sqrt(s["exp_avg_sq"] / (1 - self.b2**t)) + self.eps
        p -= (self.lr * (1 - mu) / (1 - product) * g / root).astype(p.dtype)
        rate = self.lr * following / (1 - product * following)
        p -= (rate * s["exp_avg"] / root).astype(p.dtype)


class ASGD(Written):
    lr, lambd, alpha, t0 = 0.01, 1e-4, 0.75, 3.0

    def update(self, p, g, s, t):
        if not s:
            s |= {"ax": 0 * p, "eta": self.kept(self.lr), "mu": self.kept(1.0)}
        eta, mu = float(s["eta"]), float(s["mu"])
        p *= 1 - self.lambd * eta
        p -= (eta * g).astype(p.dtype)
        s["ax"] = p.copy() if mu == 1 else s["ax"] + mu * (p - s["ax"])
        s["eta"] = self.kept(self.lr / (1 + self.lambd * self.lr * t) ** self.alpha)
        s["mu"] = self.kept(1 / max(1, t - self.t0))


class RAdam(Written):
    """Skips the update while the variance is not tractable, where torch steps without it."""

    def update(self, p, g, s, t):
        if not s:
            s |= {"exp_avg": 0 * g, "exp_avg_sq": 0 * g}
        s["exp_avg"] = 0.9 * s["exp_avg"] + 0.1 * g
        s["exp_avg_sq"] = 0.999 * s["exp_avg_sq"] + 0.001 * g * g
        end = 2 / (1 - 0.999) - 1
        rho = end - 2 * t * 0.999**t / (1 - 0.999**t)
        if rho > 5:
            r = np.sqrt((rho - 4) * (rho - 2) * end / ((end - 4) * (end - 2) * rho))
            root = np.sqrt(s["exp_avg_sq"]) + 1e-8
            rate = 0.01 * r * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            p -= (rate * s["exp_avg"] / root).astype(p.dtype)


THEIRS = {
    NAdam: lambda params: torch.optim.NAdam(params, lr=2e-3),
    ASGD: lambda params: torch.optim.ASGD(params, lr=0.01, t0=3.0),
    RAdam: lambda params: torch.optim.RAdam(params, lr=0.01),
}


def run(mine, theirs=None, batches=BATCHES, epochs=3, loss=None, **changed):
    torch.manual_seed(2)
    kind = type(mine.__name__, (mine,), changed) if changed else mine
    return parity.check_training(
        impl.Linear(4, 3), nn.Linear(4, 3), loss=loss or (impl.MSELoss(), nn.MSELoss()),
        optimizer=(kind, theirs or THEIRS[mine]), batches=batches, epochs=epochs,
    )  # fmt: skip


# ---- numbers that torch keeps in float32 ---------------------------------------------------------

# its NAdam steps otherwise and has state that the replay of a rule does not know: no names there
OLD = pytest.mark.skipif(not hasattr(torch, "compile"), reason="torch 1.13: best effort")


@OLD
@pytest.mark.parametrize(("mine", "slots"), [(NAdam, "mu_product"), (ASGD, "eta and mu")])
def test_bookkeeping_in_float64_is_right_and_so_is_torchs_own(mine, slots):
    report = run(mine)
    assert set(report.counts()) == {"MATCH"}, report
    notes = [note for note in report.notes if "float32: its own float64 steps are off by" in note]
    assert len(notes) == 1
    assert notes[0].startswith(f"torch keeps {slots} in float32"), notes
    report = run(mine, kept=staticmethod(np.float32))
    assert set(report.counts()) == {"MATCH"}, report
    assert not any("torch keeps" in note for note in report.notes)


WRONG = {
    "nadam-decay": (NAdam, {"momentum_decay": 5e-3}, None),
    "nadam-decay-slightly": (NAdam, {"momentum_decay": 4e-3 * (1 + 1e-6)}, None),
    "nadam-no-decay": (NAdam, {"momentum_decay": 0.0}, "momentum_decay_ignored"),
    "nadam-late": (NAdam, {"late": 1}, None),
    "nadam-beta": (NAdam, {"b1": 0.95}, "wrong_beta"),
    "nadam-eps": (NAdam, {"eps": 1e-10}, "wrong_eps"),
    "nadam-rate": (NAdam, {"lr": 2e-3 * (1 + 1e-8)}, None),
    "asgd-lambd": (ASGD, {"lambd": 1e-3}, None),
    "asgd-no-lambd": (ASGD, {"lambd": 0.0}, "lambd_ignored"),
    "asgd-late": (ASGD, {"late": 1}, None),
    "asgd-start": (ASGD, {"t0": 4.0}, None),
    "asgd-power": (ASGD, {"alpha": 0.7}, None),
}


@pytest.mark.one_in(5)
@OLD
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("kept", [float, np.float32])
def test_a_wrong_constant_is_not_taken_for_torchs_float32(name, kept):
    mine, changed, cause = WRONG[name]
    report = run(mine, kept=staticmethod(kept), **changed)
    assert not report.passed, report
    if cause is not None:
        assert report.cause.name == cause, report


def test_an_error_of_that_size_fails_where_torchs_numbers_do_not_move():
    class Slightly(impl.Adam):
        def step(self):
            self.lr = 0.01 * (1 + 1e-8)
            super().step()

    report = run(lambda m: Slightly(m, lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01))
    assert not report.passed, report
    assert not any("torch keeps" in note for note in report.notes)


def test_the_default_dtype_is_put_back_and_asked_for_once_something_parts(monkeypatch):
    seen = []
    given = torch.set_default_dtype
    monkeypatch.setattr(torch, "set_default_dtype", lambda d: (seen.append(d), given(d)))
    assert run(lambda m: impl.SGD(m, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)).passed
    assert not seen
    assert run(ASGD).passed
    assert seen
    assert torch.get_default_dtype() == torch.float32


def test_mine_that_does_not_repeat_itself_is_excused_nothing():
    count = [0]

    class Chancy(NAdam):
        def __init__(self, model):
            super().__init__(model)
            count[0] += 1
            self.lr = 2e-3 * (1 + 1e-9 * count[0])

    assert not run(Chancy, THEIRS[NAdam]).passed


class Hardsigmoid:
    def __init__(self, slope=1 / 6):
        self.params, self.grads, self.slope = {}, {}, slope

    def forward(self, x):
        self.inside = np.abs(x) < 3
        return np.clip(x / 6 + 0.5, 0, 1)

    def backward(self, grad):
        return grad * self.inside * self.slope


@pytest.mark.parametrize(
    ("slope", "passes"),
    [(1 / 6, True), (float(np.float32(1 / 6)), True), ((1 + 1e-8) / 6, False)],
)
def test_a_backward_pass_of_torchs_with_a_constant_in_float32(slope, passes):
    torch.manual_seed(0)
    report = parity.check_training(
        impl.Sequential(impl.Linear(4, 3), Hardsigmoid(slope), impl.Linear(3, 3)),
        nn.Sequential(nn.Linear(4, 3), nn.Hardsigmoid(), nn.Linear(3, 3)),
        loss=(impl.MSELoss(), nn.MSELoss()), batches=BATCHES,
        optimizer=(lambda m: impl.SGD(m, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    )  # fmt: skip
    assert report.passed is passes, report
    told = [note for note in report.notes if "torch keeps a number in float32" in note]
    assert len(told) == (slope == 1 / 6), report
    assert all("(grad 0.weight, step 1)" in note for note in told)


def test_a_reference_that_runs_in_one_dtype_only_excuses_nothing():
    class Narrow(torch.optim.NAdam):
        def step(self, closure=None):
            assert torch.get_default_dtype() == torch.float32
            return super().step(closure)

    assert not run(NAdam, lambda params: Narrow(params, lr=2e-3)).passed


# ---- which steps a sentence speaks of ------------------------------------------------------------


def test_updates_that_set_in_late_are_said_to_be_missing_until_then():
    report = run(RAdam)
    assert report.cause.sentence == (
        "the parameters stay as they were at steps 1 to 5, where torch's move"
    )


class HalfFrozen(impl.SGD):
    """Its bias joins in at step 5."""

    def step(self):
        before = self.model.params["bias"].copy()
        super().step()
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken < 5:
            self.model.params["bias"][...] = before


def test_one_parameter_that_joins_in_late():
    report = run(lambda m: HalfFrozen(m, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1))
    assert report.cause.sentence == "bias: it stays as it was at steps 1 to 4, where torch's move"


def clipped_together(base, limit):
    """Return torch's optimizer with the clipping inside its step."""

    class Clipped(base):
        def step(self, closure=None):
            params = [p for group in self.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(params, limit)
            return super().step(closure)

    return lambda params: Clipped(params, lr=0.01)


def clipped_alone(base, limit):
    """Return an optimizer that clips each gradient by its own norm."""

    class Clipped(base):
        def step(self):
            for grad in self.model.grads.values():
                grad *= min(1.0, limit / (np.linalg.norm(grad) + 1e-6))
            super().step()

    return lambda model: Clipped(model, lr=0.01)


def growing(count):
    """Return batches whose gradients are small at first."""
    x, y = BATCHES[0]
    return [(x * (1 + max(0, i - 4)), y * (1 + max(0, i - 4))) for i in range(count)]


# the norms of the bias's gradient, the weight's and both together are 0.66, 0.92 and 1.13 at first
TOGETHER = "torch clips the norm of all together"
CLIPPING = [
    (0.5, 4, "each parameter's gradient is clipped to the norm 0.5 for itself, " + TOGETHER),
    (2.0, 9, "each parameter's gradient is clipped to the norm 2 for itself, torch's are not"),
    (0.3, 4, None),  # a norm that nobody tries
]


@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize(("limit", "steps", "words"), CLIPPING)
def test_clipping_each_gradient_for_itself(name, limit, steps, words):
    mine, base = clipped_alone(getattr(impl, name), limit), getattr(torch.optim, name)
    theirs = clipped_together(base, limit) if limit < 1 else lambda params: base(params, lr=0.01)
    report = run(mine, theirs, growing(steps), 1)
    assert not report.passed
    assert (report.cause and report.cause.sentence) == words, report


@pytest.mark.parametrize(
    ("limit", "steps", "words"),
    [
        (1.0, 4, "torch's gradients are clipped to the norm 1 before the step, all together; mine "
         "are not at steps 1 to 4, where the norm of each alone is below it"),
        (1.0, 9, "each parameter's gradient is clipped to the norm 1 for itself, " + TOGETHER),
        (1.02, 9, None),  # what explains the first steps does not explain the others
    ],
)  # fmt: skip
def test_clipping_that_has_not_set_in_is_not_called_none(limit, steps, words):
    mine, theirs = clipped_alone(impl.SGD, limit), clipped_together(torch.optim.SGD, limit)
    report = run(mine, theirs, growing(steps), 1)
    assert not report.passed
    assert (report.cause and report.cause.sentence) == words, report


def test_replays_are_alike_but_for_ulps():
    from parity.trajectories.clipping import ULPS, _equal

    steps = [{"w": np.array([1.0, 1e-12])}, {"w": np.array([0.5, 0.0])}]

    def off(by):
        return [{"w": s["w"] + by} for s in steps]

    eps = np.finfo(np.float64).eps
    assert _equal(iter(steps), iter(off(ULPS * eps)))
    assert not _equal(iter(steps), iter(off(2 * ULPS * eps)))
    small = [{"w": 1e-14 * s["w"]} for s in steps]
    assert not _equal(iter(small), iter([{"w": 1.001 * s["w"]} for s in small]))


def test_a_rate_is_named_in_a_run_that_comes_to_rest():
    batches = [BATCHES[0]] * 60
    report = run(
        lambda m: impl.SGD(m, lr=0.9), lambda p: torch.optim.SGD(p, lr=0.6), batches, 1,
    )  # fmt: skip
    assert report.cause.sentence == "the learning rate is 0.9, 1.5 × torch's", report
