"""The examination of one pair: draws, rungs, probes and promises in order, into one report."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.draws import Draw
from parity.findings import FAILING, Cause, Finding, Report, UsageError, Verdict, unique
from parity.guarding import Watch, seeds
from parity.ladder import EPS64, largest, response
from parity.outcomes import Array, LayerError, Outcome
from parity.pair import Judged, Pair

REDRAWS = 3


@dataclass
class Examination:
    """What has been found so far, and what is needed to find more."""

    pair: Pair
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    covers: list[str] = field(default_factory=list)
    not_covered: list[str] = field(default_factory=list)
    failed: dict[int, Judged] = field(default_factory=dict)
    references: dict[str, list[Array]] = field(default_factory=dict)
    float32_only: bool = False

    def add(self, judged: Judged, **evidence: Any) -> Finding:
        """Turn one judged quantity into a finding and keep it."""
        facts: dict[str, Any] = {
            "mode": "train" if judged.draw.training else "eval",
            "draw": judged.draw.label,
            "shapes": [list(a.shape) for a in judged.draw.inputs],
        }
        j = judged.judgement
        if j is not None:
            facts |= {
                "error": j.error,
                "differing": j.differing,
                "size": j.size,
                "usage": j.usage,
                "conditioning": j.conditioning,
            }
            if j.shrink is not None:
                facts["shrink"] = j.shrink
            if j.zero:
                facts["zero_by_construction"] = True
            if j.yardstick:
                facts["ratio_to_torch"] = j.error / j.yardstick
        if judged.message:
            facts["message"] = judged.message
        if judged.verdict in FAILING and not any(
            f.quantity == judged.quantity and "heat" in f.evidence for f in self.findings
        ):
            from parity.reporting.heat import error_map

            heat = error_map(judged.mine, judged.theirs)
            facts |= {"heat": heat} if heat else {}
        finding = Finding(
            case=self.pair.case,
            quantity=judged.quantity,
            seed=judged.draw.seed,
            dtype=judged.dtype,
            verdict=judged.verdict,
            allowance=j.allowance if j else 0.0,
            worst=j.worst if j else None,
            cause=Cause(*judged.cause) if judged.cause else None,
            evidence=facts | evidence,
        )
        self.findings.append(finding)
        if finding.verdict not in (Verdict.MATCH, Verdict.SKIPPED):
            self.failed[len(self.findings) - 1] = judged
        return finding

    def add_all(self, found: Iterable[Judged], **evidence: Any) -> None:
        """Keep several judged quantities."""
        for judged in found:
            self.add(judged, **evidence)
            if judged.theirs is not None:
                self.references.setdefault(judged.quantity, []).append(judged.theirs)

    def remark(self, outcome: Outcome, theirs: Outcome | None, draw: Draw, dtype: str) -> None:
        """Turn how a run behaved into findings or notes."""
        allowed = {name for name, _ in theirs.remarks} if theirs else set()
        quantities = {
            "input_modified": "untouched",
            "upstream_modified": "untouched",
            "wrong_dtype": "dtype",
            "view_of_input": "aliasing",
            "changes_global_state": "globals",
            "floods_output": "printing",
        }
        for name, text in dict.fromkeys(outcome.remarks):
            if name == "warning":
                self.notes.append(f"mine warned: {text}")
            elif name == "wrong_dtype" and self._widens(text):
                self.notes.append(f"mine: {text}, where torch stays in float32")
            elif name not in allowed and not (name == "wrong_dtype" and self.float32_only):
                if any(f.quantity == quantities[name] and f.dtype == dtype for f in self.findings):
                    continue
                judged = Judged(
                    quantities[name], dtype, Verdict.MISMATCH, None, draw, message=text,
                    cause=(name, text),
                )  # fmt: skip
                self.add(judged)

    def _widens(self, text: str) -> bool:
        """Whether a course-style layer computes in float64 throughout: no fault there, but said."""
        lenient = getattr(self.pair.subject, "widens", False)
        return lenient and text.endswith("is float64 for float32 input")

    def error(self, failure: LayerError, draw: Draw, dtype: str = "float64") -> None:
        """Turn an exception of the hand-written side into a finding with its traceback."""
        cause = failure.__cause__
        trace = ""
        if cause is not None:
            trace = "".join(traceback.format_exception(cause, limit=-6))
        plain = {"weights": "missing_partner", "shape": "wrong_shape"}
        name = plain.get(failure.phase, "raised")
        where = "" if failure.phase in plain else f"{failure.phase} raised "
        message = f"{where}{failure}"
        quantity = {"weights": "weights", "backward": "backward"}.get(failure.phase, "forward")
        self.add(
            Judged(
                quantity, dtype, Verdict.ERROR, None, draw, message=message, cause=(name, message)
            ),
            traceback=trace,
        )

    def behaviour(self, changed: list[str], drawn: list[str], forked: str | None) -> None:
        """Keep what the layer did to the process: settings, random generators, copies of it."""

        def fault(quantity: str, name: str, text: str) -> None:
            if not any(f.quantity == quantity for f in self.findings):
                draw = Draw((), seed=self.pair.options.seed)
                verdict = Verdict.MISMATCH
                self.add(
                    Judged(quantity, "float64", verdict, None, draw, None, None, text, (name, text))
                )

        forgiven = getattr(self.pair.subject, "forgiven", ())
        changed = [name for name in changed if name not in forgiven]
        if changed:
            fault("globals", "changes_global_state", f"changes {', '.join(changed)} for everybody")
        if forked == "starts":
            self.notes.append("mine starts processes")
        if forked == "copies":
            fault("processes", "forks", "forks, and comes back from its pass in both processes")
        if not drawn or self.pair.reference.dropouts:
            return
        try:
            runner, draw = (
                self.pair.subject.spawn("float64"),
                self.pair.draw(self.pair.options.seed),
            )
        except (LayerError, UsageError):
            return
        # only after something moved, so that the usual check does not pay for it
        seeded = seeds(lambda: self.pair.mine(draw, "float64", runner), drawn)
        if seeded:
            text = f"seeds the global random generator of {', '.join(seeded)} in every pass"
            fault("globals", "seeds_global_random_state", text)
        else:
            self.notes.append(f"mine reads the global random generator of {', '.join(drawn)}")


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
    from parity.probes import probe
    from parity.promises import keep_promises

    pair, options = exam.pair, exam.pair.options
    if _same(mine, theirs, pair):
        _vacuous(exam, "both", "both sides are the same object or the same code")
    reached = True
    try:
        for mode in _modes(exam):
            for seed in options.all_seeds:
                reached = _generic(exam, seed, mode == "train") and reached
        if reached and "exact" in options.rungs:
            from parity.probes import exact_rung

            exact_rung(exam)
        if reached and "probes" in options.rungs:
            probe(exam)
        if reached and "promises" in options.rungs:
            keep_promises(exam)
    except _ReferenceRefused as refusal:
        _refused(exam, str(refusal))
    if reached:
        _vacuity(exam)
    _close_gaps(exam)
    if options.diagnose:
        _diagnose(exam)
        _localise(exam)


class _ReferenceRefused(Exception):
    """The reference itself does not take these inputs."""


def _modes(exam: Examination) -> tuple[str, ...]:
    if exam.pair.options.modes is not None:
        return exam.pair.options.modes
    has_state = bool(exam.pair.reference.buffers or exam.pair.reference.dropouts)
    return ("train", "eval") if has_state else ("train",)


def _generic(exam: Examination, seed: int, training: bool) -> bool:
    """Judge one seed and mode on the float64 and float32 rungs; False where mine failed."""
    pair, options = exam.pair, exam.pair.options
    try:
        draw = pair.draw(seed, training)
        theirs = pair.theirs(draw)
    except LayerError as refusal:
        raise _ReferenceRefused(str(refusal)) from refusal
    try:
        if "float64" in options.dtypes and "float64" in options.rungs:
            mine = pair.mine(draw)
            kinds = {o.dtype.name for o in mine.outputs if o.dtype.kind == "f" and o.ndim}
            exam.float32_only = kinds == {"float32"}
            exam.remark(mine, theirs, draw, "float64")
            if exam.float32_only:
                exam.notes.append("mine computes in float32 only: judged in float32 and exactly")
            else:
                exam.add_all(_settled(pair, pair.float64(draw, mine), seed, training))
    except LayerError as failure:
        exam.error(failure, draw)
        return False
    try:
        if "float32" in options.dtypes and "float32" in options.rungs:
            _float32(exam, draw)
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


def _float32(exam: Examination, draw: Draw) -> None:
    pair = exam.pair
    narrow = pair.mine(draw.rounded(np.float32), "float32")
    mode = "train" if draw.training else "eval"
    errors64 = {
        f.quantity: float(f.evidence.get("error", 0.0))
        for f in exam.findings
        if f.dtype == "float64" and f.seed == draw.seed and f.evidence.get("mode") == mode
    }
    found = pair.float32(draw, errors64=errors64)
    wrong64 = {f.quantity for f in exam.findings if f.verdict is Verdict.MISMATCH}
    suspicious = [
        j
        for j in found
        if j.verdict in FAILING | {Verdict.INACCURATE} and j.quantity not in wrong64
    ]
    if suspicious:
        found = _off_kinks(exam, draw, found)
    exam.add_all(found)
    exam.remark(narrow, pair.theirs(draw), draw, "float32")


def _off_kinks(exam: Examination, draw: Draw, found: list[Judged]) -> list[Judged]:
    """A float32 pre-activation that rounds across a kink is no fault: draw again, or leave open."""
    pair = exam.pair
    for attempt in range(REDRAWS):
        bad = {j.quantity for j in found if j.verdict in (Verdict.MISMATCH, Verdict.INACCURATE)}
        if not bad or not _near_kink(pair, draw.rounded(np.float32), bad):
            return found
        draw = pair.draw(draw.seed, draw.training, f"off-kink{attempt}")
        again = {j.quantity: j for j in pair.float32(draw)}
        found = [again.get(j.quantity, j) if j.quantity in bad else j for j in found]
    bad = {j.quantity for j in found if j.verdict in (Verdict.MISMATCH, Verdict.INACCURATE)}
    if bad and _near_kink(pair, draw.rounded(np.float32), bad):
        return [replace(j, verdict=Verdict.UNDECIDED) if j.quantity in bad else j for j in found]
    return found


def _near_kink(pair: Pair, draw: Draw, names: set[str]) -> bool:
    """Whether float32-sized moves change the float64 answer out of proportion to tiny ones."""
    theirs = pair.theirs(draw).quantities
    wide = []
    for seed in range(3):
        rng = np.random.default_rng([draw.seed, 11, seed])
        moved = draw.nudged(rng, np.float32)
        for _ in range(3):
            moved = moved.nudged(rng, np.float32)
        wide.append(pair.theirs(moved).quantities)
    close = pair.perturbed(draw, "float64", 3)
    for name in names:
        ref = theirs.get(name)
        if ref is None or ref.dtype.kind != "f":
            continue
        far = largest(response(ref, [a for r in wide if (a := r.get(name)) is not None]))
        near = largest(response(ref, [a for r in close if (a := r.get(name)) is not None]))
        if far > 64 * 2.0**29 * (near + EPS64 * largest(ref)):
            return True
    return False


def _same(mine: Any, theirs: Any, pair: Pair) -> bool:
    if mine is theirs:
        return True
    return type(mine) is type(theirs) and hasattr(mine, "state_dict") and repr(mine) == repr(theirs)


def _vacuous(exam: Examination, quantity: str, message: str) -> None:
    draw = Draw(())
    exam.add(Judged(quantity, "float64", Verdict.VACUOUS, None, draw, message=message))


def _vacuity(exam: Examination) -> None:
    """A comparison of zero with zero, over every draw, proves nothing: say so."""
    options, pair = exam.pair.options, exam.pair
    given = not pair.reference.params and all(spec.kind == "array" for spec in pair.specs)
    for name, arrays in exam.references.items():
        if options.zero_expected(name) or name.startswith("buffer_"):
            continue
        if any(array.dtype.kind != "f" for array in arrays):
            continue
        # arrays that the user gave are the same in every draw, and so is what follows from them
        values = [a for a in arrays if a.size][: 1 if given and name == "forward" else None]
        if not values:
            _vacuous(exam, name, "there is nothing to compare: the tensor is empty")
        elif name.startswith("grad_") and not any(
            largest(a) or not np.isfinite(a).all() for a in values
        ):
            _vacuous(exam, name, "the reference gradient is zero throughout")
        elif name.startswith("forward") and _constant_everywhere(values):
            _vacuous(exam, name, "the output is constant: it does not depend on anything")


def _constant_everywhere(values: list[Array]) -> bool:
    first = values[0].flat[0]
    if len(values) == 1 and values[0].size == 1:
        return False  # one number cannot show whether it moves
    return all(bool((array == first).all()) for array in values)


def _close_gaps(exam: Examination) -> None:
    """A declared gap is skipped while it is open, and an error once it has closed."""
    gaps = exam.pair.options.gaps
    for quantity, reason in gaps.items():
        mine = [i for i, f in enumerate(exam.findings) if f.quantity == quantity]
        still = [i for i in mine if exam.findings[i].verdict in FAILING | {Verdict.INACCURATE}]
        for i in still:
            facts = {**exam.findings[i].evidence, "message": f"declared gap: {reason}"}
            exam.findings[i] = replace(
                exam.findings[i], verdict=Verdict.SKIPPED, cause=None, evidence=facts
            )
            exam.failed.pop(i, None)
        if not still:
            known = ", ".join(unique(f.quantity for f in exam.findings))
            text = (
                f"the gap {quantity!r} ({reason}) is closed: delete its line"
                if mine
                else f"the gap names {quantity!r}, which is not compared; compared: {known}"
            )
            exam.add(
                Judged(
                    quantity, "float64", Verdict.ERROR, None, Draw(()), message=text,
                    cause=("gap_closed", text),
                )
            )  # fmt: skip


def _diagnose(exam: Examination) -> None:
    """Name causes where something failed; the diagnosis is a package of its own."""
    if not exam.failed:
        return
    from importlib.util import find_spec

    if find_spec("parity.diagnosis") is None:
        return
    from parity.diagnosis import diagnose

    diagnose(exam)


def _localise(exam: Examination) -> None:
    """Name the layer at which two models part; a lone layer has no place to name."""
    if exam.failed and not exam.pair.reference.lone:
        from parity.localising import localise_failure

        localise_failure(exam)


def _refused(exam: Examination, message: str) -> None:
    text = f"the reference refuses these inputs: {message}"
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
    covers = [
        "modes " + ", ".join(unique(str(f.evidence.get("mode")) for f in exam.findings)),
        "precisions " + ", ".join(unique(f.dtype for f in exam.findings)),
        "inputs " + "; ".join(spec.describe() for spec in pair.specs),
        f"seeds {', '.join(map(str, options.all_seeds))}",
        *exam.covers,
    ]
    worst = max(
        (
            f.evidence.get("conditioning", 0.0)
            for f in exam.findings
            if not f.evidence.get("zero_by_construction")
        ),
        default=0.0,
    )
    if np.isfinite(worst) and worst >= 1000:
        exam.notes.append(f"amplifies input rounding {worst:,.0f} times")
    zero = unique(f.quantity for f in exam.findings if f.evidence.get("zero_by_construction"))
    for name in zero:
        exam.notes.append(f"{name} is zero by construction: both sides are rounding noise")
    return Report(
        case=pair.case,
        findings=tuple(exam.findings),
        notes=unique(exam.notes),
        covers=tuple(covers),
        not_covered=unique(exam.not_covered),
        strict=options.strict,
        versions=versions(),
    )
