"""What every loss shares: reductions, the upstream gradient, class weights and label checks."""

import inspect
import math

import numpy as np

from impl.module import Module

REDUCTIONS = ("none", "mean", "sum")


class Loss(Module):
    """Base of the losses: ``value = loss(prediction, target)``, ``grad = loss.backward()``.

    ``forward`` returns, in the prediction's dtype, a NumPy scalar for the reductions "mean" and
    "sum" and a new array for "none". ``backward(grad_output=1.0)`` returns the gradient for the
    prediction, in its shape and dtype; ``grad_output`` is a scalar or, for "none", an array of the
    output's shape. Until then the loss may keep references to prediction and target, which
    must not change in between; it never modifies them. Floating targets and weights are cast to
    the prediction's dtype.

    A loss has no parameters: ``params`` and ``grads`` are empty, ``buffers`` holds its weights. It
    is a Module, as in torch: a model may hold one, and ``state_dict`` shows its weights.

    Raises ValueError for an unknown reduction and NotImplementedError for the legacy options
    ``size_average`` and ``reduce``.
    """

    def __init__(self, size_average=None, reduce=None, reduction="mean"):
        for name, value in (("size_average", size_average), ("reduce", reduce)):
            if value is not None:
                raise NotImplementedError(
                    f"{type(self).__name__}: the legacy option {name} is not supported; "
                    f"use reduction='none', 'mean' or 'sum'"
                )
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"{type(self).__name__} got reduction={reduction!r}; it must be one of {REDUCTIONS}"
            )
        self.reduction = reduction
        self._output_shape = None  # set by forward; None means that backward has nothing to use

    # No layer is inside a loss: its attributes are set without a look for one.
    __setattr__ = object.__setattr__

    # Overflow, log(0) and 0/0 are answers here (inf, nan), as in torch, not accidents.

    @np.errstate(all="ignore")
    def forward(self, prediction, target):
        """Return the loss of ``prediction`` for ``target``; shapes as in the class."""
        self._output_shape = None
        prediction = np.asarray(prediction)
        if prediction.dtype.kind != "f":
            raise ValueError(
                f"{self._name} got a prediction of dtype {prediction.dtype}; "
                f"it must be floating point"
            )
        values, self._divisor = self._values(prediction, np.asarray(target))
        self._output_shape, self._dtype = values.shape, prediction.dtype
        if self.reduction == "none":
            return values
        # As in torch, 16 bits are for storage: a sum of many terms would lose or overflow them.
        wide = self._dtype if self._dtype.itemsize > 2 else np.float32
        total = np.add.reduce(values, axis=None, dtype=wide)
        if self.reduction == "mean":
            total = total / self._divisor
        return self._dtype.type(total)

    @np.errstate(all="ignore")
    def backward(self, grad_output=1.0):
        """Return the gradient for the last prediction, given the gradient of the loss itself.

        Raises RuntimeError before the first forward, ValueError where ``grad_output`` has neither
        the output's shape nor no axes at all.
        """
        if self._output_shape is None:
            raise RuntimeError(f"{self._name}: call forward before backward")
        grad = np.asarray(grad_output, dtype=self._dtype)
        shape = self._output_shape if self.reduction == "none" else ()
        if grad.shape not in ((), shape):
            raise ValueError(
                f"{self._name} got grad_output with shape {grad.shape}; it must be a scalar"
                + (f" or have the output's shape {shape}" if shape else "")
            )
        return self._gradient(self._averaged(grad) if self.reduction == "mean" else grad)

    def __repr__(self):
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, None)
            if isinstance(value, np.ndarray):
                shown.append(f"{name}=<{value.dtype} array of shape {value.shape}>")
            elif value != parameter.default:
                shown.append(f"{name}={value!r}")
        return f"{self._name}({', '.join(shown)})"

    @property
    def _name(self):
        return type(self).__name__

    def _values(self, prediction, target):
        """Return the loss before reduction (a new array) and what "mean" divides its sum by."""
        raise NotImplementedError(f"{self._name} has no forward")

    def _gradient(self, grad):
        """Return the gradient for the prediction; ``grad`` () or (\\*output) is divided already."""
        raise NotImplementedError(f"{self._name} has no backward")

    def _averaged(self, grad):
        return np.asarray(grad / self._divisor, dtype=grad.dtype)  # shape () widens in NumPy 1

    def _float_target(self, target, dtype):
        if target.dtype.kind != "f":
            raise ValueError(
                f"{self._name} got a target of dtype {target.dtype}; it must be floating point"
            )
        return target.astype(dtype, copy=False)

    def _same_shape(self, target, prediction):
        if target.shape != prediction.shape:
            raise ValueError(
                f"{self._name} got a target with shape {target.shape} for a prediction with shape "
                f"{prediction.shape}; the two must be equal"
            )

    def _class_weight(self, classes, dtype):
        """Return the weights (C,) in ``dtype``, or None."""
        weight = self.weight
        if weight is None:
            return None
        if weight.shape != (classes,):
            raise ValueError(
                f"{self._name} has a weight with shape {weight.shape}; for a prediction of "
                f"{classes} classes it must be ({classes},)"
            )
        return weight.astype(dtype, copy=False)

    def _labels(self, target, classes, ignore_index=None):
        """Return labels fit for indexing, and where they count (None: everywhere)."""
        if target.dtype.kind not in "iu":
            raise ValueError(
                f"{self._name} got class labels of dtype {target.dtype}; they must be integers "
                f"in [0, {classes})"
            )
        labels, valid = target.astype(np.intp), None
        if _within(labels, classes) and (ignore_index is None or not 0 <= ignore_index < classes):
            return labels, None
        if ignore_index is not None:
            valid = labels != ignore_index
            labels *= valid  # any class will do; its contribution is zeroed
        # An ignored label is class 0 by now, which a prediction of no classes lacks as well.
        if not _within(labels, classes):
            wrong = labels[(labels < 0) | (labels >= classes)][0]
            raise IndexError(
                f"{self._name} got label {wrong}, out of bounds for {classes} classes; "
                f"labels lie in [0, {classes})"
            )
        return labels, None if valid is None or valid.all() else valid


def _within(labels, classes):
    """Tell whether all labels lie in [0, classes): seen as unsigned, negative ones are huge."""
    return not labels.size or np.maximum.reduce(labels.view(np.uintp), axis=None) < classes


def buffer(name):
    """Return a property that reads and writes ``buffers[name]``, None where absent."""

    def read(self):
        return self._buffers.get(name)

    def write(self, value):
        if value is None:
            self._buffers.pop(name, None)
            return
        array = np.array(value)
        if array.dtype.kind not in "iuf":
            raise ValueError(
                f"{type(self).__name__} got {name} of dtype {array.dtype}; it must hold numbers"
            )
        self._buffers[name] = array if array.dtype.kind == "f" else array.astype(np.float64)

    return property(read, write, doc=f"The buffer ``{name}``, an array or None.")


def flat_index(labels, classes):
    """Return where label (n, d) stands in a flattened (N, C, D) array; labels (N, D)."""
    samples, positions = labels.shape
    if not labels.size:
        return labels
    start = np.arange(0, samples * classes * positions, classes * positions)[:, None]
    return labels + start if positions == 1 else labels * positions + start + np.arange(positions)


def split_shape(shape):
    """Return (N, C, D) for a prediction (C,), (N, C) or (N, C, d1, …)."""
    if len(shape) == 1:
        return 1, shape[0], 1
    return shape[0], shape[1], math.prod(shape[2:])
