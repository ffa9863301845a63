"""Faults of convolution, batch normalisation and pooling, each with the cause it is given."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

import parity

pytestmark = pytest.mark.slow  # with the slow tests: the quick run stays under three minutes

IMAGES = (3, 2, 6, 5)


RUNGS = ("exact", "float64", "probes")


def causes(mine, theirs, *inputs, **options):
    """The names of all causes that a check gives."""
    report = parity.check(mine, theirs, *inputs, rungs=RUNGS, **options)
    assert not report.passed
    return {f.cause.name if f.cause else None for f in report.failures}


def changed(base, **methods):
    """A subclass of ``base`` with some methods replaced."""
    return type(base.__name__, (base,), methods)


class Conv:
    """A right Conv2d(2, 4, 3, padding=1), in small methods that a fault replaces."""

    pad, stride, dilation, mode = 1, 1, 1, "constant"

    def __init__(self):
        self.params = {"weight": np.zeros((4, 2, 3, 3)), "bias": np.zeros(4)}
        self.grads = {}

    def zero_grad(self):
        self.grads = {}

    def kernel(self):
        return self.params["weight"]

    def padded(self, x):
        return np.pad(x, ((0, 0), (0, 0), (self.pad,) * 2, (self.pad,) * 2), mode=self.mode)

    def windows(self, x):
        reach = 2 * self.dilation + 1
        found = sliding_window_view(x, (reach, reach), (2, 3))
        return found[:, :, :: self.stride, :: self.stride, :: self.dilation, :: self.dilation]

    def forward(self, x):
        self.shape = x.shape
        self.seen = self.windows(self.padded(x))
        y = np.einsum("nchwij,ocij->nohw", self.seen, self.kernel())
        return y + self.params["bias"][:, None, None]

    def weight_grad(self, g):
        return np.einsum("nohw,nchwij->ocij", g, self.seen)

    def bias_grad(self, g):
        return g.sum((0, 2, 3))

    def place(self, dx, i, j, part):
        dx[..., i, j] += part

    def back_kernel(self):
        return self.kernel()

    def input_grad(self, g):
        n, c, h, w = self.shape
        dx = np.zeros((n, c, h + 2 * self.pad, w + 2 * self.pad), g.dtype)
        d, s = self.dilation, self.stride
        for i in range(g.shape[2]):
            for j in range(g.shape[3]):
                part = np.einsum("no,ocij->ncij", g[:, :, i, j], self.back_kernel())
                rows = slice(i * s, i * s + 2 * d + 1, d)
                columns = slice(j * s, j * s + 2 * d + 1, d)
                self.place(dx, rows, columns, part)
        return dx[:, :, self.pad : self.pad + h, self.pad : self.pad + w]

    def backward(self, g):
        for name, new in (("weight", self.weight_grad(g)), ("bias", self.bias_grad(g))):
            self.grads[name] = self.grads.get(name, 0) + new
        return self.input_grad(g)


def torch_conv(**options):
    return nn.Conv2d(2, 4, 3, **{"padding": 1, **options})


def overwrite(self, dx, i, j, part):
    dx[..., i, j] = part


def crop_wrongly(self, g):
    """The input's gradient, with the padding left on at the top and left."""
    h, w = self.shape[2:]
    wide = changed(Conv, pad=0)()
    wide.params, wide.shape = self.params, (*self.shape[:2], h + 2, w + 2)
    return wide.input_grad(g)[:, :, :h, :w]


CONVOLUTIONS = {
    "kernel_flipped": (torch_conv(), {"kernel": lambda s: s.params["weight"][..., ::-1, ::-1],
                       "weight_grad": lambda s, g: Conv.weight_grad(s, g)[..., ::-1, ::-1]}),
    "kernel_flipped-forward-alone": (torch_conv(), {
        "kernel": lambda s: s.params["weight"][..., ::-1, ::-1]}),
    "kernel_transposed": (torch_conv(), {"kernel": lambda s: s.params["weight"].swapaxes(2, 3)}),
    "wrong_mapping": (torch_conv(), {"kernel": lambda s: s.params["weight"].swapaxes(2, 3),
                      "weight_grad": lambda s, g: Conv.weight_grad(s, g).swapaxes(2, 3)}),
    "padding_ignored": (torch_conv(), {"pad": 0}),
    "wrong_padding": (torch_conv(), {"pad": 2}),
    "stride_ignored": (torch_conv(stride=2), {}),
    "dilation_ignored": (torch_conv(dilation=2, padding=1), {}),
    "padding_mode_ignored": (torch_conv(padding_mode="reflect"), {}),
    "batch_sum_not_averaged": (torch_conv(), {
        "weight_grad": lambda s, g: len(g) * Conv.weight_grad(s, g)}),
    "averaged_over_batch": (torch_conv(), {"bias_grad": lambda s, g: g.mean(0).sum((1, 2))}),
    "averaged_over_positions": (torch_conv(), {"bias_grad": lambda s, g: g.mean((2, 3)).sum(0)}),
    "averaged_over_batch_and_positions": (torch_conv(), {
        "bias_grad": lambda s, g: g.mean((0, 2, 3))}),
    "input_gradient_not_flipped": (torch_conv(), {
        "back_kernel": lambda s: s.params["weight"][..., ::-1, ::-1]}),
    "overlap_overwritten": (torch_conv(), {"place": overwrite}),
    "gradient_cropped_wrongly": (torch_conv(), {"input_grad": crop_wrongly}),
    "zero": (torch_conv(), {"input_grad": lambda s, g: np.zeros(s.shape, g.dtype)}),
}  # fmt: skip


@pytest.mark.parametrize("row", CONVOLUTIONS)
def test_convolution(row):
    theirs, methods = CONVOLUTIONS[row]
    assert causes(changed(Conv, **methods)(), theirs, IMAGES) == {row.partition("-")[0]}


class BatchNorm:
    """A right BatchNorm2d(2), in small methods that a fault replaces."""

    eps, momentum = 1e-5, 0.1

    def __init__(self):
        self.params = {"weight": np.ones(2), "bias": np.zeros(2)}
        self.buffers = {"running_mean": np.zeros(2), "running_var": np.ones(2)}
        self.grads, self.training = {}, True

    def zero_grad(self):
        self.grads = {}

    def biased(self, x):
        return x.var((0, 2, 3))

    def tracked(self, x, n):
        return x.var((0, 2, 3)) * n / (n - 1)

    def keep(self, name, new):
        old = self.buffers[name]
        self.buffers[name] = (1 - self.momentum) * old + self.momentum * new

    def uses_batch(self):
        return self.training

    def scale(self, var):
        return 1 / np.sqrt(var + self.eps)

    def forward(self, x):
        n = x.size // 2
        if self.training and n:
            self.keep("running_mean", x.mean((0, 2, 3)))
            self.keep("running_var", self.tracked(x, n))
        if self.uses_batch():
            mean, var = x.mean((0, 2, 3)), self.biased(x)
        else:
            mean, var = self.buffers["running_mean"], self.buffers["running_var"]
        self.inv = self.scale(var)[:, None, None]
        self.hat = (x - mean[:, None, None]) * self.inv
        gamma, beta = (self.params[k][:, None, None] for k in ("weight", "bias"))
        return gamma * self.hat + beta

    def input_grad(self, g):
        if not self.uses_batch():
            return g * self.inv
        mean = g.mean((0, 2, 3), keepdims=True)
        slope = (g * self.hat).mean((0, 2, 3), keepdims=True)
        return (g - mean - self.hat * slope) * self.inv

    def param_grads(self, g):
        return (g * self.hat).sum((0, 2, 3)), g.sum((0, 2, 3))

    def backward(self, g):
        for name, new in zip(("weight", "bias"), self.param_grads(g), strict=True):
            self.grads[name] = self.grads.get(name, 0) + new
        return self.input_grad(g * self.params["weight"][:, None, None])


def means(self, g, mean=1.0, slope=1.0):
    """The input's gradient with its two terms weighted."""
    if not self.training:
        return g * self.inv
    first = g.mean((0, 2, 3), keepdims=True)
    second = (g * self.hat).mean((0, 2, 3), keepdims=True)
    return (g - mean * first - slope * self.hat * second) * self.inv


NORMS = {
    "eps_ignored": {"eps": 1e-5},
    "wrong_eps": {"eps": 1e-20},
    "wrong_eps-fitted": {"eps": 0.0371},
    "momentum_swapped": {"momentum": 0.8},
    "wrong_momentum-fitted": {"momentum": 0.4321},
    "running_var_biased": {"tracked": lambda s, x, n: x.var((0, 2, 3))},
    "running_std_not_variance": {
        "tracked": lambda s, x, n: (x.var((0, 2, 3)) * n / (n - 1)) ** 0.5},
    "statistics_treated_as_constant": {"input_grad": lambda s, g: g * s.inv},
    "variance_treated_as_constant": {"input_grad": lambda s, g: means(s, g, slope=0)},
    "mean_treated_as_constant": {"input_grad": lambda s, g: means(s, g, mean=0)},
    "zero": {"input_grad": lambda s, g: 0 * g},
    "eps_outside_sqrt": {"scale": lambda s, var: 1 / (np.sqrt(var) + s.eps)},
    "divided_by_weight": {"backward": lambda s, g: (BatchNorm.backward(s, g), s.input_grad(g))[1]},
    "gradients_swapped": {"param_grads": lambda s, g: BatchNorm.param_grads(s, g)[::-1]},
    "wrong_mode": {"uses_batch": lambda s: True},
    "buffers_swapped": {"keep": lambda s, name, new: BatchNorm.keep(
        s, {"running_mean": "running_var", "running_var": "running_mean"}[name], new)},
    "running_statistics_not_updated": {"keep": lambda s, name, new: None},
}  # fmt: skip


@pytest.mark.parametrize("row", NORMS)
def test_batch_norm(row):
    methods = {"eps": 1e-3, "momentum": 0.2, **NORMS[row]}
    if row == "momentum_swapped":
        assert methods["momentum"] == 0.8
    found = causes(
        changed(BatchNorm, **methods)(), nn.BatchNorm2d(2, eps=1e-3, momentum=0.2), IMAGES
    )
    expected = {row.partition("-")[0]}
    if row == "wrong_mode":  # the same fault seen from evaluation mode
        expected |= {"batch_statistics_in_evaluation"}
    assert found & expected
    assert found <= expected | {"quantities_swapped"}


def test_momentum_sentence():
    report = parity.check(changed(BatchNorm, momentum=0.9)(), nn.BatchNorm2d(2), IMAGES)
    assert report.cause.sentence == (
        "behaves exactly like BatchNorm2d(momentum=0.9): the running average weighs the old value "
        "where torch weighs the new one"
    )


class Pool:
    """A right pooling of 2 × 2 windows, in small methods that a fault replaces."""

    size, stride, pad, fill = 2, 2, 0, -np.inf

    def pick(self, seen):
        return seen.argmax(-1)

    def place(self, dx, n, c, row, column, part):
        dx[n, c, row, column] += part

    def forward(self, x):
        self.shape = x.shape
        z = np.pad(x, ((0, 0), (0, 0), (self.pad,) * 2, (self.pad,) * 2), constant_values=self.fill)
        k, s = self.size, self.stride
        self.seen = sliding_window_view(z, (k, k), (2, 3))[:, :, ::s, ::s]
        self.seen = self.seen.reshape(*self.seen.shape[:4], -1)
        return self.value()

    def value(self):
        return np.take_along_axis(self.seen, self.pick(self.seen)[..., None], -1)[..., 0]

    def backward(self, g):
        n, c, h, w = self.shape
        dx = np.zeros((n, c, h + 2 * self.pad, w + 2 * self.pad), g.dtype)
        at, s = self.pick(self.seen), self.stride
        b, k = np.ogrid[:n, :c]
        for i in range(g.shape[2]):
            for j in range(g.shape[3]):
                row, column = np.divmod(at[:, :, i, j], self.size)
                self.place(dx, b, k, i * s + row, j * s + column, g[:, :, i, j])
        return dx[:, :, self.pad : self.pad + h, self.pad : self.pad + w]


class Mean(Pool):
    fill = 0.0

    def value(self):
        return self.seen.sum(-1) / self.divisor()

    def divisor(self):
        return self.size**2

    def back_divisor(self):
        return self.divisor()

    def backward(self, g):
        n, c, h, w = self.shape
        dx = np.zeros((n, c, h + 2 * self.pad, w + 2 * self.pad), g.dtype)
        s, k = self.stride, self.size
        share = g / self.back_divisor()
        for i in range(g.shape[2]):
            for j in range(g.shape[3]):
                dx[:, :, i * s : i * s + k, j * s : j * s + k] += share[:, :, i, j, None, None]
        return dx[:, :, self.pad : self.pad + h, self.pad : self.pad + w]


def put(self, dx, n, c, row, column, part):
    dx[n, c, row, column] = part


def last(self, seen):
    return seen.shape[-1] - 1 - seen[..., ::-1].argmax(-1)


def inside(self):
    """How many elements of each padded window lie in the image."""
    ones = np.pad(
        np.ones(self.shape, self.seen.dtype), ((0, 0), (0, 0), (self.pad,) * 2, (self.pad,) * 2)
    )
    k, s = self.size, self.stride
    return sliding_window_view(ones, (k, k), (2, 3))[:, :, ::s, ::s].sum((-1, -2))


POOLS = [
    ("gradient_to_last_tie", Pool, nn.MaxPool2d(2), {"pick": last}),
    ("stride_ignored", Pool, nn.MaxPool2d(2, stride=1), {}),
    ("overlap_overwritten", Pool, nn.MaxPool2d(3, stride=1),
     {"size": 3, "stride": 1, "place": put}),
    ("padding_counted_as_zero", Pool, nn.MaxPool2d(2, padding=1), {"pad": 1, "fill": 0.0}),
    ("minimum_not_maximum", Pool, nn.MaxPool2d(2), {"pick": lambda s, seen: seen.argmin(-1)}),
    ("mean_not_maximum", Mean, nn.MaxPool2d(2), {}),
    ("maximum_not_mean", Pool, nn.AvgPool2d(2), {}),
    ("window_sum_not_averaged", Mean, nn.AvgPool2d(3, 2), {"size": 3, "divisor": lambda s: 1}),
    ("averaged_over_window", Mean, nn.AvgPool2d(3, 2), {"size": 3, "back_divisor": lambda s: 81}),
    ("wrong_count_include_pad", Mean, nn.AvgPool2d(2, padding=1), {"pad": 1, "divisor": inside}),
    ("count_include_pad_ignored", Mean, nn.AvgPool2d(2, padding=1, count_include_pad=False),
     {"pad": 1}),
    ("ceil_mode_ignored", Mean, nn.AvgPool2d(2, ceil_mode=True), {}),
    ("divisor_override_ignored", Mean, nn.AvgPool2d(2, divisor_override=3), {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "base", "theirs", "methods"), POOLS, ids=[row[0] for row in POOLS]
)
def test_pooling(name, base, theirs, methods):
    found = causes(changed(base, **methods)(), theirs, (2, 2, 7, 6))
    if name == "ceil_mode_ignored":  # an even image has no row to lose: either option is right
        found -= {"wrong_padding"}
    assert found in ({name}, {name, "wrong_shape"})


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (Conv(), torch_conv()),
        (BatchNorm(), nn.BatchNorm2d(2)),
        (Pool(), nn.MaxPool2d(2)),
        (Mean(), nn.AvgPool2d(2)),
    ],
)
def test_right_layers_have_no_cause(mine, theirs):
    report = parity.check(mine, theirs, IMAGES)
    assert report.passed
    assert report.cause is None
