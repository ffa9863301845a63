"""Reflecting, replicating and circular borders: padding an image and folding its gradient back."""

import numpy as np

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def border_sources(size, before, after, mode):
    """Return, for each padded position along an axis, the position that it repeats, as an array.

    A negative amount crops, as in torch. Raises ValueError where torch does: a reflection needs
    more elements than it pads, a circle at least as many.
    """
    limit = {"reflect": size - 1, "circular": size}.get(mode)
    if limit is not None and max(before, after) > limit:
        raise ValueError(
            f"padding_mode={mode!r} can add at most {limit} to an axis of length {size}, "
            f"not ({before}, {after})"
        )
    positions = np.arange(-before, size + after)
    if positions.size == 0:
        raise ValueError(f"padding ({before}, {after}) leaves nothing of an axis of length {size}")
    if mode == "circular":
        return positions % size
    if mode == "reflect":  # the edge itself is not repeated: ... 2 1 | 0 1 2 ...
        positions = np.abs(positions)
        return (size - 1) - np.abs((size - 1) - positions)
    return np.clip(positions, 0, size - 1)


def pad(x, rows, columns):
    """Return x (N, C, H, W) with the border sources of `border_sources` laid around it."""
    return x.take(rows, axis=2).take(columns, axis=3)


def fold(grad, rows, columns, before, shape):
    """Return the gradient for x of the given shape from the gradient for ``pad(x, rows, columns)``.

    Padding copies elements, so the gradients of all copies of an element are added.
    """
    grad = _fold_axis(grad.swapaxes(2, 3), columns, before[1], shape[3]).swapaxes(2, 3)
    return _fold_axis(grad, rows, before[0], shape[2])


def _fold_axis(grad, sources, before, size):
    """Fold axis 2 of grad to length size: the middle in one piece, then each border line alone."""
    folded = np.zeros((*grad.shape[:2], size, *grad.shape[3:]), grad.dtype)
    first, end = max(before, 0), min(before + size, len(sources))
    folded[:, :, sources[first] : sources[end - 1] + 1] = grad[:, :, first:end]
    for position in (*range(first), *range(end, len(sources))):
        folded[:, :, sources[position]] += grad[:, :, position]
    return folded
