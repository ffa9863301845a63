"""The batches of a training run: what users give, validated, and the same for every run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.findings import UsageError
from parity.outcomes import Array

SHAPE = "batches wants a list of (x, y) pairs, one pair (x, y) for a full batch, or epoch → list"


@dataclass(frozen=True)
class Batch:
    """The inputs of one step and what the loss compares the prediction with."""

    inputs: tuple[Array, ...]
    target: Array

    def map(self, change: Callable[[Array], Array]) -> Batch:
        """Return the batch with ``change`` applied to every floating array."""

        def each(array: Array) -> Array:
            return change(array) if array.dtype.kind == "f" else array

        return Batch(tuple(map(each, self.inputs)), each(self.target))

    @property
    def rows(self) -> int | None:
        """The number of items, None where inputs and target do not share a first axis."""
        lengths = {a.shape[0] if a.ndim else None for a in (*self.inputs, self.target)}
        return lengths.pop() if len(lengths) == 1 else None

    def permuted(self, order: Array) -> Batch:
        """Return the batch with its items in another order."""
        return Batch(tuple(a[order] for a in self.inputs), self.target[order])


class Batches:
    """Every batch of a run, asked for epoch by epoch, as often as there are runs."""

    def __init__(self, given: Any, epochs: int) -> None:
        self._call = given if callable(given) and not hasattr(given, "__array__") else None
        self._sums: dict[int, int] = {}
        self._fixed: list[list[Batch]] = []
        self.epochs = epochs
        if self._call is None:
            self._fixed = _fixed(given, epochs)
        self.first = self.epoch(0)

    def epoch(self, number: int) -> list[Batch]:
        """Return the batches of one epoch.

        Raises UsageError where a callable gives other numbers when it is asked again.
        """
        if self._call is None:
            return self._fixed[number % len(self._fixed)]
        try:
            given = self._call(number)
        except (Exception, SystemExit) as error:
            text = str(error).partition("\n")[0]
            raise UsageError(
                f"batches({number}) raised {type(error).__name__}: {text}; {SHAPE}"
            ) from error
        found = _as_batches(given, f"batches({number})")
        total = 0
        for batch in found:
            for array in (*batch.inputs, batch.target):
                total = zlib.crc32(np.ascontiguousarray(array).tobytes(), total)
        if self._sums.setdefault(number, total) != total:
            raise UsageError(
                f"batches({number}) gave other numbers when it was asked again, and both sides "
                "must see the same ones; seed its generator with the epoch: "
                "np.random.default_rng(epoch)"
            )
        return found

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        for number in range(self.epochs):
            for batch in self.epoch(number):
                yield number, batch

    def describe(self) -> str:
        """Return one line on what the run sees."""
        sizes = sorted({str(b.rows) for b in self.first if b.rows is not None}, key=int)
        count = len(self.first)
        of = f" of {' or '.join(sizes)}" if sizes else ""
        return f"{self.epochs} epochs with {count} batch{'es' if count > 1 else ''}{of}"


def _fixed(given: Any, epochs: int) -> list[list[Batch]]:
    if given is None:
        raise UsageError(f"check_training got no batches; {SHAPE}")
    if isinstance(given, tuple) and len(given) >= 2 and all(map(_is_array, given)):
        return [[_as_batch(given, "batches")]]
    # a loader that may be gone through again gives a new order each time: ask once an epoch
    again = isinstance(given, Iterable) and not isinstance(given, (Sequence, Iterator))
    return [_as_batches(given, "batches") for _ in range(epochs if again else 1)]


def _as_batches(given: Any, who: str) -> list[Batch]:
    if isinstance(given, tuple) and len(given) >= 2 and all(map(_is_array, given)):
        return [_as_batch(given, who)]
    if isinstance(given, (str, bytes, dict)) or not isinstance(given, Iterable):
        raise UsageError(f"{who} is {type(given).__name__}; {SHAPE}")
    if _is_array(given):
        raise UsageError(f"{who} is a single array; {SHAPE}")
    found = [_as_batch(item, f"{who}[{i}]") for i, item in enumerate(given)]
    if not found:
        raise UsageError(f"{who} is empty: there is nothing to train on; {SHAPE}")
    return found


def _as_batch(item: Any, who: str) -> Batch:
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        what = f"{len(item)} things" if isinstance(item, (tuple, list)) else type(item).__name__
        raise UsageError(f"{who} is {what}; a batch is a pair (x, y) of arrays")
    arrays = [_as_array(value, who) for value in item]
    x, y = arrays[0], arrays[-1]
    for name, array in zip(["x"] * (len(arrays) - 1) + ["y"], arrays, strict=True):
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            at = tuple(map(int, bad[0]))
            raise UsageError(
                f"{who} has {array[at]} in {name} at {at}: no number after it could be compared; "
                "leave out or fill in what is missing"
            )
    if x.ndim and y.ndim and len(x) != len(y):
        raise UsageError(
            f"{who} has x with shape {x.shape} and y with shape {y.shape}; "
            "their first axes must be equal"
        )
    if not x.size:
        raise UsageError(f"{who} holds no item: x has shape {x.shape}")
    return Batch(tuple(arrays[:-1]), y)


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, type)


def _as_array(value: Any, who: str) -> Array:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise UsageError(f"{who} cannot be made an array ({error}); {SHAPE}") from error
    if array.dtype.kind not in "fiub":
        raise UsageError(f"{who} holds dtype {array.dtype}; give real numbers")
    # a widened copy: what float32 data hold is kept exactly
    return np.array(array, dtype=np.float64) if array.dtype.kind == "f" else np.array(array)
