"""The layers that torch.nn lacks, written with torch's own operations and autograd."""

import torch
from torch import nn


class _Step(torch.autograd.Function):
    """torch.heaviside, which has no derivative of its own, with derivative 0."""

    @staticmethod
    def forward(ctx, x, values):
        """Return heaviside(x, values)."""
        return torch.heaviside(x, torch.tensor(values, dtype=x.dtype, device=x.device))

    @staticmethod
    def backward(ctx, grad_output):
        """Return zeros."""
        return torch.zeros_like(grad_output), None


class Heaviside(nn.Module):
    """The step function (*) -> (*): 0, `values` at 0, 1; derivative 0."""

    def __init__(self, values=0.0):
        super().__init__()
        self.values = values

    def forward(self, x):
        """Return torch.heaviside(x, values)."""
        return _Step.apply(x, self.values)

    def extra_repr(self):
        """Return the argument."""
        return f"values={self.values}"


class ChannelwiseScaling(nn.Module):
    """y = weight · x + bias, channel by channel; x (N, C, *) or (C,)."""

    def __init__(self, num_features, bias=True, device=None, dtype=None):
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    def forward(self, x):
        """Return y in x's shape; raise ValueError for another number of channels."""
        if x.ndim == 0 or x.shape[min(x.ndim - 1, 1)] != self.num_features:
            raise ValueError(f"ChannelwiseScaling({self.num_features}) got x {tuple(x.shape)}")
        shape = (-1,) + (1,) * (x.ndim - 2)
        y = x * self.weight.reshape(shape)
        return y if self.bias is None else y + self.bias.reshape(shape)

    def extra_repr(self):
        """Return the arguments."""
        return f"{self.num_features}, bias={self.bias is not None}"


class Normalize(nn.Module):
    """(x / scale - mean) / std per channel of axis `dim`, then flattened item by item."""

    def __init__(self, mean, std, scale=255.0, flatten=True, *, dim=-1, dtype=torch.float32):
        super().__init__()
        self.mean, self.std, self.scale = mean, std, scale
        self.flatten, self.dim, self.dtype = flatten, dim, dtype

    def forward(self, x):
        """Return the standardised images, (N, product of the other axes) when flattening."""
        x = x if x.is_floating_point() else x.to(self.dtype)
        shape = [1] * x.ndim
        shape[self.dim] = -1
        # The constants follow the dtype of x, also after .double().
        mean, std = (
            torch.as_tensor(values, dtype=x.dtype, device=x.device).reshape(shape)
            for values in (self.mean, self.std)
        )
        y = (x / self.scale - mean) / std
        return torch.flatten(y, 1) if self.flatten else y

    def extra_repr(self):
        """Return the arguments."""
        return (
            f"mean={self.mean}, std={self.std}, scale={self.scale}, "
            f"flatten={self.flatten}, dim={self.dim}"
        )
