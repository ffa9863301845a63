"""Bundles: one failure as a folder of JSON and arrays, read without running anything in it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from parity.draws import Draw
from parity.findings import Report, UsageError
from parity.options import Options, make_options
from parity.outcomes import Array
from parity.reproducing import Origin, draw_of, first_failure

FORMAT, VERSION = "torch-parity bundle", 1
TEXT, ARRAYS = "bundle.json", "arrays.npz"
MOST_TEXT = 4 * 2**20
MOST_BYTES = 2 * 2**30
MOST_ARRAYS = 10_000
KINDS = ("initial", "initial_buffer", "param", "buffer", "input", "upstream", "mask", "fixed")

PARTS: dict[str, type] = {
    "options": dict,
    "inputs": list,
    "mine": dict,
    "theirs": dict,
    "draw": dict,
    "findings": list,
    "versions": dict,
    "case": str,
}


@dataclass(frozen=True)
class Bundle:
    """A bundle as read: plain data, and the arrays by kind and name."""

    data: Mapping[str, Any]
    arrays: Mapping[str, Mapping[str, Array]]
    path: str


# ---- writing -------------------------------------------------------------------------------------


def write(report: Report, origin: Origin, folder: Any) -> str:
    """Write a bundle: into a folder beside the target first, so that no half is left behind."""
    target = Path(folder)
    if target.exists() and not (target.is_dir() and _replaceable(target)):
        raise UsageError(f"{target} holds something else; name a new folder for the bundle")
    pair = origin.pair()
    finding = first_failure(report)
    draw = draw_of(pair, finding)
    data = {
        "format": FORMAT,
        "version": VERSION,
        "case": report.case,
        "versions": dict(report.versions),
        "options": _options(pair.options),
        "inputs": [_spec(spec) for spec in pair.specs],
        "mine": _mine(origin),
        "theirs": _theirs(origin),
        "draw": {"seed": draw.seed, "training": draw.training, "label": draw.label},
        "findings": [found.to_dict() for found in report.failures[:32]],
    }
    arrays = _arrays(pair, draw)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        text = json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False)
        (scratch / TEXT).write_text(text, encoding="utf-8")
        with open(scratch / ARRAYS, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        scratch.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return str(target)


def _replaceable(folder: Path) -> bool:
    return {item.name for item in folder.iterdir()} <= {TEXT, ARRAYS}


def _arrays(pair: Any, draw: Draw) -> dict[str, Array]:
    found: dict[str, Mapping[Any, Any]] = {
        "initial": pair.reference.params,
        "initial_buffer": pair.reference.buffers,
        "param": draw.params,
        "buffer": draw.buffers,
        "input": dict(enumerate(draw.inputs)),
        "upstream": {i: g for i, g in enumerate(draw.upstream) if g is not None},
        "mask": dict(enumerate(draw.masks)),
        "fixed": pair.fixed,
    }
    return {f"{k}/{name}": np.asarray(a) for k, items in found.items() for name, a in items.items()}


def _spec(spec: Any) -> dict[str, Any]:
    options = {key: repr(value) for key, value in spec.options}
    return {"kind": spec.kind, "shape": list(spec.shape), "options": options}


def _options(options: Options) -> dict[str, str]:
    """Options as literals; arrays among the weights stand in the npz, as ``fixed``."""
    kept = {}
    for item in fields(options):
        value = getattr(options, item.name)
        if item.name == "weights":
            value = {k: v for k, v in value.items() if isinstance(v, (str, tuple))}
        if isinstance(value, frozenset):
            value = sorted(value)
        if item.name not in ("isolate", "timeout", "memory", "device", "case"):
            kept[item.name] = repr(dict(value) if isinstance(value, Mapping) else value)
    return kept


def _mine(origin: Origin) -> dict[str, Any]:
    if origin.recipes is not None:
        return _recipe(origin.recipes[0])
    kind = origin.mine if isinstance(origin.mine, type) else type(origin.mine)
    return {"target": f"{kind.__module__}:{kind.__qualname__}"}


def _theirs(origin: Origin) -> dict[str, Any]:
    from parity.describing import describe

    made = describe(origin.theirs)
    if made is not None:
        return {"made": made.to_dict()}
    if origin.recipes is not None:
        return _recipe(origin.recipes[1])
    name = getattr(origin.theirs, "__name__", type(origin.theirs).__name__)
    return {"target": f"{getattr(origin.theirs, '__module__', '')}:{name}"}


def _recipe(recipe: Any) -> dict[str, Any]:
    return {
        "target": recipe.target,
        "args": [repr(item) for item in recipe.args],
        "config": {key: repr(value) for key, value in recipe.config.items()},
    }


# ---- reading -------------------------------------------------------------------------------------


def read(folder: Any) -> Bundle:
    """Read a bundle.

    Raises UsageError for one that is missing, truncated, too large, of a later version, or holds
    pickles.
    """
    path = Path(folder)
    for name in (TEXT, ARRAYS):
        if not (path / name).is_file():
            raise UsageError(f"{path} is no bundle: it has no {name}; `parity check --bundle`")
    if (path / TEXT).stat().st_size > MOST_TEXT:
        raise UsageError(f"{path / TEXT} is larger than {MOST_TEXT // 2**20} MiB; no bundle's is")
    try:
        data = json.loads((path / TEXT).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path / TEXT} is damaged: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UsageError(f"{path / TEXT} is not a bundle of torch-parity (no format {FORMAT!r})")
    if type(data.get("version")) is not int or not 1 <= data["version"] <= VERSION:
        raise UsageError(
            f"{path / TEXT} has format version {data.get('version')!r}; this torch-parity reads "
            f"up to {VERSION}: upgrade it, or save the bundle again"
        )
    for key, kind in PARTS.items():
        if not isinstance(data.get(key), kind):
            raise UsageError(f"{path / TEXT} is damaged: {key} is {data.get(key)!r}")
    return Bundle(data, _read_arrays(path / ARRAYS), str(path))


def _read_arrays(path: Path) -> dict[str, dict[str, Array]]:
    found: dict[str, dict[str, Array]] = {kind: {} for kind in KINDS}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if total > MOST_BYTES or len(entries) > MOST_ARRAYS:
                raise UsageError(f"{path} claims {total:,} bytes in {len(entries)} arrays: refused")
            for entry in entries:
                kind, slash, name = entry.filename.removesuffix(".npy").partition("/")
                if kind not in found or not slash or entry.compress_type != zipfile.ZIP_STORED:
                    raise UsageError(f"{path} holds {entry.filename!r}, which no bundle has")
                found[kind][name] = _one(archive, entry)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, SyntaxError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        text = str(error).partition("\n")[0]
        raise UsageError(f"{path} is damaged or hostile: {text}") from error
    except (NotImplementedError, RuntimeError, KeyError, MemoryError, OverflowError) as error:
        raise UsageError(f"{path} is damaged or hostile: {error}") from error
    return found


def _one(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    """One array; its header is held against the entry's size before any memory is taken."""
    with archive.open(entry) as file:
        major, _ = np.lib.format.read_magic(file)
        if major != 1:
            raise ValueError(f"{entry.filename} has npy version {major}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.kind not in "fiub":
            raise ValueError(f"{entry.filename} holds {dtype}, not numbers")
        size = dtype.itemsize
        for length in shape:
            size *= length
        if size != entry.file_size - file.tell():
            raise ValueError(f"{entry.filename} is not as long as its header says")
    with archive.open(entry) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


# ---- running -------------------------------------------------------------------------------------


def run(bundle: Bundle, mine: Any, theirs: Any = None) -> Report:
    """Run the whole check on the draws that the bundle holds."""
    from parity.checking import make_pair
    from parity.examining import examine
    from parity.pair import Pair

    reference = rebuild(bundle) if theirs is None else theirs
    options = make_options(_literals(bundle, "options", Options.__dataclass_fields__))
    inputs = tuple(_input(bundle, i) for i in range(len(bundle.data["inputs"])))
    made = make_pair(mine, reference, inputs, options)
    for kind, own in (
        ("initial", made.reference.params),
        ("initial_buffer", made.reference.buffers),
    ):
        saved = bundle.arrays[kind]
        if {n: a.shape for n, a in saved.items()} != {n: a.shape for n, a in own.items()}:
            raise UsageError(
                f"{bundle.path} was saved from another torch side: it has "
                f"{_shapes(saved)}, this one {_shapes(own)}"
            )
        own.update(saved)
    recorded = _recorded(bundle)

    class Replayed(Pair):
        """A pair whose failing draw is the one that was saved, to the last bit."""

        def draw(self, seed=0, training=True, label="generic", shapes=None):  # type: ignore
            """Return the saved draw where it is asked for, any other as usual."""
            usual = shapes is None or [*map(tuple, shapes)] == [a.shape for a in recorded.inputs]
            key = (recorded.seed, recorded.training, recorded.label)
            if usual and (seed, training, label) == key:
                return recorded
            return super().draw(seed, training, label, shapes)

    given = {item.name: getattr(made, item.name) for item in fields(made) if item.init}
    given |= {"case": bundle.data["case"], "fixed": bundle.arrays["fixed"]}
    return examine(Replayed(**given), mine, reference)


def _shapes(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"


def _recorded(bundle: Bundle) -> Draw:
    data, arrays = bundle.data["draw"], bundle.arrays

    def row(kind: str) -> list[Array]:
        items = arrays[kind]
        if set(items) != {str(i) for i in range(len(items))}:
            raise UsageError(f"{bundle.path} is damaged: its {kind} arrays are not numbered")
        return [items[str(i)] for i in range(len(items))]

    if type(data.get("seed")) is not int or not isinstance(data.get("label"), str):
        raise UsageError(f"{bundle.path} is damaged: its draw is {data!r}")
    return Draw(
        tuple(row("input")),
        arrays["param"],
        arrays["buffer"],
        tuple(arrays["upstream"].get(str(i)) for i in range(_outputs(arrays["upstream"]))),
        bool(data.get("training", True)),
        tuple(row("mask")),
        data["label"],
        data["seed"],
    )


def _outputs(upstream: Mapping[str, Array]) -> int:
    return max(
        (int(name) + 1 for name in upstream if name.isdecimal() and len(name) < 4), default=0
    )


def _input(bundle: Bundle, place: int) -> Any:
    from parity import specs
    from parity.literals import SPECS

    data, kept = bundle.data["inputs"][place], bundle.arrays["input"].get(str(place))
    if not isinstance(data, dict) or kept is None:
        raise UsageError(f"{bundle.path} is damaged: input {place} is missing")
    if data.get("kind") not in SPECS:
        return kept
    options = _values(bundle, data.get("options"), f"input {place}")
    try:
        return getattr(specs, data["kind"])(*data["shape"], **options)
    except (TypeError, UsageError) as error:
        raise UsageError(f"{bundle.path} is damaged: input {place}: {error}") from error


def _literals(bundle: Bundle, key: str, known: Any) -> dict[str, Any]:
    values = _values(bundle, bundle.data[key], key)
    return {name: value for name, value in values.items() if name in known}


def _values(bundle: Bundle, texts: Any, what: str) -> dict[str, Any]:
    if not isinstance(texts, dict):
        raise UsageError(f"{bundle.path} is damaged: {what} is {texts!r}")
    return {name: value(bundle.path, what, text) for name, text in texts.items()}


def value(path: str, what: str, text: Any) -> Any:
    """Return one literal of a bundle. Raises UsageError for anything else."""
    try:
        if not isinstance(text, str) or len(text) > 10_000:
            raise ValueError("no short text")
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged: {what} holds {str(text)[:40]!r}, no literal"
        ) from error


def rebuild(bundle: Bundle) -> Any:
    """Return the torch side of a bundle: a class of torch.nn called with literals, nothing else.

    Raises UsageError where that is not enough, or where it does not fit the saved weights.
    """
    theirs = bundle.data["theirs"]
    made = theirs.get("made")
    if isinstance(made, dict):
        return _made(bundle, made, 0)
    target = str(theirs.get("target"))
    place, _, name = target.partition(":")
    if place == "torch.nn.functional" and name.isidentifier() and not theirs.get("args"):
        import torch.nn.functional as functional

        found = getattr(functional, name, None)
        if not theirs.get("config") and callable(found) and not name.startswith("_"):
            return found
    raise UsageError(
        f"{bundle.path}: the torch side was {target}, which is not rebuilt from a file; "
        "name it with --theirs FILE_OR_MODULE:NAME"
    )


def _made(bundle: Bundle, made: Any, depth: int) -> Any:
    from torch import nn

    name = made.get("class") if isinstance(made, dict) else None
    kind = getattr(nn, name, None) if isinstance(name, str) and name.isidentifier() else None
    if depth > 16 or not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UsageError(f"{bundle.path} names {name!r} as its torch side, no class of torch.nn")
    children = [_made(bundle, child, depth + 1) for child in made.get("children") or []]
    config = _values(bundle, made.get("config"), str(name))
    if any(_biggest(item) > 2**20 for item in config.values()):
        raise UsageError(f"{bundle.path} asks for a {name} of absurd size: {config!r}")
    known = sum(array.size for array in bundle.arrays["initial"].values())
    try:
        meta = None if children else _weight_count(kind, config)
        if meta is not None and meta > known:
            raise UsageError(f"{bundle.path} asks for a {name} larger than its saved weights")
        return kind(*children, **config)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{bundle.path}: {name} refuses {config!r}: {error}") from error


def _biggest(item: Any) -> float:
    if isinstance(item, (tuple, list)):
        return max((_biggest(each) for each in item), default=0)
    return abs(item) if isinstance(item, (int, float)) else 0


def _weight_count(kind: type, config: Mapping[str, Any]) -> int | None:
    """How many weights a module would have, found out without taking their memory."""
    import torch

    from parity.quirks import holds

    if not holds("device_is_context"):
        return None
    with torch.device("meta"):
        return sum(p.numel() for p in kind(**config).parameters())
