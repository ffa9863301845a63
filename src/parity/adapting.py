"""Which adapter fits an object, or an error that says what was looked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from parity.findings import UsageError
from parity.options import Options
from parity.outcomes import Array
from parity.subjects import Functions, FunctionSubject, NameMap, PlainSubject, Subject


def is_torch_module(item: Any) -> bool:
    """Whether ``item`` is a torch.nn.Module, without importing torch for one that is not."""
    return any(
        cls.__module__ == "torch.nn.modules.module" and cls.__name__ == "Module"
        for cls in type(item).__mro__
    )


def keeps_contract(item: Any) -> bool:
    """Whether ``item`` has a forward and a backward method, as the plain contract asks."""
    return callable(getattr(item, "forward", None)) and callable(getattr(item, "backward", None))


def adapt(item: Any, options: Options) -> Subject:
    """Return the subject for ``item``.

    Raises UsageError that lists what was looked for and the shortest way to adapt.
    """
    if hasattr(item, "spawn") and hasattr(item, "title"):
        return item  # an adapter already
    if isinstance(item, Functions):
        return FunctionSubject(item)
    if is_torch_module(item):
        from parity.torch_subject import TorchSubject

        return TorchSubject(item, options.device)
    if isinstance(item, type):
        return _from_factory(item, item.__name__)
    if keeps_contract(item):
        return PlainSubject(item)
    if callable(item) and not hasattr(item, "forward"):
        return _from_factory(item, getattr(item, "__name__", type(item).__name__))
    raise UsageError(unknown(item))


def _from_factory(factory: Callable[[], Any], name: str) -> Subject:
    try:
        made = factory()
    except TypeError as error:
        raise UsageError(
            f"mine is {name}, which cannot be called without arguments ({error}); give an "
            f"instance, a factory (lambda: {name}(…)), or a pair of functions: "
            "parity.functions(forward, backward)"
        ) from error
    if is_torch_module(made):
        from parity.torch_subject import TorchSubject

        return TorchSubject(made)
    if keeps_contract(made):
        return PlainSubject(factory=factory)
    raise UsageError(unknown(made))


def unknown(item: Any) -> str:
    """Return the sentence for an object that no adapter takes."""
    return (
        f"mine is {type(item).__name__}, which no adapter takes. Looked for: the plain contract "
        "(forward and backward methods, with params, grads and buffers dicts), a torch.nn.Module, "
        "parity.functions(forward, backward), a factory. Shortest way: give the class a "
        "forward(*inputs) and a backward(grad_output)"
    )


def name_map(subject: Subject, weights: Mapping[str, Any]) -> tuple[NameMap, dict[str, Array]]:
    """Return (names and axis orders, fixed arrays) of a ``weights`` mapping.

    A value may be torch's name, (torch's name, axis order), or an array for torch's name.
    Raises UsageError for anything else.
    """
    names: dict[str, str] = {}
    axes: dict[str, tuple[int, ...]] = {}
    fixed: dict[str, Array] = {}
    pair = getattr(subject, "pair", None)
    if pair is not None:
        axes |= {name: tuple(order) for name, order in pair.transpose.items()}
    for mine, value in weights.items():
        if isinstance(value, str):
            names[mine] = value
        elif isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
            names[mine] = value[0]
            axes[value[0]] = tuple(int(axis) for axis in value[1])
        elif hasattr(value, "__array__") or isinstance(value, (list, float, int)):
            value = value.detach().cpu() if hasattr(value, "detach") else value
            fixed[mine] = np.array(value, dtype=np.float64)
        else:
            raise UsageError(
                f"weights[{mine!r}] is {value!r}; it must be torch's name, a pair (torch's name, "
                "axis order) such as ('weight', (1, 0)), or an array"
            )
    return NameMap(names, axes), fixed
