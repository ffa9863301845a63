"""What the arguments of a hand-written function are: parameters, configurations, settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parity.adapters.slots import hint_of

CONFIGS = ("_param", "_params", "config", "cfg", "options", "opts")


def settings(module: Any) -> dict[str, Any]:
    """Return a torch layer's settings under the names that course functions know."""
    found: dict[str, Any] = {}
    kind = type(module).__name__
    if kind.startswith("Conv"):
        found = {"stride": _first(module.stride), "pad": _first(module.padding)}
    elif "Pool" in kind:
        window = module.kernel_size
        height, width = window if isinstance(window, tuple) else (window, window)
        found = {"pool_height": height, "pool_width": width, "stride": _first(module.stride)}
    elif "BatchNorm" in kind:
        keep = 0.9 if module.momentum is None else 1 - module.momentum
        found = {"eps": module.eps, "momentum": keep}
    elif "LayerNorm" in kind:
        found = {"eps": module.eps}
    elif "Dropout" in kind:
        found = {"p": 1 - module.p}
    return found


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def is_config(name: str) -> bool:
    """Whether an argument of this name holds a configuration: conv_param, bn_param, config."""
    return name.lower().endswith(CONFIGS)


def match_arguments(arguments: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Return argument → parameter: equal names, then habits in order, then plain order."""
    found = {name: name for name in arguments if name in theirs}
    for hint in ("weight", "bias"):
        names = [n for n in theirs if n not in found.values() and n.rpartition(".")[2] == hint]
        own = [a for a in arguments if a not in found and hint_of(a)[0] == hint]
        if len(names) == len(own):
            own.sort(key=lambda argument: hint_of(argument)[1])
            found |= dict(zip(own, names, strict=True))
    left = [a for a in arguments if a not in found]
    rest = [n for n in theirs if n not in found.values()]
    if len(left) == len(rest):
        found |= dict(zip(left, rest, strict=True))
    return {argument: found[argument] for argument in arguments if argument in found}
