"""A torch module as the call that makes it: text for people, a recipe for a bundle."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SKIPPED = frozenset({"device", "dtype", "size_average", "reduce", "inplace"})
PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Made:
    """A constructor call of torch.nn: its class, its keyword arguments, and its children."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    children: tuple[Made, ...] = ()

    @property
    def call(self) -> str:
        """The call as text, such as ``torch.nn.Linear(in_features=4, out_features=3)``."""
        inside = [child.call for child in self.children]
        inside += [f"{key}={value!r}" for key, value in self.config.items()]
        return f"torch.nn.{self.name}({', '.join(inside)})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; values are written as Python literals, so that tuples survive."""
        return {
            "class": self.name,
            "config": {key: repr(value) for key, value in self.config.items()},
            "children": [child.to_dict() for child in self.children],
        }


def describe(module: Any) -> Made | None:
    """Return the call that makes ``module``; None where it cannot be told for certain.

    Arguments are read from attributes of the same name, as torch's layers keep them, and the
    module made from them must have the same settings and shapes as the one given.
    """
    from torch import nn

    kind = type(module)
    if getattr(nn, kind.__name__, None) is not kind:
        return None
    if kind is nn.Sequential:
        children = [describe(child) for child in module.children()]
        names = [name for name, _ in module._modules.items()]
        if None in children or names != [str(i) for i in range(len(children))]:
            return None
        return Made("Sequential", {}, tuple(child for child in children if child is not None))
    config = arguments_of(module, kind)
    if config is None:
        return None
    try:
        twin = kind(**config)
    except Exception:
        return None
    if settings(twin) != settings(module):
        return None
    return Made(kind.__name__, config)


def arguments_of(item: Any, kind: type) -> dict[str, Any] | None:
    """Return keyword arguments read from the attributes of ``item``; None where one is hidden."""
    try:
        parameters = list(inspect.signature(kind).parameters.values())
    except (TypeError, ValueError):
        return None
    found: dict[str, Any] = {}
    if _takes_nothing(kind):
        parameters = []  # a torch module that writes no constructor: (*args, **kwargs), all unused
    for parameter in parameters:
        name = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return None
        if name in SKIPPED and parameter.default is not parameter.empty:
            continue
        value = getattr(item, name, parameter.empty)
        if name in ("bias", "use_bias") and not isinstance(value, (bool, str)):
            store = getattr(item, "params", None)
            holds = isinstance(store, Mapping) and name in store
            value = holds or (value is not None and value is not parameter.empty)
        if value is parameter.empty and parameter.default is not parameter.empty:
            continue
        if not _is_plain(value):
            return None
        if not _equal(value, parameter.default):
            found[name] = value
    return found


def _takes_nothing(kind: type) -> bool:
    """Whether ``kind`` has torch's base constructor; compiling wraps and renames it."""
    bases = [c for c in kind.__mro__ if c.__module__ == "torch.nn.modules.module"]
    return any(kind.__init__ is base.__init__ for base in bases)  # type: ignore[misc]


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return isinstance(value, PLAIN)


def _equal(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def settings(module: Any) -> dict[str, Any]:
    """Return what tells two modules of one class apart: plain attributes, and shapes."""
    found = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return found | {f"shape of {name}": tuple(tensor.shape) for name, tensor in tensors}


def expression(item: Any) -> tuple[str, dict[str, str]] | None:
    """Return the call that makes a hand-written object, and name → module of what it needs.

    A container that takes its layers one by one is followed into its children. None where an
    argument cannot be read from an attribute.
    """
    kind = type(item)
    needs = {kind.__qualname__.partition(".")[0]: kind.__module__}
    config = arguments_of(item, kind)
    if config is not None:
        given = ", ".join(f"{key}={value!r}" for key, value in config.items())
        return f"{kind.__qualname__}({given})", needs
    children = getattr(item, "children", None)
    if not callable(children):
        return None
    try:
        kinds = [p.kind for p in inspect.signature(kind).parameters.values()]
    except (TypeError, ValueError):
        return None
    if kinds != [inspect.Parameter.VAR_POSITIONAL]:
        return None
    parts = [expression(child) for child in children()]
    if not parts or None in parts:
        return None
    for part in parts:
        needs |= part[1] if part is not None else {}
    inside = ", ".join(part[0] for part in parts if part is not None)
    return f"{kind.__qualname__}({inside})", needs
