"""Several reports made into one: other versions, other machines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from parity.findings import UsageError
from parity.reporting.record import FORMAT, VERSION, Record
from parity.reporting.schema import REPORT, SECTION, problems
from parity.reporting.sections import entry

MOST_BYTES = 512 * 2**20


def load(path: str | os.PathLike[str]) -> Record:
    """Read a report: its JSON file, or the folder that holds it.

    Raises UsageError for a file that is missing, truncated, of another kind or of a later version.
    """
    from parity.reporting.writing import NAMES, read_json

    file = Path(path)
    if file.is_dir():
        file = file / NAMES[0]
    if not file.is_file():
        raise UsageError(f"{file} is not there; give a report's folder or its report.json")
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise UsageError(
            f"{file} has {size:,} bytes; a report has {MOST_BYTES:,} at most: give the report.json "
            "that a run wrote, or run it again"
        )
    data = read_json(file)
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise UsageError(f"{file} is not a report of torch-parity (no format {FORMAT!r})")
    version = data.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise UsageError(
            f"{file} has format version {version!r}; this torch-parity reads up to {VERSION}: "
            "upgrade it, or write the report again"
        )
    return _record(data, file)


def _record(data: Mapping[str, Any], file: Path) -> Record:
    def refuse(problem: str) -> None:
        raise UsageError(f"{file} cannot be read as a report: {problem}; write it again")

    for problem in problems(data, REPORT, "the report"):
        refuse(problem)
    runs, parts, kept = data["runs"], data["parts"], {}
    for name, items in data["sections"].items():
        for problem in problems(items, SECTION, f"sections.{name}"):
            refuse(problem)
        try:
            kept[name] = [
                {"run": item["run"], **entry(name, {k: v for k, v in item.items() if k != "run"})}
                for item in items
            ]
        except UsageError as error:
            refuse(str(error))
    for item in (*parts, *(item for items in kept.values() for item in items)):
        if not 0 <= item["run"] < len(runs):
            refuse(f"something belongs to run {item['run']}, of {len(runs)} runs")
    return Record(runs=runs, parts=parts, sections=kept)


def merge(paths: Iterable[str | os.PathLike[str]]) -> Record:
    """Return one record of several reports; the same run given twice counts once.

    Raises UsageError where there is nothing to merge, or where a report cannot be read.
    """
    records = [load(path) for path in paths]
    if not records:
        raise UsageError("nothing to merge; give the folders of at least one report")
    whole = Record()
    for item in records:
        for i, run in enumerate(item.runs):
            parts = [part for part in item.parts if part["run"] == i]
            sections = {
                name: [e for e in entries if e["run"] == i]
                for name, entries in item.sections.items()
            }
            _add(whole, run, parts, sections)
    return whole


def _add(whole: Record, run: dict[str, Any], parts: list[Any], sections: dict[str, Any]) -> None:
    for i, known in enumerate(whole.runs):
        mine = [{**part, "run": i} for part in parts]
        if known == run and mine == [part for part in whole.parts if part["run"] == i]:
            return
    place = len(whole.runs)
    whole.runs.append(run)
    whole.parts += [{**part, "run": place} for part in parts]
    for name, entries in sections.items():
        whole.sections.setdefault(name, []).extend({**e, "run": place} for e in entries)


def write_merged(
    paths: Iterable[str | os.PathLike[str]], folder: str | os.PathLike[str]
) -> tuple[Record, tuple[str, ...]]:
    """Merge reports and write the whole into ``folder``: what ``parity report merge`` does.

    Returns the record and the names of the files. Raises UsageError, and OSError from writing.
    """
    from parity.reporting.writing import write

    record = merge(paths)
    return record, write(record, folder)
