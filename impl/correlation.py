"""Two-dimensional correlation as matrix products over unrolled windows: Conv2d's arithmetic.

A window of the image, unrolled, is a column; all columns side by side are a matrix `columns`
(C·kh·kw, windows), and with the kernel as a matrix (O, C·kh·kw)

    y       = kernel @ columns                    forward
    dkernel = dy @ columns.T                      gradient of the weight
    dx      = every element of kernel.T @ dy, added back to the pixel that it was copied from

Copying windows costs as much as the products if it is done badly, so three things are arranged:

- *Blocks.* `columns` is kh·kw times the image. It is made for a few images (or a few rows of one
  image) at a time, in one reused workspace of BLOCK_BYTES that stays in the processor's cache.
- *Channels first.* A block is padded into a buffer (C, images, height, width): then one product
  serves all its images, and groups are a plain split of the first axis.
- *Wide rows.* With stride 1 the windows of a whole padded image row are copied, including those
  few that run over its end into the next row. Then rows follow each other without gaps and one
  kernel element's columns are a single long copy, not one short copy a row. The superfluous
  results are dropped when y is written; their gradient is zero.
"""

from dataclasses import dataclass, field, replace

import numpy as np

BLOCK_BYTES = 2 << 20  # bounds the workspace; 1 to 4 MiB measured alike, 256 KiB a third slower


@dataclass(frozen=True)
class Geometry:
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
    transposed: "Geometry | None" = None  # of the convolution that carries gradients back
    tables: dict = field(default_factory=dict, repr=False, compare=False)  # of small batches

    @property
    def apart(self):
        """Whether no two windows share a pixel."""
        sizes = zip(self.out, self.stride, self.kernel, self.dilation, strict=True)
        return all(out == 1 or stride > dilation * (k - 1) for out, stride, k, dilation in sizes)

    @property
    def pointwise(self):
        """Whether an image is its own matrix of columns, large enough for products by itself."""
        plain = self.kernel == self.stride == (1, 1) and self.padded == self.image
        return plain and self.image[0] * self.image[1] >= 256

    def one_block(self, batch):
        """Tell whether a single block covers the batch."""
        return batch <= self.images and self.out[0] <= self.rows

    def elements(self, batch):
        """Return how many elements the columns of all images have."""
        kh, kw = self.kernel
        return self.channels * kh * kw * batch * self.out[0] * self.out[1]

    def blocks(self, batch):
        """Yield (first image, end, first output row, end)."""
        for n in range(0, batch, self.images):
            for row in range(0, self.out[0], self.rows):
                yield n, min(n + self.images, batch), row, min(row + self.rows, self.out[0])

    def pad_block(self, x):
        """Return (flat buffer holding x (n, C, H, W), stride of a channel, stride of an image)."""
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
        """Return the windows of rows row:end of the output, a view (C, kh, kw, n, rows, wide)."""
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
        """Return grad (n, O, rows, W') as (O, n, rows, wide), the superfluous part zero."""
        n, out_channels, rows, width = grad.shape
        upstream = np.empty((out_channels, n, rows, self.wide), grad.dtype)
        upstream[..., :width] = grad.swapaxes(0, 1)
        upstream[..., width:] = 0
        return upstream

    def block_columns(self, batch):
        """Return how many columns the largest block has."""
        return min(self.images, batch) * self.rows * self.wide

    def workspace(self, batch, dtype):
        """Return a flat buffer for the columns of the largest block."""
        inner = self.channels * self.kernel[0] * self.kernel[1]
        return np.empty(inner * self.block_columns(batch), dtype)

    @staticmethod
    def unroll(windows, workspace, groups):
        """Copy windows into the workspace; return (groups, C / groups · kh · kw, windows)."""
        columns = workspace[: windows.size]
        columns.reshape(windows.shape)[...] = windows
        channels, kh, kw = windows.shape[:3]
        return columns.reshape(groups, channels // groups * kh * kw, -1)


def plan(channels, kernel, stride, dilation, image, before, padded):
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
    return Geometry(channels, *sizes, wide, images, rows)


def unrolled(x, geometry, groups):
    """Yield (first image, end, first output row, end, columns) of each block of x (N, C, H, W).

    All columns are made in one workspace: each block overwrites those before it.
    """
    g, workspace, held = geometry, geometry.workspace(len(x), x.dtype), None
    for n, n_end, row, end in g.blocks(len(x)):
        if held != n:  # several blocks of rows share one padded image
            block, held = g.pad_block(x[n:n_end]), n
        windows = g.windows(*block, n_end - n, row, end)
        yield n, n_end, row, end, g.unroll(windows, workspace, groups)


def images_as_columns(x):
    """Return x (N, C, H, W) as (N, C, H·W): the columns of a 1×1 convolution, without a copy."""
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def convolve(x, weight, bias, geometry, groups, blocks=None):
    """Return y (N, O, H', W') for x (N, C, H, W), weight (O, C / groups, kh, kw), bias (O,).

    `blocks` are those of `unrolled`, if they are at hand.
    """
    g, out_channels = geometry, len(weight)
    if g.pointwise and groups == 1:
        y = (weight[:, :, 0, 0] @ images_as_columns(x)).reshape(len(x), out_channels, *g.out)
        if bias is not None:
            y += bias[:, None, None]
        return y
    y = np.empty((len(x), out_channels, *g.out), x.dtype)
    kernel = weight.reshape(groups, out_channels // groups, -1)
    space = np.empty(out_channels * g.block_columns(len(x)), x.dtype)  # of the products, reused
    for n, n_end, row, end, columns in blocks or unrolled(x, g, groups):
        product = space[: out_channels * columns.shape[2]]
        np.matmul(kernel, columns, out=product.reshape(*kernel.shape[:2], -1))
        product = product.reshape(out_channels, n_end - n, end - row, g.wide)
        target = y[n:n_end, :, row:end]
        target.swapaxes(0, 1)[...] = product[..., : g.out[1]]
        if bias is not None:  # faster than in one pass, whose rows would be short
            target += bias[:, None, None]
    return y


def weight_gradient(x, grad, geometry, groups, blocks=None):
    """Return the gradient (O, C / groups, kh, kw) for the weight, given grad (N, O, H', W')."""
    if geometry.pointwise and groups == 1:
        total = np.zeros((grad.shape[1], x.shape[1]))  # image after image: the sum in float64
        for upstream, columns in zip(images_as_columns(grad), images_as_columns(x), strict=True):
            total += upstream @ columns.T
        return total.astype(x.dtype)[:, :, None, None]
    dweight = _weight_gradient(x, grad, geometry, groups, blocks)
    if geometry.wide > geometry.out[1] and not np.isfinite(dweight).all():
        # The zeros of the superfluous windows do not silence an infinite pixel: 0 · inf is NaN.
        narrow = replace(geometry, wide=geometry.out[1])
        dweight = _weight_gradient(x, grad, narrow, groups)
    return dweight


def _weight_gradient(x, grad, geometry, groups, blocks=None):
    g, out_channels = geometry, grad.shape[1]
    inner = g.channels // groups * g.kernel[0] * g.kernel[1]
    dkernel = np.zeros((groups, inner, out_channels // groups), x.dtype)
    for n, n_end, row, end, columns in blocks or unrolled(x, g, groups):
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
        if g.apart:
            windows[...] = dcolumns
        else:  # windows overlap: add one kernel element at a time
            for i, j in np.ndindex(g.kernel):
                windows[:, i, j] += dcolumns[:, i, j]
        if end == g.out[0]:
            dx[n:n_end] = view.swapaxes(0, 1)
    return dx


def _transpose(weight, groups):
    """Return the kernel (C, O / groups, kh, kw) that carries gradients back: turned round."""
    out_channels, channels, kh, kw = weight.shape
    turned = weight[:, :, ::-1, ::-1].reshape(groups, out_channels // groups, channels, kh, kw)
    return turned.swapaxes(1, 2).reshape(groups * channels, out_channels // groups, kh, kw)


def sum_per_channel(grad):
    """Return the sum of grad (N, O, H', W') over all but O.

    NumPy adds pairwise, but only along the last axis, and slowly if that is short: short ones are
    a matrix product with ones. Images would be added one by one, so in float64.
    """
    n, out_channels, height, width = grad.shape
    lines = grad.reshape(n * out_channels, height * width)
    sums = (
        lines @ np.ones(height * width, grad.dtype) if height * width < 256 else lines.sum(axis=1)
    )
    return sums.reshape(n, out_channels).sum(axis=0, dtype=np.float64).astype(grad.dtype)
