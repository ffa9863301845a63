"""From what two runs showed to findings: which step, which quantity, rounding or fault."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.envelope import Envelope
from parity.findings import Cause, Finding, Verdict
from parity.ladder import EPS32, HOPELESS32, TINY32, verdict64
from parity.trajectories.lockstep import Course, Failure, parameter_of
from parity.trajectories.plan import Plan
from parity.trajectories.tracks import Parting, Track

POINTS = 400  # points of a curve that a report keeps


@dataclass
class Judge:
    """Turns one seed's float64 course and float32 envelope into findings."""

    plan: Plan
    seed: int
    course: Course | None
    envelope: Envelope | None

    def findings(self) -> Iterator[Finding]:
        """Yield the findings, the earliest step first."""
        failures = [r.failure for r in (self.course, self.envelope) if r is not None]
        for failure in [f for f in failures if f is not None][:1]:
            yield self._error(failure)
        if self.course is not None:
            yield from self._tracks(self.course)
            yield from self._vacuity(self.course)
        if self.envelope is not None:
            yield from self._envelope(self.envelope)

    def _finding(self, quantity: str, verdict: Verdict, **facts: Any) -> Finding:
        keys = ("step", "worst", "cause", "dtype", "allowance")
        named: dict[str, Any] = {k: facts.pop(k) for k in keys if k in facts}
        return Finding(
            self.plan.case, quantity, seed=self.seed, verdict=verdict, evidence=facts, **named
        )

    def _error(self, failure: Failure) -> Finding:
        error = failure.error
        trace = ""
        if error.__cause__ is not None:
            trace = "".join(traceback.format_exception(error.__cause__, limit=-6))
        name = {"weights": "missing_partner", "dropout mask": "mask_missing"}
        verb = " raised" if error.__cause__ is not None else ""
        message = str(error) if error.phase in name else f"{error.phase}{verb} {error}"
        return self._finding(
            error.phase, Verdict.ERROR, step=failure.step, dtype=failure.dtype, message=message,
            traceback=trace, cause=Cause(name.get(error.phase, "raised"), message),
        )  # fmt: skip

    # ---- float64 -----------------------------------------------------------------------------

    def _tracks(self, course: Course) -> Iterator[Finding]:
        if course.narrow:
            return
        verdicts = {name: self._verdict(track) for name, track in course.tracks.items()}
        wrong = [n for n, v in verdicts.items() if v is Verdict.MISMATCH]
        firsts = {n: _first(course.tracks[n]) for n in wrong}
        start = min(firsts.values(), default=0)
        order = sorted(course.tracks, key=lambda n: (firsts.get(n, 1 << 60), _rank(n)))
        for name in order:
            yield from self._track(course.tracks[name], verdicts[name], start, firsts, course)

    def _verdict(self, track: Track) -> Verdict:
        if track.worst_shape:
            return Verdict.MISMATCH
        opened = self.envelope.opened if self.envelope else None
        # once correct float32 runs lie far apart, err64 / err32 of a grown error says nothing
        telling = [
            p for p in track.partings if p is track.first or opened is None or p.step < opened
        ]
        found = [verdict64(p.judgement, self.shrink(track.name, p)) for p in telling]
        if Verdict.MISMATCH in found:
            return Verdict.MISMATCH
        return Verdict.INACCURATE if found else Verdict.MATCH

    def shrink(self, name: str, parting: Parting) -> float | None:
        """Return err64 / err32 of one quantity at one step, None where float32 has none."""
        facts = self.envelope.errors.get((parting.step, name)) if self.envelope else None
        if facts is None:
            return None
        return parting.judgement.error / max(facts[0], EPS32 * facts[1], TINY32)

    def _track(
        self, track: Track, verdict: Verdict, start: int, firsts: dict[str, int], course: Course
    ) -> Iterator[Finding]:
        facts: dict[str, Any] = {"steps": track.steps, "usage": track.usage, "error": track.error}
        if track.name == "trajectory":
            facts |= _curves64(course)
        if track.zero:
            facts["zero_by_construction"] = True
        parting = track.first
        if track.worst_shape:
            mine, theirs = track.worst_shape
            text = f"mine has shape {mine}, torch {theirs}"
            cause = Cause("wrong_shape", text)
            yield self._finding(track.name, verdict, step=1, message=text, cause=cause, **facts)
        elif parting is None or verdict is Verdict.MATCH:
            yield from self._agreeing(track, facts)
        elif verdict is Verdict.MISMATCH and _follows(track.name, start, firsts):
            text = f"parts at step {parting.step}, after the two had parted at step {start}"
            yield self._finding(
                track.name, Verdict.SKIPPED, step=parting.step, message=text, **facts
            )
        else:
            yield self._parted(track, parting, verdict, facts)

    def _agreeing(self, track: Track, facts: dict[str, Any]) -> Iterator[Finding]:
        opened = track.open_from
        if opened is None or opened > 1:
            yield self._finding(
                track.name, Verdict.MATCH, step=(opened or track.steps + 1) - 1,
                allowance=track.allowance, **facts,
            )  # fmt: skip
        if opened is not None:
            text = (
                f"from step {opened} on rounding alone moves it by more than can be told from a "
                "fault; fewer steps or a smaller learning rate decide"
            )
            yield self._finding(track.name, Verdict.UNDECIDED, step=opened, message=text)

    def _parted(
        self, track: Track, parting: Parting, verdict: Verdict, facts: dict[str, Any]
    ) -> Finding:
        judged = parting.judgement
        facts |= {"error": judged.error, "differing": judged.differing, "size": judged.size}
        facts["shrink"] = self.shrink(track.name, parting)
        if judged.size > 1 and judged.differing < judged.size:
            facts["message"] = f"first parts at step {parting.step} of {track.steps}"
        return self._finding(
            track.name, verdict, step=parting.step, allowance=judged.allowance,
            worst=judged.worst, **facts,
        )  # fmt: skip

    def _vacuity(self, course: Course) -> Iterator[Finding]:
        if course.failure is not None or course.narrow:
            return
        if course.overflow == 1:
            text = f"the reference's loss is {course.theirs[0]} at the first step"
            yield self._finding("trajectory", Verdict.VACUOUS, message=text)
            return
        expected = self.plan.options.zero_expected
        if not course.moved and not expected("trajectory"):
            text = "no parameter of the reference ever moved: the run trains nothing"
            yield self._finding("trajectory", Verdict.VACUOUS, message=text)
        elif len(course.theirs) > 1 and len(set(course.theirs)) == 1 and not expected("trajectory"):
            text = "the reference's loss never moves"
            yield self._finding("trajectory", Verdict.VACUOUS, message=text)
        for name, parameter in self.plan.reference.original.named_parameters():
            zero = not course.heights.get(name)
            asked = any(map(expected, (f"grad_{name}", f"parameter_{name}", name)))
            if parameter.requires_grad and zero and not asked and parameter.numel():
                text = "the reference gradient is zero at every step"
                yield self._finding(f"grad_{name}", Verdict.VACUOUS, message=text)

    # ---- float32 -----------------------------------------------------------------------------

    def _envelope(self, envelope: Envelope) -> Iterator[Finding]:
        for name, dtype in envelope.wrong_dtypes.items():
            text = f"{name.replace('_', ' ', 1)} is {dtype} after a float32 step"
            yield self._finding(
                name, Verdict.MISMATCH, step=1, dtype="float32", message=text,
                cause=Cause("wrong_dtype", text),
            )  # fmt: skip
        if not envelope.deviation:
            return
        facts = _curves32(envelope)
        verdict, text = self._verdict32(envelope)
        if text:
            facts["message"] = text
        step = envelope.outside or (envelope.opened or len(envelope.mine) + 1) - 1
        yield self._finding(
            "trajectory", verdict, step=step, dtype="float32", allowance=max(envelope.allowed),
            usage=envelope.usage, **facts,
        )  # fmt: skip

    def _verdict32(self, envelope: Envelope) -> tuple[Verdict, str]:
        decides = self.course is None or self.course.narrow
        outside = envelope.outside
        if outside is None:
            if envelope.opened == 1:
                return Verdict.UNDECIDED, "correct float32 runs differ from the first step on"
            if envelope.opened is None:
                return Verdict.MATCH, ""
            text = f"from step {envelope.opened} on correct float32 runs differ too much to tell"
            return Verdict.MATCH, text + "" if decides else f"{text}; float64 decides"
        off, width = envelope.deviation[outside - 1], envelope.width[outside - 1]
        yard = max(width, EPS32 * abs(envelope.exact[outside - 1]))
        text = f"leaves the envelope of correct float32 runs at step {outside}"
        hopeless = not np.isfinite(off) or off > HOPELESS32 * yard
        if not np.isfinite(off) or (decides and hopeless):
            return Verdict.MISMATCH, text
        return Verdict.INACCURATE, text


def _first(track: Track) -> int:
    return track.first.step if track.first else 1


def _rank(name: str) -> int:
    order = ("trajectory", "grad", "buffer", "parameter", "state", "predictions")
    return order.index(name.partition("_")[0])


def _follows(name: str, start: int, firsts: dict[str, int]) -> bool:
    """Whether a parting is the consequence of an earlier one; the loss curve always speaks."""
    if name == "trajectory":
        return False
    if firsts[name] > start:
        return True
    caused = name.startswith(("parameter_", "state_"))
    return caused and firsts.get(f"grad_{parameter_of(name)}") == start


def _thinned(count: int) -> list[int]:
    """Indices of at most POINTS points of a curve, its ends included."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, POINTS))})


def _curves64(course: Course) -> dict[str, Any]:
    mine, theirs = np.array(course.mine), np.array(course.theirs)
    with np.errstate(invalid="ignore"):
        off = np.abs(mine - theirs)
    kept = _thinned(len(mine))
    noise = course.noise + [float("nan")] * (len(mine) - len(course.noise))
    return {
        "total": float(off[np.isfinite(off)].sum()),
        "curves": {
            "step": [i + 1 for i in kept],
            "mine": [float(mine[i]) for i in kept],
            "theirs": [float(theirs[i]) for i in kept],
            "deviation": [float(off[i]) for i in kept],
            "noise": [float(noise[i]) for i in kept],
        },
    }


def _curves32(envelope: Envelope) -> dict[str, Any]:
    kept = _thinned(len(envelope.mine))
    keys = ("mine", "theirs", "exact", "deviation", "width", "allowed")
    curves = {key: [float(getattr(envelope, key)[i]) for i in kept] for key in keys}
    return {
        "total": envelope.total,
        "opened": envelope.opened,
        "labels_agree": envelope.labels_agree,
        "curves": {"step": [i + 1 for i in kept], **curves},
    }
