"""The ledger of versions: which of torch's own answers changed bits, and by how many ulp.

A run leaves a fingerprint of each quantity of the reference (section ``fingerprints``): a digest of
all its bits and a few of its values. A report of several runs compares them in the order of torch's
releases, so that a later change in a verdict can be told from a change in torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.quirks import release
from parity.reporting.sections import number

if TYPE_CHECKING:
    from parity.reporting.record import Record

FILE = "versions.json"
FORMAT = "torch-parity versions"
SAMPLES = 8  # values kept of each quantity: enough to measure a change, a digest tells of it
MOST_SHOWN = 60  # changed quantities of one step that a page shows; the file has all
UNSEEN = "not in the sample"


def fingerprint(quantity: str, array: np.ndarray) -> dict[str, Any]:
    """Return the entry of ``fingerprints`` for an array (*) of any dtype.

    ``scale`` is the largest finite magnitude: ulp are counted there, or a sum that nearly cancels
    would count thousands.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind == "f":
        flat = np.where(np.isnan(flat), np.asarray(np.nan, flat.dtype), flat)  # one NaN of many
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    digest.update(flat.tobytes())
    places = np.unique(np.linspace(0, max(0, flat.size - 1), SAMPLES).astype(int))
    finite = np.abs(flat[np.isfinite(flat)].astype(np.float64))
    return {
        "quantity": quantity,
        "digest": digest.hexdigest()[:16],
        "dtype": str(array.dtype),
        "scale": float(finite.max(initial=0.0)),
        "samples": [float(value) for value in flat[places]] if flat.size else [],
    }


def fingerprints(case: str, quantities: Mapping[str, Any], dtype: str) -> list[dict[str, Any]]:
    """Return a fingerprint of each quantity that is there, in the order of their names."""
    return [
        fingerprint(f"{case} {name} ({dtype})", np.asarray(array))
        for name, array in sorted(quantities.items())
        if array is not None
    ]


def ulp_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> int | str:
    """Return the largest change among two fingerprints' values, in ulp of the largest magnitude.

    0 means the same bits throughout; ``"not in the sample"`` that other elements changed, and text
    says what cannot be counted: another shape, NaN or infinity on one side.
    """
    if before["digest"] == after["digest"]:
        return 0
    old, new = list(map(number, before["samples"])), list(map(number, after["samples"]))
    if len(old) != len(new) or before.get("dtype") != after.get("dtype"):
        return "another shape or dtype"
    changed = [
        (a, b)
        for a, b in zip(old, new, strict=True)
        if a != b and not (math.isnan(a) and math.isnan(b))
    ]
    if not changed:
        return UNSEEN
    if not all(math.isfinite(a) and math.isfinite(b) for a, b in changed):
        return "NaN or infinity in one of them"
    try:
        dtype = np.dtype(str(before.get("dtype", "float64")))
        with np.errstate(all="ignore"):  # what a report from elsewhere claims may overflow
            unit = np.spacing(np.asarray(number(before.get("scale")), dtype))
    except (TypeError, ValueError):
        return "not numbers of a known dtype"
    most = max(abs(a - b) for a, b in changed) / float(unit)
    return max(1, round(most)) if math.isfinite(most) else "more than can be counted"


def steps(record: Record) -> Iterator[tuple[int, int, list[dict[str, Any]], int]]:
    """Yield (run before, run, what changed between them, how many kept their bits)."""
    prints: dict[int, dict[str, Any]] = {}
    for item in record.sections.get("fingerprints", []):
        prints.setdefault(item["run"], {})[item["quantity"]] = item
    order = sorted(prints, key=lambda run: (release(_torch(record, run)), run))
    for before, after in pairwise(order):
        changed, same = [], 0
        for name, item in prints[after].items():
            ulp = ulp_between(prints[before][name], item) if name in prints[before] else None
            same += ulp == 0
            if ulp not in (0, None):
                changed.append({"quantity": name, "ulp": ulp})
        yield before, after, changed, same


def ledger(record: Record) -> list[dict[str, Any]]:
    """Return the entries of ``versions_ledger``: those handed over, and those of several runs."""
    from parity.reporting.tables import run_names

    found, names = list(record.sections.get("versions_ledger", [])), run_names(record)
    for before, after, changed, same in steps(record):
        pair = {"version": names[after], "against": names[before], "run": after}
        note = "" if _alike(record, before, after) else "other NumPy or Python beside it"
        total = f"{same:,} of {same + len(changed):,} quantities"
        found.append({"quantity": total, "ulp": 0, "note": note or "the same bits", **pair})
        changed.sort(key=_most_first)
        found += [{**item, **pair} for item in changed[:MOST_SHOWN]]
        if len(changed) > MOST_SHOWN:
            left = f"{len(changed) - MOST_SHOWN:,} more changed: {FILE} lists them"
            found.append({"quantity": left, "ulp": f"up to {changed[MOST_SHOWN]['ulp']}", **pair})
    return found


def write_ledger(record: Record, folder: Path) -> tuple[str, ...]:
    """Write ``versions.json`` beside the report where runs left fingerprints; its name, if so."""
    if not record.sections.get("fingerprints"):
        return ()
    from parity.reporting.writing import write_text

    data = {
        "format": FORMAT,
        "version": 1,
        "runs": [run["versions"] for run in record.runs],
        "steps": [
            {"before": before, "after": after, "same": same, "changed": changed}
            for before, after, changed, same in steps(record)
        ],
        "fingerprints": record.sections["fingerprints"],
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, indent=None)
    write_text(folder / FILE, text + "\n")
    return (FILE,)


def _torch(record: Record, run: int) -> str:
    return str(record.runs[run]["versions"].get("torch", ""))


def _alike(record: Record, before: int, after: int) -> bool:
    one, two = record.runs[before]["versions"], record.runs[after]["versions"]
    return all(one.get(name) == two.get(name) for name in ("numpy", "python"))


def _most_first(item: Mapping[str, Any]) -> tuple[float, str]:
    ulp = item["ulp"]
    return (-float(ulp) if isinstance(ulp, int) else -math.inf, item["quantity"])
