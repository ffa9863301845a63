"""The arrays of a bundle, by kind and name, as one safetensors file: numbers and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parity.findings import UsageError
from parity.outcomes import Array

ARRAYS = "arrays.safetensors"
DRAWN = ("initial", "initial_buffer", "param", "buffer", "input", "upstream", "mask", "fixed")
KINDS = (*DRAWN, "mine", "mine_mask")  # and what the hand-written side answered
MOST_BYTES = 2 * 2**30
MOST_HEADER = 4 * 2**20
MOST_ARRAYS = 10_000

Arrays = dict[str, dict[str, Array]]


def damaged(path: Any, what: str) -> UsageError:
    """Return the refusal of a bundle, or of a file of one, that is not as it was saved."""
    return UsageError(f"{path} is damaged: {what}; save the bundle again")


def dump(arrays: Mapping[str, Array]) -> bytes:
    """Return named arrays as the bytes of a safetensors file."""
    from safetensors.numpy import save

    return bytes(save({name: _plain(array) for name, array in arrays.items()}))


def _plain(array: Array) -> Array:
    """Return an array in C order and native bytes; ascontiguousarray would make () into (1,)."""
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def stamp(names: Iterable[str], data: bytes) -> dict[str, Any]:
    """Return what stands in the JSON: the format has no checksum, and keeps no order of names."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "names": list(names)}


def load(path: Path, stamped: Mapping[str, Any]) -> Arrays:
    """Return kind → name → array of a file, in the order and with the checksum of ``stamped``.

    Sizes are held against limits before memory is taken. Raises UsageError.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UsageError(f"{path} has {size:,} bytes; a bundle has {MOST_BYTES:,} at most")
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            if header > MOST_HEADER:
                raise damaged(path, f"its header claims {header:,} bytes")
            file.seek(0)
            data = file.read(size + 1)
    except OSError as error:
        text = error.strerror or error
        raise UsageError(f"{path} cannot be read: {text}; save the bundle again") from error
    held = _parse(path, data)
    names = stamped.get("names")
    if (
        not isinstance(names, list)
        or stamped != stamp(names, data)
        or {*map(str, names)} != {*held}
    ):
        raise damaged(path, "it is not the file that the bundle was saved with")
    found: Arrays = {kind: {} for kind in KINDS}
    for entry in names:
        kind, _, name = entry.partition("/")
        found[kind][name] = np.array(held[entry])  # the library's own are views of its buffer
    return found


def _parse(path: Path, data: bytes) -> dict[str, Array]:
    from safetensors.numpy import load as parse

    try:
        held = parse(data)
    except Exception as error:  # the library has a class of its own, and KeyError for dtypes
        text = str(error).partition("\n")[0]
        raise damaged(path, text) from error
    if len(held) > MOST_ARRAYS:
        raise UsageError(f"{path} holds {len(held):,} arrays; a bundle has {MOST_ARRAYS:,} at most")
    for entry, array in held.items():
        kind, slash, _ = entry.partition("/")
        if kind not in KINDS or not slash or array.dtype.kind not in "fiub":
            raise UsageError(f"{path} holds {entry!r:.60} ({array.dtype}), which no bundle has")
    return dict(held)
