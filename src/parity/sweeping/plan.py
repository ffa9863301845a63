"""One sweep as data: what is drawn, how it is examined; each case follows from it and a number."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from parity.findings import GRAVITY, Finding, Report, UsageError, Verdict
from parity.options import nearest
from parity.sweeping.spaces import LONG, CaseDraw, Layer, Space, torch_layer

DEFAULT_SPACE = "fixtures.sweep_space:SPACE"
SHARE_THREADED = 0.25  # of the cases, in which torch computes on two threads
SHOWN = 8  # failures of one case that are written down
LETTERS = 300  # of one failure's text
QUIET = (Verdict.SKIPPED, Verdict.VACUOUS)


@dataclass(frozen=True)
class Plan:
    """What decides every case of a sweep, and its limits.

    Either ``space`` names a mapping of layers (``module:NAME``), or ``mine`` and ``theirs`` name
    one pair. Every ``full``-th case is probed too; the others are judged on the float64 and
    float32 rungs. ``timeout`` is in seconds a case, ``memory`` in MiB.
    """

    space: str | None = None
    mine: str | None = None
    theirs: str | None = None
    layers: tuple[str, ...] = ()
    seed: int = 0
    full: int = 32
    timeout: float = 20.0
    memory: float = 2048.0

    def identity(self) -> dict[str, Any]:
        """Return what decides the results: a sweep is resumed only where it is the same."""
        data = asdict(self)
        return {n: v for n, v in data.items() if n not in ("timeout", "memory")} | {
            "layers": list(self.layers)
        }

    def case(self, index: int) -> tuple[str, int]:
        """Return (layer, number) of the ``index``-th case: the layers take turns."""
        turn, place = divmod(index, len(self.layers))
        return self.layers[place], turn

    def index(self, layer: str, number: int) -> int:
        """Return the place of a case in the sweep."""
        return number * len(self.layers) + self.layers.index(layer)


@lru_cache(maxsize=8)
def _space(space: str | None, mine: str | None, theirs: str | None) -> Space:
    from parity.loading import find

    if mine is not None and theirs is not None:
        made, torch_class = find(mine), find(theirs)
        if not callable(made):
            raise UsageError(f"{mine} is {type(made).__name__}; a sweep needs its class")
        name = str(getattr(made, "__name__", "layer")).lower()
        return {name: torch_layer(name, made, torch_class)}
    found = find(space or DEFAULT_SPACE)
    layers = found.values() if isinstance(found, dict) else ()
    if not layers or not all(isinstance(layer, Layer) for layer in layers):
        raise UsageError(f"{space} is no mapping of name → parity.sweeping.spaces.Layer")
    return found


def layers_of(plan: Plan) -> Space:
    """Return the layers that the plan draws from. Raises UsageError where it names none."""
    return _space(plan.space, plan.mine, plan.theirs)


def settled(plan: Plan) -> Plan:
    """Return the plan with its layers filled in. Raises UsageError for an unknown layer."""
    space = layers_of(plan)
    for name in plan.layers:
        if name not in space:
            raise UsageError(
                f"unknown layer {name!r}{nearest(name, space)}; there are: {', '.join(space)}"
            )
    return replace(plan, layers=tuple(dict.fromkeys(plan.layers)) or tuple(space))


def case_id(layer: str, number: int) -> str:
    """Return the name of a case, ``conv2d:12345``."""
    return f"{layer}:{number}"


def read_id(plan: Plan, text: str) -> tuple[str, int]:
    """Return (layer, number) of a printed id. Raises UsageError for any other text."""
    layer, colon, number = text.rpartition(":")
    space = layers_of(plan)
    if not colon or not (number.isascii() and number.isdigit()) or len(number) > 15:
        raise UsageError(f"{text!r} is no id of a case; an id is LAYER:NUMBER, as in linear:12")
    if layer not in space:
        raise UsageError(
            f"unknown layer {layer!r}{nearest(layer, space)}; there are: {', '.join(space)}"
        )
    return layer, int(number)


def draw_case(plan: Plan, layer: str, number: int) -> CaseDraw:
    """Return case ``number`` of ``layer``: a function of the plan's seed and the number alone."""
    item = layers_of(plan)[layer]
    rng = np.random.default_rng([plan.seed, zlib.crc32(layer.encode()), number])
    drawn = item.draw(rng)
    mode = item.modes[int(rng.integers(len(item.modes)))]
    seed = int(rng.integers(2**31))
    large = any(np.prod(spec.shape) >= LONG for spec in drawn.inputs)
    threads = 2 if rng.random() < SHARE_THREADED or large else 1
    full = number % plan.full == 0
    return CaseDraw(case_id(layer, number), drawn, mode, seed, full, threads)


def run_case(plan: Plan, layer: str, draw: CaseDraw) -> Report:
    """Return the report on one case."""
    import torch

    random.seed(draw.seed)
    np.random.seed(draw.seed % 2**32)
    torch.default_generator.manual_seed(draw.seed)  # the reference draws its initial weights
    return on_threads(draw.threads, partial(layers_of(plan)[layer].examine, draw))


def on_threads(number: int, task: Callable[[], Report]) -> Report:
    """Return ``task()``, run while torch computes on ``number`` threads.

    OpenMP keeps a pool for each thread that computes: a new thread gets one of its own, so that
    this also works in the fork of a process whose pool has been used.
    """
    import torch

    before = torch.get_num_threads()
    if number == before:
        return task()
    with ThreadPoolExecutor(1, initializer=partial(torch.set_num_threads, number)) as executor:
        try:
            return executor.submit(task).result()
        finally:
            torch.set_num_threads(before)


def record(plan: Plan, layer: str, number: int) -> dict[str, Any]:
    """Run one case and return its line of the results: plain data, the same on every machine."""
    draw = draw_case(plan, layer, number)
    return as_record(draw, run_case(plan, layer, draw))


def as_record(draw: CaseDraw, report: Report) -> dict[str, Any]:
    """Return the line of the results that a report gives."""
    verdicts = {f.verdict for f in report.findings if f.verdict not in QUIET}
    worst = next((name for name in GRAVITY if name in verdicts), "SKIPPED")
    bad = [f for f in report.findings if f.verdict not in (*QUIET, Verdict.MATCH)]
    return {
        "id": draw.name,
        "verdict": str(worst),
        "mode": draw.mode,
        "probed": draw.full,
        "threads": draw.threads,
        **draw.drawn.config(),
        "failures": [_failure(f) for f in bad[:SHOWN]],
    }


def fault_record(plan: Plan, layer: str, number: int, name: str, text: str) -> dict[str, Any]:
    """Return the line of a case whose process did not come back."""
    draw = draw_case(plan, layer, number)
    failure = {"quantity": "process", "dtype": "", "verdict": "ERROR", "cause": name, "text": text}
    return as_record(draw, Report(draw.name, ())) | {"verdict": "ERROR", "failures": [failure]}


def _failure(finding: Finding) -> dict[str, Any]:
    from parity.wording import numbers_text

    text = finding.cause.sentence if finding.cause else numbers_text(finding)
    return {
        "quantity": finding.quantity,
        "dtype": finding.dtype,
        "verdict": str(finding.verdict),
        "cause": finding.cause.name if finding.cause else None,
        "text": text[:LETTERS],
    }
