"""A report as one HTML page: no network, light and dark, everything that users named escaped."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from parity.findings import Finding
from parity.reporting import heat, markdown, pictures, tables
from parity.reporting.ledger import ledger
from parity.reporting.record import Record
from parity.reporting.sections import number
from parity.wording import finding_text, numbers_text, quantity_text

FOLDER = Path(__file__).parent / "templates"
MOST_ROWS = 6000  # a page stays below 5 MB; report.json has everything
MOST_FAILURES = 300
MOST_HEATS = 60
MOST_CURVES = 40
FIGURE_BYTES = 3_000_000


def html(record: Record) -> str:
    """Return the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER, encoding="utf-8"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=visible,
    )
    environment.filters |= {"short": tables.short, "words": quantity_text}
    return environment.get_template("report.html").render(**context(record))


def context(record: Record) -> dict[str, Any]:
    """Return what the template shows."""
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rows = sorted(tables.rows(record), key=lambda row: not row.failed)
    return {
        "style": (FOLDER / "report.css").read_text(encoding="utf-8"),
        "script": script,
        "digest": digest,
        "passed": record.passed,
        "empty": not record.findings,
        "sentence": markdown.verdict_line(record).removeprefix("All good. "),
        "runs": tables.per_run(record),
        "names": tables.run_names(record),
        "seeds": [markdown.tables_seeds(run["seeds"]) for run in record.runs],
        "causes": tables.causes(record),
        "failures": _failures(record),
        "left_failures": max(0, len(record.failures) - MOST_FAILURES),
        "others": [other for run in record.runs for other in run["others"]],
        "rows": rows[:MOST_ROWS],
        "left_rows": max(0, len(rows) - MOST_ROWS),
        "verdicts": list(record.counts()),
        "curves": _curves(record),
        "figures": _figures(record),
        "statistics": record.sections.get("statistics", []),
        "ledger": ledger(record),
        "speed": _speed(record),
        "rates": [
            {**entry, "text": tables.proportion(entry)}
            for entry in record.sections.get("rates", [])
        ],
        "coverage": tables.coverage(record)[:MOST_ROWS],
    }


def visible(value: Any) -> Any:
    """Make control characters visible: a browser would drop them, or worse."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda m: f"\\x{ord(m[0]):02x}", value)
    return "" if value is None else value


def _failures(record: Record) -> list[dict[str, Any]]:
    found = []
    for i, (part, data) in enumerate(record.failures[:MOST_FAILURES], 1):
        finding = Finding.from_dict(data)
        picture = heat.svg(finding.evidence.get("heat")) if i <= MOST_HEATS else ""
        shape = (finding.evidence.get("heat") or {}).get("shape") if picture else None
        found.append(
            {
                "id": i,
                "case": finding.case,
                "quantity": finding.quantity,
                "verdict": finding.verdict,
                "numbers": numbers_text(finding),
                "message": finding.evidence.get("message"),
                "cause": finding.cause,
                "text": finding_text(finding, part["rerun"]),
                "rerun": part["rerun"],
                "run": data.get("run", part["run"]),
                "heat": picture,
                "shape": shape,
            }
        )
    return found


def _curves(record: Record) -> list[dict[str, Any]]:
    found = []
    for i, entry in enumerate(map(tables.trajectory, record.sections.get("trajectories", []))):
        drawn = pictures.curves(entry, f"curve{i}") if i < MOST_CURVES else ""
        first, last = (f"{number(value):.6g}" for value in entry["final"])
        found.append({**entry, "svg": drawn, "last_mine": first, "last_torch": last})
    return found


def _figures(record: Record) -> list[dict[str, Any]]:
    """Pictures of others go into <img>, where no script of theirs can run."""
    found, room = [], FIGURE_BYTES
    for entry in record.sections.get("figures", []):
        if "svg" in entry:
            data = base64.b64encode(str(entry["svg"]).encode(errors="replace")).decode()
            source = f"data:image/svg+xml;base64,{data}"
        else:
            data = re.sub(r"[^A-Za-z0-9+/=]", "", str(entry["png"]))
            source = f"data:image/png;base64,{data}"
        room -= len(source)
        found.append({**entry, "source": source if room > 0 else ""})
    return found


def _speed(record: Record) -> dict[str, Any]:
    entries = record.sections.get("speed", [])
    rows = [
        {
            **e,
            "spread": markdown.spread(e),
            "change": markdown.change(e),
            "value": number(e["ratio"]),
        }
        for e in entries
    ]
    ratios = [
        (row["value"], number(row.get("low")), number(row.get("high")))
        for row in rows
        if row["value"] > 0
    ]
    drawn = len(ratios) == len(rows) <= 80 and rows
    return {"rows": rows, "svg": pictures.bars(ratios, "speed") if drawn else ""}
