"""The torch side of a bundle: classes of torch.nn called with literals, nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from parity.bundling.arrays import damaged
from parity.bundling.reading import Bundle, values
from parity.findings import UsageError


def rebuild(bundle: Bundle) -> Any:
    """Return the torch side of a bundle: a class of torch.nn called with literals, nothing else.

    Raises UsageError where that is not enough, or where it does not fit the saved weights.
    """
    theirs = bundle.data["theirs"]
    made = theirs.get("made")
    if isinstance(made, dict):
        return _made(bundle, made, 0)
    target = str(theirs.get("target"))
    place, _, name = target.partition(":")
    if place == "torch.nn.functional" and name.isidentifier() and not theirs.get("args"):
        import torch.nn.functional as functional

        found = getattr(functional, name, None)
        if not theirs.get("config") and callable(found) and not name.startswith("_"):
            return found
    raise UsageError(
        f"{bundle.path}: the torch side was {target}, which is not rebuilt from a file; "
        "name it with --theirs FILE_OR_MODULE:NAME"
    )


def _made(bundle: Bundle, made: Any, depth: int) -> Any:
    from torch import nn

    name = made.get("class") if isinstance(made, dict) else None
    kind = getattr(nn, name, None) if isinstance(name, str) and name.isidentifier() else None
    if depth > 16 or not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise damaged(bundle.path, f"it names {name!r} as its torch side, no class of torch.nn")
    inner = made.get("children") or []
    if not isinstance(inner, list):
        raise damaged(bundle.path, f"the children of {name} are {inner!r}, no list")
    children = [_made(bundle, child, depth + 1) for child in inner]
    config = values(bundle, made.get("config"), str(name))
    if any(_biggest(item) > 2**20 for item in config.values()):
        raise damaged(bundle.path, f"it asks for a {name} of absurd size, {config!r}")
    known = sum(array.size for array in bundle.arrays["initial"].values())
    try:
        meta = None if children else _weight_count(kind, config)
        if meta is not None and meta > known:
            raise damaged(bundle.path, f"it asks for a {name} larger than its saved weights")
        return kind(*children, **config)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{bundle.path}: {name} refuses {config!r}: {error}; save the bundle again, with the "
            "torch of this machine"
        ) from error


def _biggest(item: Any) -> float:
    if isinstance(item, (tuple, list)):
        return max((_biggest(each) for each in item), default=0)
    return abs(item) if isinstance(item, (int, float)) else 0


def _weight_count(kind: type, config: Mapping[str, Any]) -> int | None:
    """How many weights a module would have, found out without taking their memory."""
    import torch

    from parity.quirks import holds

    if holds("device_is_context"):
        with torch.device("meta"):
            made = kind(**config)
    elif "device" in inspect.signature(kind).parameters:  # as every layer with weights has
        made = kind(**{**config, "device": "meta"})
    else:
        return None
    return sum(p.numel() for p in made.parameters())
