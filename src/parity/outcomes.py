"""What one run of one side produced, under the names that verdicts are given for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray


@dataclass
class Outcome:
    """Outputs and quantities of one forward and backward pass.

    ``quantities`` maps ``forward``, ``grad_input0``, ``grad_weight``, ``buffer_running_mean`` … to
    arrays; None means that the side has no such gradient. ``remarks`` are (name, sentence) pairs
    about how the run behaved: an input that was modified, a wrong dtype, a warning. ``returned``
    counts what backward handed back, None on purpose included.
    """

    outputs: tuple[Array, ...]
    quantities: dict[str, Array | None] = field(default_factory=dict)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    masks: tuple[Array, ...] = ()
    returned: int = 0


class LayerError(Exception):
    """The hand-written side failed; ``__cause__`` is its own exception, ``phase`` where it was."""

    def __init__(self, message: str, phase: str) -> None:
        super().__init__(message)
        self.phase = phase


def forward_names(count: int) -> list[str]:
    """Return the quantity names of ``count`` outputs: one output is plain ``forward``."""
    return ["forward"] if count == 1 else [f"forward{i}" for i in range(count)]


def alike(mine: Array, theirs: Array) -> bool:
    """Whether shape and values are the same, NaN being equal to NaN.

    np.array_equal with equal_nan copies both sides before it compares them; few hold a NaN.
    """
    mine, theirs = np.asarray(mine), np.asarray(theirs)
    if mine.shape != theirs.shape:
        return False
    if bool(np.all(mine == theirs)):
        return True
    return mine.dtype.kind == "f" and bool(np.array_equal(mine, theirs, equal_nan=True))
