"""Conv2d, two-dimensional convolution as matrix products over unrolled windows.

How it works, once for all options. A window of the image, unrolled, is a column; all columns side
by side are a matrix `columns` (C·kh·kw, windows), and with the kernel as a matrix (O, C·kh·kw)

    y       = kernel @ columns                    forward
    dkernel = dy @ columns.T                      gradient of the weight
    dx      = every element of kernel.T @ dy, added back to the pixel that it was copied from

Copying windows costs as much as the products if it is done badly, so three things are arranged:

- *Blocks.* `columns` is kh·kw times the image. It is made for a few images (or a few rows of one
  image) at a time in one reused buffer that stays in the processor's cache: `BLOCK_BYTES`.
- *Channels first.* A block is padded into a buffer (C, images, height, width): then one product
  serves all its images, and groups are a plain split of the first axis.
- *Wide rows.* With stride 1 the windows of a whole padded image row are copied, including those
  few that run over its end into the next row. Then rows follow each other without gaps and one
  kernel element's columns are a single long copy, not one short copy a row. The superfluous
  results are dropped when y is written; their gradient is zero.
"""

from dataclasses import dataclass, replace

import numpy as np

from impl import initialisation
from impl.module import Module, check_device, check_dtype
from impl.padding import PADDING_MODES, border_sources, fold, pad
from impl.windows import check_images, pair

BLOCK_BYTES = 1 << 20  # for the unrolled columns of one block; about a core's second-level cache


@dataclass(frozen=True)
class _Geometry:
    """Everything about a convolution that follows from the shapes alone."""

    channels: int
    kernel: tuple  # (kh, kw)
    stride: tuple
    dilation: tuple
    image: tuple  # (H, W) of the image
    before: tuple  # zeros above and to the left
    padded: tuple  # (height, width) with all zeros around
    out: tuple  # (height, width) of the output
    wide: int  # columns computed in each output row: out[1], or padded[1] with wide rows
    images: int  # images in a block
    rows: int  # output rows in a block
    transposed: "_Geometry | None" = None  # of the convolution that carries gradients back

    def blocks(self, batch):
        """Yield (first image, end, first output row, end)."""
        for n in range(0, batch, self.images):
            for row in range(0, self.out[0], self.rows):
                yield n, min(n + self.images, batch), row, min(row + self.rows, self.out[0])

    def pad_block(self, x):
        """Return (flat buffer, stride of a channel, stride of an image) with x (n, C, H, W) in it."""
        if self.padded == self.image and self.wide == self.out[1] and x.flags.c_contiguous:
            size = self.image[0] * self.image[1]  # the windows can be read from x itself
            return x.reshape(-1), size, self.channels * size
        flat, view = self.zero_block(len(x), x.dtype)
        view[...] = x.swapaxes(0, 1)
        size = self.padded[0] * self.padded[1]
        return flat, len(x) * size, size

    def zero_block(self, n, dtype):
        """Return a flat buffer for n padded images, channels first, and its view of the images."""
        height, width = self.padded
        size = self.channels * n * height * width
        slack = (self.kernel[1] - 1) * self.dilation[1]  # wide rows run over the last row's end
        flat = np.zeros(size + slack, dtype)
        (top, left), (h, w) = self.before, self.image
        view = flat[:size].reshape(self.channels, n, height, width)
        return flat, view[:, :, top : top + h, left : left + w]

    def windows(self, flat, channel_stride, image_stride, n, row, end):
        """Return the windows of output rows row:end as a view (C, kh, kw, n, rows, wide) of flat."""
        width, item = self.padded[1], flat.itemsize
        down, right = self.stride[0] * width, self.stride[1]
        strides = (
            channel_stride,
            self.dilation[0] * width,
            self.dilation[1],
            image_stride,
            down,
            right,
        )
        return np.ndarray(
            (self.channels, *self.kernel, n, end - row, self.wide),
            flat.dtype,
            flat,
            row * down * item,
            tuple(s * item for s in strides),
        )

    def widen(self, grad):
        """Return grad (n, O, rows, W') as an array (O, n, rows, wide), the superfluous part zero."""
        n, out_channels, rows, width = grad.shape
        upstream = np.empty((out_channels, n, rows, self.wide), grad.dtype)
        upstream[..., :width] = grad.swapaxes(0, 1)
        upstream[..., width:] = 0
        return upstream

    def workspace(self, batch, dtype):
        """Return a flat buffer for the columns of the largest block."""
        block = min(self.images, batch) * self.rows * self.wide
        return np.empty(self.channels * self.kernel[0] * self.kernel[1] * block, dtype)

    @staticmethod
    def unroll(windows, workspace, groups):
        """Copy windows into the workspace; return them as (groups, C / groups · kh · kw, windows)."""
        columns = workspace[: windows.size]
        columns.reshape(windows.shape)[...] = windows
        channels, kh, kw = windows.shape[:3]
        return columns.reshape(groups, channels // groups * kh * kw, -1)


def _geometry(channels, kernel, stride, dilation, image, before, padded):
    """Return the geometry with its output size, its rows wide or not, and its blocks."""
    out = tuple(
        (padded[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    )
    # Wide rows spare short copies; they do not pay if much of each row is superfluous.
    wide = padded[1] if stride == (1, 1) and padded[1] <= 1.25 * out[1] else out[1]
    row_bytes = channels * kernel[0] * kernel[1] * wide * 4
    images = max(1, BLOCK_BYTES // (row_bytes * out[0]))
    rows = min(out[0], max(1, BLOCK_BYTES // row_bytes))
    sizes = kernel, stride, dilation, image, before, padded, out
    return _Geometry(channels, *sizes, wide, images, rows)


def convolve(x, weight, bias, geometry, groups):
    """Return y (N, O, H', W') for x (N, C, H, W), weight (O, C / groups, kh, kw), bias (O,) or None."""
    g, out_channels = geometry, len(weight)
    y = np.empty((len(x), out_channels, *g.out), x.dtype)
    kernel = weight.reshape(groups, out_channels // groups, -1)
    workspace, held = g.workspace(len(x), x.dtype), None
    for n, n_end, row, end in g.blocks(len(x)):
        if held != n:  # several blocks of rows share one padded image
            block, held = g.pad_block(x[n:n_end]), n
        columns = g.unroll(g.windows(*block, n_end - n, row, end), workspace, groups)
        product = (kernel @ columns).reshape(out_channels, n_end - n, end - row, g.wide)
        target = y[n:n_end, :, row:end].swapaxes(0, 1)
        if bias is None:
            target[...] = product[..., : g.out[1]]
        else:
            np.add(product[..., : g.out[1]], bias[:, None, None, None], out=target)
    return y


def weight_gradient(x, grad, geometry, groups):
    """Return the gradient (O, C / groups, kh, kw) for the weight, given grad (N, O, H', W')."""
    g, out_channels = geometry, grad.shape[1]
    inner = g.channels // groups * g.kernel[0] * g.kernel[1]
    dkernel = np.zeros((groups, inner, out_channels // groups), x.dtype)
    workspace, held = g.workspace(len(x), x.dtype), None
    for n, n_end, row, end in g.blocks(len(x)):
        if held != n:
            block, held = g.pad_block(x[n:n_end]), n
        columns = g.unroll(g.windows(*block, n_end - n, row, end), workspace, groups)
        upstream = g.widen(grad[n:n_end, :, row:end]).reshape(groups, -1, columns.shape[2])
        dkernel += columns @ upstream.swapaxes(1, 2)  # this way round BLAS is faster by a third
    return dkernel.swapaxes(1, 2).reshape(out_channels, g.channels // groups, *g.kernel)


def input_gradient(weight, grad, geometry, groups):
    """Return the gradient (N, C, H, W) for x, given grad (N, O, H', W')."""
    g, out_channels = geometry, len(weight)
    if g.transposed is not None:
        return convolve(grad, _transpose(weight, groups), None, g.transposed, groups)
    dx = np.empty((len(grad), g.channels, *g.image), grad.dtype)
    kernel = weight.reshape(groups, out_channels // groups, -1).swapaxes(1, 2)
    size, held = g.padded[0] * g.padded[1], None
    for n, n_end, row, end in g.blocks(len(grad)):
        images = n_end - n
        if held != n:
            (flat, view), held = g.zero_block(images, grad.dtype), n
        upstream = g.widen(grad[n:n_end, :, row:end]).reshape(groups, out_channels // groups, -1)
        windows = g.windows(flat, images * size, size, images, row, end)
        dcolumns = (kernel @ upstream).reshape(windows.shape)
        for i in range(g.kernel[0]):  # windows overlap: add one kernel element at a time
            for j in range(g.kernel[1]):
                windows[:, i, j] += dcolumns[:, i, j]
        if end == g.out[0]:
            dx[n:n_end] = view.swapaxes(0, 1)
    return dx


def _transpose(weight, groups):
    """Return the kernel (C, O / groups, kh, kw) that carries gradients back: turned by 180 degrees."""
    out_channels, channels, kh, kw = weight.shape
    turned = weight[:, :, ::-1, ::-1].reshape(groups, out_channels // groups, channels, kh, kw)
    return turned.swapaxes(1, 2).reshape(groups * channels, out_channels // groups, kh, kw)


class Conv2d(Module):
    """Two-dimensional convolution (cross-correlation, as everywhere in deep learning).

    x (N, C, H, W) -> y (N, O, H', W'), or unbatched (C, H, W) -> (O, H', W'), with
    H' = (H + padding - dilation·(kh - 1) - 1) // stride + 1 and W' alike
    weight (O, C / groups, kh, kw), bias (O,)

    Options are torch.nn.Conv2d's; `rng` (a Generator or a seed) draws the initial weights. x has
    the parameters' dtype. forward keeps references to x and to the weight array until backward;
    the weight is not to be written in place in between.

    Raises ValueError for bad options and for x of another rank, channel count or too small a size.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        device=None,
        dtype=np.float32,
        *,
        rng=None,
    ):
        check_device("Conv2d", device)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = pair(stride, "stride")
        self.dilation = pair(dilation, "dilation")
        self.padding = padding if isinstance(padding, str) else pair(padding, "padding")
        self.padding_mode = padding_mode
        self._check_options()
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        fan_in, rng = int(np.prod(shape[1:])), initialisation.generator(rng)
        dtype = check_dtype("Conv2d", dtype)
        self.params["weight"] = initialisation.uniform(shape, fan_in, rng, dtype)
        if bias:
            self.params["bias"] = initialisation.uniform((out_channels,), fan_in, rng, dtype)
        self._geometries = {}  # by (H, W): training sees few sizes, and small images many calls

    def _check_options(self):
        """Refuse at construction what torch refuses there, and the sizes that it refuses later."""
        for name in ("in_channels", "out_channels", "groups"):
            if isinstance(getattr(self, name), str | float) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive integer, not {getattr(self, name)!r}")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(
                    f"{name} must be divisible by groups, not {getattr(self, name)} "
                    f"by {self.groups}"
                )
        for name in ("kernel_size", "stride", "dilation"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.padding_mode not in PADDING_MODES:
            raise ValueError(
                f"padding_mode must be one of {', '.join(PADDING_MODES)}, "
                f"but got padding_mode={self.padding_mode!r}"
            )
        if self.padding == "same" and self.stride != (1, 1):
            raise ValueError("padding='same' is not supported for strided convolutions")
        if isinstance(self.padding, str) and self.padding not in ("same", "valid"):
            raise ValueError(
                f"Invalid padding string {self.padding!r}, should be one of 'same', 'valid'"
            )
        if not isinstance(self.padding, str) and min(self.padding) < 0:
            if self.padding_mode == "zeros":  # the other modes crop, as in torch
                raise ValueError(f"negative padding is not supported: {self.padding}")

    def _amounts(self):
        """Return ((top, bottom), (left, right)): the elements to add around an image."""
        if self.padding == "valid":
            return (0, 0), (0, 0)
        if self.padding == "same":  # an odd total leaves one more at the bottom and on the right
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return tuple((total // 2, total - total // 2) for total in totals)
        return tuple((p, p) for p in self.padding)

    def _geometry(self, image):
        """Return the geometry for images of size image = (H, W), computed once per size."""
        if image not in self._geometries:
            self._geometries[image] = self._new_geometry(image)
        return self._geometries[image]

    def _new_geometry(self, image):
        amounts = self._amounts() if self.padding_mode == "zeros" else ((0, 0), (0, 0))
        padded = tuple(size + sum(a) for size, a in zip(image, amounts, strict=True))
        spans = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        if padded[0] < spans[0] or padded[1] < spans[1]:
            raise ValueError(
                f"{self!r} got images of {padded[0]}x{padded[1]}, padding included; "
                f"its dilated kernel covers {spans[0]}x{spans[1]} and must fit in"
            )
        before = amounts[0][0], amounts[1][0]
        options = self.kernel_size, self.stride, self.dilation
        geometry = _geometry(self.in_channels, *options, image, before, padded)
        # With stride 1 the gradient for x is itself a convolution, of the gradient for y with the
        # kernel turned round. It unrolls O channels in place of C, so O should not be much larger.
        ahead = spans[0] - 1 - before[0], spans[1] - 1 - before[1]
        if self.stride != (1, 1) or min(ahead) < 0 or self.out_channels > 4 * self.in_channels:
            return geometry
        padded = image[0] + spans[0] - 1, image[1] + spans[1] - 1
        if min(p - a - o for p, a, o in zip(padded, ahead, geometry.out, strict=True)) < 0:
            return geometry
        back = _geometry(self.out_channels, *options, geometry.out, ahead, padded)
        return replace(geometry, transposed=back)

    def _border(self, image):
        """Return the row and column sources of a border that is not zeros."""
        return tuple(
            border_sources(size, *amounts, self.padding_mode)
            for size, amounts in zip(image, self._amounts(), strict=True)
        )

    def forward(self, x):
        """Return y (N, O, H', W') for x (N, C, H, W), or the same without N."""
        weight, bias = self._params["weight"], self._params.get("bias")
        x = self._floating(x, weight)
        check_images(self, x)
        images = x if x.ndim == 4 else x[None]
        if images.shape[1] != self.in_channels:
            raise ValueError(
                f"{self!r} got x with shape {x.shape}; it must have {self.in_channels} channels"
            )
        border = None
        if self.padding_mode != "zeros":
            border = self._border(images.shape[2:])
            images = pad(images, *border)
        geometry = self._geometry(images.shape[2:])
        y = convolve(images, weight, bias, geometry, self.groups)
        self._cache = images, weight, geometry, border, x.shape
        return y if x.ndim == 4 else y[0]

    def backward(self, grad_output):
        """Return the gradient for x; add those for weight and bias to `grads`."""
        images, weight, geometry, border, shape = self._recall()
        y_shape = (*shape[:-3], self.out_channels, *geometry.out)
        grad = self._upstream(grad_output, y_shape, images.dtype)
        grad = grad.reshape(len(images), self.out_channels, *geometry.out)
        self._accumulate("weight", weight_gradient(images, grad, geometry, self.groups))
        if "bias" in self._params:
            self._accumulate("bias", _sum_per_channel(grad))
        dx = input_gradient(weight, grad, geometry, self.groups)
        if border is not None:
            before = [amounts[0] for amounts in self._amounts()]
            dx = fold(dx, *border, before, (*dx.shape[:2], *shape[-2:]))
        return dx.reshape(shape)

    def extra_repr(self):
        """Return the options that differ from the defaults, written as torch writes them."""
        text = f"{self.in_channels}, {self.out_channels}, "
        text += f"kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding not in ((0, 0), "valid"):
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if "bias" not in self._params:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text


def _sum_per_channel(grad):
    """Return the sum of grad (N, O, H', W') over all but O.

    NumPy adds pairwise along the last axis alone; over the images it would add one by one, so
    that short second sum is taken in float64.
    """
    sums = grad.reshape(*grad.shape[:2], -1).sum(axis=2)
    return sums.sum(axis=0, dtype=np.float64).astype(grad.dtype)
