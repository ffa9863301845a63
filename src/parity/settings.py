"""What a pytest run was asked for: the command line first, then ``[tool.parity]``."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parity.findings import UsageError

# flag, what argparse needs to know, help
FLAGS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("seeds", {"metavar": "SEEDS"}, "draw from these seeds: 0, or 0,3,7, or 0-19"),
    ("dtypes", {"metavar": "DTYPES"}, "judge in these precisions: float64, float32, or both"),
    ("device", {"metavar": "DEVICE"}, "run torch modules under test there: cpu, cuda, cuda:1, mps"),
    ("report", {"metavar": "DIR"}, "write the report of the run into this folder"),
    (
        "strict",
        {"action": "store_const", "const": True},
        "INACCURATE, UNDECIDED and what is not covered fail too",
    ),
)
KEYS = (*(name for name, _, _ in FLAGS), "gaps")
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "xla", "mtia", "privateuseone", "meta")
MOST_SEEDS = 100_000


class EveryDevice(str):
    """The device of a whole test run: it concerns the torch modules among its layers."""


@dataclass(frozen=True)
class Settings:
    """The settings of one run; None where neither the command line nor a file says anything.

    ``gaps`` maps case → {quantity: reason}; the case ``""`` stands for all that compare the
    quantity. ``repeat`` holds the command line's own words, for the line that runs a test again.
    """

    seeds: tuple[int, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    device: str | None = None
    report: Path | None = None
    strict: bool | None = None
    gaps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    repeat: tuple[str, ...] = ()

    def options(self, pinned: Mapping[str, Any], case: str) -> dict[str, Any]:
        """Return the options of one check: what a test pins itself stays as it is."""
        found = dict(pinned)
        if self.seeds is not None and not {"seed", "seeds"} & set(pinned):
            found["seeds"] = self.seeds
        for name in ("dtypes", "device", "strict"):
            value = getattr(self, name)
            if value is not None:
                found.setdefault(name, EveryDevice(value) if name == "device" else value)
        gaps = {**self.gaps.get("", {}), **self.gaps.get(case, {}), **(pinned.get("gaps") or {})}
        if gaps:
            found["gaps"] = gaps
        return found

    @property
    def seeds_text(self) -> str:
        """The seeds as they are written on the command line."""
        return spans(self.seeds or (0,))


def read_settings(given: Mapping[str, Any], root: Path, here: Path) -> Settings:
    """Return the settings of a run.

    ``given`` are the values of the command line by name, ``root`` is pytest's rootdir with its
    pyproject.toml, ``here`` the folder in which pytest was called. Raises UsageError in one line.
    """
    table = read_table(root / "pyproject.toml")
    values: dict[str, Any] = {}
    for name in KEYS:
        flag = given.get(name)
        if flag is not None:
            values[name] = _read(name, flag, f"--parity-{name}", here)
        elif name in table:
            values[name] = _read(name, table[name], f"[tool.parity] {name}", root)
    words = []
    for name in ("dtypes", "device"):
        if given.get(name) is not None:
            words += [f"--parity-{name}", str(given[name])]
    if given.get("strict"):
        words.append("--parity-strict")
    return Settings(**values, repeat=tuple(words))


def read_table(path: Path) -> Mapping[str, Any]:
    """Return ``[tool.parity]`` of a pyproject.toml, empty where there is none.

    Raises UsageError for a file that cannot be read and for keys that nobody knows.
    """
    if not path.is_file():
        return {}
    try:
        tool = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    table = tool.get("parity", {}) if isinstance(tool, Mapping) else {}
    if not isinstance(table, Mapping):
        raise UsageError(f"[tool.parity] in {path} is {table!r}; it must be a table")
    for key in table:
        if key not in KEYS:
            raise UsageError(
                f"[tool.parity] in {path} has an unknown key {key!r}{_nearest(key, KEYS)}; "
                f"possible: {', '.join(KEYS)}"
            )
    return table


def _read(name: str, value: Any, where: str, base: Path) -> Any:
    readers = {
        "seeds": _seeds,
        "dtypes": _dtypes,
        "device": _device,
        "strict": _strict,
        "gaps": _gaps,
    }
    if name == "report":
        return _report(value, where, base)
    return readers[name](value, where)


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    items = value if isinstance(value, list) else [value]
    found: list[int] = []
    for item in items:
        if isinstance(item, bool) or not isinstance(item, (int, str)):
            raise _seeds_error(value, where)
        for word in str(item).replace(",", " ").split() or [""]:
            span = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", word, re.ASCII)
            if not span:
                raise _seeds_error(value, where)
            first, last = int(span[1]), int(span[2] or span[1])
            if last < first or last - first >= MOST_SEEDS:
                raise _seeds_error(value, where)
            found += range(first, last + 1)
    if not found:
        raise _seeds_error(value, where)
    return tuple(dict.fromkeys(found))


def _seeds_error(value: Any, where: str) -> UsageError:
    return UsageError(
        f"{where} is {_shown(value)}; it must be seeds that are not negative: 0, or 0,3,7, or 0-19"
    )


def _dtypes(value: Any, where: str) -> tuple[str, ...]:
    from parity.options import DTYPES

    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise UsageError(f"{where} is {_shown(value)}; possible: {', '.join(DTYPES)}, or both")
    for item in items:
        if item not in DTYPES:
            raise UsageError(
                f"{where} has an unknown dtype {_shown(item)}{_nearest(str(item), DTYPES)}; "
                f"possible: {', '.join(DTYPES)}"
            )
    return tuple(name for name in DTYPES if name in items)


def _device(value: Any, where: str) -> str:
    kind = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind[0] in DEVICES and (not kind[1] or kind[2].isdecimal()):
        return str(value)
    raise UsageError(
        f"{where} is {_shown(value)}{_nearest(str(kind[0]), DEVICES)}; it must be a torch device "
        "such as cpu, cuda, cuda:1 or mps"
    )


def _strict(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{where} is {_shown(value)}; it must be true or false")
    return value


def _report(value: Any, where: str, base: Path) -> Path:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise UsageError(f"{where} is {_shown(value)}; it must be the name of a folder")
    folder = base / Path(value).expanduser()
    standing = next(path for path in (folder, *folder.parents) if path.exists())
    if not standing.is_dir():
        raise UsageError(f"{where} is {_shown(value)}, but {standing} is a file; give a folder")
    if not os.access(standing, os.W_OK):
        raise UsageError(f"{where} is {_shown(value)}, but {standing} cannot be written to")
    return folder


def _gaps(value: Any, where: str) -> dict[str, dict[str, str]]:
    """``quantity = reason``, or a table of them for each case."""
    if not isinstance(value, Mapping):
        raise UsageError(f'{where} is {_shown(value)}; it must be a table: grad_bias = "reason"')
    found: dict[str, dict[str, str]] = {}
    for key, item in value.items():
        rows = item if isinstance(item, Mapping) else {key: item}
        for quantity, reason in rows.items():
            if not isinstance(reason, str) or not reason.strip():
                raise UsageError(
                    f"{where} gives {quantity!r} the reason {_shown(reason)}; it must be a sentence"
                )
            found.setdefault(key if rows is item else "", {})[quantity] = reason
    return found


def spans(seeds: Iterable[int]) -> str:
    """Return seeds as text that ``--parity-seeds`` takes: ``0-3,7``."""
    runs: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _nearest(name: str, possible: Iterable[str]) -> str:
    from parity.options import nearest  # loads NumPy: only where something is wrong

    return nearest(name, possible)
