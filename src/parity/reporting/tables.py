"""The tables of a report, as plain rows that Markdown and HTML share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from parity.findings import GRAVITY, unique
from parity.reporting.record import Record, fails
from parity.reporting.sections import number


@dataclass
class Row:
    """One quantity of one case in one run: its gravest verdict, its largest share of allowance."""

    case: str
    quantity: str
    run: int
    verdict: str
    failed: bool
    findings: int = 0
    error: float = math.nan
    allowance: float = math.nan
    usage: float = math.nan
    rungs: list[str] = field(default_factory=list)
    weight: tuple[bool, bool, float] = (False, False, -1.0)
    target: int | None = None  # the failure that tells more


def rows(record: Record) -> list[Row]:
    """Return the table of cases × quantities, in the order of the tests."""
    table: dict[tuple[int, str, str], Row] = {}
    for part in record.parts:
        for finding in part["findings"]:
            key = (part["run"], finding["case"], finding["quantity"])
            row = table.get(key)
            if row is None:
                row = table[key] = Row(key[1], key[2], key[0], finding["verdict"], False)
            _take(row, finding, part)
    for i, (part, finding) in enumerate(record.failures, 1):
        found = table[(part["run"], finding["case"], finding["quantity"])]
        found.target = found.target or i
    return list(table.values())


def _take(row: Row, finding: dict[str, Any], part: dict[str, Any]) -> None:
    row.findings += 1
    row.failed = row.failed or fails(finding, part)
    if GRAVITY.index(finding["verdict"]) < GRAVITY.index(row.verdict):
        row.verdict = finding["verdict"]
    if finding["dtype"] not in row.rungs:
        row.rungs.append(finding["dtype"])
    usage = number(finding["evidence"].get("usage"))
    # what fails speaks first, then what the user asked for before what the harness tried besides
    bad = fails(finding, part)
    weight = (bad, not finding["evidence"].get("probe"), 0.0 if bad else usage)
    if usage >= 0 and weight > row.weight:
        row.weight, row.usage = weight, usage
        row.error = number(finding["evidence"].get("error"))
        row.allowance = number(finding["allowance"])


def run_title(run: dict[str, Any]) -> str:
    """Return the versions of a run as one line."""
    have = run["versions"]
    named = [f"{name} {have[name]}" for name in ("torch", "numpy", "python") if name in have]
    return " · ".join(named) or "unknown versions"


def run_names(record: Record) -> list[str]:
    """Return a short name for each run, told apart by number where versions are alike."""
    names = [f"torch {run['versions'].get('torch', '?')}" for run in record.runs]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]


def _result(record: Record) -> str:
    """Return passed, failed, or that a run (one of benchmarks) compared nothing."""
    if record.passed:
        return "passed"
    broken = record.parts or any(run["others"] for run in record.runs)
    return "failed" if broken else "nothing compared"


def per_run(record: Record) -> list[dict[str, Any]]:
    """Return for each run its title, its counts and whether it passed."""
    found = []
    for i, run in enumerate(record.runs):
        parts = [part for part in record.parts if part["run"] == i]
        single = Record(runs=[run], parts=parts)
        found.append(
            {
                "title": run_title(run),
                "checks": len(parts),
                "counts": single.counts(),
                "failures": len(single.failures),
                **run,
                "result": _result(single),
            }
        )
    return found


def causes(record: Record) -> list[tuple[str, int]]:
    """Return (cause, how many failures it explains): many failures often are one fault."""
    found: dict[str, int] = {}
    for _, finding in record.failures:
        name = (finding.get("cause") or {}).get("name", "no known cause")
        found[name] = found.get(name, 0) + 1
    return sorted(found.items(), key=lambda item: -item[1])


def coverage(record: Record) -> list[dict[str, Any]]:
    """Return for each case what is covered, what is not, and the notes."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in record.parts:
        case = found.setdefault(part["case"], {"covers": [], "not_covered": [], "notes": []})
        for name, items in case.items():
            items += [str(item) for item in part[name]]
    return [
        {"case": case, **{name: unique(items) for name, items in lists.items()}}
        for case, lists in found.items()
    ]


def differences(mine: Iterable[Any], theirs: Iterable[Any]) -> list[float]:
    """Return |mine - theirs| at every step; two equal infinities or NaNs differ by nothing."""
    found = []
    for own, ref in zip(map(number, mine), map(number, theirs), strict=True):
        same = own == ref or (math.isnan(own) and math.isnan(ref))
        found.append(0.0 if same else abs(own - ref))
    return found


def trajectory(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a trajectory with the numbers that a table shows: sum and largest difference."""
    gaps = differences(entry["mine"], entry["torch"])
    envelope = [number(width) for width in entry.get("envelope") or []]
    return {
        **entry,
        "gaps": gaps,
        "widths": envelope,
        "steps": len(gaps),
        "sum": math.fsum(g for g in gaps if math.isfinite(g)),
        "largest": max(gaps),
        "at": gaps.index(max(gaps)),
        "final": (entry["mine"][-1], entry["torch"][-1]),
    }


def proportion(entry: dict[str, Any]) -> str:
    """Return a rate with its interval, as far as it was handed over."""
    hits, trials = number(entry["successes"]), number(entry["trials"])
    text = f"{hits:,.0f} of {trials:,.0f}"
    if trials > 0:
        text += f" ({100 * hits / trials:.3g} %"
        if entry.get("low") is not None and entry.get("high") is not None:
            text += f"; {100 * number(entry['low']):.3g} to {100 * number(entry['high']):.3g} %"
        text += ")"
    return text


def short(value: Any) -> str:
    """Return a number in few digits, "–" for none."""
    value = number(value)
    return "–" if math.isnan(value) else f"{value:.2g}"
