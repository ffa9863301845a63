"""The sections that others hand over to a report: their names, and what an entry holds.

``trajectories``  title, mine and torch (losses at every step); optional: dtype, envelope (a width
                  at every step), note, workload, verdict
``statistics``    title, table ((both right, first alone), (second alone, both wrong)); optional:
                  names of the two sides, rows of (label, value), statements
``figures``       title, alt, and svg (text) or png (base64); optional: note
``speed``         name, ratio (NumPy time / torch time); optional: size, threads, low, high,
                  mine_ms, torch_ms, baseline (the ratio before)
``rates``         name, successes, trials; optional: low, high, note
``versions_ledger``  quantity, version, ulp (0: the same bits); optional: against, note
``fingerprints``  quantity, digest, samples; optional: dtype, scale: what a ledger is made of, see
                  :mod:`parity.reporting.ledger`
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from parity.findings import UsageError

# section -> (what an entry must hold, what it may hold)
SECTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "trajectories": (
        ("title", "mine", "torch"),
        ("dtype", "envelope", "note", "workload", "verdict", "difference"),
    ),
    "statistics": (("title", "table"), ("names", "rows", "statements", "note")),
    "figures": (("title", "alt"), ("svg", "png", "note")),
    "speed": (
        ("name", "ratio"),
        ("size", "threads", "low", "high", "mine_ms", "torch_ms", "baseline", "note"),
    ),
    "rates": (("name", "successes", "trials"), ("low", "high", "note", "confidence", "value")),
    "versions_ledger": (("quantity", "version", "ulp"), ("against", "note")),
    "fingerprints": (("quantity", "digest", "samples"), ("dtype", "scale")),
}


def entry(section: str, payload: Any) -> dict[str, Any]:
    """Return ``payload`` as the plain data of one entry.

    A mapping, a dataclass, or an object with ``to_dict``; a PredictionComparison is a statistics
    entry as it is. Raises UsageError for an unknown section, and for fields missing or unknown.
    """
    from parity.options import nearest

    if not isinstance(section, str) or section not in SECTIONS:
        raise UsageError(
            f"unknown section {section!r}{nearest(str(section), SECTIONS)}; "
            f"possible: {', '.join(SECTIONS)}"
        )
    data = _mapping(section, payload)
    needed, possible = SECTIONS[section]
    known = (*needed, *possible)
    missing = [name for name in needed if name not in data]
    if missing:
        raise UsageError(
            f"an entry of {section} lacks {', '.join(missing)}; it has: {', '.join(data) or '-'}"
        )
    for name in data:
        if name not in known:
            raise UsageError(
                f"an entry of {section} has an unknown field {name!r}{nearest(name, known)}; "
                f"possible: {', '.join(known)}"
            )
    _check_shapes(section, data)
    return data


def _mapping(section: str, payload: Any) -> dict[str, Any]:
    if section == "statistics" and hasattr(payload, "p_midp"):
        return comparison(payload)
    if hasattr(payload, "to_dict"):
        payload = payload.to_dict()
    elif dataclasses.is_dataclass(payload) and not isinstance(payload, type):
        payload = dataclasses.asdict(payload)
    if not isinstance(payload, Mapping):
        raise UsageError(
            f"an entry of {section} is {type(payload).__name__}; it must be a mapping of "
            f"{', '.join(SECTIONS[section][0])}"
        )
    return {str(name): plain(value) for name, value in payload.items() if value is not None}


def comparison(item: Any, title: str | None = None) -> dict[str, Any]:
    """Return a PredictionComparison as the entry of ``statistics``."""
    first, second = item.names
    low, high = item.interval
    rows = [
        ("accuracies", f"{item.accuracies[0]:.4f} and {item.accuracies[1]:.4f}, n = {item.n}"),
        ("difference", f"{item.difference:+.4f}, interval {low:+.4f} to {high:+.4f}"),
        ("McNemar, exact", f"p = {item.p_exact:.3g}"),
        ("McNemar, mid-p", f"p = {item.p_midp:.3g}"),
        ("χ² without correction", f"{item.chi2:.3g}, p = {item.p_chi2:.3g}"),
        ("χ² with correction", f"{item.chi2_corrected:.3g}, p = {item.p_chi2_corrected:.3g}"),
        ("odds ratio", f"{item.odds_ratio:.3g}"),
        ("equivalence", f"margin {item.margin:g}, p = {item.equivalence_p:.3g}"),
    ]
    return {
        "title": title or f"{first} against {second}",
        "names": [str(first), str(second)],
        "table": plain(item.table),
        "rows": [list(row) for row in rows],
        "statements": [str(line) for line in item.statements],
    }


def _check_shapes(section: str, data: Mapping[str, Any]) -> None:
    if section == "trajectories":
        sides = [data["mine"], data["torch"]]
        if not all(isinstance(side, list) and side for side in sides):
            raise UsageError(
                "a trajectory's mine and torch must be lists with a loss for each step"
            )
        if len(sides[0]) != len(sides[1]):
            raise UsageError(
                f"a trajectory has {len(sides[0])} steps of mine and {len(sides[1])} of torch"
            )
        if not isinstance(data.get("envelope", []), list):
            raise UsageError("a trajectory's envelope must be a list with a width for each step")
    if section == "statistics":
        if not _pairs(data["table"]) or len(data["table"]) != 2:
            raise UsageError("a statistics table is ((both, first alone), (second alone, neither))")
        if not _pairs([data.get("names", ["mine", "torch"]), *_list(data.get("rows", []))]):
            raise UsageError("a statistics entry's names, and each of its rows, are two texts")
        if not isinstance(data.get("statements", []), list):
            raise UsageError("a statistics entry's statements must be a list of sentences")
    if section == "fingerprints" and not isinstance(data["samples"], list):
        raise UsageError("a fingerprint's samples must be a list of numbers")
    if section == "figures" and not ("svg" in data or "png" in data):
        raise UsageError("a figure needs svg (text) or png (base64)")


def _pairs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, list) and len(row) == 2 for row in value)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def plain(value: Any) -> Any:
    """Return a value as JSON takes it: arrays as lists, NaN and infinity as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(float(value))
    if isinstance(value, int):
        return int(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def number(value: Any) -> float:
    """Return a number that :func:`plain` wrote; NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
