"""Verdicts, findings and the report: what a comparison found, as data and as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class ParityError(AssertionError):
    """A hand-written layer is not the same as its reference; ``report`` holds every finding."""

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report


class UsageError(ValueError):
    """The harness was asked for something that it cannot do: says what, and how to mend it."""


class WrongType(UsageError, TypeError):
    """A UsageError about something of the wrong kind: a TypeError besides."""


class Verdict(StrEnum):
    """What a comparison of one quantity concluded (docs: "read a verdict")."""

    MATCH = "MATCH"
    INACCURATE = "INACCURATE"
    MISMATCH = "MISMATCH"
    UNDECIDED = "UNDECIDED"
    VACUOUS = "VACUOUS"
    ERROR = "ERROR"
    SKIPPED = "SKIPPED"


FAILING = frozenset({Verdict.MISMATCH, Verdict.ERROR, Verdict.VACUOUS})
STRICT = FAILING | {Verdict.INACCURATE, Verdict.UNDECIDED}
# the gravest first: a report leads with what matters most
GRAVITY = ("ERROR", "MISMATCH", "VACUOUS", "INACCURATE", "UNDECIDED", "SKIPPED", "MATCH")


@dataclass(frozen=True)
class Cause:
    """Why two quantities differ: a stable identifier and one sentence for people."""

    name: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Worst:
    """The element that is furthest outside its allowance."""

    index: tuple[int, ...]
    mine: float
    theirs: float
    off: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "index": list(self.index),
            "mine": _number(self.mine),
            "theirs": _number(self.theirs),
            "off": _number(self.off),
        }


@dataclass(frozen=True)
class Finding:
    """One quantity of one case, judged.

    ``quantity`` is ``forward``, ``grad_input0``, ``grad_weight``, ``buffer_running_mean`` …;
    ``dtype`` the rung (``float64``, ``float32``, ``exact``); ``allowance`` the largest error that
    rounding explains; ``worst`` a :class:`Worst` or None; ``cause`` a :class:`Cause` or None;
    ``evidence`` everything else that was measured, as plain data.
    """

    case: str
    quantity: str
    layer: str | None = None
    step: int | None = None
    seed: int = 0
    dtype: str = "float64"
    verdict: Verdict = Verdict.MATCH
    allowance: float = 0.0
    worst: Worst | None = None
    cause: Cause | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """True where the finding fails a report without strict mode."""
        return self.verdict in FAILING

    def with_cause(self, cause: Cause | None) -> Finding:
        """Return the same finding with its cause named."""
        return replace(self, cause=cause)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: no NaN, no NumPy scalars."""
        return {
            "case": self.case,
            "quantity": self.quantity,
            "layer": self.layer,
            "step": self.step,
            "seed": self.seed,
            "dtype": self.dtype,
            "verdict": str(self.verdict),
            "allowance": _number(self.allowance),
            "worst": self.worst.to_dict() if self.worst else None,
            "cause": {"name": self.cause.name, "sentence": self.cause.sentence}
            if self.cause
            else None,
            "evidence": _plain(self.evidence),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        """Return the finding that :meth:`to_dict` wrote."""
        worst, cause = data.get("worst"), data.get("cause")
        numbers = [_read(worst[name]) for name in ("mine", "theirs", "off")] if worst else []
        return cls(
            case=data["case"],
            quantity=data["quantity"],
            layer=data["layer"],
            step=data["step"],
            seed=data["seed"],
            dtype=data["dtype"],
            verdict=Verdict(data["verdict"]),
            allowance=_read(data["allowance"]),
            worst=Worst(tuple(worst["index"]), *numbers) if worst else None,
            cause=Cause(cause["name"], cause["sentence"]) if cause else None,
            evidence={
                # NaN and infinity are written as text: JSON has neither
                name: float(value) if value in ("nan", "inf", "-inf") else value
                for name, value in data["evidence"].items()
            },
        )

    def __str__(self) -> str:
        from parity.wording import finding_text

        return finding_text(self)


@dataclass(frozen=True)
class Report:
    """Everything that one check found.

    ``passed`` is True when at least one quantity matched and none is a MISMATCH, ERROR or VACUOUS;
    under ``strict`` INACCURATE, UNDECIDED and "not covered" fail too.
    """

    case: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    strict: bool = False
    rerun: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the hand-written side is the same as the reference, as far as was looked."""
        bad = STRICT if self.strict else FAILING
        if self.strict and self.not_covered:
            return False
        verdicts = {finding.verdict for finding in self.findings}
        return Verdict.MATCH in verdicts and not verdicts & bad

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings for which the report does not pass, the gravest first."""
        bad = STRICT if self.strict else FAILING
        found = [finding for finding in self.findings if finding.verdict in bad]
        return tuple(sorted(found, key=lambda finding: GRAVITY.index(finding.verdict)))

    @property
    def cause(self) -> Cause | None:
        """The first cause that was named, or None."""
        causes = [f.cause for f in (*self.failures, *self.findings) if f.cause]
        # what is wrong says more than where it is, which the finding's layer tells
        causes.sort(key=lambda cause: cause.name.startswith("layer_"))
        return causes[0] if causes else None

    def of(self, quantity: str) -> tuple[Finding, ...]:
        """Return the findings of one quantity (``"grad_weight"``)."""
        return tuple(finding for finding in self.findings if finding.quantity == quantity)

    def counts(self) -> dict[str, int]:
        """Return how many findings there are of each verdict."""
        return {
            verdict: n
            for verdict in GRAVITY
            if (n := sum(finding.verdict == verdict for finding in self.findings))
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "case": self.case,
            "passed": self.passed,
            "strict": self.strict,
            "counts": self.counts(),
            "findings": [finding.to_dict() for finding in self.findings],
            "notes": list(self.notes),
            "covers": list(self.covers),
            "not_covered": list(self.not_covered),
            "rerun": self.rerun,
            "versions": dict(self.versions),
        }

    def raise_if_failed(self) -> None:
        """Raise :class:`ParityError` with the whole text where the report has not passed."""
        __tracebackhide__ = True
        if not self.passed:
            raise ParityError(str(self), self)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        from parity.wording import report_text

        return report_text(self)

    def _repr_html_(self) -> str:
        from parity.wording import report_html

        return report_html(self)


def merge(case: str, reports: Iterable[Report], **changes: Any) -> Report:
    """Return one report with the findings of several."""
    reports = list(reports)
    return Report(
        case=case,
        findings=tuple(finding for report in reports for finding in report.findings),
        notes=unique(note for report in reports for note in report.notes),
        covers=unique(item for report in reports for item in report.covers),
        not_covered=unique(item for report in reports for item in report.not_covered),
        strict=any(report.strict for report in reports),
        versions=reports[0].versions if reports else {},
        **changes,
    )


def unique(items: Iterable[str]) -> tuple[str, ...]:
    """Return the items in order of first appearance, each once."""
    return tuple(dict.fromkeys(items))


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinity: they are written as text."""
    value = float(value)
    return value if math.isfinite(value) else repr(value)


def _read(value: Any) -> float:
    """Return a number that :func:`_number` wrote; NaN for what somebody made of it."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _number(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)
