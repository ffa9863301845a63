"""Linear, the affine map of the last axis."""

import math
import operator

import numpy as np

from impl import initialisation
from impl.module import Module, check_device, check_dtype


def size(layer: str, name: str, value) -> int:
    """Return `value` as a size of an axis; raise TypeError or ValueError naming the argument."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{layer} got {name}={value!r}; it must be an integer") from None
    if number < 0:
        raise ValueError(f"{layer} got {name}={value!r}; it must be 0 or more")
    return number


class Linear(Module):
    """y = x Wᵀ + b over the last axis.

    x (*, in_features) -> y (*, out_features); weight (out_features, in_features),
    bias (out_features,). Both are drawn from U(±1/√in_features), as torch's are.
    Keeps a reference to x until the next forward.

    Raises ValueError for another last axis and TypeError for an x that is not floating; an x of
    another floating dtype is cast to the weight's.
    """

    def __init__(self, in_features, out_features, bias=True, device=None, dtype=None, *, rng=None):
        self.in_features = size("Linear", "in_features", in_features)
        self.out_features = size("Linear", "out_features", out_features)
        check_device("Linear", device)
        dtype, rng = check_dtype("Linear", dtype), initialisation.generator(rng)
        shape = (self.out_features, self.in_features)
        self.params["weight"] = initialisation.uniform(shape, self.in_features, rng, dtype)
        if bias:
            self.params["bias"] = initialisation.uniform(shape[:1], self.in_features, rng, dtype)

    def _rows(self, x: np.ndarray) -> np.ndarray:
        # The count is spelt out: reshape(-1, 0) cannot guess it when a width is 0.
        return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])

    def forward(self, input):
        """Return y (*, out_features)."""
        weight, bias = self._params["weight"], self._params.get("bias")
        x = self._floating(input, like=weight)
        if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"Linear({self.in_features}, {self.out_features}) got x with shape {x.shape}; "
                f"its last axis must be {weight.shape[1]}"
            )
        # One matrix product for all leading axes: a batched one would be a loop of small ones.
        y = self._rows(x) @ weight.T
        if bias is not None:
            y += bias
        self._cache = x
        return y.reshape(*x.shape[:-1], weight.shape[0])

    def backward(self, grad_output):
        """Return the gradient for x; add to grads["weight"] and grads["bias"]."""
        x, weight = self._recall(), self._params["weight"]
        grad = self._upstream(grad_output, (*x.shape[:-1], weight.shape[0]), x.dtype)
        rows = self._rows(grad)
        self._accumulate("weight", rows.T @ self._rows(x))
        if self._params.get("bias") is not None:
            # In float32 a plain sum down the rows loses digits that torch's blocked sum keeps.
            self._accumulate("bias", np.add.reduce(rows, axis=0, dtype=np.float64))
        return (rows @ weight).reshape(x.shape)

    def extra_repr(self) -> str:
        """Return the arguments."""
        bias = self.params.get("bias") is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"
