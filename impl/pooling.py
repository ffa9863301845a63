"""AvgPool2d and MaxPool2d: windows of an image reduced to their mean or their maximum.

Both are separable: the sum (or the maximum) of a window is that of its rows' sums (maxima). So an
image is reduced over the kernel's rows first, long contiguous lines that NumPy handles at the
memory's speed, and the smaller result over the columns: kh + kw operations in place of kh · kw.
"""

import numpy as np

from impl.module import Module
from impl.windows import axis_taps, check_images, pair, pooled_size, whole


class _Geometry:
    """What follows from the image size alone, computed once per size as small images are many.

    rows, columns: for each kernel row (column) the indices ``(outputs, inputs)`` of `axis_taps`
    taps: for each kernel element the same, in reading order
    shifts: for each of these its position in the flattened image, seen from a window's corner
    corners (H', W'): the position of each window's corner
    reach: how many rows and columns a window spans
    whole: whether every kernel element is inside the image for every window
    blind (H', W'): which windows see padding alone, as dilation makes possible; None if none do
    blind_places (H', W'): where torch says that the maximum of such a window is
    """

    def __init__(self, image, out, reach, stride, padding, dilation, rows, columns):
        self.image, self.out = image, out
        self.reach = reach
        self.rows = [((..., o, slice(None)), (..., i, slice(None))) for _, o, i in rows]
        self.columns = [((..., o), (..., i)) for _, o, i in columns]
        both = [(r, c) for r in rows for c in columns]
        self.taps = [((..., r[1], c[1]), (..., r[2], c[2])) for r, c in both]
        self.shifts = np.array([r[0] * image[1] + c[0] for r, c in both], np.intp)
        corners = [np.arange(n) * s for n, s in zip(out, stride, strict=True)]
        self.corners = corners[0][:, None] * image[1] + corners[1]
        self.whole = all(
            outputs == slice(0, windows)
            for windows, taps in zip(out, (rows, columns), strict=True)
            for _, outputs, _ in taps
        )
        blind = np.ones(out, bool)
        for outputs, _ in self.taps:
            blind[outputs] = False
        self.blind = blind if blind.any() else None
        # torch takes a window's first position that is not negative, though it lie past the end.
        starts = [np.arange(n) * s - p for n, s, p in zip(out, stride, padding, strict=True)]
        first = [np.where(s < 0, s % d, s) for s, d in zip(starts, dilation, strict=True)]
        self.blind_places = first[0][:, None] * image[1] + first[1]


class _Pool2d(Module):
    """The options that both layers share, and their geometry."""

    def __init__(self, kernel_size, stride, padding, dilation, ceil_mode):
        self.kernel_size = pair(kernel_size, "kernel_size")
        no_stride = stride is None or (isinstance(stride, tuple | list) and not stride)
        self.stride = self.kernel_size if no_stride else pair(stride, "stride")
        self.padding = pair(padding, "padding")
        self.dilation = pair(dilation, "dilation")
        self.ceil_mode = bool(ceil_mode)
        self._geometries = {}  # by (H, W)
        for name in ("kernel_size", "stride", "dilation"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be greater than zero, not {getattr(self, name)}")
        for pad, kernel in zip(self.padding, self.kernel_size, strict=True):
            if not 0 <= pad <= kernel // 2:
                raise ValueError(
                    f"padding must be between 0 and half of the kernel size: "
                    f"padding={self.padding}, kernel_size={self.kernel_size}"
                )

    def _shown(self, *names):
        """Return "name=value, ..." as torch prints them: a pair of equal numbers as one."""
        values = [(name, getattr(self, name)) for name in names]
        return ", ".join(f"{name}={v[0] if v[0] == v[1] else v}" for name, v in values)

    def _geometry(self, image):
        """Return the geometry for images of size image = (H, W), computed once per size."""
        if image not in self._geometries:
            options = self.kernel_size, self.stride, self.padding, self.dilation
            axes = list(zip(image, *options, strict=True))
            out = tuple(pooled_size(*axis, self.ceil_mode) for axis in axes)
            if min(out) < 1:
                raise ValueError(
                    f"{self!r} got images of {image[0]}x{image[1]}; the output would be "
                    f"{out[0]}x{out[1]}, too small"
                )
            taps = [axis_taps(axis[0], n, *axis[1:]) for axis, n in zip(axes, out, strict=True)]
            reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            self._geometries[image] = _Geometry(
                image, out, reach, self.stride, self.padding, self.dilation, *taps
            )
        return self._geometries[image]


def _reduce(ufunc, start, x, geometry):
    """Return x (*, H, W) reduced by ufunc over every window, (*, H', W')."""
    g = geometry
    lines_shape = *x.shape[:-2], g.out[0], g.image[1]
    lines = _reduce_axis(ufunc, start, x, g.rows, lines_shape, g.whole)
    return _reduce_axis(ufunc, start, lines, g.columns, (*x.shape[:-2], *g.out), g.whole)


def _reduce_axis(ufunc, start, x, taps, shape, whole):
    if whole and len(taps) > 1:
        result = ufunc(x[taps[0][1]], x[taps[1][1]])
        taps = taps[2:]
    else:
        result = np.full(shape, start, x.dtype)
    for outputs, inputs in taps:
        target = result[outputs]
        ufunc(target, x[inputs], out=target)
    return result


class AvgPool2d(_Pool2d):
    """Mean of each window.

    x (N, C, H, W) -> y (N, C, H', W'), or unbatched (C, H, W) -> (C, H', W'), with
    H' = (H + 2·padding - kh) // stride + 1 (rounded up with ceil_mode) and W' alike

    The sum is divided by the window's size, clipped to the padded image where ceil_mode lets it
    hang over (by the number of elements inside the image with count_include_pad=False), or by
    divisor_override. Options are torch.nn.AvgPool2d's.

    Raises ValueError for bad options and for x of another rank or too small a size.
    """

    def __init__(
        self,
        kernel_size,
        stride=None,
        padding=0,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    ):
        super().__init__(kernel_size, stride, padding, 1, ceil_mode)
        self.count_include_pad = bool(count_include_pad)
        if divisor_override is not None:
            divisor_override = whole(divisor_override, "divisor_override")
            if divisor_override == 0:
                raise ValueError("divisor_override must be not zero")
        self.divisor_override = divisor_override
        self._divisors = {}  # by (H, W) and dtype

    def _divisor(self, image, dtype):
        """Return what the sums are divided by: a scalar, or an array (H', W') if it varies."""
        key = image, dtype
        if key not in self._divisors:
            self._divisors[key] = np.asarray(self._new_divisor(image), dtype)
        return self._divisors[key]

    def _new_divisor(self, image):
        if self.divisor_override is not None:
            return self.divisor_override
        counts = []
        for axis, windows in enumerate(self._geometry(image).out):
            size, pad = image[axis], self.padding[axis]
            first = np.arange(windows) * self.stride[axis] - pad
            last = np.minimum(first + self.kernel_size[axis], size + pad)
            if not self.count_include_pad:
                first, last = np.maximum(first, 0), np.minimum(last, size)
            counts.append(last - first)
        divisor = np.outer(*counts)
        same = (divisor == divisor[0, 0]).all()
        return int(divisor[0, 0]) if same else divisor

    @np.errstate(over="ignore", invalid="ignore")  # infinite sums are answers, as in torch
    def forward(self, input):
        """Return the window means (N, C, H', W') of x (N, C, H, W), or the same without N."""
        x = self._floating(input)
        check_images(self, x)
        geometry = self._geometry(x.shape[-2:])
        y = _reduce(np.add, 0, x, geometry)
        y /= self._divisor(geometry.image, y.dtype)  # times 1 / divisor would round twice
        self._cache = geometry, x.shape, x.dtype
        return y

    @np.errstate(over="ignore", invalid="ignore")
    def backward(self, grad_output):
        """Return the gradient for x: each window spreads its own evenly over its elements."""
        g, shape, dtype = self._recall()
        grad = self._upstream(grad_output, (*shape[:-2], *g.out), dtype)
        share = grad / self._divisor(g.image, dtype)
        lines = self._spread(share, g.columns, (*shape[:-2], g.out[0], g.image[1]))
        return self._spread(lines, g.rows, shape)

    def _spread(self, grad, taps, shape):
        """Return an array of the given shape with grad added at each tap's elements."""
        dx = np.zeros(shape, grad.dtype)
        apart = self.stride[0] >= self.kernel_size[0] and self.stride[1] >= self.kernel_size[1]
        for outputs, inputs in taps:
            if apart:  # no element is in two windows
                dx[inputs] = grad[outputs]
            else:
                dx[inputs] += grad[outputs]
        return dx

    def extra_repr(self):
        """Return the sizes as torch shows them, and the options that differ from the defaults."""
        text = self._shown("kernel_size", "stride", "padding")
        if self.ceil_mode:
            text += ", ceil_mode=True"
        if not self.count_include_pad:
            text += ", count_include_pad=False"
        if self.divisor_override is not None:
            text += f", divisor_override={self.divisor_override}"
        return text


class MaxPool2d(_Pool2d):
    """Maximum of each window.

    x (N, C, H, W) -> y (N, C, H', W'), or unbatched (C, H, W) -> (C, H', W'), with
    H' = (H + 2·padding - dilation·(kh - 1) - 1) // stride + 1 (rounded up with ceil_mode)

    Padding never wins. Of equal elements the first in reading order is the maximum, and gets the
    gradient; NaN is larger than everything, and of several the last one counts (as in torch).
    With return_indices, forward returns (y, indices): positions in the flattened H·W image.
    Options are torch.nn.MaxPool2d's. Integers are pooled too, but have no gradient.

    forward keeps a reference to x until backward, which finds the maxima's places.

    Raises ValueError for bad options and for x of another rank or too small a size.
    """

    def __init__(
        self,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        return_indices=False,
        ceil_mode=False,
    ):
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.return_indices = bool(return_indices)

    def forward(self, input):
        """Return the window maxima (N, C, H', W') of x (N, C, H, W), or the same without N."""
        x = np.asarray(input)
        if x.dtype.kind not in "iu":
            x = self._floating(x)
        check_images(self, x)
        geometry = self._geometry(x.shape[-2:])
        y = _maxima(x, geometry)
        # The caller may change y, hence a copy, and evaluation rarely needs it.
        self._cache = x, geometry, y.copy() if self.training else None
        return (y, _places(x, y, geometry)) if self.return_indices else y

    @np.errstate(over="ignore", invalid="ignore")
    def backward(self, grad_output):
        """Return the gradient for x: each window gives its own to its maximum, and zero elsewhere.

        With return_indices, grad_output is the gradient for y alone: indices have none.
        """
        x, g, y = self._recall()
        x = self._floating(x)
        grad = self._upstream(grad_output, (*x.shape[:-2], *g.out), x.dtype)
        y = _maxima(x, g) if y is None else y
        places = _places(x, y, g).reshape(-1, g.corners.size)
        places += np.arange(0, x.size, g.image[0] * g.image[1])[:, None]  # one image after another
        places, grad = places.reshape(-1), grad.reshape(-1)
        if g.blind is not None:  # torch adds such a window's gradient outside of the window: see
            inside = places < x.size  # blind_places; the last ones even outside of the array
            places, grad = places[inside], grad[inside]
        dx = np.zeros(x.size, x.dtype)
        apart = self.stride[0] >= g.reach[0] and self.stride[1] >= g.reach[1]
        if apart and g.blind is None:  # no element is the maximum of two windows
            dx[places] = grad + 0  # a sum that starts at 0 is never -0
        else:
            np.add.at(dx, places, grad)
        return dx.reshape(x.shape)

    def extra_repr(self):
        """Return the sizes and options as torch shows them."""
        sizes = self._shown("kernel_size", "stride", "padding", "dilation")
        return f"{sizes}, ceil_mode={self.ceil_mode}"


def _maxima(x, geometry):
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return _reduce(np.maximum, lowest, x, geometry)


def _places(x, y, geometry):
    """Return, for each window, the position of its maximum y in the flattened image."""
    # The number of the first tap that equals the maximum is the number of taps that fail before
    # it: counted in small integers, this is many times faster than a masked assignment per tap.
    g = geometry
    number = np.zeros(y.shape, np.uint8 if len(g.taps) < 256 else np.intp)
    failed = np.ones(y.shape, bool)
    for outputs, inputs in g.taps:
        if g.whole:
            failed &= x[inputs] != y
        else:
            failed[outputs] &= x[inputs] != y[outputs]
        number += failed
    if failed.any():  # NaN equals nothing
        for k, (outputs, inputs) in enumerate(g.taps):
            np.copyto(number[outputs], k, where=np.isnan(x[inputs]))
    if g.blind is not None:
        return np.where(g.blind, g.blind_places, np.append(g.shifts, 0).take(number) + g.corners)
    places = g.shifts.take(number)
    places += g.corners
    return places
