"""Failures of a sweep grouped by cause, each group with its smallest case."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from parity.processes import Fault, answers
from parity.sweeping.plan import Plan, as_record, draw_case, layers_of, run_case
from parity.sweeping.spaces import CaseDraw, Drawn

BAD = ("ERROR", "MISMATCH")
GROUPS = 20  # that are shrunk
PATIENCE = 20.0  # seconds that shrinking one group may take
Key = tuple[str, str, str]


@dataclass
class Group:
    """Cases of one layer that fail in the same way."""

    layer: str
    verdict: str
    cause: str
    text: str
    example: int
    quantities: set[str] = field(default_factory=set)
    count: int = 0
    smallest: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "layer": self.layer,
            "verdict": self.verdict,
            "cause": self.cause,
            "text": self.text,
            "example": f"{self.layer}:{self.example}",
            "quantities": sorted(self.quantities),
            "count": self.count,
            "smallest": self.smallest,
        }


def key_of(record: dict[str, Any]) -> Key | None:
    """Return (verdict, cause, text) of a record; failures with one key are taken for one bug."""
    failures = [f for f in record["failures"] if f["verdict"] == record["verdict"]]
    if not failures:
        return None
    first = next((f for f in failures if f["cause"]), failures[0])
    cause = first["cause"] or f"{first['quantity']} differs, cause unknown"
    return record["verdict"], cause, first["text"]


def grouped(records: Iterable[dict[str, Any]]) -> tuple[dict[str, int], list[Group]]:
    """Return (verdict → count, groups with the largest first); INACCURATE and UNDECIDED too."""
    counts: dict[str, int] = {}
    groups: dict[tuple[str, str, str], Group] = {}
    for item in records:
        counts[item["verdict"]] = counts.get(item["verdict"], 0) + 1
        key = key_of(item)
        if key is None:
            continue
        verdict, cause, text = key
        layer, _, number = item["id"].rpartition(":")
        group = groups.setdefault(
            (layer, verdict, cause), Group(layer, verdict, cause, text, int(number))
        )
        if int(number) < group.example:  # the order in which results came does not show
            group.example, group.text = int(number), text
        group.count += 1
        group.quantities |= {f["quantity"] for f in item["failures"]}
    order = ("ERROR", "MISMATCH", "INACCURATE", "UNDECIDED")
    return counts, sorted(
        groups.values(), key=lambda g: (order.index(g.verdict), -g.count, g.layer, g.cause)
    )


def shrink_all(plan: Plan, groups: list[Group]) -> None:
    """Give each failing group its smallest case."""
    for group in [g for g in groups if g.verdict in BAD][:GROUPS]:
        draw = draw_case(plan, group.layer, group.example)
        if group.cause == "timed_out":
            group.smallest = draw.drawn.config()  # each trial would take the whole limit
            continue
        group.smallest = shrunk(plan, group.layer, draw, (group.verdict, group.cause)).config()


def shrunk(plan: Plan, layer: str, draw: CaseDraw, key: tuple[str, str]) -> Drawn:
    """Return the smallest configuration that still fails in the same way."""
    until = time.monotonic() + PATIENCE
    valid = layers_of(plan)[layer].valid
    plain = replace(draw, full=False)  # probes try other batch sizes by themselves
    if draw.full and _first(plan, layer, [plain], key, until) is not None:
        draw = plain
    while time.monotonic() < until:
        trials = [d for d in smaller(draw.drawn) if valid is None or valid(d)]
        found = _first(plan, layer, [replace(draw, drawn=d) for d in trials], key, until)
        if found is None:
            break
        draw = found
    return draw.drawn


def _first(
    plan: Plan, layer: str, draws: list[CaseDraw], key: tuple[str, str], until: float
) -> CaseDraw | None:
    """Return the first of ``draws`` that fails as ``key`` says, as far as time allows."""
    tasks = [partial(_attempt, plan, layer, draw) for draw in draws]
    for draw, answer in zip(draws, answers(tasks, plan.timeout, plan.memory), strict=False):
        if isinstance(answer, Fault):
            failed = ("ERROR", answer.name)
        else:
            failed = (key_of(answer) or ("", "", ""))[:2]
        if failed == key:
            return draw
        if time.monotonic() > until:
            break
    return None


def _attempt(plan: Plan, layer: str, draw: CaseDraw) -> dict[str, Any]:
    return as_record(draw, run_case(plan, layer, draw))


def smaller(drawn: Drawn) -> Iterator[Drawn]:
    """Yield configurations one step smaller: fewer options, smaller numbers, smaller inputs."""
    for name in drawn.options:
        rest = {n: v for n, v in drawn.options.items() if n != name}
        yield replace(drawn, options=rest)
    for name, value in drawn.options.items():
        for less in _less(value):
            yield replace(drawn, options={**drawn.options, name: less})
    for place, value in enumerate(drawn.args):
        for less in _less(value):
            args = (*drawn.args[:place], less, *drawn.args[place + 1 :])
            yield replace(drawn, args=args)
            if isinstance(value, int):  # a number of channels stands in the input's shape too
                yield replace(drawn, args=args, inputs=_resized(drawn, value, less))
    for axis in range(max((len(spec.shape) for spec in drawn.inputs), default=0)):
        for less in _less(max(s.shape[axis] for s in drawn.inputs if len(s.shape) > axis)):
            yield replace(
                drawn,
                inputs=tuple(
                    spec.with_shape((*spec.shape[:axis], less, *spec.shape[axis + 1 :]))
                    if len(spec.shape) > axis
                    else spec
                    for spec in drawn.inputs
                ),
            )


def _resized(drawn: Drawn, value: int, less: int) -> tuple[Any, ...]:
    return tuple(
        spec.with_shape(tuple(less if n == value else n for n in spec.shape))
        for spec in drawn.inputs
    )


def _less(value: Any) -> list[Any]:
    if isinstance(value, bool) or not isinstance(value, (int, tuple)):
        return []
    if isinstance(value, tuple):
        if not all(isinstance(n, int) for n in value):
            return []
        found = [
            (*value[:i], less, *value[i + 1 :]) for i, n in enumerate(value) for less in _less(n)
        ]
        return [value[0], *found] if len(set(value)) == 1 else found
    return sorted({n for n in (1, value // 2, value - 1) if 0 < n < value})
