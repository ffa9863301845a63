"""What a pass leaves behind: changed parameters, a cache that another batch or layer is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from parity.draws import Draw
from parity.examination import Examination
from parity.ladder import judge64
from parity.outcomes import Array, LayerError, Outcome, alike, forward_names
from parity.pair import Pair
from parity.subjects import as_arrays, backward, begin, cast, guarded


def leaves_nothing(exam: Examination, draw: Draw) -> None:
    """Check that parameters stay, and that neither batches nor layers meet in a cache."""
    pair = exam.pair
    runner = pair.subject.spawn("float64")
    first = pair.mine(draw, "float64", runner)
    _keeps_parameters(exam, draw, runner)
    said = any(f.failed and f.quantity in ("repeat", "aliasing", "step") for f in exam.findings)
    if said or pair.reference.dropouts:
        return
    other = pair.draw(draw.seed + 1, draw.training, "generic", tuple(a.shape for a in draw.inputs))
    if _forgets(exam, other, runner):
        _stands_apart(exam, draw, other, first)


def _keeps_parameters(exam: Examination, draw: Draw, runner: Any) -> None:
    """A pass reads the parameters; what changes them is the optimizer's step."""
    pair = exam.pair
    changed = _changed(pair, draw, runner)
    if not changed or _reference_changes(pair, draw):
        return
    without = replace(draw, upstream=(None,) * len(draw.upstream))
    pair.mine(without, "float64", runner)
    phase = "forward" if _changed(pair, draw, runner) else "backward"
    text = f"parameter {changed[0]} was changed by {phase}, which is for the optimizer to do"
    exam.fault("untouched", draw, "parameter_modified", text)


def _changed(pair: Pair, draw: Draw, runner: Any) -> list[str]:
    """Return the draw's parameters that the layer no longer holds as they were handed over."""
    held = (getattr(runner, "held", None) or runner.params)()
    found = []
    for name, array in draw.params.items():
        own = held.get(pair.names.mine(name))
        given = pair.names.to_mine(name, array)
        if own is not None and np.shape(own) == given.shape and not _same(np.asarray(own), given):
            found.append(name)
    return found


def _same(own: Array, given: Array) -> bool:
    """Whether a parameter is as given, in the precision in which the layer holds it."""
    return alike(own, given.astype(own.dtype)) if own.dtype.kind == "f" else True


def _reference_changes(pair: Pair, draw: Draw) -> bool:
    """Whether torch's own pass changes parameters too, as Embedding's max_norm does."""
    pair.theirs(draw)
    held = pair.reference.held()
    return any(name in held and not _same(held[name], a) for name, a in draw.params.items())


def _forgets(exam: Examination, other: Draw, runner: Any) -> bool:
    """Whether a runner that has seen a batch answers another as a fresh copy of the layer does."""
    pair = exam.pair
    late, fresh = pair.mine(other, "float64", runner), pair.mine(other)
    changed = _different(late.quantities, fresh.quantities)
    if changed:
        text = (
            "a second batch is answered otherwise than by a fresh layer: something of the first "
            f"was kept ({', '.join(changed)})"
        )
        exam.fault("repeat", other, "state_kept", text)
    return not changed


def _stands_apart(exam: Examination, draw: Draw, other: Draw, alone: Outcome) -> None:
    """Two layers of one kind, used in turns, do not see each other's numbers."""
    pair = exam.pair
    try:
        found = _interleaved(pair, pair.subject.spawn("float64"), draw, other).quantities
    except LayerError as failure:
        exam.not_covered.append(f"two passes in turns ({failure})")
        return
    wanted = {n: a for n, a in alone.quantities.items() if n in found and "buffer_" not in n}
    changed = _different(found, wanted)
    if changed:
        text = (
            "a pass of another layer of the same kind, between forward and backward, changes "
            f"{', '.join(changed)}: both keep their numbers in one place"
        )
        exam.fault("aliasing", draw, "workspace_shared", text)


def _interleaved(pair: Pair, one: Any, draw: Draw, other: Draw) -> Outcome:
    """Return a pass over ``draw`` between whose forward and backward comes one over ``other``."""
    if hasattr(one, "held"):  # a torch module runs itself; it may well be called twice
        return one.run(draw, "float64", pair.names, between=other.inputs)
    two = pair.subject.spawn("float64")
    outcome = Outcome(())
    outputs = _forward(pair, one, draw, outcome)
    outcome.outputs = tuple(np.array(output) for output in outputs)
    _forward(pair, two, other, Outcome(()))
    # as they are now: the caller of the first layer still holds them
    outcome.quantities.update(zip(forward_names(len(outputs)), map(np.array, outputs), strict=True))
    if any(g is not None for g in draw.upstream):
        backward(one, draw, outcome, "float64", pair.names)
    return outcome


def _forward(pair: Pair, runner: Any, draw: Draw, outcome: Outcome) -> tuple[Array, ...]:
    begin(runner, draw, "float64", pair.names)
    inputs = (cast(array, "float64") for array in draw.inputs)
    return as_arrays(guarded("forward", outcome, runner.forward, *inputs), "forward")


def _different(mine: Mapping[str, Array | None], wanted: Mapping[str, Array | None]) -> list[str]:
    """Return the quantities that differ by more than another order of summation would make."""
    found = []
    for name, ref in wanted.items():
        own = mine.get(name)
        if own is None or ref is None:
            if own is not ref:
                found.append(name)
        elif own.shape != ref.shape:
            found.append(name)
        elif not alike(own, ref):
            judged = judge64(own, ref, np.zeros(ref.shape), pinned=True)
            if not judged.inside:
                found.append(name)
    return found
