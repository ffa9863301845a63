"""BatchNorm1d and BatchNorm2d: every channel standardised over the batch, then scaled."""

import math

import numpy as np

from impl.activations import real
from impl.blocks import BLOCK, blocks
from impl.linear import size
from impl.module import Module, check_device, check_dtype


def row_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the scalar product of each row of a (C, M) with that of b: (C,)."""
    if hasattr(np, "vecdot"):  # since NumPy 2.0: the same sums, half the time of short ones
        return np.vecdot(a, b)
    return np.matmul(a[:, None, :], b[:, :, None])[:, 0, 0]


def wide_rows(part: np.ndarray) -> np.ndarray:
    """Return (N, C, *) as rows (C, N·*), a new array in float64.

    Torch too sums float32 statistics in double: the squares of values from 1e20 or below 1e-23
    need its range, and a plain sum down the batch would lose digits.
    """
    wide = part.swapaxes(0, 1).astype(np.float64, order="C")
    return wide.reshape(len(wide), math.prod(wide.shape[1:]))


def put_rows(rows: np.ndarray, out: np.ndarray) -> None:
    """Write what `wide_rows` made of an array of out's shape."""
    turned = out.swapaxes(0, 1)
    turned[...] = rows.reshape(turned.shape)


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
        return x.size // x.shape[1] if x.shape[1] else len(x) * math.prod(x.shape[2:])

    @staticmethod
    def _wide(channels: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Shape (C,) for broadcasting against x (N, C, *), in x's dtype."""
        return channels.astype(x.dtype, copy=False).reshape(-1, *[1] * (x.ndim - 2))

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

    # inf in the input makes NaN, as in torch.

    @np.errstate(invalid="ignore", over="ignore", divide="ignore")
    def forward(self, input):
        """Return y in x's shape."""
        x = self._check(input)
        if self._uses_batch():
            return self._standardise(x)
        mean, variance = self._buffers["running_mean"], self._buffers["running_var"]
        scale = self._scale(variance.astype(np.float64), self._count(x))
        self._cache = x, np.array(mean), scale, False
        return self._affine(x, mean, scale)

    @staticmethod
    def _channels(x):
        """Yield slices of the channels, of about a block of elements each."""
        if x.size <= BLOCK:
            return (slice(None),)
        return blocks(x.shape[1], x.size // x.shape[1])

    def _standardise(self, x):
        """Return y by the batch's own statistics, a few channels at a time, and track them."""
        y = np.empty(x.shape, x.dtype)
        found = [self._standardise_part(x, part, y) for part in self._channels(x)]
        if len(found) > 1:
            found = [[np.concatenate(parts) for parts in zip(*found, strict=True)]]
        mean, variance, scale = found[0]
        if self.training and "running_mean" in self._buffers:
            self._track(mean, variance, self._count(x))
        self._cache = x, mean, scale, True
        return y

    def _standardise_part(self, x, part, y):
        """Write the channels `part` of x into y; return their means, variances and scales."""
        weight, bias = self._params.get("weight"), self._params.get("bias")
        values = wide_rows(x[:, part])
        mean, variance = self._centre(values)
        scale = self._scale(variance, values.shape[1])
        values *= (scale if weight is None else scale * weight[part])[:, None]
        if bias is not None:
            values += bias[part, None]
        put_rows(values, y[:, part])
        return mean, variance, scale

    def _centre(self, values):
        """Subtract each row's mean from it; return the means and the biased variances."""
        count = max(values.shape[1], 1)
        mean = np.add.reduce(values, axis=1)
        mean /= count
        values -= mean[:, None]
        variance = row_products(values, values)
        variance /= count
        return mean, variance

    def _scale(self, variance, count):
        return 1 / np.sqrt(variance + self.eps)

    def _affine(self, x, mean, scale):
        """Return (x - mean) · scale · weight + bias."""
        mean, bias = self._wide(mean, x), self._params.get("bias")
        scale = self._wide(scale * self._params.get("weight", 1), x)
        shift = None if bias is None else self._wide(bias, x)
        y = np.empty(x.shape, x.dtype)
        for part in blocks(len(x), math.prod(x.shape[1:])):
            out = np.subtract(x[part], mean, out=y[part])
            out *= scale
            if shift is not None:
                out += shift
        return y

    @np.errstate(invalid="ignore", over="ignore", divide="ignore")
    def backward(self, grad_output):
        """Return the gradient in x's shape; add to grads["weight"] and grads["bias"]."""
        x, mean, scale, batch = self._recall()
        grad = self._upstream(grad_output, x.shape, x.dtype)
        count, weight = max(self._count(x), 1), self._params.get("weight", 1)
        gain = scale * weight
        total, along = np.empty((2, x.shape[1]))  # Σ g and Σ g x̂
        dx = np.empty(x.shape, x.dtype) if batch else grad * self._wide(gain, x)
        for part in self._channels(x):
            values, upstream = wide_rows(x[:, part]), wide_rows(grad[:, part])
            values -= mean[part, None]
            total[part] = np.add.reduce(upstream, axis=1)
            along[part] = row_products(values, upstream) * scale[part]
            if batch:
                # Mean and variance depend on x too: dx = γ/σ (g - mean(g) - x̂ mean(g x̂)).
                values *= (along[part] * scale[part] / count)[:, None]
                upstream -= values
                upstream -= (total[part] / count)[:, None]
                upstream *= gain[part, None]
                put_rows(upstream, dx[:, part])
        if "weight" in self._params:
            self._accumulate("weight", along.astype(x.dtype))
        if "bias" in self._params:
            self._accumulate("bias", total.astype(x.dtype))
        return dx

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
