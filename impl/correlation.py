"""Two-dimensional correlation as matrix products over unrolled windows: Conv2d's arithmetic.

A window of the image, unrolled, is a column; all columns side by side are a matrix `columns`
(C·kh·kw, windows), and with the kernel as a matrix (O, C·kh·kw)

    y       = kernel @ columns                    forward
    dkernel = dy @ columns.T                      gradient of the weight
    dx      = every element of kernel.T @ dy, added back to the pixel that it was copied from

Copying windows costs as much as the products if it is done badly, so four things are arranged:

- *Blocks.* `columns` is kh·kw times the image. It is made for a few images (or a few rows of one
  image) at a time, in one reused workspace of BLOCK_BYTES that stays in the processor's cache.
- *Channels first.* A block is padded into a buffer (C, images, height, width): then one product
  serves all its images, and groups are a plain split of the first axis.
- *Planes.* With a stride of s a kernel element meets every s-th pixel of a row, and reading apart
  is slow. So where windows overlap the block is padded into planes, one for each remainder of rows
  and columns by the strides (one in all for stride 1): there each kernel element meets neighbours.
- *Wide rows.* The windows of a whole row of a plane are copied, including those few that run over
  its end into the next row. Then rows follow each other without gaps and one kernel element's
  columns are a single long copy, not one short copy a row. The superfluous results are dropped
  when y is written; their gradient is zero.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

import numpy as np

BLOCK_BYTES = 2 << 20  # bounds the workspace; 1 to 4 MiB measured alike, 256 KiB a third slower


class Plane:
    """The rows and columns that leave one remainder each, divided by how many planes there are.

    elements: the kernel's, as an index of (C, kh, kw)
    count: how many these are, down and across
    first: where in the plane the first of them meets window 0
    step: how far apart the next ones meet it
    inside: where in the plane (C, n, height, width) the image is, as an index
    pixels: which of the image's (C, n, H, W), as an index
    """

    def __init__(self, elements, count, first, step, inside, pixels):
        self.elements = slice(None), *elements
        self.count, self.first, self.step = count, first, step
        self.inside, self.pixels = (..., *inside), (..., *pixels)


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
    wide: int  # columns computed in each output row: out[1], or the plane's with wide rows
    images: int = 1  # images in a block
    rows: int = 1  # output rows in a block
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

    @cached_property
    def split(self):
        """How many planes there are down and across; not more than one if no windows overlap."""
        return (1, 1) if self.apart else self.stride

    @cached_property
    def plane(self):
        """The size (height, width) of each plane."""
        return tuple(-(-p // s) for p, s in zip(self.padded, self.split, strict=True))

    @cached_property
    def planes(self):
        """Every plane that the kernel meets."""
        axes, sizes = [], (self.split, self.dilation, self.kernel, self.before, self.image)
        for split, dilation, kernel, *image in zip(*sizes, strict=True):
            met = sorted({k * dilation % split for k in range(kernel)})
            axes.append([_along(rest, split, dilation, kernel, *image) for rest in met])
        return [Plane(*zip(down, across, strict=True)) for down, across in product(*axes)]

    @cached_property
    def apace(self):
        """How far apart in their plane neighbouring windows are, down and across."""
        return tuple(s // p for s, p in zip(self.stride, self.split, strict=True))

    def pad_block(self, x):
        """Return a flat buffer holding x (n, C, H, W), and its strides: see `windows`."""
        size = self.plane[0] * self.plane[1]
        plain = self.split == (1, 1) and self.padded == self.image and self.wide == self.out[1]
        if plain and x.flags.c_contiguous:  # the windows can be read from x itself
            return x.reshape(-1), (self.channels * size, size, size)
        flat, views = self.zero_block(len(x), x.dtype)
        for view, plane in zip(views, self.planes, strict=True):
            view[plane.inside] = x.swapaxes(0, 1)[plane.pixels]
        return flat, self.strides(len(x))

    def strides(self, n):
        """Return how far apart images, channels and planes are in a `zero_block` of n images."""
        size = self.plane[0] * self.plane[1]
        return size, len(self.planes) * n * size, n * size

    def zero_block(self, n, dtype):
        """Return a flat buffer for n padded images, channels first, and (C, n, h, w) per plane."""
        shape = self.channels, len(self.planes), n, *self.plane
        slack = (self.kernel[1] - 1) * self.dilation[1]  # wide rows run over the last row's end
        size = math.prod(shape)
        flat = np.zeros(size + slack, dtype)
        return flat, flat[:size].reshape(shape).swapaxes(0, 1)

    def windows(self, flat, strides, n, row, end):
        """Yield (kernel elements, the pixels that they meet) for each plane.

        The elements as an index of (C, kh, kw); the pixels as a view (C, kh, kw, n, rows, wide), of
        rows row:end of the output. strides: how far apart the buffer's images, channels and planes
        are, in elements.
        """
        width, item, (down, right) = self.plane[1], flat.itemsize, self.apace
        image, channel, apart = strides
        for number, plane in enumerate(self.planes):
            start = number * apart + (plane.first[0] + row * down) * width + plane.first[1]
            steps = channel, plane.step[0] * width, plane.step[1], image, down * width, right
            shape = self.channels, *plane.count, n, end - row, self.wide
            steps = [step * item for step in steps]
            yield plane.elements, np.ndarray(shape, flat.dtype, flat, start * item, steps)

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

    def unroll(self, windows, workspace, groups, n, rows):
        """Copy windows into the workspace; return (groups, C / groups · kh · kw, windows)."""
        shape = self.channels, *self.kernel, n, rows, self.wide
        columns = workspace[: math.prod(shape)].reshape(shape)
        for elements, pixels in windows:
            columns[elements] = pixels
        return columns.reshape(groups, math.prod(shape[:3]) // groups, -1)


def _along(remainder, split, dilation, kernel, before, image):
    """Return what a `Plane` holds, along one axis."""
    elements = [k for k in range(kernel) if k * dilation % split == remainder]
    apart = elements[1] - elements[0] if len(elements) > 1 else 1
    pixels = range((remainder - before) % split, image, split)
    start = (pixels.start + before) // split
    return (
        slice(elements[0], elements[-1] + 1, apart),
        len(elements),
        elements[0] * dilation // split,
        apart * dilation // split,
        slice(start, start + len(pixels)),
        slice(pixels.start, None, split),
    )


def plan(channels, kernel, stride, dilation, image, before, padded):
    """Return the geometry with its output size, its rows wide or not, and its blocks."""
    out = tuple(
        (padded[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    )
    # Wide rows spare short copies; they do not pay if much of each row is superfluous.
    narrow = Geometry(channels, kernel, stride, dilation, image, before, padded, out, out[1])
    neighbours, width = narrow.split[1] == stride[1], narrow.plane[1]
    wide = width if neighbours and width <= 1.25 * out[1] else out[1]
    row_bytes = channels * kernel[0] * kernel[1] * wide * 4
    images = max(1, BLOCK_BYTES // (row_bytes * out[0]))
    rows = min(out[0], max(1, BLOCK_BYTES // row_bytes))
    return replace(narrow, wide=wide, images=images, rows=rows)


def unrolled(x, geometry, groups):
    """Yield (first image, end, first output row, end, columns) of each block of x (N, C, H, W).

    All columns are made in one workspace: each block overwrites those before it.
    """
    g, workspace, held = geometry, geometry.workspace(len(x), x.dtype), None
    for n, n_end, row, end in g.blocks(len(x)):
        if held != n:  # several blocks of rows share one padded image
            block, held = g.pad_block(x[n:n_end]), n
        windows = g.windows(*block, n_end - n, row, end)
        yield n, n_end, row, end, g.unroll(windows, workspace, groups, n_end - n, end - row)


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
        product = product.reshape(out_channels, -1)
        if bias is not None:
            product += bias[:, None]
        product = product.reshape(out_channels, n_end - n, end - row, g.wide)
        y[n:n_end, :, row:end].swapaxes(0, 1)[...] = product[..., : g.out[1]]
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
    all_met = len(g.planes) == math.prod(g.split)  # else some pixels have no gradient
    dx = (np.empty if all_met else np.zeros)((len(grad), g.channels, *g.image), grad.dtype)
    kernel = weight.reshape(groups, out_channels // groups, -1).swapaxes(1, 2)
    workspace, held = g.workspace(len(grad), grad.dtype), None
    for n, n_end, row, end in g.blocks(len(grad)):
        images = n_end - n
        if held != n:
            (flat, views), held = g.zero_block(images, grad.dtype), n
        upstream = g.widen(grad[n:n_end, :, row:end]).reshape(groups, out_channels // groups, -1)
        dcolumns = workspace[: kernel.shape[0] * kernel.shape[1] * upstream.shape[2]]
        np.matmul(kernel, upstream, out=dcolumns.reshape(*kernel.shape[:2], -1))
        dcolumns = dcolumns.reshape(g.channels, *g.kernel, images, end - row, g.wide)
        for elements, pixels in g.windows(flat, g.strides(images), images, row, end):
            _add(dcolumns[elements], pixels, g.apart)
        if end == g.out[0]:
            for view, plane in zip(views, g.planes, strict=True):
                dx[n:n_end].swapaxes(0, 1)[plane.pixels] = view[plane.inside]
    return dx


def _add(dcolumns, pixels, apart):
    """Add the columns' gradients to the pixels that they were copied from."""
    if apart:
        pixels[...] = dcolumns
        return
    for i, j in np.ndindex(pixels.shape[1:3]):  # elements of the kernel meet the same pixels
        pixels[:, i, j] += dcolumns[:, i, j]


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
