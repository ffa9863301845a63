"""Correct layers, written in other valid ways than torch's, that were once called wrong."""

import numpy as np
import pytest
import torch
from torch import nn

import impl
import parity
from fixtures import population_numpy
from parity import Verdict
from parity.checking import make_pair
from parity.draws import Draw
from parity.elements import homogeneous
from parity.ladder import judge32, judge64, response, second_look, shrink_ratio
from parity.options import make_options
from parity.pair import Looks


class Narrow:
    """Computes in float32 whatever it is given, as many a course layer does."""

    def forward(self, *inputs):
        return np.asarray(self.answer(*(a.astype(np.float32) for a in inputs)), dtype=np.float32)

    def backward(self, grad):
        return np.asarray(self.gradient(np.asarray(grad, dtype=np.float32)), dtype=np.float32)


class NarrowSoftmax(Narrow):
    """Softmax over the last axis."""

    def answer(self, x):
        e = np.exp(x - x.max(-1, keepdims=True))
        self.y = e / e.sum(-1, keepdims=True)
        return self.y

    def gradient(self, g):
        return self.y * (g - (g * self.y).sum(-1, keepdims=True))


class NarrowLoss(Narrow):
    """Mean squared error."""

    def answer(self, x, target):
        self.d = x - target
        return (self.d**2).mean()

    def gradient(self, g):
        return 2 * self.d / self.d.size * g


class FloatLoss(NarrowLoss):
    """The same, handed out as a Python float."""

    def forward(self, *inputs):
        return float(super().forward(*inputs))


class NarrowFourier(Narrow):
    """A linear map through the Fourier transform: integers come out rounded, in float32."""

    def answer(self, x):
        return np.fft.ifft(np.fft.fft(x) * 3).real

    def gradient(self, g):
        return np.fft.ifft(np.fft.fft(g) * 3).real


@pytest.mark.parametrize(
    ("mine", "theirs", "inputs"),
    [
        (NarrowSoftmax, nn.Softmax(-1), ((4, 7),)),
        (NarrowLoss, nn.MSELoss(), ((6, 4), (6, 4))),
        (FloatLoss, nn.MSELoss(), ((6, 4), (6, 4))),
        (NarrowFourier, lambda x: 3 * x, ((4, 7),)),
    ],
)
def test_a_layer_that_knows_float32_alone_is_judged_in_float32(mine, theirs, inputs):
    report = parity.check(mine, theirs, *inputs, seeds=3, strict=True)
    assert report.passed, str(report)
    assert any("float32 only" in note for note in report.notes)


def test_a_float32_layer_that_is_wrong_at_a_kink_or_a_second_time_is_caught():
    class Kink(Narrow):
        def answer(self, x):
            self.x = x
            return np.maximum(x, 0)

        def gradient(self, g):
            return g * (self.x >= 0)

    class Grows(NarrowSoftmax):
        calls = 0

        def answer(self, x):
            self.calls += 1
            return super().answer(x) * (1 if self.calls < 2 else 2)

    assert not parity.check(Kink, nn.ReLU(), (4, 7)).passed
    assert not parity.check(Grows, nn.Softmax(-1), (4, 7)).passed


def test_a_loss_whose_gradient_alone_is_float32_is_not_excused():
    class Loss(NarrowLoss):
        def forward(self, x, target):
            self.d = x - target
            return float((self.d**2).mean())

    assert not parity.check(Loss, nn.MSELoss(), (6, 4), (6, 4)).passed


class Twice:
    """Doubles its input."""

    def forward(self, x):
        return x * 2

    def backward(self, grad):
        return grad * 2


def test_rounding_that_a_few_moves_do_not_show_is_measured_again():
    """Beside 1e6 the last bit of x is lost: an answer one such bit off is as good as torch's."""
    pair = make_pair(Twice, lambda x: (x + 1e6) - 1e6, ((6, 4),), make_options({}))
    draw = pair.draw()
    ref = pair.theirs(draw).quantities["forward"]
    for off, verdict in ((np.spacing(1e6), Verdict.MATCH), (1e-6, Verdict.INACCURATE)):
        unmoved = judge64(ref + off, ref, np.zeros_like(ref))
        assert not unmoved.inside
        shown = "forward", unmoved, ref + off, ref, Verdict.INACCURATE
        assert pair._second_look(Looks(pair, draw), *shown)[1] is verdict


@pytest.mark.filterwarnings("error")
def test_numbers_at_the_ends_of_their_range_can_be_judged():
    ends = [0.0, 5e-324, -1e-320, 1e-310, 1e-30, 1.0, 1e155, -1.7e308, 1.79e308, np.inf, np.nan]
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore", under="ignore"):
        narrow = np.array(ends, np.float32)
    for _ in range(500):
        mine, theirs, moved, more = rng.choice(ends, (4, 3))
        mine32, *runs = rng.choice(narrow, (3, 3))
        noise = response(theirs, [moved])
        for floor in (0.0, 1e-320, 1e300):
            judged = judge64(mine, theirs, noise, axis=0, floor=floor)
            same = np.array_equal(mine, theirs, equal_nan=True)
            assert judged.inside or not same
            assert judged.usage >= 0
        assert judge32(mine32, theirs, runs).usage >= 0
        second_look(mine, theirs, [moved, more], (mine32, theirs))
        shrink_ratio(mine, theirs, mine32, theirs)


def test_cancellation_that_float32_in_double_does_not_show_is_no_fault():
    """Of two items x̂ is ±1: the gradient is what 1 - x̂² leaves, and no float32 error tells."""
    for seed in range(4):  # impl standardises float32 in double
        sides = [library.BatchNorm1d(1, eps=1e-6) for library in (impl, nn)]
        report = parity.check(*sides, (2, 1), rungs=["float64", "float32"], seed=seed)
        assert report.passed, report


def test_another_number_of_outputs_is_said_once_as_what_it_is():
    report = parity.check(Twice, lambda x: (x * 2, x * 3), (4, 7))
    (cause,) = {f.cause for f in report.findings if f.failed}
    assert cause.sentence == (
        "forward returned 1 array, torch returns 2; return as many, or hand over a reference that "
        "returns what yours does"
    )


class Last(population_numpy.PrefixSums):
    """Prefix sums that lose a little in their last window."""

    def forward(self, x):
        y = super().forward(x)
        y[..., -1] *= 1 + 1e-9
        return y


class Biased(population_numpy.IntegralImage):
    """Takes an average of two by two for the sum of five."""

    def forward(self, x):
        return super().forward(x) * 4 / 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_an_average_of_small_elements_may_be_what_is_left_of_large_ones(seed):
    pools = nn.AvgPool1d(4, stride=1), nn.AvgPool2d(2)
    right = population_numpy.PrefixSums(), population_numpy.IntegralImage()
    for mine, theirs, shape in zip(right, pools, ((2, 3, 20), (2, 3, 4, 6)), strict=True):
        report = parity.check(mine, theirs, shape, seed=seed, strict=True)
        assert report.passed, str(report)
    for mine, theirs, shape in zip(
        (Last(), Biased()), pools, ((2, 3, 20), (2, 3, 4, 6)), strict=True
    ):
        report = parity.check(mine, theirs, shape, seed=seed)
        assert Verdict.MISMATCH in {f.verdict for f in report.of("forward")}


@pytest.mark.parametrize(
    ("theirs", "shape", "found"),
    [
        (nn.AvgPool1d(3), (2, 3, 12), True),
        (nn.LPPool1d(2, 3), (2, 3, 12), True),
        (lambda x: x.cumsum(1) + 1, (3, 7), True),
        (nn.Softmax(-1), (3, 7), False),
        (nn.LogSoftmax(-1), (3, 7), False),
        (lambda x: torch.logsumexp(x, 1, keepdim=True), (3, 7), False),
        (lambda x: x / x.norm(dim=1, keepdim=True), (3, 7), False),
    ],
)
def test_a_function_without_a_scale_of_its_own_is_known(theirs, shape, found):
    assert homogeneous(make_pair(Twice, theirs, (shape,), make_options({}))) is found


class SoftMargin:
    """log(1 + exp(-yx)) by logaddexp: finite where torch's own formula overflows."""

    def __init__(self, factor=1.0, most=np.inf):
        self.factor, self.most = factor, most

    def forward(self, x, y):
        self.x, self.y = x, y
        each = np.logaddexp(0, -y * x)
        return np.where(each > self.most, np.inf, each).mean()

    def backward(self, g=1.0):
        z = self.y * self.x
        e = np.exp(-np.abs(z))
        slope = -self.y * np.where(z < 0, self.factor, e) / (1 + e)
        return np.where(-z > self.most, np.nan, slope) * g / z.size


@pytest.mark.one_in(3)
@pytest.mark.parametrize("seed", range(3))
def test_where_torch_overflows_to_nan_it_is_no_measure(seed):
    def signs(rng):
        return np.where(rng.random((8, 5)) < 0.5, -1.0, 1.0)

    sides = nn.SoftMarginLoss(), (8, 5), signs
    report = parity.check(SoftMargin(), *sides, seed=seed, strict=True)
    assert report.passed, str(report)
    assert any("extreme values: torch itself overflows" in note for note in report.notes)
    report = parity.check(SoftMargin(factor=1 + 1e-6), *sides, seed=seed)
    assert Verdict.MISMATCH in {f.verdict for f in report.of("grad_input0")}
    # no excuse for what overflows where torch does not: its sides change, and so do the numbers
    report = parity.check(SoftMargin(most=2.0), *sides, seed=seed)
    assert Verdict.MISMATCH in {f.verdict for f in report.of("forward")}


class Overflows:
    """A softplus that is too large for its own formula."""

    def forward(self, x):
        self.x = x
        return np.log(1 + np.exp(x))

    def backward(self, g):
        return g / (1 + np.exp(-self.x))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("seed", range(3))
def test_an_infinity_on_purpose_stays_a_measure(seed):
    assert not parity.check(Overflows(), nn.Softplus(), (8, 4), seed=seed).passed

    class Exponential:
        def forward(self, x):
            self.y = np.minimum(np.exp(x), 1e300)
            return self.y

        def backward(self, g):
            return g * self.y

    report = parity.check(Exponential(), torch.exp, (8, 4), seed=seed)
    assert Verdict.MISMATCH in {f.verdict for f in report.of("forward")}


class Fixed(impl.BatchNorm2d):
    """Knows one mode, and stops in the other."""

    def __init__(self, mode):
        super().__init__(3)
        self.mode = mode

    def forward(self, x):
        assert self.training == (self.mode == "train"), "there is no such mode"
        return super().forward(x)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_mode_that_nobody_asked_for_is_not_run(mode):
    report = parity.check(Fixed(mode), nn.BatchNorm2d(3), (4, 3, 4, 4), modes=mode)
    assert report.passed, str(report)
    assert not report.not_covered


@pytest.mark.slow
def test_large_constant_channels_are_summed_without_rounding():
    """Torch's own sum of a thousand equal values rounds, and 1/√eps makes that large."""
    report = parity.check(
        impl.BatchNorm2d(32), nn.BatchNorm2d(32), (64, 32, 28, 28), diagnose=False
    )
    assert report.passed, str(report)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("how", ["random", "up", "down", "inward"])
def test_a_move_of_one_ulp_warns_of_nothing(dtype, how):
    """A damaged bundle may hold any number, and whoever replays it may make warnings errors."""
    values = np.array([np.inf, -np.inf, np.nan, 0.0, 1e308, 5e-324, 1.5])
    signalling = np.array([0x7FF0000000000001], np.uint64).view(np.float64)
    draw = Draw((np.concatenate([values, signalling]),))
    with np.errstate(all="raise"):
        moved = draw.nudged(np.random.default_rng(0), dtype, how).inputs[0]
        draw.rounded(np.float32)
    assert np.isnan(moved[[2, 7]]).all()
    near = float(dtype(1.5))
    assert 0 < abs(moved[6] - near) <= np.finfo(dtype).eps


def test_steps_that_overflow_on_both_sides_are_no_fault_and_are_told():
    """After one step the weights are near 1e201, and inf or NaN is the order of summation."""
    x = np.random.default_rng(0).standard_normal((64, 84)) * 1e200
    report = parity.check(impl.Linear(84, 50), nn.Linear(84, 50), x)
    assert report.passed, str(report)
    assert any("torch's own numbers overflow" in text for text in report.not_covered)


@pytest.mark.parametrize("shape", [(8, 4), (64, 33)], ids=["small", "large"])
def test_a_derivative_that_torch_loses_in_its_tail_is_no_fault_of_mine(shape):
    class ByLogistic(nn.Module):
        """GELU's tanh form: half of 1 + tanh(u) is the logistic function of 2u."""

        def forward(self, x):
            return x * torch.sigmoid(2 * (2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))

    class Off(ByLogistic):
        def forward(self, x):
            return super().forward(x) * (1 + 1e-9 * torch.relu(-x - 4))

    theirs = nn.GELU(approximate="tanh")
    assert all(parity.check(ByLogistic(), theirs, shape, seed=k).passed for k in range(3))
    assert not parity.check(Off(), theirs, shape, diagnose=False).passed


class RowLinear:
    """A Linear whose bias is a row, by torch's names in plain dicts."""

    def __init__(self, factor=1.0):
        self.params = {"weight": np.zeros((3, 4)), "bias": np.zeros((1, 3))}
        self.grads, self.factor = {}, factor

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, grad):
        found = {"weight": grad.T @ self.x, "bias": self.factor * grad.sum(0, keepdims=True)}
        for name, array in found.items():
            self.grads[name] = self.grads.get(name, 0) + array
        return grad @ self.params["weight"]


class WideNorm(nn.Module):
    """BatchNorm whose parameters have the shape that broadcasts against images."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, 3, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.factor = factor

    def forward(self, x):
        off = x - x.mean((0, 2, 3), keepdim=True)
        spread = torch.sqrt((off**2).mean((0, 2, 3), keepdim=True) + 1e-5)
        return off / spread * self.gamma + self.factor * self.beta


def test_parameters_may_have_axes_of_length_one_besides():
    assert parity.check(RowLinear(), nn.Linear(4, 3), (8, 4)).passed
    report = parity.check(RowLinear(2.0), nn.Linear(4, 3), (8, 4))
    assert {f.quantity for f in report.failures} >= {"grad_bias"}
    names = {"weights": {"gamma": "weight", "beta": "bias"}}
    theirs = nn.BatchNorm2d(3, track_running_stats=False)
    assert parity.check(WideNorm(), theirs, (4, 3, 2, 2), **names).passed
    assert not parity.check(WideNorm(2.0), theirs, (4, 3, 2, 2), **names).passed


def test_nan_of_an_infinite_input_is_said_and_no_finding():
    class Masking:
        def forward(self, x):
            self.positive = x > 0
            return x * self.positive

        def backward(self, grad):
            return grad * self.positive

    report = parity.check(Masking(), nn.ReLU(), (8, 4))
    assert report.passed
    assert any("infinite inputs" in note for note in report.notes)
    right = parity.check(impl.ReLU(), nn.ReLU(), (8, 4))
    assert not any("infinite" in note for note in right.notes)
