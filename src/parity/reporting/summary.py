"""What a pytest run prints: one line above its tests, a few below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parity.environment import versions

if TYPE_CHECKING:
    from parity.reporting.record import Record
    from parity.settings import Settings


def header(settings: Settings) -> str:
    """Return the line above the tests: what is compared, and from which seeds."""
    have = versions()
    line = f"parity: numpy {have['numpy']} against torch {have['torch']}, seeds "
    line += settings.seeds_text
    if settings.dtypes:
        line += f", {' and '.join(settings.dtypes)}"
    if settings.device:
        line += f", on {settings.device}"
    return line + (", strict" if settings.strict else "")


def closing(record: Record) -> list[tuple[str, bool]]:
    """Return (line, whether it is bad news) below the tests."""
    lines = []
    if record.parts:
        cases = len({part["case"] for part in record.parts})
        counts = ", ".join(f"{n} {verdict}" for verdict, n in record.counts().items())
        total = len(record.findings)
        lines.append(
            (f"parity: {_many(cases, 'case')}, {_many(total, 'finding')}: {counts}", False)
        )
    if record.problem:
        lines.append((f"parity: {record.problem}", True))
    elif record.written:
        lines.append((f"parity: report in {record.folder}: {', '.join(record.written)}", False))
        if not any(name.endswith(".html") for name in record.written):
            lines.append(
                ("parity: HTML was left out; it needs: pip install 'torch-parity[report]'", False)
            )
    return lines


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count:,} {thing}s"
