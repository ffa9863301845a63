"""What has been found about one pair so far, and how a judged quantity becomes a finding."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from parity.draws import Draw
from parity.findings import FAILING, Cause, Finding, UsageError, Verdict
from parity.guarding import seeds
from parity.judged import Judged
from parity.outcomes import Array, LayerError, Outcome
from parity.pair import Pair


def doubtful(finding: Finding) -> bool:
    """Whether the reference's noise is as large as its answer: zero, or not to be relied upon."""
    return bool(finding.evidence.get("zero_by_construction"))


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

    @property
    def doubted(self) -> bool:
        """Whether something matched only because the reference's own answers wander."""
        return any(map(doubtful, self.findings))

    def forget(self) -> None:
        """Drop what was found on draws; that both sides are the same code stays."""
        kept = [finding for finding in self.findings if finding.quantity == "both"]
        self.findings[:] = kept
        for kind in (self.notes, self.covers, self.not_covered, self.failed, self.references):
            kind.clear()
        self.float32_only = False

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
            elif name == "extra_gradients":
                self.notes.append(text)
            elif name == "gradient_dtype" or (name == "wrong_dtype" and self._widens(text)):
                if not self.float32_only:
                    self.notes.append(f"mine: {text}, where torch stays in {dtype}")
            elif name not in allowed and not (name == "wrong_dtype" and self.float32_only):
                if any(f.quantity == quantities[name] and f.dtype == dtype for f in self.findings):
                    continue
                self.fault(quantities[name], draw, name, text, dtype)

    def fault(
        self, quantity: str, draw: Draw, cause: str, text: str, dtype: str = "float64"
    ) -> None:
        """Keep what a side did wrong beside its numbers, with its cause."""
        self.add(
            Judged(quantity, dtype, Verdict.MISMATCH, None, draw, message=text, cause=(cause, text))
        )

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
        verb = " raised" if cause is not None else ""  # else it is a remark on what came back
        where = "" if failure.phase in plain else f"{failure.phase}{verb} "
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
                self.fault(quantity, Draw((), seed=self.pair.options.seed), name, text)

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
