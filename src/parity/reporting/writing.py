"""Reports as files: JSON for machines, Markdown for a job summary, HTML for people."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parity.findings import UsageError
from parity.reporting.ledger import write_ledger
from parity.reporting.markdown import markdown
from parity.reporting.record import Record

NAMES = ("report.json", "report.md", "report.html")


def write(record: Record, folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Write all forms of ``record`` into ``folder`` and return the files' names.

    The page needs the extra ``report``; without it the other two are written. Each file appears
    whole or not at all. Raises OSError where the folder cannot be written to.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_json(record, target / NAMES[0])
    write_markdown(record, target / NAMES[1])
    if not has_extra():
        return (*NAMES[:2], *write_ledger(record, target))
    write_html(record, target / NAMES[2])
    return (*NAMES, *write_ledger(record, target))


def write_json(record: Record, path: Path) -> None:
    """Write the record as data, NaN and infinity as text."""
    text = json.dumps(record.to_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    write_text(path, text + "\n")


def write_markdown(record: Record, path: Path) -> None:
    """Write the short form that CI services show under a run."""
    write_text(path, markdown(record))


def write_html(record: Record, path: Path) -> None:
    """Write the page. Raises UsageError without the extra ``report``."""
    if not has_extra():
        raise UsageError(
            "the HTML page needs jinja2 and matplotlib: pip install torch-parity[report]"
        )
    from parity.reporting.page import html

    write_text(path, html(record))


def has_extra() -> bool:
    """Whether the extra ``report`` is installed."""
    return all(find_spec(name) is not None for name in ("jinja2", "matplotlib"))


def write_text(path: Path, text: str) -> None:
    """Write a file so that nobody ever sees half of it. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        # a lone surrogate in somebody's text must not cost the report
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises UsageError that says what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
