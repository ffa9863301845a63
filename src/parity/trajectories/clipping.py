"""Gradients clipped by their norm otherwise than torch's, and what else torch's step does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from parity.findings import Cause
from parity.ladder import EPS64, farthest, largest
from parity.outcomes import Array

if TYPE_CHECKING:
    from parity.trajectories.replay import Replay

Grads = dict[str, Array]
USUAL = (1.0, 0.5, 5.0, 0.1, 0.25, 2.0, 10.0)  # norms that people clip to
TORCHS = 1e-6  # what clip_grad_norm_ adds to the norm
SAME = 1e-6  # relative: one number met at several steps
ULPS = 64  # of a parameter: what sums in another order leave, over as many steps as are kept


def clipping_cause(replay: Replay, ks: list[float] | None) -> Cause | None:
    """Return the cause where one side clips gradients by norm; ``ks`` are mine's steps in torch's.

    A norm that is read from ``ks`` has to show at two steps of different norms. Nothing is named
    that does not predict mine at every step of the replay: clipping that has not set in yet
    looks like none.
    """
    norms = [norm(record.mine) for record in replay.records]
    if ks is not None:
        for limit, kind in ((_limit(norms, ks), "mine"), (_limit(norms, _inverse(ks)), "torch")):
            if limit is not None:
                return _cause(kind, limit, replay)
    for limit in USUAL:
        if limit >= max(norms):
            continue  # nothing would be clipped
        for extra in (TORCHS, 0.0):
            if replay.fits(replay.torch(grads=clipped(limit, extra))):
                return _cause("mine", limit, replay)
    base = _plain(replay.kind())
    return _one_by_one(replay, base) or _inside_step(replay, norms, base)


def _plain(own: type) -> type | None:
    """Return torch's optimizer that ``own`` is made of, itself where it is torch's; or None."""
    base = next((c for c in own.__mro__ if c.__module__.startswith("torch.optim.")), None)
    return base if base is not None and base.__name__ != "Optimizer" else None


def _inside_step(replay: Replay, norms: list[float], base: type | None) -> Cause | None:
    """Name what the reference's optimizer does in its own step(), where mine does without."""
    if base is None or not replay.fits(replay.torch(plain=base)):
        return None
    for limit in USUAL:
        if limit < max(norms) and _clips(replay, base, limit):
            return _cause("torch", limit, replay)
    own = replay.kind().__name__
    text = f"torch's optimizer ({own}) does more in its step than {base.__name__}, mine not"
    return Cause("plain_step", text)


def _one_by_one(replay: Replay, base: type | None) -> Cause | None:
    """Name a norm to which mine clips every gradient for itself."""
    highest = _highest(replay)
    for limit in USUAL:
        for extra in (TORCHS, 0.0) if limit < highest else ():
            if not replay.fits(replay.torch(grads=each_clipped(limit, extra), plain=base)):
                continue
            if base is replay.kind():
                torchs = "torch's are not"
            elif base is not None and _clips(replay, base, limit):
                torchs = "torch clips the norm of all together"
            else:
                return None
            text = f"each parameter's gradient is clipped to the norm {limit:.6g} for itself"
            return Cause("gradients_clipped", f"{text}, {torchs}")
    return None


def _clips(replay: Replay, base: type, limit: float) -> bool:
    """Whether the reference's optimizer is ``base`` with its gradients clipped before the step."""
    return _equal(replay.torch(), replay.torch(plain=base, grads=clipped(limit, TORCHS)))


def _cause(side: str, limit: float, replay: Replay) -> Cause:
    if side == "mine":
        text = f"the gradients are clipped to the norm {limit:.6g} before the step, torch's are not"
    else:
        text = f"torch's gradients are clipped to the norm {limit:.6g} before the step, "
        if _highest(replay) > limit:
            text += "mine are not"
        else:  # what clips every gradient for itself does nothing there either
            text += (
                f"all together; mine are not at steps 1 to {len(replay.records)}, where the norm "
                "of each alone is below it"
            )
    return Cause("gradients_clipped", text)


def _highest(replay: Replay) -> float:
    """Return the largest norm of a single parameter's gradient."""
    return max(norm({n: g}) for record in replay.records for n, g in record.mine.items())


def norm(grads: Grads) -> float:
    """Return the norm of all gradients together."""
    return float(np.sqrt(sum(float(np.sum(np.square(g))) for g in grads.values())))


def clipped(limit: float, extra: float) -> Callable[[Grads], Grads]:
    """Return what scales gradients down to the norm ``limit``, as clip_grad_norm_ does."""

    def change(grads: Grads) -> Grads:
        scale = min(1.0, limit / (norm(grads) + extra))
        return {name: grad * scale for name, grad in grads.items()}

    return change


def each_clipped(limit: float, extra: float) -> Callable[[Grads], Grads]:
    """Return what scales every gradient down to the norm ``limit`` for itself."""
    change = clipped(limit, extra)
    return lambda grads: {name: change({name: grad})[name] for name, grad in grads.items()}


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
    """Whether two replays take the same steps, but for ulps of the parameters they step."""
    peaks: dict[str, float] = {}
    for a, b in zip(one, other, strict=True):
        for name, array in a.items():
            peaks[name] = max(peaks.get(name, 0.0), largest(array))
            if not farthest(array, b[name]) <= ULPS * EPS64 * peaks[name]:
                return False
    return True
