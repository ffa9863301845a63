"""Conv2d, two-dimensional convolution with all of torch's options."""

from dataclasses import replace

import numpy as np

from impl import initialisation, small_correlation
from impl.correlation import (
    convolve,
    input_gradient,
    plan,
    sum_per_channel,
    unrolled,
    weight_gradient,
)
from impl.module import Module, check_device, check_dtype
from impl.padding import PADDING_MODES, border_sources, fold, pad
from impl.windows import check_images, pair, whole


class Conv2d(Module):
    """Two-dimensional convolution (cross-correlation, as everywhere in deep learning).

    x (N, C, H, W) -> y (N, O, H', W'), or unbatched (C, H, W) -> (O, H', W'), with
    H' = (H + padding - dilation·(kh - 1) - 1) // stride + 1 and W' alike
    weight (O, C / groups, kh, kw), bias (O,)

    Options are torch.nn.Conv2d's; `rng` (a Generator or a seed) draws the initial weights. x has
    the parameters' dtype. forward keeps references to x and to the weight array until backward;
    the weight is not to be written in place in between.

    Raises ValueError for bad options and for x of another rank, channel count or too small a size.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        device=None,
        dtype=np.float32,
        *,
        rng=None,
    ):
        check_device("Conv2d", device)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = pair(stride, "stride")
        self.dilation = pair(dilation, "dilation")
        self.padding = padding if isinstance(padding, str) else pair(padding, "padding")
        self.padding_mode = padding_mode
        self._check_options()
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        fan_in, rng = int(np.prod(shape[1:])), initialisation.generator(rng)
        dtype = check_dtype("Conv2d", dtype)
        self.params["weight"] = initialisation.uniform(shape, fan_in, rng, dtype)
        if bias:
            self.params["bias"] = initialisation.uniform((out_channels,), fan_in, rng, dtype)
        self._geometries = {}  # by (H, W): training sees few sizes, and small images many calls

    def _check_options(self):
        """Refuse at construction what torch refuses there, and the sizes that it refuses later."""
        for name in ("in_channels", "out_channels", "groups"):
            if whole(getattr(self, name), name) < 1:
                raise ValueError(f"{name} must be a positive integer, not {getattr(self, name)!r}")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(
                    f"{name} must be divisible by groups, not {getattr(self, name)} "
                    f"by {self.groups}"
                )
        for name in ("kernel_size", "stride", "dilation"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.padding_mode not in PADDING_MODES:
            raise ValueError(
                f"padding_mode must be one of {', '.join(PADDING_MODES)}, "
                f"but got padding_mode={self.padding_mode!r}"
            )
        if self.padding == "same" and self.stride != (1, 1):
            raise ValueError("padding='same' is not supported for strided convolutions")
        if isinstance(self.padding, str) and self.padding not in ("same", "valid"):
            raise ValueError(
                f"Invalid padding string {self.padding!r}, should be one of 'same', 'valid'"
            )
        if not isinstance(self.padding, str) and min(self.padding) < 0:
            if self.padding_mode == "zeros":  # the other modes crop, as in torch
                raise ValueError(f"negative padding is not supported: {self.padding}")

    def _amounts(self):
        """Return ((top, bottom), (left, right)): the elements to add around an image."""
        if self.padding == "valid":
            return (0, 0), (0, 0)
        if self.padding == "same":  # an odd total leaves one more at the bottom and on the right
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return tuple((total // 2, total - total // 2) for total in totals)
        return tuple((p, p) for p in self.padding)

    def _geometry(self, image):
        """Return the geometry for images of size image = (H, W), computed once per size."""
        if image not in self._geometries:
            self._geometries[image] = self._new_geometry(image)
        return self._geometries[image]

    def _new_geometry(self, image):
        amounts = self._amounts() if self.padding_mode == "zeros" else ((0, 0), (0, 0))
        padded = tuple(size + sum(a) for size, a in zip(image, amounts, strict=True))
        spans = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        if padded[0] < spans[0] or padded[1] < spans[1]:
            raise ValueError(
                f"{self!r} got images of {padded[0]}x{padded[1]}, padding included; "
                f"its dilated kernel covers {spans[0]}x{spans[1]} and must fit in"
            )
        before = amounts[0][0], amounts[1][0]
        options = self.kernel_size, self.stride, self.dilation
        geometry = plan(self.in_channels, *options, image, before, padded)
        # With stride 1 the gradient for x is itself a convolution, of the gradient for y with the
        # kernel turned round. It unrolls O channels in place of C, so O should not be much larger.
        ahead = spans[0] - 1 - before[0], spans[1] - 1 - before[1]
        expensive = geometry.apart or self.out_channels > 4 * self.in_channels
        if expensive or self.stride != (1, 1) or min(ahead) < 0:
            return geometry
        padded = image[0] + spans[0] - 1, image[1] + spans[1] - 1
        if min(p - a - o for p, a, o in zip(padded, ahead, geometry.out, strict=True)) < 0:
            return geometry
        back = plan(self.out_channels, *options, geometry.out, ahead, padded)
        return replace(geometry, transposed=back)

    def _border(self, image):
        """Return the row and column sources of a border that is not zeros."""
        return tuple(
            border_sources(size, *amounts, self.padding_mode)
            for size, amounts in zip(image, self._amounts(), strict=True)
        )

    @np.errstate(over="ignore", invalid="ignore")  # inf and NaN are answers, as in torch
    def forward(self, input):
        """Return y (N, O, H', W') for x (N, C, H, W), or the same without N."""
        weight, bias = self._params["weight"], self._params.get("bias")
        x = self._floating(input, weight)
        check_images(self, x)
        images = x if x.ndim == 4 else x[None]
        if images.shape[1] != self.in_channels:
            raise ValueError(
                f"{self!r} got x with shape {x.shape}; it must have {self.in_channels} channels"
            )
        border = None
        if self.padding_mode != "zeros":
            border = self._border(images.shape[2:])
            images = pad(images, *border)
        geometry, kept = self._geometry(images.shape[2:]), None  # columns of either way
        table = None
        if images.dtype.itemsize <= 8:  # longer ones would be rounded where gradients are added up
            table = small_correlation.table(geometry, len(images), self.out_channels, self.groups)
        if table is not None:
            kept = small_correlation.gather(images, table)
            y = small_correlation.convolve(kept, weight, bias, table)
        else:
            if not geometry.pointwise and self.training and geometry.one_block(len(images)):
                kept = list(unrolled(images, geometry, self.groups))
            y = convolve(images, weight, bias, geometry, self.groups, kept)
        kept = kept if self.training else None
        self._cache = images, weight, geometry, border, x.shape, kept, table
        return y if x.ndim == 4 else y[0]

    @np.errstate(over="ignore", invalid="ignore")
    def backward(self, grad_output):
        """Return the gradient for x; add those for weight and bias to `grads`."""
        images, weight, geometry, border, shape, kept, table = self._recall()
        y_shape = (*shape[:-3], self.out_channels, *geometry.out)
        grad = self._upstream(grad_output, y_shape, images.dtype)
        grad = grad.reshape(len(images), self.out_channels, *geometry.out)
        if table is not None:
            columns = small_correlation.gather(images, table) if kept is None else kept
            dweight, dbias, dx = small_correlation.gradients(columns, weight, grad, table)
        else:
            dweight = weight_gradient(images, grad, geometry, self.groups, kept)
            dbias = sum_per_channel(grad) if "bias" in self._params else None
            dx = input_gradient(weight, grad, geometry, self.groups)
        self._accumulate("weight", dweight)
        if "bias" in self._params:
            self._accumulate("bias", dbias)
        if border is not None:
            before = [amounts[0] for amounts in self._amounts()]
            dx = fold(dx, *border, before, (*dx.shape[:2], *shape[-2:]))
        return dx.reshape(shape)

    def extra_repr(self):
        """Return the options that differ from the defaults, written as torch writes them."""
        text = f"{self.in_channels}, {self.out_channels}, "
        text += f"kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if "bias" not in self._params:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text
