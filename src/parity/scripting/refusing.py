"""Failures that no script shows, refused before anything is run."""

from __future__ import annotations

from parity.findings import Finding, UsageError, Verdict
from parity.wording import quantity_text

UNSHOWN = {
    "process": "it would hang, crash or fill the memory as the check did",
    "processes": "it would fork as the check did",
    "globals": "what changed is a setting of the process",
    "printing": "it would only print as much again",
    "step": "it shows one pass, and the sides part after several steps",
    "dropout_mask": "it shows one pass, and the share of many is off",
}


def refuse_unshown(finding: Finding) -> None:
    """Raise UsageError for what no script shows, before a layer that may hang is run in here."""
    name, cause = finding.quantity, finding.cause.name if finding.cause else ""
    if finding.verdict is Verdict.VACUOUS or cause == "gap_closed":
        raise unshown(name, "nothing differs there")
    if name == "weights":
        raise unshown(name, "torch's weights cannot be given to mine, and nothing was run")
    if cause == "memory_layout":
        raise unshown(name, "only arrays of another memory layout are off")
    if name in UNSHOWN:
        raise unshown(name, UNSHOWN[name])


def unshown(name: str, why: str) -> UsageError:
    """Return the error that says why no script shows a quantity."""
    return UsageError(f"no script shows {quantity_text(name)}: {why}; save a bundle instead")
