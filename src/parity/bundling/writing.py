"""Writing a bundle: whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from parity.bundling.arrays import ARRAYS, dump, stamp
from parity.bundling.reading import FORMAT, TEXT, VERSION, as_path
from parity.draws import Draw
from parity.findings import Finding, Report, UsageError
from parity.options import Options
from parity.outcomes import Array, LayerError
from parity.reproducing import Origin, draw_of, first_failure


def write(report: Report, origin: Origin, folder: Any) -> str:
    """Write a bundle: into a folder beside the target first, so that no half is left behind."""
    target = as_path(folder)
    if target.exists() and not (target.is_dir() and _replaceable(target)):
        raise UsageError(f"{target} holds something else; name a new folder for the bundle")
    pair = origin.pair()
    finding = first_failure(report)
    draw = failing_draw(pair, finding)
    narrow = finding.dtype == "float32"
    named = _arrays(pair, draw) | _answer(pair, draw, narrow)
    arrays = dump(named)
    data = {
        "format": FORMAT,
        "version": VERSION,
        "case": report.case,
        "versions": dict(report.versions),
        "options": _options(pair.options),
        "inputs": [_spec(spec) for spec in pair.specs],
        "mine": _mine(origin),
        "theirs": _theirs(origin),
        "draw": {
            "seed": draw.seed,
            "training": draw.training,
            "label": draw.label,
            "narrow": narrow,
        },
        "findings": [found.to_dict() for found in report.failures[:32]],
        "arrays": stamp(named, arrays),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        text = json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False)
        (scratch / TEXT).write_text(text, encoding="utf-8")
        (scratch / ARRAYS).write_bytes(arrays)
        scratch.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return str(target)


def failing_draw(pair: Any, finding: Finding) -> Draw:
    """Return the draw on which ``finding`` was made. Raises UsageError where torch refuses it."""
    try:
        return draw_of(pair, finding)
    except LayerError as refusal:
        raise UsageError(
            f"torch itself refuses these inputs: {refusal}; there is no failure of yours to "
            "reproduce: give inputs that torch takes"
        ) from refusal


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


def _answer(pair: Any, draw: Draw, narrow: bool) -> dict[str, Array]:
    """What mine answers on the draw; nothing where it raises, or is not to be run in here."""
    if pair.options.isolate:
        return {}
    try:
        outcome = pair.mine(*((draw.rounded(np.float32), "float32") if narrow else (draw,)))
    except LayerError:
        return {}
    given = {f"mine/{name}": a for name, a in outcome.quantities.items() if a is not None}
    return given | {f"mine_mask/{i}": np.asarray(a) for i, a in enumerate(outcome.masks)}


def _spec(spec: Any) -> dict[str, Any]:
    options = {key: repr(value) for key, value in spec.options}
    return {"kind": spec.kind, "shape": list(spec.shape), "options": options}


def _options(options: Options) -> dict[str, str]:
    """Options as literals; arrays among the weights are saved as ``fixed``."""
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
