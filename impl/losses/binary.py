"""Binary cross-entropy, on probabilities and on logits."""

import numpy as np

from impl.blocks import blockwise, constant, log1p
from impl.losses.base import Loss, buffer

# torch's bounds; the second is a float32 constant there, in float64 as well.
LOG_FLOOR = -100
SLOPE_FLOOR = float(np.float32(1e-12))


class _BinaryLoss(Loss):
    """What both forms share: an elementwise weight that broadcasts to the prediction."""

    weight = buffer("weight")

    def __init__(self, weight=None, size_average=None, reduce=None, reduction="mean"):
        super().__init__(size_average, reduce, reduction)
        self.weight = weight

    def _broadcastable(self, name, prediction):
        """Return the buffer ``name`` in the prediction's dtype, or None; ValueError on a misfit."""
        array = getattr(self, name)
        if array is None:
            return None
        try:
            fits = np.broadcast_shapes(array.shape, prediction.shape) == prediction.shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{self._name} has a {name} with shape {array.shape}; it must broadcast to the "
                f"prediction's shape {prediction.shape}"
            )
        return array.astype(prediction.dtype, copy=False)

    def _weighted(self, array):
        return array if self._weight is None else array * self._weight


class BCELoss(_BinaryLoss):
    """Cross-entropy -w·(y·log x + (1 - y)·log(1 - x)) of probabilities, as torch.nn.BCELoss.

    prediction (*) in [0, 1], target (*) in [0, 1] -> scalar, or (*) for reduction="none";
    weight broadcasts to (*)

    Logarithms are cut off at -100 and the gradient's denominator x·(1 - x) at 1e-12, as in torch,
    so that certain but wrong predictions stay finite.
    Raises ValueError for unequal shapes, values outside [0, 1] (NaN among them) and integers.
    """

    def _values(self, prediction, target):
        self._same_shape(target, prediction)
        target = self._float_target(target, prediction.dtype)
        for name, array in (("prediction", prediction), ("target", target)):
            # NaN fails the comparisons, so it is refused too.
            if array.size and not (array.min() >= 0 and array.max() <= 1):
                raise ValueError(
                    f"BCELoss got a {name} with values from {array.min()} to {array.max()}; all "
                    f"must lie in [0, 1] (for logits there is BCEWithLogitsLoss)"
                )
        self._weight = self._broadcastable("weight", prediction)
        self._x, self._y = prediction, target
        hit = np.maximum(np.log(prediction), LOG_FLOOR)
        miss = np.maximum(np.log1p(-prediction), LOG_FLOOR)
        return np.asarray(self._weighted((target - 1) * miss - target * hit)), prediction.size

    def _gradient(self, grad):
        x = self._x
        slope = (x - self._y) / np.maximum((1 - x) * x, SLOPE_FLOOR)
        return np.asarray(self._weighted(slope * grad))


class BCEWithLogitsLoss(_BinaryLoss):
    """Cross-entropy of sigmoid(x), computed from the logits x, as torch.nn.BCEWithLogitsLoss.

    prediction (*), target (*) -> scalar, or (*) for reduction="none";
    weight and pos_weight broadcast to (*)

    (1 - y)·x - (1 + (pos_weight - 1)·y)·log sigmoid(x), where log sigmoid(x) =
    min(x, 0) - log1p(exp(-|x|)) loses nothing at either end.
    Raises ValueError for unequal shapes, integer targets and weights that do not broadcast.
    """

    pos_weight = buffer("pos_weight")

    def __init__(
        self, weight=None, size_average=None, reduce=None, reduction="mean", pos_weight=None
    ):
        super().__init__(weight, size_average, reduce, reduction)
        self.pos_weight = pos_weight

    def _values(self, prediction, target):
        self._same_shape(target, prediction)
        x, y = prediction, self._float_target(target, prediction.dtype)
        self._weight = self._broadcastable("weight", x)
        self._pos_weight = self._broadcastable("pos_weight", x)
        self._x, self._y = x, y
        return np.asarray(self._weighted(self._blockwise(_cross_entropy))), x.size

    def _gradient(self, grad):
        slope = self._blockwise(_slope)
        slope *= grad
        return np.asarray(self._weighted(slope))

    def _blockwise(self, function):
        """Return what function(x, y, out, pos_weight or None) writes into a new array."""
        out = np.empty(self._x.shape, self._x.dtype)
        arrays = [self._x, self._y, out]
        if self._pos_weight is not None:
            arrays.append(np.broadcast_to(self._pos_weight, out.shape))
        blockwise(function, *arrays)
        return out


def _cross_entropy(x, y, out, pos_weight=None):
    small = np.abs(x)
    np.negative(small, out=small)
    np.exp(small, out=small)
    log1p(small, out=out)
    np.subtract(np.minimum(constant(0, x), x, out=small), out, out=out)  # log sigmoid(x)
    if pos_weight is not None:
        out *= (pos_weight - 1) * y + 1
    rest = 1 - y
    rest *= x
    np.subtract(rest, out, out=out)


def _slope(x, y, out, pos_weight=None):
    np.negative(x, out=out)
    np.exp(out, out=out)  # overflows to inf far below zero, and 1/inf is the sigmoid there
    out += 1
    np.divide(1, out, out=out)
    if pos_weight is None:
        out -= y
    else:
        positive = pos_weight * y
        out *= positive + 1 - y
        out -= positive
