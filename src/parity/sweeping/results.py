"""The file of results: one line of JSON a case, appended as they come, continued after a stop."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from parity.findings import UsageError
from parity.sweeping.plan import Plan

RESULTS, MANIFEST, SUMMARY = "results.jsonl", "sweep.json", "summary.json"
SYNC = 1.0  # seconds between two fsyncs
FORMAT = 2  # what a case draws belongs to it: a sweep is resumed by the drawing it began with


MOST_CASES = 2**32  # in one folder: half a GiB of marks


class Done:
    """Which cases are done: one bit a case."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self.count = 0

    def add(self, index: int) -> bool:
        """Mark a case; False where it was marked already."""
        byte, bit = divmod(index, 8)
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        if self._bits[byte] >> bit & 1:
            return False
        self._bits[byte] |= 1 << bit
        self.count += 1
        return True

    def __contains__(self, index: int) -> bool:
        byte, bit = divmod(index, 8)
        return byte < len(self._bits) and bool(self._bits[byte] >> bit & 1)


class Results:
    """The results of one sweep in a folder, open for appending."""

    def __init__(self, folder: Path, plan: Plan, resume: bool) -> None:
        """Open ``folder``. Raises UsageError where it holds another sweep, or one already."""
        self.path = folder / RESULTS
        self.plan = plan
        self.done = Done()
        self._prepare(folder, resume)
        self._file = open(self.path, "ab", buffering=0)
        self._synced = time.monotonic()

    def _prepare(self, folder: Path, resume: bool) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            what = "is a file"
            if folder.is_symlink() and not folder.exists():
                what = f"is a link to {os.readlink(folder)}, which is not there"
            raise UsageError(f"{folder} {what}; --output names a folder") from error
        manifest = folder / MANIFEST
        if manifest.exists():
            if not resume:
                raise UsageError(
                    f"{folder} holds a sweep already; --resume continues it, or choose another "
                    "--output"
                )
            self._same(manifest)
            self._read()
        elif self.path.exists():
            raise UsageError(f"{self.path} is there without {MANIFEST}; choose another --output")
        else:
            write_json(manifest, {"format": FORMAT, "plan": self.plan.identity()})

    def _same(self, manifest: Path) -> None:
        try:
            held = json.loads(manifest.read_text(encoding="utf-8"))
            version, plan = held["format"], held["plan"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(f"{manifest} cannot be read as a sweep's plan") from error
        if version != FORMAT:
            raise UsageError(f"{manifest} has format {version!r}; this version reads {FORMAT}")
        mine = self.plan.identity()
        other = [n for n in mine if not isinstance(plan, dict) or plan.get(n) != mine[n]]
        if other:
            raise UsageError(
                f"{manifest.parent} holds a sweep with another {', '.join(other)}; resume with "
                "the same options, or choose another --output"
            )

    def _read(self) -> None:
        """Mark what is done, and cut off a last line that was not finished."""
        if not self.path.exists():
            return
        end = 0
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                self._mark(line)
        os.truncate(self.path, end)

    def _mark(self, line: bytes) -> None:
        try:
            layer, _, number = json.loads(line)["id"].rpartition(":")
            index = self.plan.index(layer, int(number))
            if not 0 <= index < MOST_CASES:
                raise ValueError("there is no such case")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            shown = line[:60].decode("utf-8", "replace").strip()
            raise UsageError(f"{self.path} has a line that is no result: {shown!r}") from error
        self.done.add(index)

    def add(self, lines: Iterable[tuple[int, str]]) -> int:
        """Append (index, line); return how many were new."""
        new = [line for index, line in lines if self.done.add(index)]
        if new:
            self._append("".join(f"{line}\n" for line in new).encode())
        if time.monotonic() - self._synced > SYNC:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        return len(new)

    def _append(self, data: bytes) -> None:
        """Write whole lines, or none of them."""
        end = self._file.tell()
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise UsageError(
                f"{self.path} cannot be written: {error.strerror or error}; what it holds is "
                "whole, and --resume continues"
            ) from error

    def close(self) -> None:
        """Bring everything to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the results one by one."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
