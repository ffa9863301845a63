"""The scene of a diagnosis: which findings are open, and the draws a cause must hold on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from parity.diagnosis.trials import Trial
from parity.diagnosis.walking import walked
from parity.draws import Draw
from parity.ends import IGNORED, unasked
from parity.ends import LABEL as ENDS
from parity.examination import Examination
from parity.findings import Finding, Verdict
from parity.judged import Judged
from parity.outcomes import LayerError
from parity.overflow import leaves_domain, no_measure
from parity.pair import LOUD, QUIET, Pair
from parity.sizes import Shapes, batched, probe_shapes

SPECIAL = ("integers", "magnitudes", "extreme", "large", LOUD, QUIET, ENDS, IGNORED)
MOST_FAILING = 4
SIDE = 9  # of an image in a trial
WIDER = 2  # channels more than asked for
OPEN = frozenset({Verdict.MISMATCH, Verdict.INACCURATE})
REFINABLE = frozenset({"wrong_shape"})  # a fact about the shapes, for which a cause may be found


@dataclass(eq=False)
class Scene:
    """The open findings of an examination by index, and the trials made for them."""

    exam: Examination
    open: dict[int, Judged]
    trials: list[Trial] = field(default_factory=list)

    @property
    def pair(self) -> Pair:
        """The pair under examination."""
        return self.exam.pair

    def failing(self, trials: Sequence[Trial]) -> list[str]:
        """Return the open quantities that differ on one of ``trials``, in order of appearance."""
        names = dict.fromkeys(judged.quantity for judged in self.open.values())
        return [n for n in names if any(t.differs(n) for t in trials)]

    def innocent(self, trials: Sequence[Trial]) -> list[str]:
        """Return the quantities that agree on every one of ``trials``."""
        names = dict.fromkeys(n for t in trials for n in t.names)
        return [n for n in names if not any(t.differs(n) for t in trials)]


def open_findings(exam: Examination) -> dict[int, Judged]:
    """Return the findings that have two arrays that differ, and no exact cause yet."""
    found = {}
    for index, judged in exam.failed.items():
        finding = exam.findings[index]
        if _unfitting(finding):
            # torch's upstream gradient may not fit an output that is wrong: ask the forward pass
            found[index] = replace(judged, quantity="forward")
        if finding.verdict not in OPEN or judged.mine is None or judged.theirs is None:
            continue
        if finding.cause is not None and finding.cause.name not in REFINABLE:
            continue
        if judged.quantity != "step":
            found[index] = judged
    return found


def _unfitting(finding: Finding) -> bool:
    """Whether no gradient could be asked for, perhaps because the output has another shape."""
    if finding.cause is None or finding.verdict is not Verdict.ERROR:
        return False
    return (finding.quantity, finding.cause.name) in {
        ("backward", "raised"),
        ("forward", "wrong_shape"),
    }


def make_scene(exam: Examination) -> Scene:
    """Return the scene and its trials: failing draws, other sizes and seeds, the other mode."""
    scene = Scene(exam, open_findings(exam))
    if not scene.open:
        return scene
    seen: set[object] = set()
    for draw in _draws(scene):
        key = (draw.label, draw.training, draw.seed, tuple(a.shape for a in draw.inputs))
        if key in seen:
            continue
        seen.add(key)
        made = make_trial(exam.pair, draw)
        if made is not None and made.theirs:
            scene.trials.append(made)
    shown = {n for n in scene.failing(scene.trials)}
    for judged in scene.open.values():  # a fault that small shapes hide is shown at its own size
        if judged.quantity not in shown and all(a.size for a in judged.draw.inputs):
            made = make_trial(exam.pair, judged.draw)
            if made is not None and made.theirs:
                scene.trials.append(made)
                shown.add(judged.quantity)
    scene.trials += _later(scene)
    # the most telling trial first: most hypotheses fall on it
    scene.trials.sort(key=lambda t: not any(t.differs(n) for n in t.names))
    return scene


def _later(scene: Scene) -> list[Trial]:
    """Return a second pass where buffers differ: a first one alone may tell no rule of updating."""
    training = any(t.draw.training for t in scene.trials)
    buffers = [n for n in scene.failing(scene.trials) if n.startswith("buffer_")]
    if not buffers or not training:
        return []
    try:
        return walked(scene.pair, scene.pair.options.seed, 1)[1:]
    except LayerError:
        return []


def make_trial(pair: Pair, draw: Draw) -> Trial | None:
    """Run the hand-written side on ``draw``; without backward where that raises, else None."""
    for asked in (draw, replace(draw, upstream=())):
        try:
            mine = pair.mine(asked)
            trial = Trial(pair, pair.masked(draw, mine), mine.quantities)
            if draw.label == ENDS:
                trial.own = unasked(mine.quantities, trial.theirs)
            elif leaves_domain(pair, draw, trial.theirs):
                trial.own = no_measure(mine.quantities, trial.theirs)
            return trial
        except LayerError as failure:
            if failure.phase not in ("backward", "shape"):
                return None
    return None


def _draws(scene: Scene) -> Iterator[Draw]:
    pair = scene.pair
    small = compact(pair)
    failing: list[Draw] = []
    order = {"float64": 0, "exact": 1, "float32": 2}
    chosen = sorted(scene.open.values(), key=lambda j: order.get(j.dtype, 3))
    wide = {j.quantity for j in chosen if j.dtype != "float32"}
    for judged in chosen:
        known = [(d.label, d.training) for d in failing]
        if judged.dtype == "float32" and judged.quantity in wide:
            continue
        if known.count((judged.draw.label, judged.draw.training)) < 2:
            failing.append(judged.draw)
    # an empty batch fits nearly every hypothesis
    failing = [draw for draw in failing if all(a.size for a in draw.inputs)][:MOST_FAILING]
    if not failing:
        return
    asked = small or tuple(spec.shape for spec in pair.specs)
    for draw in failing:
        # a probe may have more elements than asked for, among them some that rounding alone parts
        dense = draw.label in SPECIAL and draw.inputs[0].size > math.prod(asked[0])
        yield draw if small is None and not dense else _again(pair, draw, asked) or draw
    first = True
    labels = dict.fromkeys(d.label if d.label in SPECIAL else "generic" for d in failing)
    for label in sorted(labels, key=lambda label: label in SPECIAL):
        for training in sorted({d.training for d in failing}, reverse=True):
            # every size is tried once; other modes and kinds of draws need a second batch size
            yield from islice(_more(pair, label, training), None if first else 1)
            first = False
    if pair.reference.buffers or pair.reference.dropouts:
        for training in (True, False):
            yield from _made(pair, pair.options.seed, training, "generic", small)
    elif all(d.label in SPECIAL for d in failing):
        yield from _made(pair, pair.options.seed, True, "generic", small)


def compact(pair: Pair) -> Shapes | None:
    """Return shapes small enough for hundreds of runs; None where the given ones are."""
    small = probe_shapes(pair)
    spec = pair.specs[0]
    if len(pair.specs) > 1 or not spec.free or len(spec.shape) < 3 or not batched(pair):
        return small
    batch, channels, *space = spec.shape if small is None else small[0]
    less = ((min(batch, 4), channels, *(min(n, SIDE) for n in space)),)
    if math.prod(less[0]) == math.prod(spec.shape):
        return small
    return less if list(_made(pair, 0, True, "generic", less)) else small


def _again(pair: Pair, draw: Draw, shapes: Sequence[tuple[int, ...]]) -> Draw | None:
    made = list(_made(pair, draw.seed, draw.training, draw.label, shapes))
    return made[0] if made else None


def _made(
    pair: Pair,
    seed: int,
    training: bool,
    label: str,
    shapes: Sequence[tuple[int, ...]] | None,
) -> Iterator[Draw]:
    try:
        yield pair.draw(seed, training, label, shapes)
    except LayerError:
        return


def _more(pair: Pair, label: str, training: bool) -> Iterator[Draw]:
    """Yield draws with another seed, other batch sizes, and other sizes of an image."""
    seed = pair.options.seed + 101
    small = compact(pair)
    if not batched(pair):
        yield from _made(pair, seed, training, label, small)
        return
    shapes = small or tuple(spec.shape for spec in pair.specs)
    asked = shapes[0][0]
    for batch in (min(asked, 8) + 3, 5 if asked != 5 else 7):
        other = tuple((batch, *shape[1:]) for shape in shapes)
        yield from _made(pair, seed, training, label, other)
    wider = _wider(pair, shapes)
    if wider is not None:
        yield from _made(pair, seed, training, label, wider)
    spec = pair.specs[0]
    if len(pair.specs) == 1 and spec.free and len(spec.shape) > 2:
        batch, channels, *space = shapes[0]
        sizes = tuple(min(n, 12) + 1 + (i == 0) for i, n in enumerate(space))
        yield from _made(pair, seed, training, label, ((min(batch, 4), channels, *sizes),))


def _wider(pair: Pair, shapes: Shapes) -> Shapes | None:
    """Return shapes with more channels, features or classes; None where weights fix their number.

    A factor that is explained by such a size has to change with it.
    """
    first = shapes[0]
    if pair.reference.params or pair.reference.buffers or len(first) < 2:
        return None
    return tuple(
        (shape[0], shape[1] + WIDER, *shape[2:]) if shape[1:2] == first[1:2] else shape
        for shape in shapes
    )
