"""BatchNorm1d and BatchNorm2d: every channel standardised over the batch, then scaled."""

import math

import numpy as np

from impl.activations import real
from impl.blocks import blocks
from impl.linear import size
from impl.module import Module, check_device, check_dtype


def channel_sum(array: np.ndarray) -> np.ndarray:
    """Sum (N, C, *) over everything but C, in float64: (C,).

    Torch sums float32 statistics in double, and a plain sum down the batch would lose digits.
    """
    if array.ndim > 2:
        array = array.reshape(*array.shape[:2], -1) if array.size else array
        array = array.sum(axis=tuple(range(2, array.ndim)), dtype=np.float64)
    return array.sum(axis=0, dtype=np.float64)


def row_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the scalar product of each row of a (C, M) with that of b: (C,)."""
    return np.matmul(a[:, None, :], b[:, :, None])[:, 0, 0]


class _BatchNorm(Module):
    """What all ranks share.

    weight, bias (C,) with affine; running_mean, running_var (C,) and num_batches_tracked () with
    track_running_stats. The biased variance normalises, the unbiased one is tracked:
    running = (1 - momentum) · running + momentum · batch, or with momentum=None the plain average.
    Without running statistics the batch's own serve in evaluation mode too.
    """

    ranks = ()

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        device=None,
        dtype=None,
        *,
        bias=True,
    ):
        name = type(self).__name__
        self.num_features = channels = size(name, "num_features", num_features)
        self.eps = real(name, "eps", eps)
        self.momentum = None if momentum is None else real(name, "momentum", momentum)
        self.affine, self.track_running_stats = bool(affine), bool(track_running_stats)
        check_device(name, device)
        dtype = check_dtype(name, dtype)
        if affine:
            self.params["weight"] = np.ones(channels, dtype)
            if bias:
                self.params["bias"] = np.zeros(channels, dtype)
        if track_running_stats:
            self.buffers["running_mean"] = np.zeros(channels, dtype)
            self.buffers["running_var"] = np.ones(channels, dtype)
            self.buffers["num_batches_tracked"] = np.array(0, dtype=np.int64)

    def _check(self, x) -> np.ndarray:
        state = next(iter((self._params or self._buffers).values()), None)
        x = self._floating(x, like=state)
        # Without parameters and statistics nothing has a width, and torch takes any.
        if x.ndim not in self.ranks or (state is not None and x.shape[1] != self.num_features):
            ranks = " or ".join(f"{rank}-D" for rank in self.ranks)
            raise ValueError(
                f"{self._name} got x with shape {x.shape}; it must be {ranks} "
                f"with {self.num_features} channels on axis 1"
            )
        if self._uses_batch():
            if self._count(x) == 1:
                raise ValueError(
                    f"{self._name} expected more than 1 value per channel when training, "
                    f"got x with shape {x.shape}"
                )
            if self.eps <= 0:
                raise ValueError(
                    f"{self._name} has eps={self.eps}; it must be positive in training"
                )
        elif self.eps < 0:
            raise ValueError(f"{self._name} has eps={self.eps}; it must not be negative")
        return x

    @property
    def _name(self) -> str:
        return f"{type(self).__name__}({self.num_features})"

    def _uses_batch(self) -> bool:
        return self.training or "running_mean" not in self._buffers

    @staticmethod
    def _count(x: np.ndarray) -> int:
        return len(x) * math.prod(x.shape[2:])

    @staticmethod
    def _wide(channels: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Shape (C,) for broadcasting against x (N, C, *), in x's dtype."""
        return channels.astype(x.dtype, copy=False).reshape(-1, *[1] * (x.ndim - 2))

    @staticmethod
    def _parts(x: np.ndarray):
        return blocks(len(x), math.prod(x.shape[1:]))

    def _statistics(self, x):
        """Return mean and biased variance (C,) in float64."""
        count = max(self._count(x), 1)
        mean, variance = np.empty(x.shape[1]), np.empty(x.shape[1])
        # In float64: the squares of float32 values from 1e20 or below 1e-23 need its range.
        for channels, part in self._channel_parts(x):
            values = part.astype(np.float64, order="C").reshape(len(part), -1)
            mean[channels] = near = values.sum(axis=1) / count
            values -= near[:, None]
            variance[channels] = row_products(values, values) / count
        return mean, variance

    @staticmethod
    def _channel_parts(*arrays):
        """Yield a slice of the channels and, channels first, each array's part of them."""
        for channels in blocks(arrays[0].shape[1], arrays[0].size // max(arrays[0].shape[1], 1)):
            yield channels, *(array[:, channels].swapaxes(0, 1) for array in arrays)

    def _track(self, mean, variance, count: int) -> None:
        buffers = self._buffers
        if "num_batches_tracked" in buffers:
            buffers["num_batches_tracked"] = np.array(buffers["num_batches_tracked"] + 1)
        if not count:
            return  # an empty batch is counted, but says nothing
        share = self.momentum
        if share is None:
            share = 1 / float(buffers["num_batches_tracked"])
        unbiased = variance * (count / (count - 1))
        for name, batch in (("running_mean", mean), ("running_var", unbiased)):
            old = buffers[name]
            buffers[name] = ((1 - share) * old + share * batch).astype(old.dtype)

    def forward(self, input):
        """Return y in x's shape."""
        x = self._check(input)
        batch = self._uses_batch()
        # inf in the input makes NaN, as in torch.
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            if batch:
                mean, variance = self._statistics(x)
                if self.training and "running_mean" in self._buffers:
                    self._track(mean, variance, self._count(x))
            else:
                mean, variance = self._buffers["running_mean"], self._buffers["running_var"]
            scale = 1 / np.sqrt(variance.astype(np.float64) + self.eps)
            self._cache = x, np.array(mean), scale, batch
            return self._affine(x, mean, scale)

    def _affine(self, x, mean, scale):
        """Return (x - mean) · scale · weight + bias."""
        mean, bias = self._wide(mean, x), self._params.get("bias")
        scale = self._wide(scale * self._params.get("weight", 1), x)
        shift = None if bias is None else self._wide(bias, x)
        y = np.empty(x.shape, x.dtype)
        for part in self._parts(x):
            out = np.subtract(x[part], mean, out=y[part])
            out *= scale
            if shift is not None:
                out += shift
        return y

    def backward(self, grad_output):
        """Return the gradient in x's shape; add to grads["weight"] and grads["bias"]."""
        x, mean, scale, batch = self._recall()
        grad = self._upstream(grad_output, x.shape, x.dtype)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            total, along = self._totals(x, grad, mean, scale)
            weight = self._params.get("weight", 1)
            if "weight" in self._params:
                self._accumulate("weight", along.astype(x.dtype))
            if "bias" in self._params:
                self._accumulate("bias", total.astype(x.dtype))
            if not batch:
                return grad * self._wide(scale * weight, x)
            # Mean and variance depend on x too: dx = γ/σ (g - mean(g) - x̂ mean(g x̂)).
            count = max(self._count(x), 1)
            mean, total = self._wide(mean, x), self._wide(total / count, x)
            along, scale = self._wide(along / count * scale, x), self._wide(scale * weight, x)
            dx = np.empty(x.shape, x.dtype)
            for part in self._parts(x):
                out = np.subtract(mean, x[part], out=dx[part])
                out *= along
                out -= total
                out += grad[part]
                out *= scale
            return dx

    def _totals(self, x, grad, mean, scale):
        """Return Σ g and Σ g x̂ (C,) in float64, over everything but the channels."""
        total, along = np.empty(x.shape[1]), np.empty(x.shape[1])
        for channels, part, upstream in self._channel_parts(x, grad):
            values = part.astype(np.float64, order="C").reshape(len(part), -1)
            values -= mean[channels, None]
            upstream = upstream.astype(np.float64, order="C").reshape(len(part), -1)
            total[channels] = upstream.sum(axis=1)
            along[channels] = row_products(values, upstream)
        return total, along * scale

    def extra_repr(self) -> str:
        """Return the arguments."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L), statistics over N and L, as torch.nn.BatchNorm1d.

    y = (x - mean) / √(variance + eps) · weight + bias (Ioffe and Szegedy, arXiv:1502.03167)
    weight, bias, running_mean, running_var (C,), num_batches_tracked (); y in x's shape

    Raises ValueError for other shapes and for one value a channel in training, TypeError for an x
    that is not floating.
    """

    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, C, H, W), statistics over N, H and W, as torch.nn.BatchNorm2d.

    Formula, shapes and errors are BatchNorm1d's.
    """

    ranks = (4,)
