"""Correlation of small images: Conv2d's arithmetic in as few NumPy calls as possible.

Of a few hundred pixels the calls cost more than the arithmetic. So where each element of the
matrix of columns (see `impl.correlation`) comes from is worked out once, in a table: then the
windows are gathered by one `take`, and their gradients added back to their pixels by one
`bincount`, which adds in float64.
"""

import math
from dataclasses import dataclass

import numpy as np

LARGEST = 1 << 15  # elements of the columns: from here on copying whole rows is faster
MOST_TABLES = 8  # of one image size: a data set's batches have two sizes, not many


@dataclass(frozen=True)
class Table:
    """Where the windows of a batch of a given size come from.

    index (groups, C / groups · kh · kw, N·H'·W'): positions in the flattened padded batch
    padded: the shape (N, C, height, width) of that batch
    inside: where the images are in it; None if nothing is added around them
    kernel, upstream, channels_first: the shapes of the kernel as a matrix, of the gradient for the
    output as a matrix, and of the output with its channels in front, (O, N, H', W')
    """

    index: np.ndarray
    padded: tuple
    inside: tuple | None
    kernel: tuple
    upstream: tuple
    channels_first: tuple


def table(geometry, batch, out_channels, groups):
    """Return the table for `batch` images, made once for each size of a batch; None if too large.

    The geometry is that of a single layer, and holds the tables.
    """
    tables = geometry.tables
    if batch not in tables:
        if len(tables) >= MOST_TABLES:
            tables.clear()
        fits = 0 < geometry.elements(batch) <= LARGEST
        tables[batch] = _new_table(geometry, batch, out_channels, groups) if fits else None
    return tables[batch]


def _new_table(g, batch, out_channels, groups):
    inner, windows = g.channels * g.kernel[0] * g.kernel[1], batch * g.out[0] * g.out[1]
    padded = batch, g.channels, *g.padded
    places = np.arange(math.prod(padded)).reshape(padded)
    columns = np.empty((g.channels, *g.kernel, batch, *g.out), np.intp)
    for i, j in np.ndindex(g.kernel):
        rows, across = (
            slice(k * d, k * d + (n - 1) * s + 1, s)
            for k, d, n, s in zip((i, j), g.dilation, g.out, g.stride, strict=True)
        )
        columns[:, i, j] = places[:, :, rows, across].swapaxes(0, 1)
    (top, left), (h, w) = g.before, g.image
    inside = (..., slice(top, top + h), slice(left, left + w)) if g.padded != g.image else None
    kernel = groups, out_channels // groups, inner // groups
    return Table(
        columns.reshape(groups, inner // groups, windows),
        padded,
        inside,
        kernel,
        (*kernel[:2], windows),
        (out_channels, batch, *g.out),
    )


def gather(x, table):
    """Return the columns (groups, C / groups · kh · kw, N·H'·W') of x (N, C, H, W)."""
    if table.inside is not None:
        images, x = x, np.zeros(table.padded, x.dtype)
        x[table.inside] = images
    return x.take(table.index)


def convolve(columns, weight, bias, table):
    """Return y (N, O, H', W') for the columns, weight (O, C / groups, kh, kw) and bias (O,)."""
    product = weight.reshape(table.kernel) @ columns
    if bias is not None:
        product += bias.reshape(*table.kernel[:2], 1)
    return np.ascontiguousarray(product.reshape(table.channels_first).swapaxes(0, 1))


def gradients(columns, weight, grad, table):
    """Return the gradients for weight, bias and x (N, C, H, W), given grad (N, O, H', W')."""
    upstream = grad.swapaxes(0, 1).reshape(table.upstream)
    dweight = upstream @ columns.swapaxes(1, 2)
    dcolumns = weight.reshape(table.kernel).swapaxes(1, 2) @ upstream
    dx = np.bincount(table.index.reshape(-1), dcolumns.reshape(-1), math.prod(table.padded))
    dx = dx.astype(grad.dtype).reshape(table.padded)
    if table.inside is not None:
        dx = dx[table.inside]
    return dweight.reshape(weight.shape), np.add.reduce(upstream, axis=2).reshape(-1), dx
