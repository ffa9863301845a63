"""Which gradient is which in what a hand-written backward function returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from parity.adapters.slots import grad_names
from parity.outcomes import Array, LayerError


@dataclass(frozen=True)
class Returned:
    """Gradients of the inputs (None where backward returns none of them) and of parameters."""

    inputs: list[Any] | None
    params: dict[str, Any]


def distribute(
    result: Any,
    inputs: Sequence[Array],
    params: Mapping[str, Array],
    returns: Sequence[str] | None,
    input_grads: bool,
) -> Returned:
    """Return the gradients by name: from a dict, from declared ``returns``, or by order and shape.

    Raises ValueError where what came back fits neither, LayerError where nothing came back.
    """
    if isinstance(result, Mapping):
        return _named(result, params)
    if result is None:
        return _nothing(inputs, params, returns, input_grads)
    grads = list(result) if isinstance(result, (tuple, list)) else [result]
    if returns is not None:
        return _declared(grads, returns, params, input_grads)
    floating = [a for a in inputs if a.dtype.kind == "f"]
    names = list(params)
    for count in dict.fromkeys((len(inputs), len(floating))):
        if len(grads) == count + len(names):
            return Returned(grads[:count], dict(zip(names, grads[count:], strict=True)))
    targets: list[tuple[str | None, Array]] = [(None, a) for a in floating]
    targets += list(params.items())
    fitting = [
        chosen
        for chosen in combinations(targets, len(grads))
        if all(np.shape(g) == a.shape for g, (_, a) in zip(grads, chosen, strict=True))
    ]
    # without dx is the commoner habit of the two that fit
    fitting.sort(key=lambda chosen: sum(name is None for name, _ in chosen))
    if not fitting and len(grads) == len(names):
        fitting = [tuple(params.items())]
    if not fitting:
        shapes = ", ".join(str(np.shape(g)) for g in grads)
        raise ValueError(
            f"backward returned {_gradients(len(grads))} of shapes {shapes}; "
            f"{len(floating)} for the inputs and {len(names)} for {', '.join(names) or 'none'} "
            "were expected, in this order; say which with returns=(…)"
        )
    pairs = list(zip(fitting[0], grads, strict=True))
    own = [g for (name, _), g in pairs if name is None]
    return Returned(own or None, {name: g for (name, _), g in pairs if name is not None})


def _nothing(
    inputs: Sequence[Array],
    params: Mapping[str, Array],
    returns: Sequence[str] | None,
    input_grads: bool,
) -> Returned:
    """Return no gradients where none was to come back. Raises LayerError where one was."""
    wanted = [f"input {i}" for i, a in enumerate(inputs) if input_grads and a.dtype.kind == "f"]
    wanted += params if returns is None else returns
    if wanted:
        text = f"returned None; it is to return the gradients of {', '.join(wanted)}"
        raise LayerError(text, "backward")
    return Returned(None, {})


def _declared(
    grads: list[Any], returns: Sequence[str], params: Mapping[str, Array], input_grads: bool
) -> Returned:
    count = len(grads) - len(returns)
    if count < 0:
        raise ValueError(
            f"backward returned {_gradients(len(grads))}; its last ones are to be those of "
            f"{', '.join(returns)}: return them all, or name what it returns with returns=(…)"
        )
    named = {n: g for n, g in zip(returns, grads[count:], strict=True) if n in params}
    return Returned(grads[:count] if input_grads and count else None, named)


def _gradients(count: int) -> str:
    return "1 gradient" if count == 1 else f"{count} gradients"


def _named(result: Mapping[str, Any], params: Mapping[str, Array]) -> Returned:
    found = {}
    used = set()
    for name in params:
        for text in (name, *grad_names(name)):
            if text in result:
                found[name] = result[text]
                used.add(text)
                break
    others = [value for key, value in result.items() if key not in used]
    return Returned(others or None, found)
