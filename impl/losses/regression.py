"""Losses for real-valued targets: the squared error."""

import warnings

import numpy as np

from impl.losses.base import Loss


class MSELoss(Loss):
    """Squared error (x - y)², as torch.nn.MSELoss.

    prediction (*), target (*) -> scalar, or (*) for reduction="none"

    Shapes that differ are broadcast with a UserWarning, as in torch: a column against a row is
    rarely what was meant. The gradient is then summed back to the prediction's shape.
    Raises ValueError for shapes that do not broadcast and for a prediction that is not floating.
    """

    def _values(self, prediction, target):
        if target.dtype.kind not in "fiu":
            raise ValueError(f"MSELoss got a target of dtype {target.dtype}; it must hold numbers")
        if prediction.shape != target.shape:
            self._check_broadcast(prediction, target)
        self._shape = prediction.shape
        self._diff = np.asarray(prediction - target.astype(prediction.dtype, copy=False))
        return np.asarray(self._diff * self._diff), self._diff.size

    def _gradient(self, grad):
        # 2/n comes before grad, as in torch, so that both overflow at the same differences.
        scale = 2 / max(self._divisor, 1) if self.reduction == "mean" else 2
        full = np.asarray(self._diff * scale)
        if grad.ndim or grad != 1:
            full *= grad
        if full.shape == self._shape:
            return full
        # Broadcasting repeats an element; its gradient is the sum over the repetitions.
        lead = full.ndim - len(self._shape)
        stretched = tuple(
            lead + axis for axis, size in enumerate(self._shape) if size != full.shape[lead + axis]
        )
        return full.sum(axis=(*range(lead), *stretched), keepdims=True).reshape(self._shape)

    def _averaged(self, grad):
        return grad  # _gradient divides

    def _check_broadcast(self, prediction, target):
        shapes = f"a prediction with shape {prediction.shape}, a target with shape {target.shape}"
        try:
            np.broadcast_shapes(prediction.shape, target.shape)
        except ValueError:
            raise ValueError(f"MSELoss got {shapes}; the two must be equal") from None
        # Level 5 is the caller of the loss: here, _values, forward, __call__, caller.
        warnings.warn(
            f"MSELoss got {shapes}: they are broadcast, which is rarely meant; "
            f"reshape one of them to the other's shape",
            UserWarning,
            stacklevel=5,
        )
