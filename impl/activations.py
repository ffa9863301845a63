"""The elementwise activations: ReLU, LeakyReLU, ELU, Softplus, Sigmoid, Tanh, Threshold, Heaviside.

Each writes its function and its derivative next to each other. Every shape is taken, () included;
the output has the input's shape and dtype. A reference to x is kept until the next forward.
"""

import math
import numbers

import numpy as np

from impl.blocks import blockwise
from impl.module import Module, check_inplace


def real(layer: str, name: str, value) -> float:
    """Return `value` as a Python float, or int where it is whole as in torch's repr.

    Raises TypeError naming the argument.
    """
    if not isinstance(value, numbers.Real | np.floating | np.integer):
        raise TypeError(f"{layer} got {name}={value!r}; it must be a number")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def choose(mask, yes, no):
    """Return np.where(mask, yes, no) for two arrays of one dtype, without its branches.

    On random signs `where` mispredicts every other element; on the bits it is arithmetic.
    """
    if yes.dtype.itemsize > 8:
        return np.where(mask, yes, no)
    bits = f"i{yes.dtype.itemsize}"
    no = no.view(bits)
    mixed = np.asarray(yes.view(bits) ^ no)
    mixed *= mask
    mixed ^= no
    return mixed.view(yes.dtype)


def scaled(array, factor):
    """Return array · factor as a new array of its dtype: shape () widens in NumPy 1."""
    return np.asarray(array * factor, dtype=array.dtype)


def keep(mask, array):
    """Return `array` where the mask holds and +0 elsewhere, even where `array` is inf or NaN."""
    if array.dtype.itemsize > 8:
        return np.where(mask, array, 0)
    return np.asarray(array.view(f"i{array.dtype.itemsize}") * mask).view(array.dtype)


class Elementwise(Module):
    """Base of the activations: dtypes, the cache and the shapes, once for all of them."""

    takes_integers = False  # True: as they are; "float": as float32, torch's default dtype
    one_pass = False  # the function reads x once: blocks would only add a copy
    keeps_output = False  # the derivative is cheaper from y than from x

    def forward(self, input):
        """Return y (*), of x's dtype, for x (*)."""
        x = np.asarray(input)
        if x.dtype.kind in "iu" and self.takes_integers is True:
            self._cache = None
            return blockwise(self._value, x)
        if x.dtype.kind in "iub" and self.takes_integers == "float":
            x = x.astype(np.float32)
        x = self._floating(x)
        # Overflow to inf and inf · 0 = NaN are torch's answers too, so they are no warnings.
        with np.errstate(all="ignore"):
            y = self._evaluate(x) if self.one_pass else blockwise(self._evaluate, x)
        y = np.asarray(y, dtype=x.dtype)
        # The caller may change y, hence a copy; evaluation mode rarely needs it and computes anew.
        self._cache = x, y.copy() if self.keeps_output and self.training else None
        return y

    def backward(self, grad_output):
        """Return the gradient (*) for x."""
        x, y = self._recall()
        grad = self._upstream(grad_output, x.shape, x.dtype)
        with np.errstate(all="ignore"):
            if self.keeps_output:
                x = blockwise(self._evaluate, x) if y is None else y
            return np.asarray(blockwise(self._pull, x, grad), dtype=grad.dtype)

    def _evaluate(self, x):
        return self._value(self._wide(x))

    def _pull(self, x, grad):
        return self._chain(self._wide(x), self._wide(grad))

    @staticmethod
    def _wide(array):
        # As in torch, 16 bits are for storage: exp would overflow at 11.
        return array.astype(np.float32) if array.dtype == np.float16 else np.asarray(array)

    def _value(self, x):
        raise NotImplementedError

    def _chain(self, x, grad):
        """Return grad times the derivative at x (at y with `keeps_output`)."""
        raise NotImplementedError


class ReLU(Elementwise):
    """max(0, x), derivative 0 at 0, as torch.nn.ReLU.

    x (*) -> y (*). Raises TypeError for booleans and complex numbers.
    """

    takes_integers = True
    one_pass = True

    def __init__(self, inplace=False):
        check_inplace("ReLU", inplace)

    def _value(self, x):
        return np.maximum(x.dtype.type(0), x)  # in this order -0.0 stays -0.0, as in torch

    def _chain(self, x, grad):
        return keep(~(x <= 0), grad)  # not `x > 0`: NaN lets the gradient pass


class LeakyReLU(Elementwise):
    """x where x > 0, else negative_slope · x, as torch.nn.LeakyReLU (Maas et al. 2013).

    x (*) -> y (*). Raises TypeError for an x that is not floating.
    """

    def __init__(self, negative_slope=1e-2, inplace=False):
        self.negative_slope = real("LeakyReLU", "negative_slope", negative_slope)
        check_inplace("LeakyReLU", inplace)

    def _value(self, x):
        y = scaled(x, self.negative_slope)
        # A slope that x's dtype rounds to 0 makes inf · 0 = NaN, which the maximum would keep.
        if 0 < x.dtype.type(self.negative_slope) <= 1:
            return np.maximum(x, y, out=y)
        return choose(x > 0, x, y)

    def _chain(self, x, grad):
        return choose(x > 0, grad, scaled(grad, self.negative_slope))

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"negative_slope={self.negative_slope}"


class ELU(Elementwise):
    """x where x > 0, else alpha · (exp(x) - 1), as torch.nn.ELU (Clevert et al., arXiv:1511.07289).

    x (*) -> y (*). Raises TypeError for an x that is not floating.
    """

    def __init__(self, alpha=1.0, inplace=False):
        self.alpha = real("ELU", "alpha", alpha)
        check_inplace("ELU", inplace)

    def _value(self, x):
        # exp(x) - 1 = 2t / (1 - t) with t = tanh(x / 2): no cancellation for x <= 0, and several
        # times faster than np.expm1, which is not vectorised.
        t = scaled(x, 0.5)
        np.tanh(t, out=t)
        y = np.asarray(1 - t)
        np.divide(t, y, out=y)
        y *= 2 * self.alpha
        return choose(x > 0, x, y)

    def _chain(self, x, grad):
        slope = np.asarray(np.exp(x))
        slope *= self.alpha
        slope *= grad
        return choose(x > 0, grad, slope)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"alpha={self.alpha}"


class Softplus(Elementwise):
    """log(1 + exp(beta · x)) / beta, or x where beta · x > threshold, as torch.nn.Softplus.

    x (*) -> y (*). Raises TypeError for an x that is not floating.
    """

    def __init__(self, beta=1.0, threshold=20.0):
        self.beta = real("Softplus", "beta", beta)
        self.threshold = real("Softplus", "threshold", threshold)

    def _value(self, x):
        z = scaled(x, self.beta)
        linear = z > self.threshold
        np.exp(z, out=z)
        if self.threshold > 80:  # exp may overflow, and the correction below would be inf - inf
            y = np.asarray(np.log1p(z))
        else:
            # log1p(z) = log(w) + (z - (w - 1)) / w with w = fl(1 + z), to first order in the
            # rounding of w; np.log1p is not vectorised, log is.
            w = np.asarray(z + 1)
            y = np.asarray(np.log(w))
            z -= w - 1
            z /= w
            y += z
        if self.beta != 1:
            y /= y.dtype.type(self.beta)
        return choose(linear, x, y)

    def _chain(self, x, grad):
        z = scaled(x, self.beta)
        linear = z > self.threshold
        np.exp(z, out=z)
        slope = np.asarray(z + 1)
        np.divide(z, slope, out=slope)
        slope *= grad
        return choose(linear, grad, slope)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"beta={self.beta}, threshold={self.threshold}"


class Sigmoid(Elementwise):
    """1 / (1 + exp(-x)); integers give float32, as torch.nn.Sigmoid.

    x (*) -> y (*). Raises TypeError for complex numbers.
    """

    takes_integers = "float"
    keeps_output = True

    def _value(self, x):
        y = np.asarray(-x)
        np.exp(y, out=y)  # inf for x far below 0, and 1 / inf = 0 is the right limit
        y += 1
        return np.reciprocal(y, out=y)

    def _chain(self, y, grad):
        slope = np.asarray(1 - y)
        slope *= y
        slope *= grad
        return slope


class Tanh(Elementwise):
    """tanh(x); integers give float32, as torch.nn.Tanh.

    x (*) -> y (*). Raises TypeError for complex numbers.
    """

    takes_integers = "float"
    one_pass = True
    keeps_output = True

    def _value(self, x):
        return np.asarray(np.tanh(x))

    def _chain(self, y, grad):
        slope = np.asarray(y * y)
        np.subtract(1, slope, out=slope)
        slope *= grad
        return slope


class Threshold(Elementwise):
    """x where x > threshold (or x is NaN), else value; derivative 1 and 0, as torch.nn.Threshold.

    x (*) -> y (*). Raises TypeError for booleans and complex numbers.
    """

    takes_integers = True

    def __init__(self, threshold, value, inplace=False):
        self.threshold = real("Threshold", "threshold", threshold)
        self.value = real("Threshold", "value", value)
        check_inplace("Threshold", inplace)

    def _value(self, x):
        return choose(x <= self.threshold, np.full_like(x, self.value), x)

    def _chain(self, x, grad):
        return keep(~(x <= self.threshold), grad)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"threshold={self.threshold}, value={self.value}"


class Heaviside(Elementwise):
    """The step function: 0 for x < 0 and NaN, `values` at 0, 1 for x > 0; derivative 0.

    `values` is torch.heaviside's name for the value at 0; the default makes the step x > 0.
    x (*) -> y (*). Raises TypeError for booleans and complex numbers.
    """

    takes_integers = True

    def __init__(self, values=0.0):
        self.values = real("Heaviside", "values", values)

    def _value(self, x):
        y = np.asarray(x > 0, dtype=x.dtype)
        if self.values != 0 or math.isnan(self.values):
            np.copyto(y, x.dtype.type(self.values), where=x == 0)
        return y

    def _chain(self, x, grad):
        return np.zeros_like(grad)

    def extra_repr(self) -> str:
        """Return the argument."""
        return f"values={self.values}"
