"""The float64 and float32 rungs of one seed and mode; draws that sit on a kink are drawn again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parity.draws import Draw
from parity.examination import Examination
from parity.findings import FAILING, Verdict
from parity.judged import Judged
from parity.ladder import EPS64, largest, response
from parity.outcomes import LayerError, Outcome
from parity.pair import Pair

REDRAWS = 3


class ReferenceRefused(Exception):
    """The reference itself does not take these inputs."""


def modes_of(exam: Examination) -> tuple[str, ...]:
    """Return the modes to judge: both where the reference keeps state, training alone else."""
    if exam.pair.options.modes is not None:
        return exam.pair.options.modes
    has_state = bool(exam.pair.reference.buffers or exam.pair.reference.dropouts)
    return ("train", "eval") if has_state else ("train",)


def computes_float32(mine: Outcome) -> bool:
    """Whether a run on float64 numbers was made in float32 throughout.

    A loss may come as a Python float, which has one precision only: then the number itself and
    the gradients tell.
    """
    real = [o for o in mine.outputs if o.dtype.kind == "f"]
    sized = {o.dtype.name for o in real if o.ndim}
    if sized or not real:
        return sized == {"float32"}
    grads = {
        a.dtype.name
        for name, a in mine.quantities.items()
        if name.startswith("grad_input") and a is not None
    }
    with np.errstate(over="ignore", under="ignore"):
        narrow = all(np.array_equal(o.astype(np.float32), o, equal_nan=True) for o in real)
    return narrow and grads == {"float32"}


def judge_rungs(exam: Examination, seed: int, training: bool) -> bool:
    """Judge one seed and mode on the float64 and float32 rungs; False where mine failed."""
    pair, options = exam.pair, exam.pair.options
    try:
        draw = pair.draw(seed, training)
        theirs = pair.theirs(draw)
    except LayerError as refusal:
        raise ReferenceRefused(str(refusal)) from refusal
    try:
        if "float64" in options.dtypes and "float64" in options.rungs:
            mine = pair.mine(draw)
            exam.float32_only = computes_float32(mine)
            exam.remark(mine, theirs, draw, "float64")
            if exam.float32_only:
                exam.notes.append("mine computes in float32 only: judged in float32 and exactly")
            else:
                exam.add_all(
                    _settled(pair, pair.float64(draw, mine, theirs=theirs), seed, training)
                )
    except LayerError as failure:
        exam.error(failure, draw)
        return False
    try:
        if "float32" in options.dtypes and "float32" in options.rungs:
            _float32(exam, draw, theirs)
    except LayerError as failure:
        exam.error(failure, draw, "float32")
    return True


def _settled(pair: Pair, found: list[Judged], seed: int, training: bool) -> list[Judged]:
    """Hold the inputs still where a draw sat on a kink, or draw again."""
    from parity.kinks import on_kinks

    found = on_kinks(pair, found)
    for attempt in range(REDRAWS):
        open_names = {j.quantity for j in found if j.verdict is Verdict.UNDECIDED}
        if not open_names:
            break
        try:
            again = pair.float64(pair.draw(seed, training, f"redraw{attempt}"))
        except LayerError:
            break
        decided = {j.quantity: j for j in again if j.quantity in open_names}
        found = [decided.get(j.quantity, j) if j.verdict is Verdict.UNDECIDED else j for j in found]
    return found


def _float32(exam: Examination, draw: Draw, theirs: Outcome) -> None:
    pair = exam.pair
    rounded = draw.rounded(np.float32)
    narrow = pair.mine(rounded, "float32")
    mode = "train" if draw.training else "eval"
    errors64 = {
        f.quantity: float(f.evidence.get("error", 0.0))
        for f in exam.findings
        if f.dtype == "float64" and f.seed == draw.seed and f.evidence.get("mode") == mode
    }
    found = pair.float32(rounded, errors64=errors64, mine=narrow)
    wrong64 = {f.quantity for f in exam.findings if f.verdict is Verdict.MISMATCH}
    suspicious = [
        j
        for j in found
        if j.verdict in FAILING | {Verdict.INACCURATE} and j.quantity not in wrong64
    ]
    if suspicious:
        found = _off_kinks(exam, draw, found)
    exam.add_all(found)
    exam.remark(narrow, theirs, draw, "float32")


def _off_kinks(exam: Examination, draw: Draw, found: list[Judged]) -> list[Judged]:
    """A float32 pre-activation that rounds across a kink is no fault: draw again, or leave open."""
    pair = exam.pair
    for attempt in range(REDRAWS):
        bad = {j.quantity for j in found if j.verdict in (Verdict.MISMATCH, Verdict.INACCURATE)}
        if not bad or not near_kink(pair, draw.rounded(np.float32), bad):
            return found
        draw = pair.draw(draw.seed, draw.training, f"off-kink{attempt}")
        again = {j.quantity: j for j in pair.float32(draw)}
        found = [again.get(j.quantity, j) if j.quantity in bad else j for j in found]
    bad = {j.quantity for j in found if j.verdict in (Verdict.MISMATCH, Verdict.INACCURATE)}
    if bad and near_kink(pair, draw.rounded(np.float32), bad):
        return [replace(j, verdict=Verdict.UNDECIDED) if j.quantity in bad else j for j in found]
    return found


def near_kink(pair: Pair, draw: Draw, names: set[str]) -> bool:
    """Whether float32-sized moves change the float64 answer out of proportion to tiny ones."""
    theirs = pair.theirs(draw).quantities
    wide = []
    for seed in range(3):
        rng = np.random.default_rng([draw.seed, 11, seed])
        moved = draw.nudged(rng, np.float32)
        for _ in range(3):
            moved = moved.nudged(rng, np.float32)
        wide.append(pair.theirs(moved).quantities)
    close = pair.noise(draw, theirs, 3)
    for name in names:
        ref = theirs.get(name)
        if ref is None or ref.dtype.kind != "f":
            continue
        far = largest(response(ref, [a for r in wide if (a := r.get(name)) is not None]))
        near = largest(close[name])
        if far > 64 * 2.0**29 * (near + EPS64 * largest(ref)):
            return True
    return False
