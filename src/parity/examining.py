"""The examination of one pair: draws, rungs, probes and promises in order, into one report."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from parity.draws import Draw
from parity.examination import Examination
from parity.findings import Report, Verdict, unique
from parity.guarding import Watch
from parity.judged import Judged
from parity.pair import Pair
from parity.rungs import ReferenceRefused, judge_rungs, modes_of
from parity.vacuity import close_gaps, look_for_one_code, look_for_vacuity


def examine(pair: Pair, mine: Any, theirs: Any) -> Report:
    """Return the report on ``pair``; ``mine`` and ``theirs`` are the objects as given.

    Global settings and random generators are left as they were, whatever the layer does.
    """
    watch = Watch()
    exam = Examination(pair)
    try:
        _examine(exam, mine, theirs)
    finally:
        changed, drawn, forked = watch.restore(), watch.drawn(), watch.forked()
        watch.restore_random()
    exam.behaviour(changed, drawn, forked)
    watch.restore_random()
    return _report(exam)


def _examine(exam: Examination, mine: Any, theirs: Any) -> None:
    """Fill ``exam``: draws, rungs, probes, promises, and causes where something failed."""
    reached = _judge(exam)
    if exam.failed or exam.doubted:
        from parity.chance import without_chance

        reached = without_chance(exam, reached, _judge)
    look_for_one_code(exam, mine, theirs)
    if reached:
        look_for_vacuity(exam)
    close_gaps(exam)
    if exam.pair.options.diagnose:
        _diagnose(exam)
        _localise(exam)


def _judge(exam: Examination) -> bool:
    """Judge draws, rungs, probes and promises; False where the rungs were not reached."""
    from parity.probes import probe
    from parity.promises import keep_promises

    options = exam.pair.options
    reached = True
    try:
        for mode in modes_of(exam):
            for seed in options.all_seeds:
                reached = judge_rungs(exam, seed, mode == "train") and reached
        if reached and "exact" in options.rungs:
            from parity.probes import exact_rung

            exact_rung(exam)
        if reached and "probes" in options.rungs:
            probe(exam)
        if reached and "promises" in options.rungs:
            keep_promises(exam)
    except ReferenceRefused as refusal:
        _refused(exam, str(refusal))
    return reached


def _diagnose(exam: Examination) -> None:
    """Name causes where something failed; the gravest question of a user."""
    if exam.failed:
        from parity.diagnosis import diagnose

        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hypotheses are tried on numbers that do not suit them
            diagnose(exam)


def _localise(exam: Examination) -> None:
    """Name the layer at which two models part; a lone layer has no place to name."""
    if exam.failed and not exam.pair.reference.lone:
        from parity.localising import localise_failure

        localise_failure(exam)


def _refused(exam: Examination, message: str) -> None:
    returned = message.startswith("returned ")
    text = f"the reference {'' if returned else 'refuses these inputs: '}{message}"
    exam.add(
        Judged(
            "forward", "float64", Verdict.ERROR, None, Draw(()), message=text,
            cause=("reference_refused", text),
        )
    )  # fmt: skip


def _report(exam: Examination) -> Report:
    from parity.environment import versions

    pair, options = exam.pair, exam.pair.options
    exam.notes[:0] = getattr(pair.subject, "notes", ())
    judged = [f for f in exam.findings if f.quantity != "randomness"]  # that mode was not compared
    covers = [
        "modes " + (", ".join(unique(str(f.evidence.get("mode")) for f in judged)) or "none"),
        "precisions " + ", ".join(unique(f.dtype for f in exam.findings)),
        "inputs " + "; ".join(spec.describe() for spec in pair.specs),
        f"seeds {', '.join(map(str, options.all_seeds))}",
        *exam.covers,
    ]
    worst = max(
        (
            f.evidence.get("conditioning", 0.0)
            for f in exam.findings
            if f.evidence.get("draw") == "generic" and not f.evidence.get("zero_by_construction")
        ),
        default=0.0,
    )
    if np.isfinite(worst) and worst >= 1000:
        exam.notes.append(f"amplifies input rounding {worst:,.0f} times")
    zero = unique(f.quantity for f in exam.findings if f.evidence.get("zero_by_construction"))
    for name in zero:
        exam.notes.append(f"{name} is zero by construction: both sides are rounding noise")
    for name, share in pair.torch_errors.items():
        exam.notes.append(
            f"torch's own float64 {name} is off by {share:.0e}: it contradicts its forward pass, "
            "which says what mine says"
        )
    return Report(
        case=pair.case,
        findings=tuple(exam.findings),
        notes=unique(exam.notes),
        covers=tuple(covers),
        not_covered=unique(exam.not_covered),
        strict=options.strict,
        versions=versions(),
    )
