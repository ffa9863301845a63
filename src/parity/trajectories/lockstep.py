"""The float64 run: both sides and the nudged references step by step, nothing kept but verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from parity.draws import Draw
from parity.ladder import SAFETY64
from parity.outcomes import Array, LayerError
from parity.trajectories.batches import Batch
from parity.trajectories.mine import MyRun, TorchModel
from parity.trajectories.plan import Plan
from parity.trajectories.theirs import TorchRun, order_is_free
from parity.trajectories.tracks import BUILT, Track

NUDGED = 3  # one-ulp runs of the reference: the noise
KEPT, ROOM = 64, 4_000_000  # steps, and numbers, that are kept for the diagnosis


@dataclass
class Failure:
    """User code that raised, or never showed what is needed, and at which step."""

    error: LayerError
    step: int
    dtype: str


@dataclass
class Record:
    """One early step, kept for the diagnosis: gradients of both sides, and what mine holds."""

    mine: dict[str, Array]
    theirs: dict[str, Array]
    params: dict[str, Array]
    buffers: dict[str, Array]
    masks: tuple[Array, ...]


@dataclass
class Course:
    """What the float64 run showed."""

    tracks: dict[str, Track] = field(default_factory=dict)
    mine: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    missing: dict[str, None] = field(default_factory=dict)
    built: dict[str, None] = field(default_factory=dict)
    seen: dict[str, None] = field(default_factory=dict)
    heights: dict[str, float] = field(default_factory=dict)
    alive: dict[str, int] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    records: list[Record] = field(default_factory=list)
    moved: bool = False
    adaptive: bool = False
    failure: Failure | None = None
    overflow: int | None = None
    chaos: int | None = None
    narrow: bool = False
    exact: str = ""  # what torch keeps in float32, where its steps without that are compared
    scalars: dict[str, Array] = field(default_factory=dict)
    warnings: dict[str, None] = field(default_factory=dict)

    def track(self, name: str) -> Track:
        """Return the track of one quantity, fresh where it is new."""
        return self.tracks.setdefault(name, Track(name))

    def skips(self, name: str) -> bool:
        """Whether an adaptive step has turned the rounding noise of a gradient into movement."""
        if not self.adaptive or name.startswith(("grad_", "buffer_")) or name.endswith(".step"):
            return False
        return parameter_of(name) in self.built

    @property
    def parted(self) -> int | None:
        """The first step at which anything parted."""
        return min((t.first.step for t in self.tracks.values() if t.first), default=None)


def run64(lockstep: Lockstep) -> Course:
    """Run both sides in float64; user code that raises ends the run as a failure."""
    course = lockstep.course
    try:
        lockstep.run()
    except LayerError as error:
        course.failure = Failure(error, max(lockstep.step, 1), "float64")
    state = lockstep.theirs.quantities().items()
    course.scalars = {n: np.array(a) for n, a in state if n.startswith("state_") and a.size == 1}
    return course


class Lockstep:
    """The hand-written side, the reference, and nudged references, one step at a time.

    ``kind`` is how the references are run.
    """

    def __init__(self, plan: Plan, start: Draw, kind: type[TorchRun] = TorchRun) -> None:
        self.plan, self.start, self.step = plan, start, 0
        self.theirs = kind(plan, "float64", start)
        # one of them sums its batches in another order as well: terms that cancel cancel otherwise
        orders = [np.random.default_rng([start.seed, 9]) if order_is_free(plan, start) else None]
        self.others = [
            kind(
                plan, "float64", start, every_step=True, permuted=order,
                nudged=np.random.default_rng([start.seed, 6, i]),
            )
            for i, order in enumerate(orders + [None] * (NUDGED - 1))
        ]  # fmt: skip
        self.units: dict[str, float] = {}
        self.course = Course(adaptive=self.theirs.adaptive)
        size = sum(array.size for array in start.params.values())
        self.kept = min(KEPT, max(2, ROOM // (3 * max(size, 1))))
        self.still = {n: np.array(a) for n, a in start.params.items()}

    def run(self) -> None:
        """Run to the end, to the reference's overflow, or to the first float32 output.

        Raises LayerError where the user's code does.
        """
        self.mine = MyRun(self.plan, "float64", self.start)
        self.course.extra = self.mine.extra()
        last = 0
        for epoch, batch in self.plan.batches:
            if epoch != last:
                self.mine.end_epoch()
                for run in (self.theirs, *self.others):
                    run.end_epoch()
                last = epoch
            self.step += 1
            self._one(batch)
            if self.course.overflow or self.course.narrow:
                return
        self._predictions()

    def _one(self, batch: Batch) -> None:
        course = self.course
        try:
            value = self.mine.step(batch)
        except LayerError:
            self.theirs.step(batch)  # where the reference refuses too, the batch is the mistake
            raise
        masks = self.mine.masks()
        if self.step == 1:
            check_masks(self.plan, self.mine)
        reference = self.theirs.step(batch, masks)
        moved = [other.step(batch, masks) for other in self.others]
        course.warnings |= dict.fromkeys(text for _, text in self.mine.outcome.remarks)
        course.mine.append(value)
        course.theirs.append(reference)
        if self.mine.narrow and self.step == 1:
            course.narrow = True
            return
        track = course.track("trajectory")
        around = [np.array([m]) for m in moved]
        track.compare(self.step, np.array([value]), np.array([reference]), around)
        course.noise.append(track.peak)
        if not np.isfinite(reference):
            course.overflow = self.step
            return
        self._quantities(masks)

    def _quantities(self, masks: tuple[Array, ...]) -> None:
        course = self.course
        own, reference = self.mine.quantities(), self.theirs.quantities()
        if self.step <= self.kept:
            course.records.append(self._record(own, masks))
        moved = [other.quantities() for other in self.others]
        units = self.units
        for name, array in reference.items():
            if array.size and array.dtype.kind == "f":
                size = float(np.abs(array).max())
                units[kind_of(name)] = max(units.get(kind_of(name), 0.0), size)
        for name, array in reference.items():
            course.seen[name] = None
            bare, unit = parameter_of(name), units.get(kind_of(name), 0.0)
            if name.startswith("grad_"):
                self._gradient(bare, array, [m.get(name, array) for m in moved], unit)
            elif name.startswith("parameter_") and not course.moved:
                course.moved = not np.array_equal(array, self.still[bare])
            if name not in own:
                course.missing[name] = None
            elif not (course.skips(name)):
                around = [m[name] for m in moved if name in m]
                course.track(name).compare(self.step, own[name], array, around, unit)
        self._chaos()

    def _chaos(self) -> None:
        """Stop judging where rounding alone moves the whole net: no quantity can be told then."""
        tracks = self.course.tracks.values()
        if self.course.chaos is None and any(track.chaotic for track in tracks):
            self.course.chaos = self.step
            for track in tracks:
                track.stop(self.step)

    def _record(self, own: dict[str, Array], masks: tuple[Array, ...]) -> Record:
        return Record(
            mine=dict(self.mine.kept_grads),
            theirs=dict(self.theirs.kept_grads),
            params={parameter_of(n): a for n, a in own.items() if n.startswith("parameter_")},
            buffers={n: np.array(a) for n, a in own.items() if n.startswith("buffer_")},
            masks=masks,
        )

    def _gradient(self, name: str, grad: Array, others: list[Array], unit: float) -> None:
        """Remember parameters whose gradient is nothing but rounding, from the first step on."""
        if not grad.size:
            return
        scale = float(np.abs(grad).max())
        if scale > 0:
            self.course.alive[name] = self.step
        if scale > 0 and not self.course.heights.get(name):
            noise = max(float(np.abs(other - grad).max()) for other in others)
            if scale <= BUILT * unit and scale <= SAFETY64 * noise:
                self.course.built[name] = None
        self.course.heights[name] = max(scale, self.course.heights.get(name, 0.0))

    def _predictions(self) -> None:
        """Compare what the trained nets predict in evaluation mode."""
        runs: list[MyRun | TorchRun] = [self.mine, self.theirs, *self.others]
        last = self.plan.batches.epoch(self.plan.batches.epochs - 1)
        columns = [
            np.concatenate([np.atleast_1d(run.predict(batch)) for batch in last]) for run in runs
        ]
        track = self.course.track("predictions")
        if self.course.chaos:
            track.stop(self.course.chaos)
        track.compare(self.step, columns[0], columns[1], columns[2:])


def kind_of(name: str) -> str:
    """Return what quantities of one natural size share: gradients, or one slot of the state."""
    kind = name.partition("_")[0]
    return name.rpartition(".")[2] if kind == "state" else kind


def parameter_of(name: str) -> str:
    """Return the parameter that a quantity belongs to."""
    kind, _, bare = name.partition("_")
    return bare.rpartition(".")[0] if kind == "state" else bare


def check_masks(plan: Plan, mine: MyRun) -> None:
    """Refuse a comparison in which the two sides drop different elements.

    Raises LayerError where the reference has dropout layers and the hand-written side shows fewer
    masks after its first forward.
    """
    if isinstance(mine.runner, TorchModel):
        return
    wanted = sum(p > 0 for p in plan.reference.dropouts)
    have = len(mine.masks())
    if have < wanted:
        raise LayerError(
            f"the reference has {wanted} dropout layers and mine shows {have} masks; keep what "
            "the last forward kept as layer.mask, a boolean array, so that both drop the same",
            "dropout mask",
        )
