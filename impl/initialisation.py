"""Initial weights, drawn from torch's default distributions with a NumPy Generator."""

import math

import numpy as np


def generator(rng=None) -> np.random.Generator:
    """Return `rng` when it is a Generator, else a new one (seeded by `rng` when it is given)."""
    return np.random.default_rng(rng)


def uniform(shape: tuple, fan_in: int, rng=None, dtype=np.float32) -> np.ndarray:
    """Return an array of `shape` drawn from U(-1/√fan_in, 1/√fan_in).

    torch's Linear and Conv2d draw weights by kaiming_uniform_(a=√5), which is this bound
    (gain √(2/6) times √(3/fan_in)), and biases by this bound too. `fan_in` 0 gives zeros.
    """
    bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    return generator(rng).uniform(-bound, bound, size=shape).astype(dtype)
