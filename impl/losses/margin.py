"""The multi-class hinge loss."""

from numbers import Real

import numpy as np

from impl.losses.base import Loss, buffer, flat_index


class MultiMarginLoss(Loss):
    """Hinge Σ_{j≠y} w_y·max(0, margin - x_y + x_j)^p / C, as torch.nn.MultiMarginLoss.

    prediction (N, C) or (C,), target (N,) or () -> scalar, or the target's shape for
    reduction="none"; weight (C,)

    On the margin exactly, the derivative is 0. NaN differences count as no violation. Of no
    samples at all the sum is 0 and the mean NaN (torch returns uninitialised memory there).
    Raises ValueError for p other than 1 and 2 and for wrong shapes or dtypes, IndexError for
    labels out of range.
    """

    weight = buffer("weight")

    def __init__(
        self, p=1, margin=1.0, weight=None, size_average=None, reduce=None, reduction="mean"
    ):
        super().__init__(size_average, reduce, reduction)
        if p not in (1, 2):
            raise ValueError(f"MultiMarginLoss got p={p!r}; only 1 and 2 are possible")
        if not isinstance(margin, Real):
            raise ValueError(f"MultiMarginLoss got margin={margin!r}; it must be a number")
        self.p, self.margin, self.weight = p, margin, weight
        if self.weight is not None and self.weight.ndim != 1:
            raise ValueError(
                f"MultiMarginLoss got a weight with shape {self.weight.shape}; it must be (C,)"
            )

    def _values(self, prediction, target):
        scores = self._scores(prediction, target)
        classes = scores.shape[1]
        labels, _ = self._labels(target.reshape(-1), classes)
        weight = self._class_weight(classes, scores.dtype)
        self._factor = None if weight is None else weight[labels][:, None]
        self._shape, self._index = prediction.shape, flat_index(labels[:, None], classes)
        # In torch's order, (margin - x_y) + x_j, so that the corner falls on the same scores.
        room = scores.dtype.type(self.margin) - scores.reshape(-1)[self._index]
        excess = np.add(room, scores, order="C")  # so that reshape(-1) below is a view
        np.fmax(excess, 0, out=excess)  # fmax, unlike maximum, takes 0 over NaN
        excess.reshape(-1)[self._index] = 0
        self._excess = excess
        power = excess if self.p == 1 else excess * excess
        if self._factor is not None:
            power = power * self._factor
        values = power.sum(axis=1) / classes
        return values.reshape(target.shape), len(scores)

    def _gradient(self, grad):
        classes = self._excess.shape[1]
        slope = np.sign(self._excess) if self.p == 1 else 2 * self._excess
        slope *= (grad / classes).reshape(-1, 1)
        if self._factor is not None:
            slope *= self._factor
        slope.reshape(-1)[self._index] = -slope.sum(axis=1, keepdims=True)
        return slope.reshape(self._shape)

    def _scores(self, prediction, target):
        """Return the prediction as (N, C), or raise ValueError for shapes that do not fit."""
        if prediction.ndim > 2 or (prediction.ndim and prediction.shape[-1] == 0):
            raise ValueError(
                f"MultiMarginLoss got a prediction with shape {prediction.shape}; "
                f"it must be (N, C) or (C,) with C > 0"
            )
        scores = prediction.reshape(-1, prediction.shape[-1] if prediction.ndim else 1)
        # One sample may come with or without its axis, on either side.
        if target.shape != scores.shape[:1] and (target.shape, len(scores)) != ((), 1):
            raise ValueError(
                f"MultiMarginLoss got a target with shape {target.shape} for a prediction with "
                f"shape {prediction.shape}; it must be {prediction.shape[:-1]}"
            )
        return scores
