"""Failures made portable: what a report was made of, so that it can be saved, sent and replayed."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parity.draws import Draw
from parity.findings import Finding, Report, UsageError, Verdict
from parity.loading import Recipe


@dataclass(frozen=True)
class Origin:
    """The arguments of the check that a report came from; ``recipes`` where they were typed."""

    mine: Any
    theirs: Any
    inputs: tuple[Any, ...]
    options: Mapping[str, Any]
    recipes: tuple[Recipe, Recipe] | None = None

    def pair(self) -> Any:
        """Return the pair, made anew: the same draws as in the check."""
        from parity.checking import make_pair
        from parity.options import make_options

        return make_pair(self.mine, self.theirs, self.inputs, make_options(self.options))


# Beside the reports and not in them: a report is data, and may be pickled.
_ORIGINS: dict[int, Origin] = {}


def remember(
    report: Report,
    mine: Any,
    theirs: Any,
    inputs: tuple[Any, ...],
    options: Mapping[str, Any],
    recipes: tuple[Recipe, Recipe] | None = None,
) -> None:
    """Keep what a failing ``report`` was made of for as long as the report lives."""
    if report.passed:
        return
    if id(report) not in _ORIGINS:
        weakref.finalize(report, _ORIGINS.pop, id(report), None)
    _ORIGINS[id(report)] = Origin(mine, theirs, tuple(inputs), dict(options), recipes)


def origin_of(report: Any) -> Origin:
    """Return what a failing report was made of.

    Raises UsageError for a report that passed, or that did not come from ``parity.check``.
    """
    if not isinstance(report, Report):
        raise UsageError(f"got {type(report).__name__}; give the report that parity.check returned")
    if report.passed:
        raise UsageError(f"{report.case} passed: there is no failure to reproduce")
    origin = _ORIGINS.get(id(report))
    if origin is None:
        raise UsageError(
            f"what {report.case} was made of is not known here; give the very report that "
            "parity.check returned, in the process that ran it"
        )
    return origin


def first_failure(report: Report) -> Finding:
    """Return the failure that is easiest to reproduce: a generic draw, float64, a mismatch."""

    def rank(finding: Finding) -> tuple[bool, ...]:
        facts = finding.evidence
        return (
            finding.layer is not None,
            not facts.get("shapes"),
            facts.get("draw") != "generic",
            finding.dtype != "float64",
            finding.verdict is not Verdict.MISMATCH,
        )

    return min(report.failures, key=rank)


def draw_of(pair: Any, finding: Finding) -> Draw:
    """Return the draw on which ``finding`` was made. Raises LayerError where torch refuses."""
    facts = finding.evidence
    shapes = tuple(tuple(shape) for shape in facts.get("shapes") or ())
    usual = tuple(spec.shape for spec in pair.specs)
    other = None if not shapes or shapes == usual else shapes
    training = facts.get("mode", "train") == "train"
    return pair.draw(finding.seed, training, str(facts.get("draw", "generic")), other)


def save_bundle(report: Report, folder: Any) -> str:
    """Save a failure as a folder, JSON and safetensors without pickle; return its path.

    It holds the weights, the inputs and the upstream gradient of the failing draw, versions,
    options and how both sides were made. ``parity replay FOLDER --mine FILE:NAME`` runs it.

    Raises UsageError for a report that passed or is not known here, for inputs that torch itself
    refuses, and for a folder that holds something else.
    """
    from parity.bundling import write

    return write(report, origin_of(report), folder)


def script(report: Report) -> str:
    """Return a failure as a script of at most 15 lines of NumPy and torch, without the harness.

    Raises UsageError for a report that passed or is not known here, for inputs that torch itself
    refuses, and for a failure that no script shows.
    """
    from parity.scripting import write

    return write(report, origin_of(report))


def replay(folder: Any, mine: Any = None, theirs: Any = None) -> Report:
    """Run the check that a bundle holds on ``mine``; return its report.

    Without ``mine`` the answer that it gave when the bundle was saved is judged. ``theirs`` is
    needed where the bundle cannot rebuild the torch side: only classes of torch.nn are rebuilt,
    from literals. Raises UsageError for a bundle that is missing, damaged or hostile.
    """
    from parity.bundling import read, run, show

    bundle = read(folder)
    return show(bundle, theirs) if mine is None else run(bundle, mine, theirs)
