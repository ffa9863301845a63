"""``parity sweep``: random cases of layers in their documented ranges, on one machine or many."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("add_arguments", "run", "main"):
        return getattr(import_module("parity.sweeping.command"), name)
    raise AttributeError(f"module 'parity.sweeping' has no attribute {name!r}")
