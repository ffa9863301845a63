"""Several reports made into one: other versions, other machines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from parity.findings import GRAVITY, UsageError
from parity.reporting.record import FORMAT, VERSION, Record
from parity.reporting.sections import SECTIONS, entry

# what a part and a finding must hold, with the types that reading relies on
PART: dict[str, Any] = {"case": str, "nodeid": str, "findings": list, "strict": bool}
FINDING: dict[str, Any] = {"case": str, "quantity": str, "dtype": str, "verdict": str, "seed": int}
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
    if file.stat().st_size > MOST_BYTES:
        raise UsageError(f"{file} is larger than {MOST_BYTES // 2**20} MiB; no report is")
    data = read_json(file)
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise UsageError(f"{file} is not a report of torch-parity (no format {FORMAT!r})")
    if not isinstance(data.get("version"), int) or not 1 <= data["version"] <= VERSION:
        raise UsageError(
            f"{file} has format version {data.get('version')!r}; this torch-parity reads up to "
            f"{VERSION}: upgrade it, or write the report again"
        )
    return _record(data, file)


def _record(data: Mapping[str, Any], file: Path) -> Record:
    runs, parts, sections = (data.get(name) for name in ("runs", "parts", "sections"))
    if not isinstance(runs, list) or not isinstance(parts, list) or not isinstance(sections, dict):
        raise UsageError(f"{file} lacks runs, parts or sections; write the report again")
    for run in runs:
        if not isinstance(run, dict) or not isinstance(run.get("versions"), dict):
            raise UsageError(f"{file} has a run without versions; write the report again")
        _check_run(run, file)
    for part in parts:
        _check(part, PART, "part", len(runs), file)
        for finding in part["findings"]:
            _check(finding, FINDING, "finding", None, file)
    kept: dict[str, list[dict[str, Any]]] = {}
    for name, items in sections.items():
        if name not in SECTIONS or not isinstance(items, list):
            raise UsageError(f"{file} has an unknown section {name!r}; was it edited by hand?")
        for item in items:
            _check(item, {}, f"entry of {name}", len(runs), file)
            values = {key: value for key, value in item.items() if key != "run"}
            kept.setdefault(name, []).append({"run": item["run"], **entry(name, values)})
    return Record(runs=runs, parts=parts, sections=kept)


def _check_run(run: dict[str, Any], file: Path) -> None:
    for name, kind in (("seeds", list), ("tests", dict), ("others", list), ("dtypes", list)):
        if not isinstance(run.setdefault(name, kind()), kind):
            raise UsageError(f"{file} has a run whose {name} are {run[name]!r}")
    for name, default in (("created", ""), ("device", "cpu"), ("strict", False)):
        run.setdefault(name, default)
    if not all(isinstance(o, dict) and {"nodeid", "text"} <= set(o) for o in run["others"]):
        raise UsageError(f"{file} has a run whose other failures cannot be read")


def _check(item: Any, needed: Mapping[str, Any], what: str, runs: int | None, file: Path) -> None:
    """Refuse what reading would stumble over, so that a merge ends in one clear line."""
    if not isinstance(item, dict):
        raise UsageError(f"{file} has a {what} that is {type(item).__name__}, not a table")
    for name, kind in needed.items():
        if not isinstance(item.get(name), kind):
            raise UsageError(f"{file} has a {what} whose {name} is {item.get(name)!r}")
    if runs is not None and not (isinstance(item.get("run"), int) and 0 <= item["run"] < runs):
        raise UsageError(f"{file} has a {what} of run {item.get('run')!r}, of {runs} runs")
    if what == "part":
        for name in ("notes", "covers", "not_covered"):
            if not isinstance(item.setdefault(name, []), list):
                raise UsageError(f"{file} has a part whose {name} are {item[name]!r}")
        item.setdefault("rerun", None)
        item.setdefault("check", "")
    if what == "finding":
        _check_finding(item, file)


def _check_finding(item: dict[str, Any], file: Path) -> None:
    if item["verdict"] not in GRAVITY:
        raise UsageError(f"{file} has the verdict {item['verdict']!r}; known: {', '.join(GRAVITY)}")
    for name, kind in (("evidence", dict), ("worst", dict), ("cause", dict)):
        value = item.setdefault(name, {} if name == "evidence" else None)
        if not isinstance(value, kind) and not (name != "evidence" and value is None):
            raise UsageError(f"{file} has a finding whose {name} is {value!r}")
    if item["cause"] is not None and not {"name", "sentence"} <= set(item["cause"]):
        raise UsageError(f"{file} has a cause without name or sentence")
    if item["worst"] is not None and not {"index", "mine", "theirs", "off"} <= set(item["worst"]):
        raise UsageError(f"{file} has a worst element without index, mine, theirs or off")
    for name, default in (("allowance", 0.0), ("layer", None), ("step", None)):
        item.setdefault(name, default)


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
            parts = [p for p in item.parts if p["run"] == i]
            sections = {
                name: [e for e in entries if e["run"] == i]
                for name, entries in item.sections.items()
            }
            _add(whole, run, parts, sections)
    return whole


def _add(whole: Record, run: dict[str, Any], parts: list[Any], sections: dict[str, Any]) -> None:
    for i, known in enumerate(whole.runs):
        mine = [{**p, "run": i} for p in parts]
        if known == run and mine == [p for p in whole.parts if p["run"] == i]:
            return
    place = len(whole.runs)
    whole.runs.append(run)
    whole.parts += [{**p, "run": place} for p in parts]
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
