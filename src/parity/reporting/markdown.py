"""A report as Markdown, for the summary that CI services show under a run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from parity.findings import Finding
from parity.reporting import tables
from parity.reporting.ledger import ledger
from parity.reporting.record import Record
from parity.reporting.sections import number
from parity.wording import finding_text, quantity_text

# GitHub cuts a job summary at 1 MiB: the tables stop well before that and say so.
MOST_ROWS = 3000
MOST_FAILURES = 50


def markdown(record: Record) -> str:
    """Return the report: how it ended, what failed and why, then the tables."""
    lines = ["# Parity report", "", f"**{verdict_line(record)}**", ""]
    lines += _runs(record)
    lines += _failures(record)
    lines += _quantities(record)
    lines += _trajectories(record.sections.get("trajectories", []))
    lines += _statistics(record.sections.get("statistics", []))
    lines += _speed(record.sections.get("speed", []))
    lines += _rates(record.sections.get("rates", []))
    lines += _ledger(ledger(record))
    return "\n".join(lines).rstrip() + "\n"


def verdict_line(record: Record) -> str:
    """Return the sentence that a person asks for first."""
    checks = len(record.parts)
    others = sum(len(run["others"]) for run in record.runs)
    counts = ", ".join(f"{n:,} {verdict}" for verdict, n in record.counts().items())
    if not record.findings:
        return "Nothing was compared."
    cases = len({part["case"] for part in record.parts})
    tail = f"{cases:,} cases, {checks:,} checks, {len(record.findings):,} comparisons: {counts}."
    if others:
        tail += f" {others} other tests failed."
    if record.passed:
        return f"All good. {tail}"
    return f"{len(record.failures)} failures. {tail}" if record.failures else f"Not good. {tail}"


def _runs(record: Record) -> list[str]:
    rows = [
        (
            name,
            run["title"],
            tables_seeds(run["seeds"]),
            run["result"],
            f"{run['checks']:,}",
            run["created"],
        )
        for name, run in zip(tables.run_names(record), tables.per_run(record), strict=True)
    ]
    return _table("Runs", ("run", "versions", "seeds", "result", "checks", "written"), rows)


def tables_seeds(seeds: Iterable[Any]) -> str:
    """Return seeds as text: ``0-19``."""
    from parity.settings import spans

    return spans(int(number(seed)) for seed in seeds if number(seed) >= 0)


def _failures(record: Record) -> list[str]:
    found = record.failures
    others = [other for run in record.runs for other in run["others"]]
    if not found and not others:
        return []
    lines = ["## What failed", ""]
    for part, finding in found[:MOST_FAILURES]:
        lines += _fence(finding_text(Finding.from_dict(finding), part["rerun"]))
    if len(found) > MOST_FAILURES:
        lines += [f"… and {len(found) - MOST_FAILURES} more; report.json has them all.", ""]
    if others:
        lines += _table(
            "Other tests that failed",
            ("test", "last line"),
            [(o["nodeid"], o["text"]) for o in others[:MOST_FAILURES]],
        )
    return lines


def _quantities(record: Record) -> list[str]:
    found = sorted(tables.rows(record), key=lambda row: not row.failed)
    names = tables.run_names(record)
    many = len(names) > 1
    head = (
        "case",
        "quantity",
        *(("run",) if many else ()),
        "verdict",
        "error",
        "allowance",
        "share",
    )
    rows = [
        (
            row.case,
            quantity_text(row.quantity),
            *((names[row.run],) if many else ()),
            f"**{row.verdict}**" if row.failed else row.verdict,
            tables.short(row.error),
            tables.short(row.allowance),
            tables.short(row.usage),
        )
        for row in found[:MOST_ROWS]
    ]
    lines = _table("Cases × quantities", head, rows, marked=3 if many else 2)
    if len(found) > MOST_ROWS:
        lines += [f"{len(found) - MOST_ROWS:,} more rows stand in report.json.", ""]
    return lines


def _trajectories(entries: list[dict[str, Any]]) -> list[str]:
    rows = []
    for entry in map(tables.trajectory, entries):
        rows.append(
            (
                entry["title"],
                entry.get("dtype", ""),
                entry["steps"],
                f"{number(entry['final'][0]):.6g}",
                f"{number(entry['final'][1]):.6g}",
                f"{entry['sum']:.2e}",
                f"{entry['largest']:.2e} at step {entry['at']}",
                entry.get("note", ""),
            )
        )
    head = ("run", "precision", "steps", "last loss, mine", "torch", "Σ difference", "largest", "")
    return _table("Trajectories", head, rows)


def _statistics(entries: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = ["## Statistics", ""] if entries else []
    for entry in entries:
        first, second = entry.get("names") or ("mine", "torch")
        (both, alone), (other, neither) = entry["table"]
        lines += _table(
            f"### {entry['title']}",
            ("", f"{second} right", f"{second} wrong"),
            [(f"{first} right", both, alone), (f"{first} wrong", other, neither)],
        )
        lines += _table("", ("", ""), entry.get("rows", []))
        lines += [f"- {_text(line)}" for line in entry.get("statements", [])] + [""]
    return lines


def _speed(entries: list[dict[str, Any]]) -> list[str]:
    rows = [
        (
            entry["name"],
            entry.get("size", ""),
            entry.get("threads", ""),
            f"{number(entry['ratio']):.3g}",
            spread(entry),
            change(entry),
        )
        for entry in entries
    ]
    head = ("layer", "size", "threads", "NumPy / torch", "spread", "since the baseline")
    return _table("Speed", head, rows)


def spread(entry: dict[str, Any]) -> str:
    """Return the spread of a speed ratio, empty where it was not measured."""
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    return f"{number(entry['low']):.3g} to {number(entry['high']):.3g}"


def change(entry: dict[str, Any]) -> str:
    """Return the change of a speed ratio since the baseline."""
    before = number(entry.get("baseline"))
    return f"{100 * (number(entry['ratio']) / before - 1):+.0f} %" if before > 0 else ""


def _rates(entries: list[dict[str, Any]]) -> list[str]:
    rows = [(entry["name"], tables.proportion(entry), entry.get("note", "")) for entry in entries]
    return _table("The harness's own rates", ("rate", "measured", ""), rows)


def _ledger(entries: list[dict[str, Any]]) -> list[str]:
    rows = [
        (entry["quantity"], entry["version"], entry.get("against", ""), entry["ulp"])
        for entry in entries
    ]
    return _table("Across versions", ("quantity", "version", "against", "ulp"), rows)


def _table(title: str, head: Iterable[str], rows: Iterable[Any], marked: int = -1) -> list[str]:
    """``marked`` is the column whose ** are ours."""
    rows = [tuple(row) for row in rows]
    if not rows:
        return []
    head = tuple(head)
    heading = title if title.startswith("#") or not title else f"## {title}"
    lines = [heading, ""] if heading else []
    lines[:1] = [f"### {_text(title[4:])}"] if title.startswith("### ") else lines[:1]
    lines += ["| " + " | ".join(map(_text, head)) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [str(c) if i == marked else _text(c) for i, c in enumerate(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _text(value: Any) -> str:
    """Return a value as text that Markdown shows as it is, HTML and pipes included."""
    text = " ".join(str(value).split())
    text = text if len(text) <= 200 else text[:199] + "…"
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#!~@])", r"\\\1", text)


def _fence(text: str) -> list[str]:
    """Return a block of literal text; its fence is longer than any inside it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + "text", text, fence, ""]
