"""Dropout, which zeroes elements at random while training."""

import numpy as np

from impl.activations import real
from impl.initialisation import generator
from impl.module import Module, check_inplace


class Dropout(Module):
    """Inverted dropout: x · mask / (1 - p) in training mode, x itself in evaluation mode.

    x (*) -> y (*), as torch.nn.Dropout (Hinton et al., arXiv:1207.0580). Raises ValueError for a p
    outside [0, 1] and for an x of another shape than a mask that was assigned.

    `mask` is the boolean array (*) of what the last training forward kept (None after an
    evaluation). Assigning an array of x's shape fixes the mask for every later forward, so that
    two sides can share it; assigning None lets it be drawn again.
    """

    def __init__(self, p=0.5, inplace=False, *, rng=None):
        self.p = real("Dropout", "p", p)
        if not 0 <= self.p <= 1:
            raise ValueError(f"Dropout got p={p!r}; a probability lies between 0 and 1")
        check_inplace("Dropout", inplace)
        self.rng = generator(rng)
        self._fixed = self._drawn = None

    @property
    def mask(self):
        """The boolean mask (*) of kept elements, or None."""
        return self._drawn if self._fixed is None else self._fixed

    @mask.setter
    def mask(self, mask):
        self._fixed = None if mask is None else np.array(mask, dtype=bool)
        self._drawn = None

    def _draw(self, shape) -> np.ndarray:
        if self._fixed is None:
            # random() < 1 always, so p = 1 keeps nothing and p = 0 keeps everything.
            return self.rng.random(shape, dtype=np.float32) >= np.float32(self.p)
        if self._fixed.shape != shape:
            raise ValueError(f"Dropout has a fixed mask {self._fixed.shape}, x has shape {shape}")
        return self._fixed

    def forward(self, input):
        """Return y (*), of x's dtype, for x (*); x itself when nothing is dropped."""
        x = np.asarray(input)
        if not self.training or (self.p == 0 and self._fixed is None):
            self._drawn = np.ones(x.shape, dtype=bool) if self.training else None
            self._cache = (x.shape, x.dtype, None)
            return x
        if self.p < 1:
            x = self._floating(x)
        mask = np.asarray(self._draw(x.shape))
        self._drawn, self._cache = mask, (x.shape, x.dtype, mask)
        return self._scaled(x, mask)

    def _scaled(self, x, mask):
        # inf · 0 = NaN is torch's answer too: it multiplies, it does not select.
        with np.errstate(invalid="ignore", over="ignore"):
            y = np.asarray(np.multiply(x, mask, dtype=x.dtype))
            if 0 < self.p < 1:
                y *= y.dtype.type(1 / (1 - self.p))
        return y

    def backward(self, grad_output):
        """Return the gradient (*) for x."""
        shape, dtype, mask = self._recall()
        grad = self._upstream(grad_output, shape, dtype)
        return grad if mask is None else self._scaled(grad, mask)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"p={self.p}, inplace=False"
