"""Flatten, which joins axes, and Normalize, which prepares images."""

import math
import operator

import numpy as np

from impl.activations import real
from impl.module import Module


class Flatten(Module):
    """Join the axes from start_dim to end_dim, both included: (N, *) -> (N, product of *).

    The output is a view of x where the memory allows it, as with torch.nn.Flatten. Raises
    IndexError for axes that x has not, ValueError where start_dim comes after end_dim.
    """

    def __init__(self, start_dim=1, end_dim=-1):
        for name, value in (("start_dim", start_dim), ("end_dim", end_dim)):
            try:
                setattr(self, name, operator.index(value))
            except TypeError:
                raise TypeError(f"Flatten got {name}={value!r}; it must be an integer") from None

    def _axis(self, name: str, shape: tuple) -> int:
        dim, rank = getattr(self, name), max(len(shape), 1)
        if not -rank <= dim < rank:
            raise IndexError(
                f"Flatten({name}={dim}) got x with shape {shape}; "
                f"{name} must be from {-rank} to {rank - 1}"
            )
        return dim % rank

    def forward(self, input):
        """Return x with the axes joined."""
        x = np.asarray(input)
        start, end = self._axis("start_dim", x.shape), self._axis("end_dim", x.shape)
        if start > end:
            raise ValueError(
                f"Flatten(start_dim={self.start_dim}, end_dim={self.end_dim}) got x with shape "
                f"{x.shape}; start_dim must not come after end_dim"
            )
        joined = math.prod(x.shape[start : end + 1])
        y = x.reshape(*x.shape[:start], joined, *x.shape[end + 1 :])
        self._cache = (x.shape, y.shape, x.dtype)
        return y

    def backward(self, grad_output):
        """Return the gradient in x's shape."""
        before, after, dtype = self._recall()
        return self._upstream(grad_output, after, dtype).reshape(before)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Normalize(Module):
    """(x / scale - mean) / std, channel by channel, then flattened item by item.

    x (N, H, W, C) with the channels on axis `dim` (any rank) -> y (N, H·W·C) in that order, or
    x's shape with `flatten=False`. mean and std are numbers or one number a channel. Integer
    images become `dtype`, and have no gradient: backward returns None. Raises ValueError for a
    scale or std of 0 and for other channel counts than x has.
    """

    def __init__(self, mean, std, scale=255.0, flatten=True, *, dim=-1, dtype=np.float32):
        self.mean, self.std = (self._numbers(n, v) for n, v in (("mean", mean), ("std", std)))
        if len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std)):
            raise ValueError(f"Normalize got {len(self.mean)} means and {len(self.std)} stds")
        self.scale = real("Normalize", "scale", scale)
        if self.scale == 0 or 0 in self.std:
            raise ValueError("Normalize got a scale or std of 0; x is divided by both")
        self.flatten, self.dim, self.dtype = bool(flatten), operator.index(dim), np.dtype(dtype)

    @staticmethod
    def _numbers(name: str, values) -> tuple:
        values = np.atleast_1d(np.asarray(values))
        if values.ndim != 1 or values.dtype.kind not in "iuf" or not values.size:
            raise TypeError(f"Normalize got {name}={values!r}; give a number, or one a channel")
        return tuple(float(value) for value in values)

    def _channels(self, values: tuple, x: np.ndarray) -> np.ndarray:
        shape = [1] * x.ndim
        shape[self.dim] = len(values)
        return np.array(values, dtype=x.dtype).reshape(shape)

    def forward(self, input):
        """Return the standardised images, (N, product of the other axes) when flattening."""
        x = np.asarray(input)
        integer = x.dtype.kind in "iu"
        x = x.astype(self.dtype) if integer else self._floating(x)
        channels = max(len(self.mean), len(self.std))
        if not -x.ndim <= self.dim < x.ndim or channels not in (1, x.shape[self.dim]):
            raise ValueError(
                f"Normalize with {channels} channels got x with shape {x.shape}; "
                f"axis {self.dim} must be {channels}"
            )
        self._cache = (x.shape, x.dtype, integer)
        y = np.asarray(x / x.dtype.type(self.scale))
        y -= self._channels(self.mean, x)
        y /= self._channels(self.std, x)
        return y.reshape(len(y), math.prod(y.shape[1:])) if self.flatten else y

    def backward(self, grad_output):
        """Return the gradient for x in x's shape, None for integer images."""
        shape, dtype, integer = self._recall()
        after = (shape[0], math.prod(shape[1:])) if self.flatten else shape
        grad = self._upstream(grad_output, after, dtype).reshape(shape)
        if integer:
            return None
        dx = grad / self._channels(self.std, grad)
        dx /= dtype.type(self.scale)
        return dx

    def extra_repr(self) -> str:
        """Return the arguments."""
        return (
            f"mean={self.mean}, std={self.std}, scale={self.scale}, "
            f"flatten={self.flatten}, dim={self.dim}"
        )
