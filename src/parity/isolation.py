"""Examinations in a process of their own: what hangs, crashes or eats memory is one finding.

The process is a fork: a layer from a notebook cell or a test function has no name by which a fresh
interpreter could import it, and importing torch anew takes a hundred times longer than a fork.
Two things make the fork safe: the child uses one thread, so that no pool of the parent is waited
for, and what comes back is JSON, so that nothing the layer leaves there can run code.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from typing import Any

from parity.findings import Cause, Finding, Report, UsageError, Verdict
from parity.options import Options
from parity.processes import Fault, answers

APART = "a process of its own (isolate=True; --isolate, --timeout or --memory)"
TIMEOUT = 60.0  # seconds, where none is asked for
OUT_OF_MEMORY = ("MemoryError", "_ArrayMemoryError", "can't allocate memory", "OutOfMemoryError")


class NoFork(UsageError, NotImplementedError):
    """A process of its own is not to be had here: a NotImplementedError besides."""


def check_isolated(
    mine: Any,
    theirs: Any,
    inputs: tuple[Any, ...],
    given: Mapping[str, Any],
    options: Options,
) -> Report:
    """Run :func:`parity.checking.examine_pair` in a process of its own.

    ``options.timeout`` (seconds, 60 by default) and ``options.memory`` (MiB beyond what this
    process holds, half of the machine's by default) are its limits. A layer that hangs, crashes,
    exits or goes beyond its memory gives a report of one ERROR, whose cause is named timed_out,
    crashed, exited or out_of_memory.

    Raises UsageError as an examination in this process does, and :class:`NoFork` where the
    platform has no fork or CUDA is in use.
    """
    refuse_unforkable()
    warm()
    case = options.case or title(mine)
    inside = replace(options, isolate=False, timeout=None, memory=None)
    task = report_task(mine, theirs, inputs, inside)
    limit = TIMEOUT if options.timeout is None else options.timeout
    (answer,) = answers([task], limit, options.memory)
    return report_of(answer, case, options)


def report_task(
    mine: Any, theirs: Any, inputs: tuple[Any, ...], options: Options
) -> Callable[[], dict[str, Any]]:
    """Return what the child runs: an examination, as plain data."""

    def task() -> dict[str, Any]:
        from parity.checking import examine_pair

        try:
            return {"report": examine_pair(mine, theirs, inputs, options).to_dict()}
        except UsageError as error:
            return {"usage": str(error)}

    return task


def report_of(answer: Any, case: str, options: Options) -> Report:
    """Return the report that a child's answer stands for.

    Raises UsageError where the examination did.
    """
    if isinstance(answer, Fault):
        return fault_report(answer, case, options)
    if "usage" in answer:
        raise UsageError(answer["usage"])
    report = report_from(answer["report"])
    if options.memory is None:
        return report
    return replace(report, findings=tuple(map(_memory, report.findings)))


def _memory(finding: Finding) -> Finding:
    """An allocation that the limit refused is the limit's doing, not a plain exception."""
    cause = finding.cause
    if cause is None or cause.name != "raised":
        return finding
    if not any(name in cause.sentence for name in OUT_OF_MEMORY):
        return finding
    return finding.with_cause(Cause("out_of_memory", f"ran out of memory: {cause.sentence}"))


def fault_report(fault: Fault, case: str, options: Options) -> Report:
    """Return the report of one ERROR for a process that did not come back."""
    from parity.environment import versions

    evidence: dict[str, Any] = {"message": fault.sentence, "mode": "train"}
    if fault.trace:
        evidence["traceback"] = fault.trace
    finding = Finding(
        case,
        "process",
        seed=options.seed,
        verdict=Verdict.ERROR,
        cause=Cause(fault.name, fault.sentence),
        evidence=evidence,
    )
    return Report(case, (finding,), strict=options.strict, versions=versions())


def refuse_unforkable() -> None:
    """Raise :class:`NoFork` where a fork is not to be had, or would not work."""
    if not hasattr(os, "fork"):
        raise NoFork(f"{APART} needs os.fork, which {sys.platform} lacks; leave it out there")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise NoFork(
            f"{APART} is not to be had once CUDA is initialised, which does not survive a fork; "
            "check CUDA layers without it"
        )


@lru_cache(maxsize=1)
def warm() -> None:
    """Import, before the fork, what an examination needs: the clock of the child is the layer's.

    torch imports a good part of itself, for seconds, at the first gradient of all.
    """
    import torch

    for name in ("probes", "promises", "diagnosis"):
        import_module(f"parity.{name}")
    one = torch.ones(1, requires_grad=True)
    torch.autograd.grad([one * 2], [one], [torch.ones(1)])


def title(mine: Any) -> str:
    """Return the name a case has by default."""
    forward = getattr(mine, "forward", None)
    if type(mine).__name__ == "Functions" and forward is not None:
        return str(getattr(forward, "__name__", "functions"))
    return str(getattr(mine, "__name__", None) or type(mine).__name__)


def report_from(data: Mapping[str, Any]) -> Report:
    """Return the report that :meth:`Report.to_dict` wrote."""
    return Report(
        case=data["case"],
        findings=tuple(map(Finding.from_dict, data["findings"])),
        notes=tuple(data["notes"]),
        covers=tuple(data["covers"]),
        not_covered=tuple(data["not_covered"]),
        strict=data["strict"],
        rerun=data["rerun"],
        versions=data["versions"],
    )


def as_json(data: Any) -> str:
    """Return ``data`` as one line of JSON with its keys in order: the same bytes everywhere."""
    return json.dumps(data, sort_keys=True, ensure_ascii=True, allow_nan=False)
