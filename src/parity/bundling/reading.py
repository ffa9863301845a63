"""Reading a bundle: its text is JSON, its values are literals, nothing in it is run."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.bundling.arrays import ARRAYS, Arrays, damaged, load
from parity.findings import UsageError

FORMAT, VERSION = "torch-parity bundle", 1
TEXT = "bundle.json"
MOST_TEXT = 4 * 2**20

PARTS: dict[str, type] = {
    "options": dict,
    "inputs": list,
    "mine": dict,
    "theirs": dict,
    "draw": dict,
    "findings": list,
    "versions": dict,
    "arrays": dict,
    "case": str,
}


@dataclass(frozen=True)
class Bundle:
    """A bundle as read: plain data, and the arrays by kind and name."""

    data: Mapping[str, Any]
    arrays: Arrays
    path: str


def read(folder: Any) -> Bundle:
    """Read a bundle.

    Raises UsageError for one that is missing, truncated, too large, of a later version or hostile.
    """
    path = as_path(folder)
    for name in (TEXT, ARRAYS):
        if not (path / name).is_file():
            raise UsageError(
                f"{path} is no bundle: it has no {name}; `parity check --bundle DIR` makes one"
            )
    if (path / TEXT).stat().st_size > MOST_TEXT:
        raise UsageError(f"{path / TEXT} is larger than {MOST_TEXT // 2**20} MiB; no bundle's is")
    try:
        data = json.loads((path / TEXT).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise damaged(path / TEXT, str(error)) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UsageError(f"{path / TEXT} is not a bundle of torch-parity (no format {FORMAT!r})")
    if type(data.get("version")) is not int or not 1 <= data["version"] <= VERSION:
        raise UsageError(
            f"{path / TEXT} has format version {data.get('version')!r}; this torch-parity reads "
            f"up to {VERSION}: upgrade it, or save the bundle again"
        )
    for key, kind in PARTS.items():
        if not isinstance(data.get(key), kind):
            raise damaged(path / TEXT, f"{key} is {data.get(key)!r:.60}, no {kind.__name__}")
    return Bundle(data, load(path / ARRAYS, data["arrays"]), str(path))


def as_path(folder: Any) -> Path:
    """Return a folder's path. Raises UsageError for what names none."""
    if not isinstance(folder, (str, os.PathLike)):
        raise UsageError(f"got {type(folder).__name__}; give the folder of the bundle: 'failed'")
    return Path(folder)


def values(bundle: Bundle, texts: Any, what: str) -> dict[str, Any]:
    """Return name → literal of a dict of texts. Raises UsageError for anything else."""
    if not isinstance(texts, dict):
        raise damaged(bundle.path, f"{what} is {texts!r:.60}, no dict")
    return {name: value(bundle.path, what, text) for name, text in texts.items()}


def value(path: str, what: str, text: Any) -> Any:
    """Return one literal of a bundle. Raises UsageError for anything else."""
    try:
        if not isinstance(text, str) or len(text) > 10_000:
            raise ValueError("no short text")
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise damaged(path, f"{what} holds {str(text)[:40]!r}, no literal") from error
