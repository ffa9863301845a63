"""Seeds of a test: the first in every run, the others with ``-m slow``."""

import pytest


def seeds(count, first=0):
    """Return ``count`` seeds for ``parametrize``, all but the first marked slow."""
    others = range(first + 1, first + count)
    return [first, *(pytest.param(seed, marks=pytest.mark.slow) for seed in others)]
