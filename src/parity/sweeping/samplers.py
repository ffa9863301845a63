"""Option ranges of torch's layers, as its documentation gives them, for random cases."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from parity.specs import normal
from parity.sweeping.spaces import Drawn, Draws, Sampler


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def linear(d: Draws) -> Drawn:
    """Linear on inputs of one to four axes."""
    wide, out = d.size(1, 8), d.size(1, 8)
    d.option("bias", True, lambda: False)
    return d.drawn((wide, out), normal(*d.shape(0, 3), wide))


def convolution(d: Draws) -> Drawn:
    """Conv2d with every option, batched and not."""
    groups = d.option("groups", 1, lambda: d.size(1, 3), 0.4)
    channels, out = groups * d.size(1, 3), groups * d.size(1, 3)
    kernel = d.pair(1, 3)
    dilation = d.option("dilation", 1, lambda: d.pair(1, 3), 0.4)
    padding: Any = d.option("padding", 0, lambda: d.pick(d.pair(0, 2), "same", "valid"), 0.7)
    if padding != "same":  # torch has no "same" for other strides
        d.option("stride", 1, lambda: d.pair(1, 3))
    others = ("reflect", "replicate", "circular")
    mode = d.option("padding_mode", "zeros", lambda: d.pick(*others), 0.4)
    d.option("bias", True, lambda: False, 0.4)
    image = []
    for axis in range(2):
        reach = _pair(dilation)[axis] * (_pair(kernel)[axis] - 1) + 1
        pad = {"same": reach // 2, "valid": 0}.get(padding) if isinstance(padding, str) else None
        pad = _pair(padding)[axis] if pad is None else pad
        least = max(1, reach - 2 * pad if padding != "same" else 1)
        if mode != "zeros":  # a reflection has to stay inside of the image
            least = max(least, pad + 1)
        image.append(least + d.size(0, 4))
    batch = () if d.chance(0.15) else (d.size(1, 3),)
    return d.drawn((channels, out, kernel), normal(*batch, channels, *image))


def _norm(d: Draws, features: int) -> None:
    d.option("eps", 1e-5, lambda: d.pick(1e-8, 1e-3, 0.1, 1.0), 0.4)
    d.option("momentum", 0.1, lambda: d.pick(None, 0.0, 0.5, 0.9, 1.0, float(d.rng.random())))
    d.option("affine", True, lambda: False, 0.3)
    d.option("track_running_stats", True, lambda: False, 0.3)


def batch_norm_1d(d: Draws) -> Drawn:
    """BatchNorm1d on (N, C) and (N, C, L)."""
    features = d.size(1, 5)
    _norm(d, features)
    length = (d.size(1, 6),) if d.chance(0.5) else ()
    return d.drawn((features,), normal(d.size(2, 8), features, *length))


def batch_norm_2d(d: Draws) -> Drawn:
    """BatchNorm2d, one item alone as well where its image has several pixels."""
    features, height, width = d.size(1, 4), d.size(1, 5), d.size(1, 5)
    _norm(d, features)
    least = 2 if height * width == 1 else 1
    return d.drawn((features,), normal(d.size(least, 5), features, height, width))


def _outputs(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil: bool) -> int:
    """How many windows fit; torch drops a last one that would start beyond the left padding."""
    room = size + 2 * pad - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if ceil else room // stride) + 1
    return count - 1 if ceil and (count - 1) * stride >= size + pad else count


def _sees(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil: bool) -> bool:
    """Whether every window sees at least one element: torch writes out of bounds otherwise."""
    starts = np.arange(_outputs(size, kernel, stride, pad, dilation, ceil)) * stride - pad
    places = starts[:, None] + np.arange(kernel) * dilation
    return bool(((places >= 0) & (places < size)).any(axis=1).all())


def _pooling(d: Draws, dilated: bool) -> Drawn:
    kernel = d.pair(1, 3)
    stride = d.option("stride", kernel, lambda: d.pair(1, 3), 0.6)
    most = min(_pair(kernel)) // 2
    padding = d.option("padding", 0, lambda: d.pair(0, most), 0.6)
    dilation = d.option("dilation", 1, lambda: d.pair(1, 3), 0.4) if dilated else 1
    ceil = d.option("ceil_mode", False, lambda: True)
    if not dilated:
        d.option("count_include_pad", True, lambda: False)
        d.option("divisor_override", None, lambda: d.size(1, 5), 0.3)
    image = []
    for axis in range(2):
        k, s, p, far = (_pair(v)[axis] for v in (kernel, stride, padding, dilation))
        size = max(1, far * (k - 1) + 1 - 2 * p) + d.size(0, 5)
        while dilated and not _sees(size, k, s, p, far, ceil):
            size += 1  # ends: in an image that is wide enough every window sees something
        image.append(size)
    batch = () if d.chance(0.15) else (d.size(1, 3),)
    return d.drawn((kernel,), normal(*batch, d.size(1, 3), *image))


def average_pooling(d: Draws) -> Drawn:
    """AvgPool2d with every option."""
    return _pooling(d, dilated=False)


def max_pooling(d: Draws) -> Drawn:
    """MaxPool2d with every option, but for windows that see padding alone."""
    return _pooling(d, dilated=True)


def windows_see(drawn: Drawn) -> bool:
    """Whether every window of a max pooling sees an element of its image."""
    options, kernel = drawn.options, drawn.args[0]
    ceil = bool(options.get("ceil_mode"))
    for axis in range(2):
        k = _pair(kernel)[axis]
        s = _pair(options.get("stride", kernel))[axis]
        p = _pair(options.get("padding", 0))[axis]
        far = _pair(options.get("dilation", 1))[axis]
        if not _sees(drawn.inputs[0].shape[axis - 2], k, s, p, far, ceil):
            return False
    return True


def flatten(d: Draws) -> Drawn:
    """Flatten from any axis to any later one, counted from either end."""
    shape = d.shape(2, 5, 4)
    axes = len(shape)
    start = d.option("start_dim", 1, lambda: d.size(0, axes - 1))
    if start < 0 or start >= axes:
        start = 1
    d.option("end_dim", -1, lambda: d.pick(*range(start, axes), *range(start - axes, 0)))
    return d.drawn((), normal(*shape))


def dropout(d: Draws) -> Drawn:
    """Dropout with every probability, both ends included."""
    d.option("p", 0.5, lambda: d.pick(0.0, 0.1, 0.9, 1.0, float(d.rng.random())), 0.7)
    return d.drawn((), normal(*d.spread(1, 4)))


def _activation(**ranges: tuple[float, ...]) -> Sampler:
    """An elementwise function: options from lists of values, or any value in between."""

    def value(d: Draws, values: tuple[float, ...]) -> float:
        return d.pick(*values, float(d.rng.uniform(min(values), max(values))))

    def sample(d: Draws) -> Drawn:
        for name, (default, *values) in ranges.items():
            d.option(name, default, partial(value, d, tuple(values)))
        return d.drawn((), normal(*d.spread(0, 4)))

    return sample


def threshold(d: Draws) -> Drawn:
    """Threshold: both of its arguments are required."""
    args = (d.pick(0.0, 0.5, -1.0, float(d.rng.normal())), d.pick(0.0, 7.0, float(d.rng.normal())))
    return d.drawn(args, normal(*d.spread(1, 4)))


def softmax(d: Draws) -> Drawn:
    """Softmax and LogSoftmax along any axis, counted from either end."""
    shape = d.shape(1, 4)
    return d.drawn((d.size(-len(shape), len(shape) - 1),), normal(*shape))


SAMPLERS: dict[str, Sampler] = {
    "Linear": linear,
    "Conv2d": convolution,
    "BatchNorm1d": batch_norm_1d,
    "BatchNorm2d": batch_norm_2d,
    "AvgPool2d": average_pooling,
    "MaxPool2d": max_pooling,
    "Flatten": flatten,
    "Dropout": dropout,
    "ReLU": _activation(),
    "LeakyReLU": _activation(negative_slope=(0.01, 0.0, 0.2, 1.0)),
    "ELU": _activation(alpha=(1.0, 0.1, 0.5, 3.0)),
    "Softplus": _activation(beta=(1.0, 0.1, 2.0, 5.0), threshold=(20.0, 1.0, 5.0, 50.0)),
    "Sigmoid": _activation(),
    "Tanh": _activation(),
    "Threshold": threshold,
    "Softmax": softmax,
    "LogSoftmax": softmax,
}
VALID = {"MaxPool2d": windows_see}
