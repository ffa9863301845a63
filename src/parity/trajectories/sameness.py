"""Whether a training run compares one code with itself: model, loss, optimizer and scheduler."""

from __future__ import annotations

import copy
from typing import Any

from parity.likeness import alike, same_code
from parity.torch_side import TorchSide
from parity.trajectories.plan import Plan


def one_code(plan: Plan, model: Any, loss: Any) -> bool:
    """Return whether nothing that the user gave differs between the two sides."""
    side = getattr(plan.subject, "side", None)
    mine = side.original if isinstance(side, TorchSide) else model
    theirs = plan.reference.original
    return same_code(mine, theirs) and same_code(*loss) and _same_steps(plan, theirs)


def _same_steps(plan: Plan, theirs: Any) -> bool:
    """Return whether both pairs of factories make alike things for copies of one model."""
    if hasattr(plan.my_optimizer, "bind"):  # parity.optimizer steps what is no torch optimizer
        return False
    modules = copy.deepcopy(theirs), copy.deepcopy(theirs)
    try:
        own = plan.my_optimizer(modules[0])
        other = plan.their_optimizer(list(modules[1].parameters()))
        if not alike(own, other):
            return False
        if plan.my_scheduler is None or plan.their_scheduler is None:
            return plan.my_scheduler is plan.their_scheduler
        return alike(plan.my_scheduler(own), plan.their_scheduler(other))
    except Exception:  # made for the module of the other side alone: two things
        return False
