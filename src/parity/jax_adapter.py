"""A JAX function with a tree of parameters as the layer under test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from parity.adapters.calling import INPUTS, required
from parity.adapters.forms import Form, FormSubject
from parity.adapters.slots import Slot, describe, hint_of
from parity.findings import UsageError
from parity.outcomes import Array


class JaxLayer:
    """``function(params, *inputs)`` with NumPy parameters and gradients by ``jax.vjp``."""

    def __init__(self, function: Callable[..., Any], tree: Any, dtype: str = "float64") -> None:
        self.function = function
        self.tree = tree
        self.dtype = dtype
        self.leaves: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self._pull: Any = None
        self._last = bool((names := required(function)) and names[0].lower() in INPUTS)
        if tree is not None:
            self._flatten()

    def _flatten(self) -> None:
        from jax import tree_util

        pairs, self._shape = tree_util.tree_flatten_with_path(self.tree)
        for path, leaf in pairs:
            name = ".".join(_step(key) for key in path) or "weight"
            array = np.asarray(leaf)
            if array.dtype.kind != "f":
                raise UsageError(
                    f"parameter {name!r} of the JAX function is {describe(array)}; every leaf of "
                    "the tree must be a floating array (close over everything else)"
                )
            self.leaves[name] = np.array(array, dtype=self.dtype)

    def __deepcopy__(self, memo: Any) -> JaxLayer:
        """Return a copy with arrays of its own; the function is shared."""
        return self.astype(np.dtype(self.dtype))

    def astype(self, dtype: Any) -> JaxLayer:
        """Return a copy in ``dtype``."""
        return JaxLayer(self.function, self.tree, np.dtype(dtype).name)

    def _params(self) -> tuple[Any, ...]:
        if self.tree is None:
            return ()
        from jax import tree_util

        return (tree_util.tree_unflatten(self._shape, list(self.leaves.values())),)

    def forward(self, *inputs: Array) -> Any:
        """Return the outputs and keep the pull-back."""
        import jax

        params = self._params()
        floating = [i for i, a in enumerate(inputs) if a.dtype.kind == "f"]

        def call(params: tuple[Any, ...], *chosen: Any) -> Any:
            arrays: list[Any] = list(inputs)
            for i, value in zip(floating, chosen, strict=True):
                arrays[i] = value
            given = (*arrays, *params) if self._last else (*params, *arrays)
            return self.function(*given)

        with precision(self.dtype):
            result, self._pull = jax.vjp(call, params, *(inputs[i] for i in floating))
            self._floating, self._count = floating, len(inputs)
            flat, self._outputs = jax.tree_util.tree_flatten(result)
            arrays = [np.asarray(leaf) for leaf in flat]
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def backward(self, *upstream: Any) -> Any:
        """Return the gradients of the inputs, and keep those of the parameters."""
        import jax

        with precision(self.dtype):
            given = [jax.numpy.asarray(g) for g in upstream]
            tree = jax.tree_util.tree_unflatten(self._outputs, given)
            params, *inputs = self._pull(tree)
            leaves = [np.array(leaf) for leaf in jax.tree_util.tree_leaves(params)]
            own: list[Any] = [None] * self._count
            for i, grad in zip(self._floating, inputs, strict=True):
                own[i] = np.array(grad)
        self.grads = dict(zip(self.leaves, leaves, strict=True))
        return tuple(own)


def _step(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Run JAX with 64-bit numbers where they are asked for, and put the switch back."""
    import jax

    before = bool(jax.config.read("jax_enable_x64"))
    wide = dtype == "float64"
    if before == wide:
        yield
        return
    jax.config.update("jax_enable_x64", wide)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def _slots(layer: JaxLayer) -> list[Slot]:
    return [_slot(layer, name) for name in layer.leaves]


def _slot(layer: JaxLayer, name: str) -> Slot:
    hint, group = hint_of(name)

    def assign(value: Any) -> None:
        layer.leaves[name] = np.array(value)

    return Slot(
        name, lambda: layer.leaves[name], assign, lambda: layer.grads.get(name), hint, group
    )


def jax(function: Callable[..., Any], params: Any = None) -> FormSubject:
    """Adapt a JAX function for :func:`parity.check`; needs the jax extra.

    ``function(params, *inputs)`` (or ``function(x, params)``) returns an array or a tree of them;
    ``params`` is its tree of floating arrays, None for a function of inputs alone. Leaves are named
    by their way through the tree, joined by dots (``Dense_0.kernel``), and matched with torch's
    names by habit, order and shape. Gradients come from ``jax.vjp``, in 64 bits on the float64
    rung; the global switch is put back.

    Raises UsageError where jax is missing, ``function`` is not callable, or a leaf is no floating
    array.
    """
    if not callable(function):
        raise UsageError(
            f"parity.jax got {describe(function)}; it takes a function and its tree of parameters: "
            "parity.jax(fn, params)"
        )
    try:
        import jax  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "parity.jax needs JAX, which is not installed: pip install 'torch-parity[jax]'"
        ) from error
    layer = JaxLayer(function, params)
    subject = FormSubject(layer, Form("JAX", _slots, style="upstream"))
    subject.widens = False  # JAX keeps float32 of its own accord
    subject.title = getattr(function, "__name__", type(function).__name__)
    return subject
