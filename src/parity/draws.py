"""One draw: every number that both sides are given, and how it is rounded or nudged by one ulp."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Array = np.ndarray
FAR = ("extreme", "large")  # labels of draws in which exponentials overflow
ZEROS = "rows of zeros"  # the label of a draw whose inputs hold some
FEW = 2048  # up to here np.nextafter is the faster way to a neighbouring number
BLOCK = 2**14  # elements moved at a time, in the cache
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
# a byte of coins → eight steps up or down: looked up, where casting each would take twice as long
_STEPS = {size: 2 * _BITS.astype(f"i{size}") - 1 for size in (2, 4, 8)}


@dataclass(frozen=True)
class Draw:
    """Inputs, parameters, buffers and upstream gradients, by torch's names and shapes.

    ``upstream`` holds one array an output (None where an output has no gradient); ``masks`` the
    keep masks of the dropout layers in order; ``label`` says which kind of draw this is.
    """

    inputs: tuple[Array, ...]
    params: Mapping[str, Array] = field(default_factory=dict)
    buffers: Mapping[str, Array] = field(default_factory=dict)
    upstream: tuple[Array | None, ...] = ()
    training: bool = True
    masks: tuple[Array, ...] = ()
    label: str = "generic"
    seed: int = 0
    _asked: list[tuple[Array, bool]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def map(self, change: Callable[[Array], Array], inputs: bool = True) -> Draw:
        """Return the draw with ``change`` applied to every floating array."""

        def each(array: Array) -> Array:
            return change(array) if array.dtype.kind == "f" else array

        return replace(
            self,
            inputs=tuple(map(each, self.inputs)) if inputs else self.inputs,
            params={name: each(array) for name, array in self.params.items()},
            buffers={name: each(array) for name, array in self.buffers.items()},
            upstream=tuple(None if g is None else each(g) for g in self.upstream),
        )

    def cast(self, dtype: Any) -> Draw:
        """Return the draw rounded to ``dtype`` and kept in it."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return self.map(lambda array: array.astype(dtype))

    def rounded(self, dtype: Any) -> Draw:
        """Return the draw rounded to ``dtype`` and kept in float64: the same numbers for both."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return self.map(lambda array: array.astype(dtype).astype(np.float64))

    def nudged(
        self, rng: np.random.Generator, dtype: Any, how: str = "random", inputs: bool = True
    ) -> Draw:
        """Return the draw in ``dtype``, with every value moved to a neighbouring number of it.

        ``np.nextafter`` moves each value; multiplying by 1 ± eps/2 would move only half of them.
        ``how`` is random, up, down or inward (towards zero, for inputs with a bounded domain).
        """

        def move(array: Array) -> Array:
            # what overflows or is NaN, as a damaged bundle may hold, stays what it is
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                narrow = array.astype(dtype, copy=False)
                if how == "random":
                    whole = self._whole(narrow) if narrow is array else _whole(narrow)
                    return _stepped(narrow, rng, whole)
                ends = {"inward": 0.0, "up": np.inf, "down": -np.inf}
                target = np.asarray(ends[how], dtype=dtype)
                return np.asarray(np.nextafter(narrow, target))

        return self.map(move, inputs=inputs)

    def _whole(self, array: Array) -> bool:
        """See :func:`_whole`; asked once of each of the draw's own arrays, however often moved."""
        for own, whole in self._asked:
            if own is array:
                return whole
        self._asked.append((array, _whole(array)))
        return self._asked[-1][1]


def _whole(array: Array) -> bool:
    """Whether the values are many, none of them 0 or infinite: moved by whole steps of bits."""
    return array.size > FEW and bool(np.isfinite(array).all() and array.all())


def _stepped(narrow: Array, rng: np.random.Generator, whole: bool) -> Array:
    """Return each value's next number, above it or below it at random."""
    if whole:
        # The bits of one sign's numbers are in their order, so that the next number is the next
        # integer: np.nextafter, a call for each element, made up a quarter of a check.
        coins = np.frombuffer(rng.bytes(-(-narrow.size // 8)), np.uint8)
        steps = _STEPS[narrow.itemsize]
        numbers = narrow.reshape(-1).view(steps.dtype)
        moved = np.empty_like(numbers)
        for start in range(0, narrow.size, BLOCK):
            part = numbers[start : start + BLOCK]
            step = steps.take(coins[start // 8 : (start + BLOCK) // 8], axis=0).reshape(-1)
            np.add(part, step[: part.size], out=moved[start : start + BLOCK])
        return moved.view(narrow.dtype).reshape(narrow.shape)
    target = np.copysign(np.inf, rng.random(narrow.shape) - 0.5).astype(narrow.dtype)
    return np.asarray(np.nextafter(narrow, target))


def random_weights(
    initial: Mapping[str, Array], buffers: Mapping[str, Array], rng: np.random.Generator
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Draw parameters and buffers with full mantissas, near the reference's own initial values.

    A tensor whose entries are all equal (γ = 1, β = 0, running statistics) is drawn at random: at
    its initial value it hides faults. The others keep sign, zeros and scale, so that layers with
    constraints on their weights stay inside them.
    """
    params = {name: _redraw(array, rng) for name, array in initial.items()}
    moved = {
        name: _redraw(array, rng) if array.size and _constant(array) else array
        for name, array in buffers.items()
    }
    return params, moved


def _constant(array: Array) -> bool:
    return bool((array == array.flat[0]).all())


def _redraw(array: Array, rng: np.random.Generator) -> Array:
    if array.dtype.kind != "f" or array.size == 0:
        return array
    if _constant(array):
        level = float(array.flat[0])
        if level == 0.0:
            return np.asarray(rng.standard_normal(array.shape) * 0.5)
        return np.asarray(level * rng.uniform(0.5, 1.5, array.shape))
    return np.asarray(array * rng.uniform(0.75, 1.25, array.shape))


def with_tails(array: Array, rng: np.random.Generator) -> Array:
    """Return ``array`` with up to half of its elements in ±[1, 10) and ±[10, 100).

    Each of the four holds as many, spread evenly over its magnitudes from the top down, so that
    the far half of each tail is met by every draw of a few elements.
    """
    array = array.copy()
    each = max(1, array.size // 8)
    spread = (np.arange(each, 0, -1) - rng.random((4, each)) / 2) / each
    starts = np.array([[1.0], [1.0], [0.0], [0.0]])  # the farther tails first, where few fit
    values = np.array([[-1.0], [1.0], [-1.0], [1.0]]) * 10.0 ** (starts + spread)
    chosen = values.T.ravel()[: max(array.size // 2, min(array.size, 2))]
    array.flat[rng.permutation(array.size)[: chosen.size]] = chosen
    return array


def with_zero_rows(array: Array, place: int) -> Array:
    """Return ``array`` with its first row zero, and another that only input ``place`` has.

    Of a vector that is an element each.
    """
    array = array.copy()
    array[:1] = 0.0
    array[place + 1 : place + 2] = 0.0
    return array


def small_integers(shape: tuple[int, ...], rng: np.random.Generator, high: int = 3) -> Array:
    """Draw integers from -high to high as float64: sums and products of them are exact."""
    return rng.integers(-high, high + 1, shape).astype(np.float64)


def log_uniform(
    shape: tuple[int, ...], rng: np.random.Generator, low: float = -30.0, high: float = 2.0
) -> Array:
    """Draw ± values whose magnitudes are log-uniform from 10**low to 10**high."""
    sign = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    return np.asarray(sign * 10.0 ** rng.uniform(low, high, shape))
