"""Softmax and LogSoftmax along one axis."""

import operator

import numpy as np

from impl.blocks import blocks
from impl.module import Module

# Rows of up to this many elements are worked on as columns: NumPy's reductions pay for each row.
NARROW = 32


class _AlongAxis(Module):
    """What the two share: the axis, empty and 0-d inputs, and a private copy of the output."""

    def __init__(self, dim=None):
        if dim is not None:
            try:
                dim = operator.index(dim)
            except TypeError:
                name = type(self).__name__
                raise TypeError(f"{name} got dim={dim!r}; it must be an integer") from None
        self.dim = dim

    def _axis(self, ndim: int) -> int:
        if self.dim is None:
            # torch's implicit choice, which it keeps (with a warning) for old code.
            return 0 if ndim in (0, 1, 3) else 1
        rank = max(ndim, 1)
        if not -rank <= self.dim < rank:
            raise IndexError(
                f"{type(self).__name__}(dim={self.dim}) got x with {ndim} axes; "
                f"dim must be from {-rank} to {rank - 1}"
            )
        return self.dim

    # A row of -inf, or one with +inf, is NaN throughout, as in torch.

    @np.errstate(all="ignore")
    def forward(self, input):
        """Return y (*), of x's dtype, for x (*)."""
        x = self._floating(input)
        axis = self._axis(x.ndim)
        wide = self._wide(x)
        y = self._along(self._value, axis, wide)
        y = y.reshape(x.shape).astype(x.dtype, copy=False)
        # The caller may change y: backward works on a copy, or on y computed anew.
        self._cache = x, y.copy() if self.training else None
        return y

    @np.errstate(all="ignore")
    def backward(self, grad_output):
        """Return the gradient (*) for x."""
        x, y = self._recall()
        grad = self._upstream(grad_output, x.shape, x.dtype)
        if y is None:
            mode, y = self._cache, self.forward(x)
            self._cache = mode
        axis = self._axis(x.ndim)
        dx = self._along(self._chain, axis, self._wide(y), self._wide(grad))
        return dx.reshape(x.shape).astype(x.dtype, copy=False)

    @staticmethod
    def _wide(array):
        # As in torch, 16 bits are for storage.
        array = array if array.ndim else array.reshape(1)
        return array.astype(np.float32) if array.dtype == np.float16 else array

    @staticmethod
    def _along(function, axis: int, *arrays):
        """Return function(*arrays, axis), a cache-sized block of rows at a time."""
        out = np.empty_like(arrays[0], order="C")
        if not out.size:
            return out
        width, last = out.shape[-1], axis % out.ndim == out.ndim - 1
        if last and width <= NARROW < out.size // width:
            rows = out.reshape(-1, width)
            arrays = [array.reshape(-1, width) for array in arrays]
            for part in blocks(len(rows), width):
                columns = (np.ascontiguousarray(array[part].T) for array in arrays)
                rows[part] = function(*columns, 0).T
            return out
        if axis % out.ndim == 0:
            return function(*arrays, axis, out)
        for part in blocks(len(out), out[0].size):
            out[part] = function(*(array[part] for array in arrays), axis, out[part])
        return out

    def extra_repr(self) -> str:
        """Return the argument."""
        return f"dim={self.dim}"


class Softmax(_AlongAxis):
    """exp(x) / Σ exp(x) along `dim`; without `dim`, axis 0 for 0, 1 or 3 axes and 1 otherwise.

    As torch.nn.Softmax: x (*) -> y (*). Raises IndexError for a dim that x has not, TypeError for
    an x that is not floating.
    """

    # The formulas write into `out` where one is given, and return what they wrote.

    def _value(self, x, axis, out=None):
        y = np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True), out=out)
        np.exp(y, out=y)
        y /= np.add.reduce(y, axis=axis, keepdims=True)
        return y

    def _chain(self, y, grad, axis, out=None):
        # dx = y (g - Σ g y)
        dx = np.multiply(grad, y, out=out)
        np.subtract(grad, np.add.reduce(dx, axis=axis, keepdims=True), out=dx)
        dx *= y
        return dx


class LogSoftmax(_AlongAxis):
    """x - log Σ exp(x) along `dim`; without `dim`, axis 0 for 0, 1 or 3 axes and 1 otherwise.

    As torch.nn.LogSoftmax: x (*) -> y (*). Raises IndexError for a dim that x has not, TypeError
    for an x that is not floating.
    """

    def _value(self, x, axis, out=None):
        y = np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True), out=out)
        y -= np.log(np.add.reduce(np.exp(y), axis=axis, keepdims=True))
        return y

    def _chain(self, y, grad, axis, out=None):
        # dx = g - exp(y) Σ g
        dx = np.exp(y, out=out)
        dx *= np.add.reduce(grad, axis=axis, keepdims=True)
        return np.subtract(grad, dx, out=dx)
