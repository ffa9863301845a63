"""How a hand-written layer wants to be called: what backward takes, arrays or tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parity.adapters.slots import is_tensor, tensor_like

TARGETS = frozenset(
    "y y_true ytrue true target targets label labels t truth y_gt gt expected actual".split()
)
INPUTS = frozenset(("x", "input", "inputs", "inp", "x_in", "a_prev", "data", "z"))


def positional(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return the positional parameters of ``function``; None where Python cannot tell."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def required(function: Callable[..., Any]) -> list[str] | None:
    """Return the names of the positional parameters without a default; None if unknown."""
    found = positional(function)
    return None if found is None else [p.name for p in found if p.default is p.empty]


def takes_target(function: Callable[..., Any]) -> bool:
    """Whether the second thing that ``function`` takes is a target: it belongs to a loss."""
    names = required(function)
    return names is not None and len(names) == 2 and names[1].lower() in TARGETS


def backward_style(forward: Callable[..., Any], backward: Callable[..., Any]) -> str:
    """Return what ``backward`` is to be handed.

    ``again``: what forward took (losses); ``input first``: the inputs, then the upstream gradient
    (Torch7); ``input last``: the upstream gradient, then the inputs; ``upstream`` otherwise.
    """
    first, second = required(forward), required(backward)
    if not first or not second:
        return "upstream"
    if len(first) == 2 and len(second) == 2:
        if second == first or (takes_target(forward) and takes_target(backward)):
            return "again"
    if len(second) == len(first) + 1:
        if second[:-1] == first or second[0].lower() in INPUTS:
            return "input first"
        if second[1:] == first or second[-1].lower() in INPUTS:
            return "input last"
    return "upstream"


class Caller:
    """Calls somebody's function with arrays, or with tensors where it wants them."""

    def __init__(self, tensors: bool | None = False) -> None:
        self.tensors = tensors

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function``; where it is unknown what it wants, arrays are tried first."""
        if self.tensors is not None:
            return _numbers(function(*self.given(arguments)))
        try:
            result = function(*arguments)
        except (TypeError, AttributeError, ValueError) as error:
            self.tensors = True
            try:
                return _numbers(function(*self.given(arguments)))
            except Exception:
                self.tensors = None
                raise error from None
        self.tensors = False
        return result

    def given(self, arguments: Sequence[Any]) -> list[Any]:
        """Return the arguments as the function wants them."""
        return [_tensors(a) for a in arguments] if self.tensors else list(arguments)


def _tensors(value: Any) -> Any:
    """Return arrays of an argument as tensors, those of nested upstream gradients too."""
    if type(value) is tuple:
        return tuple(map(_tensors, value))
    return tensor_like(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value


def _numbers(result: Any) -> Any:
    """Return tensors of a result as arrays; everything else is handed on as it is."""
    if is_tensor(result):
        return result.detach().cpu().numpy()
    if type(result) is tuple or type(result) is list:
        return type(result)(_numbers(item) for item in result)
    return result
