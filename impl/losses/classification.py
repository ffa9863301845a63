"""Losses on classes: negative log-likelihood and cross-entropy."""

from numbers import Integral, Real

import numpy as np

from impl.losses.base import Loss, buffer, flat_index, split_shape

# Up to this many classes a batch is worked on with the class axis first, where NumPy's reductions
# run along the samples; beyond it they are fast, and pairwise exact, along the classes.
FEW_CLASSES = 32


class _ClassLoss(Loss):
    """What the losses on class labels share: class weights, ignored labels and shapes."""

    weight = buffer("weight")

    def __init__(
        self, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean"
    ):
        super().__init__(size_average, reduce, reduction)
        if not isinstance(ignore_index, Integral):
            raise ValueError(
                f"{self._name} got ignore_index={ignore_index!r}; it must be an integer"
            )
        self.weight, self.ignore_index = weight, ignore_index

    def _check_rank(self, prediction):
        if not prediction.ndim:
            raise ValueError(
                f"{self._name} got a prediction with shape (); it must be (C,), (N, C) or "
                f"(N, C, d1, …)"
            )

    def _read_labels(self, prediction, target):
        """Return flat positions (N, D) of the labels, their weights (None: all 1) and which count.

        The third is None where all do.
        """
        self._check_rank(prediction)
        shape = prediction.shape
        expected = shape[:1] + shape[2:] if prediction.ndim > 1 else ()
        if target.shape != expected:
            raise ValueError(
                f"{self._name} got a target with shape {target.shape} for a prediction with shape "
                f"{shape}; it must be {expected}"
            )
        samples, classes, positions = split_shape(shape)
        target = target.reshape(samples, positions)
        labels, valid = self._labels(target, classes, self.ignore_index)
        weight = self._class_weight(classes, prediction.dtype)
        share = None if weight is None else weight[labels]
        if valid is not None:
            share = valid.astype(prediction.dtype) if share is None else share * valid
        return flat_index(labels, classes), share, valid


class _LikelihoodLoss(_ClassLoss):
    """-w·f(prediction[label]) for a function f that the subclasses give, with its derivative."""

    def _values(self, prediction, target):
        index, share, valid = self._read_labels(prediction, target)
        picked = prediction.reshape(-1)[index]
        self._shape, self._index = prediction.shape, index
        self._picked, self._share, self._valid = picked, share, valid
        values = -self._function(picked)
        if share is not None:
            values *= share
        if valid is not None:
            values[~valid] = 0  # also where the prediction is not finite
        return values.reshape(target.shape), target.size if share is None else share.sum()

    def _gradient(self, grad):
        slope = -grad.reshape(self._index.shape if grad.ndim else ())
        if self._share is not None:
            slope = slope * self._share
        slope = np.asarray(slope * self._derivative(self._picked))
        if self._valid is not None:
            slope[~self._valid] = 0
        full = np.zeros(self._shape, self._dtype)
        full.reshape(-1)[self._index] = slope
        return full

    def _function(self, picked):
        raise NotImplementedError

    def _derivative(self, picked):
        raise NotImplementedError


class NLLLoss(_LikelihoodLoss):
    """Negative log-likelihood -w_y·x_y of log-probabilities x, as torch.nn.NLLLoss.

    prediction (C,), (N, C) or (N, C, d1, …), target of labels (), (N,) or (N, d1, …)
    -> scalar, or the target's shape for reduction="none"; weight (C,)

    "mean" divides by the sum of the weights that were used: all labels ignored gives NaN.
    Raises ValueError for wrong shapes or dtypes, IndexError for labels out of range.
    """

    def _function(self, picked):
        return picked

    def _derivative(self, picked):
        return 1


class UnstableNLLLoss(_LikelihoodLoss):
    """Negative log-likelihood -w_y·log p_y of probabilities p, with no safeguard at 0.

    prediction (C,), (N, C) or (N, C, d1, …), target of labels (), (N,) or (N, d1, …)
    -> scalar, or the target's shape for reduction="none"; weight (C,)

    A probability of 0 gives inf, and a gradient of -inf. Options and errors as in torch.nn.NLLLoss,
    which takes log p instead.
    """

    def _function(self, picked):
        return np.log(picked)

    def _derivative(self, picked):
        return 1 / picked


class CrossEntropyLoss(_ClassLoss):
    """Cross-entropy of softmax(x) over the classes, as torch.nn.CrossEntropyLoss.

    prediction of logits (C,), (N, C) or (N, C, d1, …); target of labels (), (N,) or (N, d1, …),
    or of probabilities in the prediction's shape -> scalar, or the labels' shape for
    reduction="none"; weight (C,)

    -Σ_c q_c·w_c·log softmax(x)_c, where q is the target, mixed with label_smoothing / C.
    "mean" divides by the weights of the labels used, for probabilities by the number of samples.
    Raises ValueError for wrong shapes, dtypes, label_smoothing outside [0, 1] or a non-negative
    ignore_index with probabilities; IndexError for labels out of range.
    """

    def __init__(
        self,
        weight=None,
        size_average=None,
        ignore_index=-100,
        reduce=None,
        reduction="mean",
        label_smoothing=0.0,
    ):
        super().__init__(weight, size_average, ignore_index, reduce, reduction)
        if not isinstance(label_smoothing, Real) or not 0 <= label_smoothing <= 1:
            raise ValueError(
                f"CrossEntropyLoss got label_smoothing={label_smoothing!r}; it must lie in [0, 1]"
            )
        self.label_smoothing = label_smoothing

    def _values(self, prediction, target):
        self._check_rank(prediction)
        self._shape = prediction.shape
        self._probable = target.shape == prediction.shape
        if self._probable:
            return self._values_of_probabilities(prediction, target)
        return self._values_of_labels(prediction, target)

    def _gradient(self, grad):
        grad = grad.reshape(self._sum.shape if grad.ndim else ())
        if not self._probable and self._valid is not None:
            # Zeroed, not multiplied by 0: with all labels ignored grad / Σw is infinite.
            grad = np.broadcast_to(grad, self._valid.shape).copy()
            grad[~self._valid] = 0
        out = np.empty(self._shape, self._exp.dtype)
        self._gradient_into(out, grad)
        return out

    # log softmax(x) = z - log Σ exp z with z = x - max x: no exp overflows, and the sum is ≥ 1.

    def _shift(self, prediction):
        """Return z as a new array in working order, and the maximum (class axis kept)."""
        shifted = self._ordered(prediction).copy()
        if not shifted.size:  # a maximum of nothing does not exist
            return shifted, shifted.sum(axis=1, keepdims=True)
        top = np.maximum.reduce(shifted, axis=1, keepdims=True)
        shifted -= top
        return shifted, top

    def _keep_softmax(self, shifted):
        """Turn z into exp z, keep it with its sum for backward; return the sum's logarithm."""
        self._exp = np.exp(shifted, out=shifted)
        self._sum = np.add.reduce(self._exp, axis=1, keepdims=True)
        return np.log(self._sum)

    def _values_of_labels(self, prediction, target):
        index, share, valid = self._read_labels(prediction, target)
        shifted, top = self._shift(prediction)
        # Labels' arrays are (N, D); the working order has their elements in the same sequence.
        share = None if share is None else share.reshape(top.shape)
        picked = prediction.reshape(-1)[index].reshape(top.shape) - top
        smooth, self._spread = self.label_smoothing, None
        if smooth:
            self._spread = self._spread_weight(prediction, shifted)
            spread_sum = (shifted * self._spread).sum(axis=1, keepdims=True)
        log_sum = self._keep_softmax(shifted)
        values = log_sum - picked
        if share is not None:
            values *= share
        self._index, self._share = index, share
        if smooth:
            values = (1 - smooth) * values + (log_sum * self._spread.sum() - spread_sum)
        self._valid = None if valid is None else valid.reshape(top.shape)
        if valid is not None:
            values[~self._valid] = 0
        return values.reshape(target.shape), target.size if share is None else share.sum()

    def _values_of_probabilities(self, prediction, target):
        if target.dtype.kind != "f":
            raise ValueError(
                f"CrossEntropyLoss got a target of dtype {target.dtype} in the prediction's shape "
                f"{prediction.shape}; probabilities must be floating point"
            )
        if self.ignore_index >= 0:
            raise ValueError(
                f"CrossEntropyLoss has ignore_index={self.ignore_index}, which probability targets "
                f"cannot have; leave it negative"
            )
        samples, classes, positions = split_shape(prediction.shape)
        wanted = self._ordered(target.astype(prediction.dtype, copy=False))
        if self.label_smoothing:
            wanted = wanted * (1 - self.label_smoothing) + self.label_smoothing / classes
        weight = self._class_weight(classes, prediction.dtype)
        if weight is not None:
            wanted = wanted * self._along_classes(weight, wanted)
        shifted, _ = self._shift(prediction)
        self._wanted, self._wanted_sum = wanted, wanted.sum(axis=1, keepdims=True)
        inner = (wanted * shifted).sum(axis=1, keepdims=True)
        values = self._keep_softmax(shifted) * self._wanted_sum - inner
        shape = prediction.shape[:1] + prediction.shape[2:] if prediction.ndim > 1 else ()
        return values.reshape(shape), samples * positions

    def _gradient_into(self, out, grad):
        """Write (Σq·softmax - q)·grad for the target q: at the labels alone, or dense."""
        view = self._ordered(out)
        if self._probable:
            np.multiply(self._exp, self._wanted_sum * grad / self._sum, out=view)
            view -= self._wanted * grad
        elif self._spread is None:
            hot = self._weighted(grad)
            np.multiply(self._exp, hot / self._sum, out=view)
            out.reshape(-1)[self._index] -= self._per_label(hot)
        else:
            self._smooth_gradient_into(out, view, grad)

    def _smooth_gradient_into(self, out, view, grad):
        np.multiply(self._spread, grad, out=view)
        hot = (1 - self.label_smoothing) * self._weighted(grad)
        out.reshape(-1)[self._index] += self._per_label(hot)
        # Summing q as it stands makes a single class's gradient exactly 0.
        total = view.sum(axis=1, keepdims=True)
        np.subtract(self._exp * (total / self._sum), view, out=view)

    def _weighted(self, grad):
        return grad if self._share is None else grad * self._share

    def _per_label(self, hot):
        return hot.reshape(self._index.shape) if hot.ndim else hot

    def _spread_weight(self, prediction, shifted):
        """Return label_smoothing / C times the class weights, along the class axis."""
        classes = split_shape(prediction.shape)[1]
        weight = self._class_weight(classes, prediction.dtype)
        if weight is None:
            weight = np.ones(classes, prediction.dtype)
        return self._along_classes(weight * (self.label_smoothing / classes), shifted)

    @staticmethod
    def _ordered(array):
        """Return (N, C), (1, C, N) for few classes, or (N, C, D): a view where memory allows."""
        samples, classes, positions = split_shape(array.shape)
        if positions != 1 or not array.size:
            return array.reshape(samples, classes, positions)
        array = array.reshape(samples, classes)
        return array.T[None] if classes <= FEW_CLASSES < samples else array

    @staticmethod
    def _along_classes(weight, like):
        return weight if like.ndim == 2 else weight[:, None]
