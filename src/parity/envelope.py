"""The float32 envelope: how far correct runs that differ in rounding alone lie apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from parity.draws import Draw
from parity.ladder import EPS32
from parity.outcomes import Array, LayerError
from parity.trajectories.lockstep import Failure
from parity.trajectories.mine import MyRun
from parity.trajectories.plan import Plan
from parity.trajectories.theirs import TorchRun, order_is_free

INSIDE = 3.0  # times the envelope: fine
FLOOR = 4.0  # ulps of the loss that are always fine
OPENED = 2.0**-10  # envelope above this share of the loss: a fault of that size cannot be seen
STARTS = 2  # runs from a start moved by one ulp


@dataclass
class Envelope:
    """The float32 curves of both sides around the float64 one.

    ``deviation`` is |mine32 - ref64| at every step on the same rounded numbers, ``width`` the
    largest |run - ref64| of the correct float32 runs so far: plain, from starts moved by one ulp,
    with permuted batches. ``errors`` maps (step, quantity) to (|mine32 - ref64|, max|ref64|).
    """

    mine: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)
    deviation: list[float] = field(default_factory=list)
    width: list[float] = field(default_factory=list)
    allowed: list[float] = field(default_factory=list)
    errors: dict[tuple[int, str], tuple[float, float]] = field(default_factory=dict)
    wrong_dtypes: dict[str, str] = field(default_factory=dict)
    labels_agree: float | None = None
    failure: Failure | None = None
    opened: int | None = None
    outside: int | None = None
    overflow: int | None = None

    @property
    def total(self) -> float:
        """Σ|mine - torch| over the float32 losses, as published acceptances count it."""
        with np.errstate(invalid="ignore"):
            off = np.abs(np.array(self.mine) - np.array(self.theirs))
        return float(off[np.isfinite(off)].sum())

    @property
    def usage(self) -> float:
        """The largest deviation as a share of what is allowed, before the envelope opened."""
        shares = [d / a for d, a in self._closed() if a > 0]
        return max(shares, default=0.0)

    def _closed(self) -> list[tuple[float, float]]:
        until = len(self.deviation) if self.opened is None else self.opened - 1
        return list(zip(self.deviation, self.allowed, strict=True))[:until]


def run32(plan: Plan, start: Draw, watch: Collection[tuple[int, str]] = ()) -> Envelope:
    """Run both sides in float32 from the same rounded start; user code that raises is a failure.

    ``watch`` names (step, quantity) whose float32 error is wanted, to tell rounding from faults.
    """
    start = start.rounded(np.float32)
    envelope = Envelope()
    exact = TorchRun(plan, "float64", start, rounded=True)
    runs = [TorchRun(plan, "float32", start)]
    for i in range(STARTS):
        rng = np.random.default_rng([start.seed, 7, i])
        runs.append(TorchRun(plan, "float32", start, nudged=rng))
    if order_is_free(plan, start):
        rng = np.random.default_rng([start.seed, 8])
        runs.append(TorchRun(plan, "float32", start, permuted=rng))
    step = 0
    try:
        mine = MyRun(plan, "float32", start)
        last = 0
        for epoch, batch in plan.batches:
            if epoch != last:
                mine.end_epoch()
                for run in (exact, *runs):
                    run.end_epoch()
                last = epoch
            step += 1
            value = mine.step(batch)
            masks = mine.masks()
            others = [run.step(batch, masks) for run in runs]
            _add(envelope, step, value, exact.step(batch, masks), others)
            _watch(envelope, step, mine, exact, watch)
            if envelope.overflow:
                break
        if not envelope.overflow:
            envelope.labels_agree = _agreement(plan, mine, runs[0])
    except LayerError as error:
        envelope.failure = Failure(error, max(step, 1), "float32")
    return envelope


def envelope_of(
    mine: Sequence[float], exact: Sequence[float], others: Sequence[Sequence[float]]
) -> Envelope:
    """Lay finished float32 loss curves around the float64 one of the same rounded numbers.

    ``others`` are correct float32 runs, plain torch first. Stops at the first overflow.
    """
    envelope = Envelope()
    for step, (value, truth, *rest) in enumerate(zip(mine, exact, *others, strict=True), start=1):
        _add(envelope, step, value, truth, rest)
        if envelope.overflow:
            break
    return envelope


def _add(envelope: Envelope, step: int, value: float, exact: float, others: list[float]) -> None:
    envelope.mine.append(value)
    envelope.theirs.append(others[0])
    envelope.exact.append(exact)
    if not (np.isfinite(exact) and np.isfinite(others).all() and np.isfinite(value)):
        envelope.overflow = step
        # overflow on mine alone is no rounding
        odd = not np.isfinite(value) and np.isfinite(others).all()
        envelope.deviation.append(float("inf") if odd else 0.0)
        envelope.width.append(envelope.width[-1] if envelope.width else 0.0)
        envelope.allowed.append(INSIDE * envelope.width[-1])
        if odd:
            envelope.outside = envelope.outside or step
        return
    scale = max(abs(exact), *(abs(e) for e in envelope.exact[-50:] if np.isfinite(e)))
    width = max(abs(other - exact) for other in others)
    if envelope.width:
        width = max(width, envelope.width[-1])
    off = abs(value - exact)
    allowed = INSIDE * width + FLOOR * EPS32 * scale
    envelope.deviation.append(off)
    envelope.width.append(width)
    envelope.allowed.append(allowed)
    if envelope.opened is None and width > OPENED * scale:
        envelope.opened = step
    if envelope.outside is None and envelope.opened is None and off > allowed:
        envelope.outside = step


def _watch(
    envelope: Envelope, step: int, mine: MyRun, exact: TorchRun, watch: Collection[tuple[int, str]]
) -> None:
    names = [name for at, name in watch if at == step]
    if step > 1 and not names:
        return
    own, reference = mine.quantities(), exact.quantities()
    if step == 1:
        for name, array in own.items():
            wide = array.dtype.kind == "f" and array.dtype != np.float32
            if name.startswith(("parameter_", "buffer_")) and wide:
                envelope.wrong_dtypes[name] = array.dtype.name
    own["trajectory"] = np.array([envelope.mine[-1]])
    reference["trajectory"] = np.array([envelope.exact[-1]])
    for name in names:
        if name in own and name in reference and own[name].shape == reference[name].shape:
            error, scale = _error(own[name], reference[name])
            envelope.errors[(step, name)] = (error, scale)


def _error(mine: Array, theirs: Array) -> tuple[float, float]:
    if not theirs.size:
        return 0.0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(mine.astype(np.float64) - theirs)
    off = off[np.isfinite(off)]
    return float(off.max(initial=0.0)), float(np.abs(theirs).max())


def _agreement(plan: Plan, mine: MyRun, theirs: TorchRun) -> float | None:
    """The share of equal labels where outputs are scores (N, C)."""
    same = total = 0
    for batch in plan.batches.epoch(plan.batches.epochs - 1):
        a, b = mine.predict(batch), theirs.predict(batch)
        if a.ndim != 2 or a.shape != b.shape or a.shape[1] < 2:
            return None
        same += int((a.argmax(axis=1) == b.argmax(axis=1)).sum())
        total += len(a)
    return same / total if total else None
