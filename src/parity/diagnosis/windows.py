"""Windows of an image as index arrays: for gradients that are written, not added."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional


def window_index(x: torch.Tensor, kernel: Any, stride: Any, pads: Any, dilation: Any) -> Any:
    """Return the flat padded position of each element of each window: (kernel area, windows)."""
    h, w = x.shape[2] + 2 * pads[0], x.shape[3] + 2 * pads[1]
    flat = torch.arange(h * w, dtype=torch.float64).reshape(1, 1, h, w)
    return functional.unfold(flat, kernel, dilation, 0, stride)[0].long().numpy()


def written(columns: torch.Tensor, index: Any, x: torch.Tensor, pads: Any) -> torch.Tensor:
    """Return x's gradient (N, C, H, W) where each window overwrites what stood there."""
    n, c = x.shape[:2]
    h, w = x.shape[2] + 2 * pads[0], x.shape[3] + 2 * pads[1]
    values = columns.detach().reshape(n, c, *index.shape).numpy()
    made = np.zeros((n, c, h * w))
    for window in range(index.shape[1]):
        made[:, :, index[:, window]] = values[..., window]
    found = made.reshape(n, c, h, w)[:, :, pads[0] : h - pads[0], pads[1] : w - pads[1]]
    return torch.from_numpy(np.ascontiguousarray(found))
