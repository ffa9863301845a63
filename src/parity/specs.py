"""Inputs described rather than given: what to draw, so that every rung can draw its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity.findings import UsageError

Array = np.ndarray


@dataclass(frozen=True)
class Spec:
    """One input to be drawn.

    ``kind`` names the distribution, ``shape`` its shape, ``options`` its parameters. A *free* spec
    (``normal``) may be replaced by other values of the same shape: small integers on the exact
    rung, other magnitudes in the probes. The others keep their domain.
    """

    kind: str
    shape: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()
    source: Any = None

    @property
    def free(self) -> bool:
        """Whether any real number is a sensible value of this input."""
        return self.kind == "normal"

    @property
    def integral(self) -> bool:
        """Whether the input holds integers: never cast, no gradient."""
        if self.kind == "array":
            return not np.issubdtype(np.asarray(self.source).dtype, np.floating)
        return self.kind in {"labels", "integers", "function_int"}

    @property
    def reshapable(self) -> bool:
        """Whether the input can be drawn in another shape."""
        return self.kind not in {"array", "function", "function_int"}

    def with_shape(self, shape: tuple[int, ...]) -> Spec:
        """Return the same distribution in another shape."""
        return replace(self, shape=tuple(shape))

    def draw(self, rng: np.random.Generator) -> Array:
        """Draw the input: float64 with a full 53-bit mantissa, or integers as they are."""
        return _DRAWERS[self.kind](self, rng, **dict(self.options))

    def describe(self) -> str:
        """Return a short text such as ``normal(8, 4)``."""
        inner = ", ".join(map(str, self.shape))
        extra = "".join(f", {key}={value!r}" for key, value in self.options)
        return f"{self.kind}({inner}{extra})"

    def __repr__(self) -> str:
        return f"parity.{self.describe()}"


def _normal(spec: Spec, rng: np.random.Generator, scale: float = 1.0, mean: float = 0.0) -> Array:
    return np.asarray(rng.standard_normal(spec.shape) * scale + mean)


def _uniform(spec: Spec, rng: np.random.Generator, low: float, high: float) -> Array:
    return np.asarray(rng.uniform(low, high, spec.shape))


def _integers(spec: Spec, rng: np.random.Generator, low: int, high: int) -> Array:
    return np.asarray(rng.integers(low, high, spec.shape))


def _labels(spec: Spec, rng: np.random.Generator, classes: int) -> Array:
    return np.asarray(rng.integers(0, classes, spec.shape), dtype=np.int64)


def _scores(spec: Spec, rng: np.random.Generator, axis: int) -> Array:
    logits = rng.standard_normal(spec.shape)
    if not spec.shape:
        return np.asarray(1 / (1 + np.exp(-logits)))
    if 0 in spec.shape:
        return np.zeros(spec.shape)
    values = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return np.asarray(values / values.sum(axis=axis, keepdims=True))


def _probabilities(spec: Spec, rng: np.random.Generator, axis: int) -> Array:
    return _scores(spec, rng, axis)


def _log_probabilities(spec: Spec, rng: np.random.Generator, axis: int) -> Array:
    return np.log(_scores(spec, rng, axis))


def _one_hot(spec: Spec, rng: np.random.Generator) -> Array:
    *lead, classes = spec.shape
    return np.eye(classes)[rng.integers(0, classes, lead)]


def _array(spec: Spec, rng: np.random.Generator) -> Array:
    return np.array(spec.source)  # a copy: the caller's array is never handed out


def _function(spec: Spec, rng: np.random.Generator) -> Array:
    value = np.asarray(spec.source(rng))
    return np.array(value, dtype=np.float64) if value.dtype.kind == "f" else np.array(value)


_DRAWERS: dict[str, Callable[..., Array]] = {
    "normal": _normal,
    "uniform": _uniform,
    "integers": _integers,
    "labels": _labels,
    "probabilities": _probabilities,
    "log_probabilities": _log_probabilities,
    "one_hot": _one_hot,
    "array": _array,
    "function": _function,
}


def _shape(name: str, shape: tuple[Any, ...]) -> tuple[int, ...]:
    if len(shape) == 1 and isinstance(shape[0], tuple):
        shape = shape[0]
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 0:
            raise UsageError(
                f"parity.{name} got the size {size!r}; sizes are non-negative integers, "
                f"as in parity.{name}(8, 4)"
            )
    return tuple(int(size) for size in shape)


def _number(function: str, name: str, value: Any) -> None:
    real = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not real or not abs(value) < 1e300:  # NaN and infinity are not, either
        raise UsageError(f"parity.{function} got {name}={value!r}; it must be a finite number")


def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Spec:
    """Draw an input of shape ``shape`` from N(mean, scale²); (\\*) any shape.

    Raises UsageError for a size that is not a non-negative integer.
    """
    for name, value in (("scale", scale), ("mean", mean)):
        _number("normal", name, value)
    options = () if (scale, mean) == (1.0, 0.0) else (("scale", scale), ("mean", mean))
    return Spec("normal", _shape("normal", shape), options)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Spec:
    """Draw an input of shape ``shape`` uniformly from [low, high).

    Raises UsageError for a bad size or where low is not below high.
    """
    _number("uniform", "low", low)
    _number("uniform", "high", high)
    if not low < high:
        raise UsageError(f"parity.uniform got low={low!r}, high={high!r}; low must be below high")
    return Spec("uniform", _shape("uniform", shape), (("low", low), ("high", high)))


def integers(*shape: int, low: int = 0, high: int = 10) -> Spec:
    """Draw integers of shape ``shape`` from [low, high): never cast, no gradient.

    Raises UsageError for a bad size or where low is not below high.
    """
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise UsageError(f"parity.integers got {name}={value!r}; it must be an integer")
    if not low < high or low < -(2**63) or high >= 2**63:
        raise UsageError(f"parity.integers got low={low!r}, high={high!r}; low must be below high")
    return Spec("integers", _shape("integers", shape), (("low", low), ("high", high)))


def labels(*shape: int, classes: int) -> Spec:
    """Draw int64 class labels of shape ``shape`` from 0 to ``classes`` - 1.

    Raises UsageError for a bad size or where there is no class to draw.
    """
    if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or classes < 1:
        raise UsageError(f"parity.labels got classes={classes!r}; it must be a positive integer")
    return Spec("labels", _shape("labels", shape), (("classes", int(classes)),))


def _axis(shape: tuple[int, ...], axis: int | None) -> int:
    if axis is not None and (isinstance(axis, bool) or not isinstance(axis, (int, np.integer))):
        raise UsageError(f"axis is {axis!r}; it must be an integer")
    if axis is not None and not -len(shape) <= axis < max(len(shape), 1):
        raise UsageError(f"axis={axis!r} is none of shape {shape}; it has {len(shape)} axes")
    # torch's losses keep the classes on axis 1, and on axis 0 of a single sample
    return axis if axis is not None else (1 if len(shape) > 1 else 0)


def probabilities(*shape: int, axis: int | None = None) -> Spec:
    """Draw probabilities of shape (N, C, \\*) or (C,) that add to one over the classes.

    Raises UsageError for a bad size.
    """
    sizes = _shape("probabilities", shape)
    return Spec("probabilities", sizes, (("axis", _axis(sizes, axis)),))


def log_probabilities(*shape: int, axis: int | None = None) -> Spec:
    """Draw the logarithms of :func:`probabilities`, as NLLLoss takes them.

    Raises UsageError for a bad size.
    """
    sizes = _shape("log_probabilities", shape)
    return Spec("log_probabilities", sizes, (("axis", _axis(sizes, axis)),))


def one_hot(*shape: int) -> Spec:
    """Draw one-hot rows of shape (\\*, C).

    Raises UsageError for a bad size or a shape without a class axis.
    """
    sizes = _shape("one_hot", shape)
    if not sizes or sizes[-1] == 0:
        raise UsageError(f"parity.one_hot got shape {sizes}; its last axis holds the classes")
    return Spec("one_hot", sizes)


def as_spec(value: Any, position: int) -> Spec:
    """Return the spec of one ``check`` input: a shape, an array, a spec or a function.

    Raises UsageError that says what is possible for anything else.
    """
    possible = (
        "each input is a shape tuple such as (8, 4), a NumPy array, a spec such as "
        "parity.normal(8, 4) or parity.labels(8, classes=10), or a function of a NumPy Generator"
    )
    if isinstance(value, Spec):
        return value
    if isinstance(value, tuple):
        if all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in value):
            return normal(*value)
        raise UsageError(f"input {position} is the tuple {value!r}, not a shape; {possible}")
    if isinstance(value, list):
        raise UsageError(f"input {position} is a list; {possible}")
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise UsageError(f"input {position} is an array of dtype {array.dtype}; {possible}")
        if array.dtype.kind == "f" and array.dtype != np.float64:
            array = array.astype(np.float64)
        return Spec("array", array.shape, source=array)
    if callable(value):
        try:
            probe = np.asarray(value(np.random.default_rng(0)))
        except Exception as error:
            raise UsageError(
                f"input {position}: the function raised {type(error).__name__}: {error}; it is "
                "given a NumPy Generator and returns an array: lambda rng: rng.normal(size=(8, 4))"
            ) from error
        if probe.dtype.kind not in "fiub":
            raise UsageError(
                f"input {position}: the function returned {type(probe).__name__} of dtype "
                f"{probe.dtype}; {possible}"
            )
        if probe.dtype.kind != "f":
            return Spec("function_int", probe.shape, source=value)
        return Spec("function", probe.shape, source=value)
    if isinstance(value, int):
        possible += "; the shape of a lone input stands in brackets of its own: ((8, 4),)"
    raise UsageError(f"input {position} is {type(value).__name__} {value!r}; {possible}")


_DRAWERS["function_int"] = _function
