"""Neural-network layers, losses and optimizers in NumPy, forward and backward by hand."""

from impl.module import Module

__all__ = ["Module"]
