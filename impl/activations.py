"""The elementwise activations: ReLU, LeakyReLU, ELU, Softplus, Sigmoid, Tanh, Threshold, Heaviside.

Each writes its function and its derivative next to each other. Every shape is taken, () included;
the output has the input's shape and dtype. A reference to x is kept until the next forward.
"""

import math
import numbers

import numpy as np

from impl.blocks import blockwise, constant, log1p
from impl.module import Module, check_inplace


def real(layer: str, name: str, value) -> float:
    """Return `value` as a Python float, or int where it is whole as in torch's repr.

    Raises TypeError naming the argument.
    """
    if not isinstance(value, numbers.Real | np.floating | np.integer):
        raise TypeError(f"{layer} got {name}={value!r}; it must be a number")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def choose(mask, yes, no, out):
    """Write np.where(mask, yes, no) into `out`, which may be `yes` itself, without its branches.

    On random signs `where` mispredicts every other element; on the bits it is arithmetic.
    """
    if out.dtype.itemsize > 8:
        out[...] = np.where(mask, yes, no)
        return
    bits, no = _bits(out), _bits(no)
    np.bitwise_xor(_bits(yes), no, out=bits)
    bits *= mask
    bits ^= no


def keep(mask, array, out):
    """Write `array` where the mask holds and +0 elsewhere, even where it is inf or NaN."""
    if out.dtype.itemsize > 8:
        out[...] = np.where(mask, array, 0)
    else:
        np.multiply(_bits(array), mask, out=_bits(out))


def _bits(array):
    return array.view(f"i{array.dtype.itemsize}")


class Elementwise(Module):
    """Base of the activations: dtypes, the cache and the shapes, once for all of them.

    The formulas see flat blocks that fit the processor's cache, and write into given ones: in a
    block a pass costs a fifth of what it costs in memory, and a new array more than the pass.
    """

    takes_integers = False  # True: as they are; "float": as float32, torch's default dtype
    keeps_slope = False  # forward writes the derivative beside y, while the block is in the cache

    # Overflow to inf and inf · 0 = NaN are torch's answers too, so they are no warnings.

    @np.errstate(all="ignore")
    def forward(self, input):
        """Return y (*), of x's dtype, for x (*)."""
        x = np.asarray(input)
        if x.dtype.kind in "iub" and self.takes_integers == "float":
            x = x.astype(np.float32)
        if x.dtype.kind not in "iu" or self.takes_integers is not True:
            x = self._floating(x)
        y, slope = self._evaluate(x, self.keeps_slope and self.training)
        self._cache = None if x.dtype.kind in "iu" else (x, slope)
        return y

    @np.errstate(all="ignore")
    def backward(self, grad_output):
        """Return the gradient (*) for x."""
        x, slope = self._recall()
        grad = self._upstream(grad_output, x.shape, x.dtype)
        if self.keeps_slope and slope is None:  # evaluation mode, which rarely needs it
            _, slope = self._evaluate(x, True)
        wide, source = self._wide(grad), self._wide(x) if slope is None else slope
        dx = np.empty(x.shape, wide.dtype)
        blockwise(self._chain, source, wide, dx)
        return dx.astype(x.dtype, copy=False)

    def _evaluate(self, x, with_slope):
        """Return y, and the derivative or None."""
        wide = self._wide(x)
        made = [np.empty(x.shape, wide.dtype) for _ in range(1 + with_slope)]
        blockwise(self._value, wide, *made)
        return made[0].astype(x.dtype, copy=False), made[1] if with_slope else None

    @staticmethod
    def _wide(array):
        # As in torch, 16 bits are for storage: exp would overflow at 11.
        return array.astype(np.float32) if array.dtype == np.float16 else array

    def _value(self, x, y, slope=None):
        """Write the function of x into y, and its derivative into `slope` where one is given."""
        raise NotImplementedError

    def _chain(self, x, grad, dx):
        """Write grad times the derivative into dx; x is the derivative itself if that is kept."""
        np.multiply(x, grad, out=dx)


class ReLU(Elementwise):
    """max(0, x), derivative 0 at 0, as torch.nn.ReLU.

    x (*) -> y (*). Raises TypeError for booleans and complex numbers.
    """

    takes_integers = True

    def __init__(self, inplace=False):
        check_inplace("ReLU", inplace)

    def _value(self, x, y):
        np.maximum(constant(0, x), x, out=y)  # in this order -0.0 stays -0.0, as in torch

    def _chain(self, x, grad, dx):
        keep(~(x <= 0), grad, dx)  # not `x > 0`: NaN lets the gradient pass


class LeakyReLU(Elementwise):
    """x where x > 0, else negative_slope · x, as torch.nn.LeakyReLU (Maas et al. 2013).

    x (*) -> y (*). Raises TypeError for an x that is not floating.
    """

    def __init__(self, negative_slope=1e-2, inplace=False):
        self.negative_slope = real("LeakyReLU", "negative_slope", negative_slope)
        check_inplace("LeakyReLU", inplace)

    # The larger one is the right one for slopes up to 1. A slope that x's dtype rounds to 0 is
    # none of them: it makes inf · 0 = NaN, which the maximum would keep.
    def _is_larger(self, dtype):
        return 0 < dtype.type(self.negative_slope) <= 1

    def _value(self, x, y):
        np.multiply(x, self.negative_slope, out=y)
        if self._is_larger(x.dtype):
            np.maximum(x, y, out=y)
        else:
            choose(~(x > 0), y, x, y)

    def _chain(self, x, grad, dx):
        if self._is_larger(x.dtype):
            np.greater(x, 0, out=dx)  # 1 or 0
            np.maximum(dx, constant(self.negative_slope, dx), out=dx)  # 1 or the slope
            dx *= grad
        else:
            choose(x > 0, grad, grad * dx.dtype.type(self.negative_slope), dx)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"negative_slope={self.negative_slope}"


class ELU(Elementwise):
    """x where x > 0, else alpha · (exp(x) - 1), as torch.nn.ELU (Clevert et al., arXiv:1511.07289).

    x (*) -> y (*). Raises TypeError for an x that is not floating.
    """

    keeps_slope = True

    def __init__(self, alpha=1.0, inplace=False):
        self.alpha = real("ELU", "alpha", alpha)
        check_inplace("ELU", inplace)

    def _value(self, x, y, slope=None):
        zero = constant(0, x)
        low = np.minimum(zero, x, out=slope)
        # exp(x) - 1 = 2t / (1 - t) with t = tanh(x / 2): no cancellation for x <= 0, and several
        # times faster than np.expm1, which is not vectorised.
        np.multiply(low, 0.5, out=y)
        np.tanh(y, out=y)
        work = 1 - y
        y /= work
        y *= 2 * self.alpha
        y += np.maximum(zero, x, out=work)  # of the two terms one is always 0
        if slope is not None:
            np.exp(low, out=slope)  # 1 for x > 0
            if self.alpha != 1:
                choose(x > 0, slope, slope * slope.dtype.type(self.alpha), slope)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"alpha={self.alpha}"


class Softplus(Elementwise):
    """log(1 + exp(beta · x)) / beta, or x where beta · x > threshold, as torch.nn.Softplus.

    x (*) -> y (*). Raises TypeError for an x that is not floating.
    """

    keeps_slope = True

    def __init__(self, beta=1.0, threshold=20.0):
        self.beta = real("Softplus", "beta", beta)
        self.threshold = real("Softplus", "threshold", threshold)

    def _value(self, x, y, slope=None):
        z = np.multiply(x, self.beta, out=slope)
        linear = z > self.threshold
        np.exp(z, out=z)
        # exp may overflow only where the threshold lets it, and the fast logarithm needs finite z.
        (np.log1p if self.threshold > 80 else log1p)(z, out=y)
        if slope is not None:
            slope /= z + 1
        if self.beta != 1:
            y /= y.dtype.type(self.beta)
        if linear.any():
            choose(~linear, y, x, y)
            if slope is not None:
                choose(~linear, slope, constant(1, slope), slope)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"beta={self.beta}, threshold={self.threshold}"


class Sigmoid(Elementwise):
    """1 / (1 + exp(-x)); integers give float32, as torch.nn.Sigmoid.

    x (*) -> y (*). Raises TypeError for complex numbers.
    """

    takes_integers = "float"
    keeps_slope = True

    def _value(self, x, y, slope=None):
        np.negative(x, out=y)
        np.exp(y, out=y)  # inf for x far below 0, and 1 / inf = 0 is the right limit
        y += 1
        np.divide(1, y, out=y)
        if slope is not None:
            np.subtract(1, y, out=slope)
            slope *= y


class Tanh(Elementwise):
    """tanh(x); integers give float32, as torch.nn.Tanh.

    x (*) -> y (*). Raises TypeError for complex numbers.
    """

    takes_integers = "float"
    keeps_slope = True

    def _value(self, x, y, slope=None):
        np.tanh(x, out=y)
        if slope is not None:
            np.multiply(y, y, out=slope)
            np.subtract(1, slope, out=slope)


class Threshold(Elementwise):
    """x where x > threshold (or x is NaN), else value; derivative 1 and 0, as torch.nn.Threshold.

    x (*) -> y (*). Raises TypeError for booleans and complex numbers.
    """

    takes_integers = True

    def __init__(self, threshold, value, inplace=False):
        self.threshold = real("Threshold", "threshold", threshold)
        self.value = real("Threshold", "value", value)
        check_inplace("Threshold", inplace)

    def _value(self, x, y):
        choose(x <= self.threshold, constant(self.value, x), x, y)

    def _chain(self, x, grad, dx):
        keep(~(x <= self.threshold), grad, dx)

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

    def _value(self, x, y):
        np.greater(x, 0, out=y)
        if self.values != 0 or math.isnan(self.values):
            np.copyto(y, x.dtype.type(self.values), where=x == 0)

    def _chain(self, x, grad, dx):
        dx[...] = 0

    def extra_repr(self) -> str:
        """Return the argument."""
        return f"values={self.values}"
