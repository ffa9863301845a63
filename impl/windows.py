"""Sliding windows over images: option pairs, sizes and slices for convolution and pooling."""

import operator

import numpy as np


def whole(value, name, kind="an int"):
    """Return value as an int; TypeError naming the option for anything that is no whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {kind}, not {value!r}") from None


def pair(value, name):
    """Return ``(rows, columns)`` from an int or a sequence of one or two ints.

    Raises TypeError for anything that is not whole numbers, ValueError for another length.
    """
    kind = "an int or a pair of ints"
    values = np.atleast_1d(value) if isinstance(value, np.ndarray) else value
    values = values if isinstance(values, tuple | list | np.ndarray) else (values,)
    values = tuple(whole(v, name, kind) for v in values)
    if len(values) not in (1, 2):
        raise ValueError(f"{name} must be {kind}, not {value!r}")
    return values * 2 if len(values) == 1 else values


def check_images(layer, x):
    """Raise ValueError unless the array x is (N, C, H, W) or (C, H, W), empty in N at most."""
    if x.ndim not in (3, 4):
        raise ValueError(
            f"{layer!r} got x with shape {x.shape}; "
            "it must be (N, C, H, W) or, unbatched, (C, H, W)"
        )
    if 0 in x.shape[-3:]:
        raise ValueError(
            f"{layer!r} got x with shape {x.shape}; "
            "only the batch axis of (N, C, H, W) may be empty"
        )


def pooled_size(size, kernel, stride, padding, dilation, ceil_mode):
    """Return how many windows fit along one axis, by the rule of torch's pooling layers.

    With ceil_mode a last window may hang over the end, but only if it starts inside the input or
    the padding before it: a window wholly in the padding after the input would pool nothing.
    """
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    windows = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (windows - 1) * stride >= size + padding:
        windows -= 1
    return windows


def axis_taps(size, windows, kernel, stride, padding, dilation=1):
    """Return, for each kernel element along one axis, ``(shift, outputs, inputs)``.

    Window w sees element ``w * stride + shift`` there. The slices leave out the windows that see
    padding: ``x[inputs]`` is what the windows ``outputs`` see, and no padded copy is needed.
    """
    taps = []
    for k in range(kernel):
        shift = k * dilation - padding
        first = max(0, -(shift // stride))
        last = min(windows - 1, (size - 1 - shift) // stride)
        if first <= last:
            inputs = slice(first * stride + shift, last * stride + shift + 1, stride)
            taps.append((shift, slice(first, last + 1), inputs))
    return taps
