"""Which size of an input a fault hangs on: tried by changing one axis at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from parity.diagnosis.scene import SPECIAL, compact, make_trial
from parity.outcomes import LayerError
from parity.sizes import batched

if TYPE_CHECKING:
    from parity.diagnosis.scene import Scene
    from parity.diagnosis.trials import Trial
    from parity.judged import Judged

SEEDS = (0, 101, 202)  # chance must not make a size
LARGEST = 100_000  # elements of an input that is tried
Shape = tuple[int, ...]


def by_size(scene: Scene, judged: Judged) -> str:
    """Return "only for a batch of at least 3" …; nothing where no axis alone decides.

    The numbers of a draw hang on its size too, so what differs for one seed and not for another
    is no matter of sizes, and an axis is named only where changing it alone makes right wrong.
    """
    if not judged.draw.inputs or judged.draw.label in SPECIAL or not batched(scene.pair):
        return ""  # a value that is rare is met by large arrays rather than by small ones
    tried = _Sizes(scene, judged)
    if not any(tried.right(trial) for trial in tried.trials):
        return ""
    given = judged.draw.inputs[0].shape
    if tried.unequal(given):
        return "only where height and width differ"
    base = tried.right_one(given)
    if base is None:
        return ""
    kinds: dict[int, str] = {}
    for axis in tried.axes:
        known = tried.along(axis, base, given[axis])
        if True in known.values():
            kinds[axis] = _class_of(known)
    if len(set(kinds.values())) != 1 or not (kind := next(iter(kinds.values()))):
        return ""
    if not tried.decided(kinds, base, given) or tried.mixed:
        return ""
    if 0 in kinds and len(kinds) > 1:
        return ""
    what = "a batch" if 0 in kinds else f"a size of axis {' or '.join(map(str, kinds))}"
    return f"only for {what} {kind}"


def _class_of(known: Mapping[int, bool]) -> str:
    """Return what the wrong sizes have in common and no right one has; nothing if unclear."""
    bad = sorted(n for n, wrong in known.items() if wrong)
    good = sorted(n for n, wrong in known.items() if not wrong)
    if not good or not bad:
        return ""
    odd = {n % 2 for n in bad}
    if min(len(bad), len(good)) > 1 and len(odd) == 1 and odd.isdisjoint(n % 2 for n in good):
        return f"that is {'odd' if odd == {1} else 'even'}"
    if min(bad) > max(good):
        return f"of at least {min(bad)} (right up to {max(good)})"
    if max(bad) < min(good):
        return f"of at most {max(bad)} (right from {min(good)})"
    return ""


class _Sizes:
    """Trials of one kind of draw in shapes that are asked for, each made once."""

    def __init__(self, scene: Scene, judged: Judged) -> None:
        self.scene, self.judged = scene, judged
        self.pair = scene.pair
        lone = len(self.pair.specs) == 1 and self.pair.specs[0].free
        # only a lone input has axes of its own: those of several have to fit each other
        self.axes = range(judged.draw.inputs[0].ndim if lone else 1)
        self.known: dict[Shape, bool | None] = {}
        self.mixed = False  # whether in some shape one seed is wrong and another right

    @property
    def trials(self) -> list[Trial]:
        """The trials of the scene on the same kind of draw."""
        kind = self.judged.draw.label, self.judged.draw.training
        return [t for t in self.scene.trials if (t.draw.label, t.draw.training) == kind]

    def right(self, trial: Trial) -> bool:
        """Whether mine is right in a trial."""
        name = self.judged.quantity
        return not trial.lacks(name) and not trial.differs(name)

    def wrong(self, shape: Shape) -> bool | None:
        """Return whether mine is wrong in that shape; None where the seeds disagree or it fails."""
        if shape not in self.known:
            self.known[shape] = self._tried(shape)
        return self.known[shape]

    def _tried(self, shape: Shape) -> bool | None:
        if math.prod(shape) > LARGEST:
            return None
        draw, found = self.judged.draw, set()
        shapes = (shape, *((shape[0], *a.shape[1:]) for a in draw.inputs[1:]))
        for seed in SEEDS:
            try:
                made = self.pair.draw(
                    self.pair.options.seed + seed, draw.training, draw.label, shapes
                )
            except LayerError:
                return None
            trial = make_trial(self.pair, made)
            if trial is None or not trial.theirs or trial.lacks(self.judged.quantity):
                return None
            found.add(trial.differs(self.judged.quantity))
        self.mixed = self.mixed or len(found) > 1
        return found.pop() if len(found) == 1 else None

    def unequal(self, given: Shape) -> bool:
        """Whether mine is right in squares alone: a fault of two axes, which none decides alone."""
        if len(given) < 4 or given[-1] == given[-2] or len(self.axes) < 4:
            return False
        n, lead = max(2, min(given[-2:])), given[:-2]
        squares = [(*lead, n, n), (*lead, n + 1, n + 1)]
        others = [(*lead, n, n + 1), (*lead, n + 1, n), (*lead, n, n + 2)]
        return all(self.wrong(shape) is False for shape in squares) and all(
            self.wrong(shape) is True for shape in others
        )

    def right_one(self, given: Shape) -> Shape | None:
        """Return a shape in which mine is right, the asked-for one first; None if none is."""
        small = compact(self.pair)
        asked = self.pair.specs[0].shape if small is None else small[0]
        if self.wrong(given) is not True:
            return None
        near = [
            (*asked[:axis], size, *asked[axis + 1 :])
            for axis in self.axes
            for size in (asked[axis] + 1, asked[axis] + 2, 1, 2)
        ]
        return next((shape for shape in [asked, *near] if self.wrong(shape) is False), None)

    def along(self, axis: int, base: Shape, given: int) -> dict[int, bool]:
        """Return size of ``axis`` → whether mine is wrong, the other axes as in ``base``."""
        n = base[axis]
        sizes = sorted({1, 2, 3, n - 2, n - 1, n, n + 1, n + 2, n + 3, given})
        told = {s: self.wrong((*base[:axis], s, *base[axis + 1 :])) for s in sizes if s > 0}
        return {size: wrong for size, wrong in told.items() if wrong is not None}

    def decided(self, kinds: Mapping[int, str], base: Shape, given: Shape) -> bool:
        """Whether the named axes decide in every trial: a wrong one is so without the others."""
        for trial in self.trials:
            if trial.x.ndim == len(base) and not trial.lacks(self.judged.quantity):
                self.known.setdefault(trial.x.shape, trial.differs(self.judged.quantity))
        for shape, wrong in list(self.known.items()):
            if wrong is None:
                continue
            alone = (self.wrong((*base[:axis], shape[axis], *base[axis + 1 :])) for axis in kinds)
            if wrong is not any(found is True for found in alone):
                return False
        return True
