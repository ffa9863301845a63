"""Steps that are longer or shorter than torch's: another rate, another schedule, or clipping."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.diagnosis.registry import multiple
from parity.findings import Cause
from parity.ladder import EPS64
from parity.outcomes import Array
from parity.trajectories.clipping import clipping_cause

if TYPE_CHECKING:
    from parity.trajectories.replay import Replay

Params = dict[str, Array]


def of_lengths(replay: Replay, alike: bool) -> Cause | None:
    """Name what makes steps longer or shorter, at every step that was kept.

    ``alike`` is whether the first few are torch's times one factor each.
    """
    ks = ratios(replay) if alike else None
    return clipping_cause(replay, ks) or (_rate(replay, replay.options(), ks) if ks else None)


def ratios(replay: Replay) -> list[float] | None:
    """Return by how much each step is longer than torch's from there; None where by no factor."""
    before: Params = dict(replay.start.params)
    ks: list[float] = []
    for params, record in zip(replay.torch(forced=True), replay.records, strict=True):
        with np.errstate(all="ignore"):
            k = _ratio(replay.names, before, params, record.params, ks[-1] if ks else None)
        if k is None:
            return None
        ks.append(k)
        before = record.params
    return ks


def _ratio(
    names: list[str], before: Params, theirs: Params, mine: Params, last: float | None
) -> float | None:
    """The one factor by which all steps of a parameter set differ, or None.

    ``last``, the step before's, is kept where it explains this step too: rounding alone gives
    other factors to steps that have become small, and any factor fits where nothing moves.
    """
    a = np.concatenate([(theirs[n] - before[n]).ravel() for n in names])
    b = np.concatenate([(mine[n] - before[n]).ravel() for n in names])
    room = 1e-7 * float(np.abs(b).max()) + 64 * EPS64 * max(
        float(np.abs(mine[n]).max(initial=0.0)) for n in names
    )
    if last is not None and float(np.abs(b - last * a).max()) <= room:
        return last
    size = float(a @ a)
    if not size and last is not None and b.any():
        return np.inf  # a schedule of torch's has ended at 0, and mine goes on
    if not size or not np.isfinite(size):
        return None
    k = float(a @ b) / size
    return k if float(np.abs(b - k * a).max()) <= room else None


def _rate(replay: Replay, groups: list[dict[str, Any]], ks: list[float]) -> Cause | None:
    """Another learning rate at every step, or the right one at the wrong time."""
    at = next((i for i, k in enumerate(ks) if abs(k - 1) > 1e-6), None)
    if at is None:
        return None
    mine, told = ks[at] * float(groups[at]["lr"]), float(groups[at]["lr"])
    if max(ks) - min(ks) <= 1e-6 * abs(ks[0]) and not _scheduled(replay, ks, groups):
        text = f"the learning rate is {mine:.6g}, {multiple(ks[0])} × torch's"
        return Cause("wrong_lr", text)
    if replay.plan.my_scheduler is None and replay.plan.their_scheduler is None:
        text = (
            f"the step is {multiple(ks[at])} × torch's at step {at + 1}, for all parameters alike, "
            "and by other factors at other steps"
        )
        return Cause("step_scaled", text)
    text = f"the learning rate is {mine:.6g} where the schedule says {told:.6g}"
    if _scheduled(replay, ks, groups):
        return Cause("schedule_off_by_one", f"{text}: it is changed at another epoch")
    return Cause("wrong_schedule", f"{text}, at step {at + 1}: it follows another schedule")


def _scheduled(replay: Replay, ks: list[float], groups: list[dict[str, Any]]) -> bool:
    """Whether all rates are the schedule's own, only at other times."""
    rates = {float(g["lr"]) for g in groups} | set(_later_rates(replay))
    used = [k * float(g["lr"]) for k, g in zip(ks, groups, strict=True)]
    return len(rates) > 1 and all(any(abs(u - r) <= 1e-6 * abs(r) for r in rates) for u in used)


def _later_rates(replay: Replay) -> Iterator[float]:
    """Yield the rates of every epoch to come and one beyond."""
    module = copy.deepcopy(replay.plan.reference.copy("float64"))
    optimizer, scheduler = replay._made(module)
    for _ in range(replay.plan.batches.epochs + 1):
        yield float(optimizer.param_groups[0]["lr"])
        if scheduler is not None:
            optimizer.step()
            scheduler.step()
