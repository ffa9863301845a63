"""Gradients clipped by their norm on one side only, and other things done inside torch's step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from parity.findings import Cause
from parity.outcomes import Array

if TYPE_CHECKING:
    from parity.trajectories.replay import Replay

Grads = dict[str, Array]
USUAL = (1.0, 0.5, 5.0, 0.1, 0.25, 2.0, 10.0)  # norms that people clip to
TORCHS = 1e-6  # what clip_grad_norm_ adds to the norm
SAME = 1e-6  # relative: one number met at several steps


def clipping_cause(replay: Replay, ks: list[float] | None) -> Cause | None:
    """Return the cause where one side clips gradients by norm; ``ks`` are mine's steps in torch's.

    A norm that is read from ``ks`` has to show at two steps of different norms.
    """
    norms = [norm(record.mine) for record in replay.records]
    if ks is not None:
        for limit, kind in ((_limit(norms, ks), "mine"), (_limit(norms, _inverse(ks)), "torch")):
            if limit is not None:
                return _cause(kind, limit)
    for limit in USUAL:
        if limit >= max(norms):
            continue  # nothing would be clipped
        for extra in (TORCHS, 0.0):
            if replay.fits(replay.torch(grads=clipped(limit, extra))):
                return _cause("mine", limit)
    return _inside_step(replay, norms)


def _inside_step(replay: Replay, norms: list[float]) -> Cause | None:
    """Name what the reference's optimizer does in its own step(), where mine does without."""
    own = replay.kind()
    base = next((c for c in own.__mro__ if c.__module__.startswith("torch.optim.")), None)
    if base is None or base.__name__ == "Optimizer":
        return None
    if not replay.fits(replay.torch(plain=base)):
        return None
    for limit in USUAL:
        if limit < max(norms) and _equal(
            replay.torch(), replay.torch(plain=base, grads=clipped(limit, TORCHS))
        ):
            return _cause("torch", limit)
    text = (
        f"torch's optimizer ({own.__name__}) does more in its step than {base.__name__}, mine not"
    )
    return Cause("plain_step", text)


def _cause(side: str, limit: float) -> Cause:
    if side == "mine":
        text = f"the gradients are clipped to the norm {limit:.6g} before the step, torch's are not"
    else:
        text = (
            f"torch's gradients are clipped to the norm {limit:.6g} before the step, mine are not"
        )
    return Cause("gradients_clipped", text)


def norm(grads: Grads) -> float:
    """Return the norm of all gradients together."""
    return float(np.sqrt(sum(float(np.sum(np.square(g))) for g in grads.values())))


def clipped(limit: float, extra: float) -> Callable[[Grads], Grads]:
    """Return what scales gradients down to the norm ``limit``, as clip_grad_norm_ does."""

    def change(grads: Grads) -> Grads:
        scale = min(1.0, limit / (norm(grads) + extra))
        return {name: grad * scale for name, grad in grads.items()}

    return change


def _inverse(ks: list[float]) -> list[float]:
    return [1 / k if k else np.inf for k in ks]


def _limit(norms: list[float], ks: list[float]) -> float | None:
    """Return the norm to which gradients of ``norms`` were scaled by ``ks``; None for no such."""
    for extra in (TORCHS, 0.0):
        cut = [(n, k * (n + extra)) for n, k in zip(norms, ks, strict=True) if k < 1 - SAME]
        if len(cut) < 2 or max(n for n, _ in cut) < (1 + 1e-3) * min(n for n, _ in cut):
            continue
        limit = cut[0][1]
        whole = [n for n, k in zip(norms, ks, strict=True) if k >= 1 - SAME]
        alike = all(abs(found - limit) <= SAME * limit for _, found in cut)
        if alike and max(ks) <= 1 + SAME and all(n <= limit * (1 + SAME) for n in whole):
            return limit
    return None


def _equal(one: Iterator[dict[str, Array]], other: Iterator[dict[str, Array]]) -> bool:
    """Whether two replays take the same steps."""
    return all(
        all(np.allclose(a[name], b[name], rtol=1e-10, atol=1e-12) for name in a)
        for a, b in zip(one, other, strict=True)
    )
