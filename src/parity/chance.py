"""Sides that are random beyond the dropout masks they can share: said once, never compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from parity.draws import Draw
from parity.examination import Examination, doubtful
from parity.findings import Verdict
from parity.judged import Judged
from parity.ladder import judge64, response, same_bits
from parity.outcomes import Array, LayerError
from parity.pair import PERTURBED, Pair
from parity.sizes import probe_shapes

OTHER_SEEDS = 8  # of torch's generator: dropout of a small share may spare a small draw
NAME = "random_beyond_dropout"
MODES = {True: ("train", "training"), False: ("eval", "evaluation")}
Quantities = Mapping[str, Array | None]


def without_chance(exam: Examination, reached: bool, judge: Callable[[Examination], bool]) -> bool:
    """Put one finding in the place of all those that chance made; return whether ``judge`` ended.

    Two sides that draw alike from torch's seed agree, and are judged like any others: only where
    something failed is it asked whether a side is random in that mode, and where something matched
    within noise alone, whether the reference repeats itself. Then the other mode alone is judged,
    by ``judge``, and the finding is VACUOUS: what was not compared must not pass.
    """
    found: list[Judged] = []
    for training in (True, False):
        options = exam.pair.options
        asked = options.modes or ("train", "eval")
        failed, doubted = _failed(exam, MODES[training][0]), _doubted(exam, MODES[training][0])
        draw = _draw(exam.pair, training) if failed or doubted else None
        if draw is None:
            continue
        text = unsteady(exam.pair, draw) or (random_side(exam.pair, draw) if failed else None)
        if text is None:
            continue
        found.append(
            Judged(
                "randomness", "float64", Verdict.VACUOUS, None, Draw((), training=training),
                message=text, cause=(NAME, text),
            )
        )  # fmt: skip
        exam.forget()
        rest = tuple(mode for mode in asked if mode != MODES[training][0])
        exam.pair.options = replace(options, modes=rest or options.modes)
        if rest:
            reached = judge(exam)
    exam.add_all(found)
    return reached


def _failed(exam: Examination, mode: str) -> bool:
    """Whether a draw in ``mode`` did not simply match."""
    findings = [exam.findings[i] for i in exam.failed]
    return any(f.quantity != "both" and f.evidence.get("mode") == mode for f in findings)


def _doubted(exam: Examination, mode: str) -> bool:
    return any(doubtful(f) and f.evidence.get("mode") == mode for f in exam.findings)


def unsteady(pair: Pair, draw: Draw) -> str | None:
    """Return the sentence on a reference that answers the same draw otherwise the next time."""
    try:
        first = pair.theirs(draw).quantities
        others = [pair.theirs(draw).quantities for _ in range(PERTURBED)]
    except LayerError:
        return None
    others = [other for other in others if not same_bits(other, first)]
    if not any(_apart(first, other, ()) for other in others):
        return None  # equal, but for the order in which threads add up
    return (
        "the reference answers the same numbers otherwise the next time, in "
        f"{MODES[draw.training][1]}: it counts its calls, or keeps something outside of its "
        "buffers from one to the next, so that there is nothing to compare with: give it without "
        "that"
    )


def random_side(pair: Pair, draw: Draw) -> str | None:
    """Return the sentence on a side that answers ``draw`` otherwise under other seeds; else None.

    Mine is asked only where the reference drops something, without a mask that both could share:
    beside a reference that is not random, randomness is a fault like any other.
    """
    mode = MODES[draw.training][1]
    try:
        if _wanders(draw, lambda given: pair.theirs(given).quantities):
            return (
                f"the reference is random in {mode} beyond its nn.Dropout modules (the same numbers"
                " give another answer under another seed of torch), so that there is nothing to "
                f"compare with: {_advice(draw)}"
            )
        dropped = draw.training and any(p > 0 for p in pair.reference.dropouts)
        if not dropped or pair.masked(draw, pair.mine(draw)) is not draw:
            return None
        if _wanders(draw, lambda given: pair.mine(given).quantities):
            return (
                f"mine is random in {mode} and shares no masks with the reference's nn.Dropout "
                "modules, so that there is nothing to compare: give its dropout as layers with a "
                "mask, or as nn.Dropout modules, or ask for modes='eval'"
            )
    except LayerError:
        return None
    return None


def _advice(draw: Draw) -> str:
    if not draw.training:
        return "give it without what makes it random"
    return "give its dropout as nn.Dropout modules or set it to 0, or ask for modes='eval'"


def _draw(pair: Pair, training: bool) -> Draw | None:
    try:
        return pair.draw(pair.options.seed, training, "generic", probe_shapes(pair))
    except LayerError:
        return None


def _wanders(draw: Draw, run: Callable[[Draw], Quantities]) -> bool:
    """Whether ``run`` answers one draw otherwise, by more than rounding, under another seed."""
    first = run(draw)
    others = [run(replace(draw, seed=draw.seed + k)) for k in range(1, 1 + OTHER_SEEDS)]
    others = [other for other in others if not same_bits(other, first)]
    if not others:
        return False
    rng = np.random.default_rng([draw.seed, 13])
    runs = [run(draw.nudged(rng, np.float64)) for _ in range(PERTURBED)]
    return any(_apart(first, other, runs) for other in others)


def _apart(first: Quantities, other: Quantities, runs: Sequence[Quantities]) -> bool:
    """Whether a quantity differs by more than rounding explains."""
    for name, ref in first.items():
        own = other.get(name)
        if ref is None or own is None or ref.dtype.kind != "f" or own.shape != ref.shape:
            continue
        noise = response(ref, [a for r in runs if (a := r.get(name)) is not None])
        judged = judge64(own, ref, noise)
        if judged.nonfinite or not (judged.inside or judged.undecided):
            return True
    return False
