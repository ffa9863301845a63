"""Numbers that torch keeps in float32 beside float64 parameters: its own error, measured.

NAdam's ``mu_product`` and ASGD's ``eta`` have torch's default dtype, whatever the parameters have:
a right optimizer with its bookkeeping in float64 takes other steps, by 1e-10. Hardsigmoid holds
the 1/6 of its backward pass in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from parity.draws import Draw
from parity.ladder import EPS64, SAFETY64, SLIGHT, largest
from parity.trajectories.lockstep import Course, Lockstep, run64
from parity.trajectories.plan import Plan
from parity.trajectories.theirs import TorchRun
from parity.trajectories.tracks import Parting, Track


@contextmanager
def all_double() -> Iterator[None]:
    """Let torch keep every number that it makes of its own in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def written_out() -> AbstractContextManager[Any]:
    """Answer a backward pass by torch's own Python version of it, where that is not the same.

    Only where the two differ as a float32 constant makes them: it is a witness of torch's own.
    """
    try:
        from torch._decomp import decomposition_table as table
        from torch.utils._python_dispatch import TorchDispatchMode
    except ImportError:  # a torch without them: nothing is excused
        return nullcontext()

    class WrittenOut(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            backward = func._schema.name.endswith("_backward") and func in table
            if not backward or not isinstance(result, torch.Tensor) or not result.numel():
                return result
            other = table[func](*args, **(kwargs or {}))
            off, peak = float((result - other).abs().max()), float(result.abs().max())
            return other if SAFETY64 * EPS64 * peak < off <= SLIGHT * peak else result

    return WrittenOut()


class ExactRun(TorchRun):
    """The reference with none of its numbers in float32; the user's other side never sees it."""

    def __init__(self, *given: Any, **options: Any) -> None:
        with all_double():
            super().__init__(*given, **options)

    def step(self, *given: Any) -> float:
        """Make one step; see :meth:`TorchRun.step`."""
        with all_double(), written_out():
            return super().step(*given)

    def end_epoch(self) -> None:
        """Step the scheduler where there is one."""
        with all_double():
            super().end_epoch()

    def predict(self, *given: Any) -> Any:
        """Return the output in evaluation mode."""
        with all_double():
            return super().predict(*given)


def second_look(plan: Plan, start: Draw, course: Course) -> Course:
    """Return the course beside torch's exact numbers, where these are what mine agrees with.

    Asked only where something lies outside by no more than a float32 constant explains. A quantity
    is excused where torch's own numbers moved and mine lies inside what rounding explains of
    where they moved to; whatever agrees with torch as it is goes on agreeing.
    """
    firsts = {name: track.first for name, track in course.tracks.items() if track.first}
    if course.failure or torch.get_default_dtype() == torch.float64 or not _slight(course, firsts):
        return course
    try:
        lockstep = Lockstep(plan, start, ExactRun)
        watched = {n: Track(n, witness=(p.step, p.theirs)) for n, p in firsts.items()}
        lockstep.course.tracks |= watched
        other = run64(lockstep)
    except Exception:  # a reference that does not run so tells nothing
        return course
    if other.failure or not np.array_equal(course.mine, other.mine, equal_nan=True):
        return course  # mine does not repeat itself: nothing is known of what it agrees with
    excused = [n for n in firsts if other.tracks[n].moved and not other.tracks[n].first]
    if not excused:
        return course
    agreeing = {n: t for n, t in course.tracks.items() if n not in firsts}
    other.tracks |= {n: t for n, t in agreeing.items() if other.tracks[n].first}
    other.exact = _sentence(course, other, firsts, excused)
    return other


def _slight(course: Course, firsts: dict[str, Parting]) -> bool:
    """Whether anything that parts first does so by no more than a float32 constant explains."""
    return any(
        p.judgement.error <= SLIGHT * largest(p.theirs)
        for p in firsts.values()
        if p.step == course.parted
    )


def _sentence(course: Course, other: Course, firsts: dict[str, Parting], excused: list[str]) -> str:
    slots = {
        name.rpartition(".")[2]: None
        for name, value in course.scalars.items()
        if value.dtype == np.float32 and value != other.scalars.get(name, value)
    }
    told = [n for kind in ("grad_", "parameter_", "") for n in excused if n.startswith(kind)]
    name = min(told, key=lambda n: firsts[n].step)
    return (
        f"torch keeps {' and '.join(slots) or 'a number'} in float32: its own float64 steps are "
        f"off by {other.tracks[name].moved:.2g} ({name.replace('_', ' ', 1)}, step "
        f"{firsts[name].step}); mine is held against steps with that in float64"
    )
