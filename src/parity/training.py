"""``check_training``: a whole training run beside torch's, step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from parity.findings import FAILING, Cause, Finding, Report, UsageError, Verdict, unique
from parity.vacuity import ONE_CODE, gap_text

__all__ = ["check_training"]


def check_training(
    model: Any,
    reference: Any,
    *,
    loss: Any = None,
    optimizer: Any = None,
    batches: Any = None,
    epochs: int = 1,
    scheduler: Any = None,
    **options: Any,
) -> Report:
    """Train both sides from the same weights on the same batches, and compare every step.

    ``model`` keeps the contract of a layer, or is a torch.nn.Module, ``parity.functions(…)`` or a
    factory; ``reference`` is a torch.nn.Module whose weights both sides start from. ``loss`` is a
    pair: an object with ``forward(prediction, target)`` and ``backward(grad_output=1.0)``, and
    torch's loss. ``optimizer`` is a pair of factories: ``lambda model: MySGD(model, lr=0.1)``,
    called on a copy of the model, and ``lambda params: torch.optim.SGD(params, lr=0.1)``;
    ``scheduler`` likewise a pair of factories from the optimizer, stepped after every epoch.
    ``batches`` is a list of (x, y) pairs of arrays (N, \\*), one pair for a full batch, or a
    function from the epoch to such a list. Options: see :class:`parity.options.Options`; with
    ``seeds`` above 1 the further seeds start from other weights.

    Compared at every step, in float64, against what rounding explains: the loss ("trajectory"),
    gradients, parameters, buffers and optimizer state (``optimizer.state``: name → {slot: array},
    slots named as in torch); after the last step the predictions in evaluation mode. The float32
    losses are held against the envelope of correct float32 runs. ``Finding.step`` counts from 1
    and names the first step at which the two part. No object of yours is touched.

    Raises UsageError for what cannot be trained at all, NotImplementedError for options that only
    :func:`parity.check` has; code of yours that raises is a finding.
    """
    from parity.trajectories.plan import make_plan

    plan = make_plan(model, reference, loss, optimizer, batches, epochs, scheduler, options)
    return _report(plan, model, loss)


def _report(plan: Any, model: Any, loss: Any) -> Report:
    from parity.environment import versions
    from parity.trajectories.notes import notes_of, uncovered
    from parity.trajectories.sameness import one_code

    findings: list[Finding] = []
    notes: list[str] = []
    missing: list[str] = []
    for seed in plan.options.all_seeds:
        judge = _run(plan, seed)
        found = list(judge.findings())
        if plan.options.diagnose:
            found = _explained(judge, found)
        findings += found
        notes += notes_of(judge)
        missing += uncovered(judge)
    differ = any(f.verdict is Verdict.MISMATCH for f in findings)
    if not differ and one_code(plan, model, loss):
        facts = {"message": ONE_CODE}
        findings.insert(0, Finding(plan.case, "both", verdict=Verdict.VACUOUS, evidence=facts))
    options = plan.options
    return Report(
        case=plan.case,
        findings=tuple(_gaps(findings, options.gaps, plan.case)),
        notes=unique(notes),
        covers=(
            "training mode at every step, evaluation mode for the final predictions",
            plan.batches.describe(),
            f"precisions {', '.join(options.dtypes)}",
            f"seeds {', '.join(map(str, options.all_seeds))}",
        ),
        not_covered=unique(missing),
        strict=options.strict,
        versions=versions(),
    )


def _run(plan: Any, seed: int) -> Any:
    from parity.envelope import run32
    from parity.trajectories.exact import second_look
    from parity.trajectories.lockstep import Lockstep, run64
    from parity.trajectories.verdicts import Judge

    start = plan.start(seed)
    course = None
    if "float64" in plan.options.dtypes:
        course = second_look(plan, start, run64(Lockstep(plan, start)))
    envelope = None
    if "float32" in plan.options.dtypes and not (course and course.failure):
        watch = set()
        if course is not None:
            for name, track in course.tracks.items():
                watch |= {(parting.step, name) for parting in track.partings}
        envelope = run32(plan, start, watch)
    elif course is not None and course.narrow:
        raise UsageError("mine computes in float32 only; leave float32 among dtypes")
    return Judge(plan, seed, course, envelope)


def _explained(judge: Any, found: list[Finding]) -> list[Finding]:
    """Name the cause of the first parting, where one is known that explains it."""
    if not any(f.verdict is Verdict.MISMATCH and f.cause is None for f in found):
        return found
    from parity.trajectories.causes import cause_of

    cause = cause_of(judge)
    if cause is None:
        return found
    return [
        f.with_cause(cause) if f.verdict is Verdict.MISMATCH and f.cause is None else f
        for f in found
    ]


def _gaps(findings: list[Finding], gaps: Any, case: str) -> list[Finding]:
    """A declared gap is skipped while it is open, and an error once it has closed."""
    for quantity, reason in gaps.items():
        still = found = False
        for i, finding in enumerate(findings):
            found = found or finding.quantity == quantity
            if finding.quantity == quantity and finding.verdict in FAILING | {Verdict.INACCURATE}:
                still = True
                facts = {**finding.evidence, "message": f"declared gap: {reason}"}
                findings[i] = replace(finding, verdict=Verdict.SKIPPED, cause=None, evidence=facts)
        if not still:
            text = gap_text(quantity, reason, [] if found else findings)
            findings.append(
                Finding(
                    case, quantity, verdict=Verdict.ERROR, cause=Cause("gap_closed", text),
                    evidence={"message": text},
                )
            )  # fmt: skip
    return findings
