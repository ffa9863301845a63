"""ChannelwiseScaling, a learnt scale and shift for every channel."""

import numpy as np

from impl.linear import size
from impl.module import Module, check_device, check_dtype


def channel_sum(array: np.ndarray) -> np.ndarray:
    """Sum (N, C, *) over everything but C, in float64: (C,).

    A plain sum down the batch would lose digits in float32.
    """
    if array.ndim > 2:
        array = array.reshape(*array.shape[:2], -1) if array.size else array
        array = array.sum(axis=tuple(range(2, array.ndim)), dtype=np.float64)
    return array.sum(axis=0, dtype=np.float64)


class ChannelwiseScaling(Module):
    """y = weight · x + bias, channel by channel: BatchNorm's affine half alone.

    x (N, C, *) -> y (N, C, *); weight (C,) starts at 1, bias (C,) at 0. A 1-D x is one item of C
    channels without a batch; with two axes or more the channels are always on axis 1.

    Raises ValueError for another number of channels, TypeError for an x that is not floating.
    """

    def __init__(self, num_features, bias=True, device=None, dtype=None):
        self.num_features = size("ChannelwiseScaling", "num_features", num_features)
        check_device("ChannelwiseScaling", device)
        dtype = check_dtype("ChannelwiseScaling", dtype)
        self.params["weight"] = np.ones(self.num_features, dtype)
        if bias:
            self.params["bias"] = np.zeros(self.num_features, dtype)

    @staticmethod
    def _wide(channels, x):
        return channels.reshape(-1, *[1] * (x.ndim - 2))

    def forward(self, input):
        """Return y in x's shape."""
        x = self._floating(input, like=self.params["weight"])
        if x.ndim == 0 or x.shape[min(x.ndim - 1, 1)] != self.num_features:
            raise ValueError(
                f"ChannelwiseScaling({self.num_features}) got x with shape {x.shape}; it must be "
                f"(N, {self.num_features}, *) or ({self.num_features},)"
            )
        self._cache = x
        y = x * self._wide(self.params["weight"], x)
        if self.params.get("bias") is not None:
            y += self._wide(self.params["bias"], x)
        return y

    def backward(self, grad_output):
        """Return the gradient in x's shape; add to grads["weight"] and grads["bias"]."""
        x = self._recall()
        grad = self._upstream(grad_output, x.shape, x.dtype)
        batch = (1, *x.shape) if x.ndim == 1 else x.shape
        self._accumulate("weight", channel_sum((grad * x).reshape(batch)).astype(x.dtype))
        if self.params.get("bias") is not None:
            self._accumulate("bias", channel_sum(grad.reshape(batch)).astype(x.dtype))
        return grad * self._wide(self.params["weight"], x)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"{self.num_features}, bias={self.params.get('bias') is not None}"
