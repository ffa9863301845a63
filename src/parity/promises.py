"""Promises beyond one pass: the same answer twice, gradients that add up, steps that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial

import numpy as np

from parity.draws import Draw
from parity.elements import saturation
from parity.examination import Examination
from parity.findings import Verdict
from parity.judged import Judged
from parity.ladder import (
    SECOND_LOOK,
    judge32,
    judge64,
    largest,
    response,
    same_bits,
    second_look,
    shrink_ratio,
    slight,
    verdict32,
    verdict64,
)
from parity.leftovers import leaves_nothing
from parity.outcomes import Array, LayerError, Outcome, alike
from parity.own_forward import ALIKE
from parity.pair import Looks, Pair
from parity.probes import loud
from parity.sizes import probe_shapes
from parity.subjects import PlainRunner, as_arrays, backward, begin, cast, guarded

STEPS = 3
PASSES = 4  # over the same numbers: what changes with the calls shows
NARROW_WALKS = 4  # nudged walks of the reference in float32
MASKS = 64  # of torch's dropout: few of a low rate may be alike by chance
RATE = 0.1


def keep_promises(exam: Examination) -> None:
    """Check repeatability, accumulation of gradients, dropout's rate, and three steps."""
    pair = exam.pair
    try:
        draw = pair.draw(pair.options.seed, True, "generic", probe_shapes(pair))
    except LayerError:
        return
    try:
        first: Outcome | None = None
        if pair.reference.dropouts:
            _dropout(exam)
        else:
            first = _repeats(exam, draw)
        if "probes" in pair.options.rungs:
            loud(exam, draw, first)
        _accumulates(exam, draw)
        _leaves_alone(exam, draw)
        _steps(exam)
        leaves_nothing(exam, draw)
    except LayerError as failure:
        exam.error(failure, draw)


def _repeats(exam: Examination, draw: Draw) -> Outcome:
    """Later passes over the same numbers give the same bits, on the same object.

    Returns the first of them.
    """
    pair = exam.pair
    runner = pair.subject.spawn("float64")
    first = pair.mine(draw, "float64", runner)
    others = [pair.mine(draw, "float64", runner) for _ in range(PASSES - 1)] + [pair.mine(draw)]
    if all(same_bits(other.quantities, first.quantities) for other in others):
        _add(exam, "repeat", Verdict.MATCH, draw)
        return first
    again = pair.theirs(draw)
    if not same_bits(again.quantities, pair.theirs(draw).quantities):
        exam.notes.append("torch does not repeat its own bits here; repeatability is not judged")
        return first
    changed = [
        name
        for name, array in first.quantities.items()
        if not all(same_bits({name: o.quantities.get(name)}, {name: array}) for o in others)
    ]
    late = same_bits(others[0].quantities, first.quantities)
    which = "later" if late else "second"
    text = f"a {which} pass over the same numbers gives another answer: {', '.join(changed)}"
    exam.fault("repeat", draw, "not_repeatable", text)
    return first


def _accumulates(exam: Examination, draw: Draw) -> None:
    """Gradients are added to until they are zeroed: asked of the plain contract alone."""
    pair = exam.pair
    runner = pair.subject.spawn("float64")
    if not isinstance(runner, PlainRunner) or not draw.params:
        return
    if not runner.takes_upstream() or not runner.accumulates:
        return
    once = pair.mine(draw, "float64", runner)
    try:
        twice = _added(pair, runner, draw, once, again=False)
    except LayerError as failure:
        exam.not_covered.append(f"a second backward after one forward ({failure})")
        return
    fault = _unlike(once, twice, draw, 2, "a second backward")
    if fault is None and not pair.reference.dropouts:  # which would draw another mask
        thrice = _added(pair, runner, draw, once, again=True)
        fault = _unlike(once, thrice, draw, 3, "a second forward and backward")
    if fault is None:
        _add(exam, "accumulate", Verdict.MATCH, draw)
    else:
        exam.fault("accumulate", draw, *fault)


def _added(pair: Pair, runner: PlainRunner, draw: Draw, once: Outcome, again: bool) -> Outcome:
    """Return the gradients after one backward more, with a forward of its own if ``again``."""
    outcome = Outcome(once.outputs, dict(once.quantities))
    if again:
        inputs = (cast(a, "float64") for a in draw.inputs)
        guarded("forward", outcome, runner.forward, *inputs)
    backward(runner, draw, outcome, "float64", pair.names)
    return outcome


def _unlike(
    once: Outcome, later: Outcome, draw: Draw, times: int, by: str
) -> tuple[str, str] | None:
    """Return (cause, sentence) where gradients are not ``times`` what one pass made."""
    for name in draw.params:
        first, last = once.quantities.get(f"grad_{name}"), later.quantities.get(f"grad_{name}")
        if first is None or last is None or not first.any():
            continue
        if last.shape == first.shape and np.array_equal(last, first):
            text = f"grad of {name} was overwritten by {by}, where torch adds to it"
            return "gradient_overwritten", text
        noise = np.abs(first) * 2 * times * np.finfo(first.dtype).eps
        judged = judge64(last, times * first, noise)
        if not judged.inside and not judged.undecided:
            text = f"{by} does not add the same gradient to grad of {name} again"
            return "gradient_not_accumulated", text
    return None


def _leaves_alone(exam: Examination, draw: Draw) -> None:
    """What was handed out stays as it was: a reused workspace would overwrite it later."""
    pair = exam.pair
    runner = pair.subject.spawn("float64")
    if not isinstance(runner, PlainRunner) or pair.reference.dropouts:
        return
    other = pair.draw(draw.seed + 1, True, "generic", tuple(a.shape for a in draw.inputs))
    begin(runner, draw, "float64", pair.names)
    held, kept = _handed_out(runner, draw)
    _handed_out(runner, other)
    changed = [what for what, array in held.items() if not alike(array, kept[what])]
    if changed:
        text = f"{' and '.join(changed)} handed out earlier is overwritten by the next pass"
        exam.fault("aliasing", draw, "workspace_reused", text)


def _handed_out(runner: PlainRunner, draw: Draw) -> tuple[dict[str, Array], dict[str, Array]]:
    """Run one pass; return the arrays themselves as they were handed out, and copies of them."""
    outcome = Outcome(())
    raw = guarded("forward", outcome, runner.forward, *(cast(a, "float64") for a in draw.inputs))
    outputs = as_arrays(raw, "forward")
    held = {"the output": outputs[0]}
    upstream = [
        g.reshape(output.shape) if output.ndim else np.float64(g.reshape(()))
        for output, g in zip(outputs, draw.upstream, strict=False)
        if g is not None
    ]
    copies = {"the output": np.array(outputs[0])}
    if upstream:
        grads = guarded("backward", outcome, runner.backward, *upstream)
        first = grads[0] if isinstance(grads, (tuple, list)) and grads else grads
        if isinstance(first, np.ndarray):
            held["the gradient"], copies["the gradient"] = first, np.array(first)
    return held, copies


def _steps(exam: Examination) -> None:
    """Three steps of plain gradient descent, on one object, then an evaluation."""
    pair = exam.pair
    if not pair.reference.params and not pair.reference.buffers:
        return
    if exam.float32_only:
        _narrow_steps(exam)
        return
    seed = pair.options.seed
    draws = _drawn(pair, seed)
    runner = pair.subject.spawn("float64")
    mine = _walk(pair, draws, lambda draw: pair.mine(draw, "float64", runner))
    shared = [replace(d, masks=m.masks) for d, m in zip(draws, mine, strict=True)]
    # where torch's own gradients are off, its steps would lead to other parameters than mine
    led = mine if pair.torch_errors else None
    theirs = _walk(pair, shared, pair.theirs, led)
    failing = {f.quantity for f in exam.findings if f.failed}
    walks = _Walks(pair, shared, led)
    for k, (own, ref) in enumerate(zip(mine, theirs, strict=True), 1):
        if k > 1 and not _finite(ref):  # inf or NaN is then a matter of the order of summation
            exam.not_covered.append(f"steps from pass {k} on: torch's own numbers overflow")
            return
        judged = _judge_step(pair, own, ref, [], shared[k - 1])
        if any(item.verdict is not Verdict.MATCH for item in judged):  # noise adds to what matches
            nudged = [run[k - 1] for run in walks.nudged]
            judged = _judge_step(pair, own, ref, nudged, shared[k - 1])
        for item in judged:
            if item.verdict is Verdict.MISMATCH and item.judgement is not None:
                item = _settle(item, walks, k - 1)
            if item.quantity in failing or (failing and item.verdict is Verdict.MISMATCH):
                return  # said once, where it arose
            # roughness is judged pass by pass: two nudged walks are few to measure noise on
            if item.verdict is Verdict.MISMATCH:
                when = f"after step {k - 1}" if k <= STEPS else "in evaluation after training"
                exam.add(
                    replace(item, quantity="step", message=f"{item.quantity} parts {when}"),
                    step=k - 1,
                    of=item.quantity,
                )
                return
    _add(exam, "step", Verdict.MATCH, draws[0])
    exam.covers.append(_what(draws))


def _drawn(pair: Pair, seed: int) -> list[Draw]:
    """Return a draw for each step, and one for the evaluation that follows."""
    shapes = probe_shapes(pair)
    draws = [pair.draw(seed, True, f"step{k}", shapes) for k in range(STEPS)]
    if "eval" in (pair.options.modes or ("eval",)):
        draws.append(pair.draw(seed, False, "after-training", shapes))
    return draws


def _what(draws: list[Draw]) -> str:
    return f"{STEPS} steps" + (", then evaluation" if len(draws) > STEPS else "")


def _narrow_steps(exam: Examination) -> None:
    """The same steps for a layer that has float32 only; what parts must part on two draws.

    A value that rounds across a kink in one of them is no fault.
    """
    pair, seed = exam.pair, exam.pair.options.seed
    if pair.reference.dropouts:
        exam.not_covered.append(f"{STEPS} steps: not judged in float32 where there is dropout")
        return
    draws = _drawn(pair, seed)
    found = _narrow_fault(pair, draws)
    if any(f.failed for f in exam.findings):
        return  # said once, where it arose
    if found is not None and _narrow_fault(pair, _drawn(pair, seed + 1)) is not None:
        item, k = found
        when = f"after step {k}" if k < STEPS else "in evaluation after training"
        text = f"{item.quantity} parts {when}"
        exam.add(replace(item, quantity="step", message=text), step=k, of=item.quantity)
        return
    _add(exam, "step", Verdict.MATCH, draws[0])
    exam.covers.append(_what(draws))


def _narrow_fault(pair: Pair, draws: list[Draw]) -> tuple[Judged, int] | None:
    """Return the first quantity that parts in float32, and after how many steps."""
    walks = _Walks(pair, draws, None)
    rng = np.random.default_rng([draws[0].seed, 8])
    runs = [walks.narrow]
    for _ in range(NARROW_WALKS):
        moved = [draw.nudged(rng, np.float32) for draw in walks.rounded]
        runs.append(_walk(pair, moved, lambda d: pair.theirs(d, "float32")))
    for k, (own, ref) in enumerate(zip(walks.mine, walks.exact, strict=True)):
        for name, exact, answer in pair.partners(ref, own):
            if exact is None or answer is None or exact.dtype.kind != "f":
                continue
            others = [a for run in runs if (a := run[k].quantities.get(name)) is not None]
            if answer.shape != exact.shape or not np.isfinite(others).all():
                continue
            judged = judge32(answer, exact, others, saturation(pair, walks.rounded[k], name))
            verdict = verdict32(judged)
            if verdict is Verdict.MISMATCH:
                item = Judged(name, "float32", verdict, judged, draws[k], answer, exact)
                return item, k
    return None


def _finite(outcome: Outcome) -> bool:
    """Whether every number of a pass is finite."""
    arrays = [a for a in outcome.quantities.values() if a is not None and a.dtype.kind == "f"]
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _walk(
    pair: Pair, draws: list[Draw], run: object, led: list[Outcome] | None = None
) -> list[Outcome]:
    """Run the draws in turn, each with the parameters and buffers that the last one left.

    The steps go along the gradients of ``led``, if that is given, else along its own.
    """
    params: Mapping[str, Array] = draws[0].params
    buffers: Mapping[str, Array] = draws[0].buffers
    found = []
    for draw in draws:
        outcome: Outcome = run(replace(draw, params=params, buffers=buffers))  # type: ignore[operator]
        found.append(outcome)
        leading = outcome if led is None else led[len(found) - 1]
        grads = {n: leading.quantities.get(f"grad_{n}") for n in params}
        if draw.training:
            params = {
                n: p if (g := grads[n]) is None or g.shape != p.shape else p - RATE * g
                for n, p in params.items()
            }
        left = {n: outcome.quantities.get(f"buffer_{n}") for n in buffers}
        buffers = {n: b if (new := left[n]) is None else new for n, b in buffers.items()}
    return found


def _judge_step(
    pair: Pair, mine: Outcome, theirs: Outcome, moved: list[Outcome], draw: Draw
) -> list[Judged]:
    found = []
    for name, ref, own in pair.partners(theirs, mine):
        if ref is None or own is None or own.shape != ref.shape or ref.dtype.kind != "f":
            continue
        noise = response(ref, [a for o in moved if (a := o.quantities.get(name)) is not None])
        judged = judge64(own, ref, noise)
        verdict = verdict64(judged, 1.0)  # refined by the float32 walk where it is outside
        found.append(Judged(name, "float64", verdict, judged, draw, own, ref))
    return found


class _Walks:
    """The same steps walked otherwise, when first asked for: one walk serves all quantities."""

    def __init__(self, pair: Pair, draws: list[Draw], led: list[Outcome] | None) -> None:
        self.pair, self.draws, self.led = pair, draws, led
        self.rounded = [draw.rounded(np.float32) for draw in draws]

    @cached_property
    def looks(self) -> list[Looks]:
        """What is measured on the draw of each step, with the parameters of the first."""
        first = self.draws[0]
        begun = [replace(d, params=first.params, buffers=first.buffers) for d in self.draws]
        return [Looks(self.pair, draw) for draw in begun]

    @cached_property
    def exact(self) -> list[Outcome]:
        """The reference in float64 on numbers rounded to float32."""
        return _walk(self.pair, self.rounded, self.pair.theirs, self.led)

    @cached_property
    def narrow(self) -> list[Outcome]:
        """The reference in float32."""
        return _walk(self.pair, self.rounded, lambda d: self.pair.theirs(d, "float32"), self.led)

    @cached_property
    def mine(self) -> list[Outcome]:
        """The hand-written side in float32. Raises LayerError."""
        runner = self.pair.subject.spawn("float32")
        return _walk(self.pair, self.rounded, lambda d: self.pair.mine(d, "float32", runner))

    @cached_property
    def nudged(self) -> list[list[Outcome]]:
        """The reference in float64, every number moved by one ulp: the noise of the steps."""
        return self._moved(2, 5)

    @cached_property
    def moved(self) -> list[list[Outcome]]:
        """More of them, for a second look."""
        return self._moved(SECOND_LOOK, 6)

    def _moved(self, count: int, stream: int) -> list[list[Outcome]]:
        pair, rng = self.pair, np.random.default_rng([self.draws[0].seed, stream])
        return [
            _walk(pair, [d.nudged(rng, np.float64) for d in self.draws], pair.theirs, self.led)
            for _ in range(count)
        ]


def _settle(item: Judged, walks: _Walks, step: int) -> Judged:
    """Walk the same steps in float32: rounding shrinks with the precision, faults do not.

    A slight error is first held against more nudged walks: see :func:`parity.ladder.second_look`.
    """
    judged, name = item.judgement, item.quantity
    if judged is None or judged.nonfinite or item.mine is None or item.theirs is None:
        return item
    again = partial(judge64, item.mine, item.theirs, np.zeros_like(item.theirs), pinned=True)
    opened, verdict = walks.looks[step].opened(name, judged, item.verdict, again)
    if verdict is Verdict.MATCH:
        return replace(item, judgement=opened, verdict=verdict)
    if judged.error <= ALIKE * walks.pair.torch_errors.get(name, 0.0) * largest(item.theirs):
        return replace(item, verdict=Verdict.MATCH)
    ref = walks.exact[step].quantities.get(name)
    if slight(judged, item.theirs):
        r32 = walks.narrow[step].quantities.get(name)
        moved = [walk[step].quantities.get(name) for walk in walks.moved]
        looked = second_look(item.mine, item.theirs, moved, (r32, ref))
        if looked is not None:
            return replace(item, judgement=looked, verdict=Verdict.MATCH)
    try:
        own = walks.mine[step].quantities.get(name)
    except LayerError:
        return item
    shrink = shrink_ratio(item.mine, item.theirs, own, ref)
    return replace(
        item, judgement=replace(judged, shrink=shrink), verdict=verdict64(judged, shrink)
    )


def _dropout(exam: Examination) -> None:
    """The share that is kept, and its independence between elements and between calls."""
    pair = exam.pair
    rates = set(pair.reference.dropouts)
    if pair.options.modes == ("eval",):
        return  # nothing is dropped
    if not pair.reference.lone or len(rates) != 1:
        exam.covers.append("dropout with the mask shared")
        return
    (p,) = rates
    if not 0 < p < 1:
        return
    from parity.statistics import check_dropout_mask

    runner = pair.subject.spawn("float64")
    draw = pair.draw(pair.options.seed, True, "generic", probe_shapes(pair))
    if not draw.training:
        return  # evaluation alone was asked for: nothing is dropped
    calls = max(8, min(64, -(-8192 // max(draw.inputs[0].size, 1))))
    # on ones, what is dropped is exactly what is zero
    ones = replace(draw, inputs=tuple(np.ones_like(a) for a in draw.inputs), upstream=())
    joint = _dropped_together(pair, ones)
    calls = max(8, min(64, -(-8192 * joint // max(draw.inputs[0].size, 1))))
    side = getattr(runner, "side", None)  # of a torch module, whose dropout a check replaces
    masks = np.stack(
        [pair.mine(ones, "float64", runner).outputs[0] != 0 for _ in range(calls)]
        if side is None
        else side.own_masks(ones, calls)
    )
    if joint > 1:
        masks = masks.reshape(calls, -1, joint)
        if (masks != masks[..., :1]).any():
            text = f"drops single elements, where torch drops all {joint} of a channel together"
            exam.fault("dropout_mask", draw, "dropout_mask", text)
            return
        masks = masks[..., 0]
    if masks.size < 64:
        exam.not_covered.append("the dropout rate: too few elements to count")
        return
    judged = check_dropout_mask(masks, p)
    verdict = Verdict.MATCH if judged.passed() else Verdict.MISMATCH
    _add(exam, "dropout_mask", verdict, draw, str(judged), "dropout_mask")


def _dropped_together(pair: Pair, draw: Draw) -> int:
    """Return how many elements torch drops or keeps as one: a channel's, but in nn.Dropout.

    That is not asked of nn.Dropout, which may spare every element of a small draw.
    """
    if pair.reference.drops_elements:
        return 1
    shape = draw.inputs[0].shape
    masks = np.stack(pair.reference.own_masks(draw, MASKS))
    for axis in range(1, len(shape)):
        joint = int(np.prod(shape[axis:]))
        rows = masks.reshape(MASKS, -1, joint)
        if joint > 1 and (rows == rows[..., :1]).all():
            return joint
    return 1


def _add(
    exam: Examination,
    quantity: str,
    verdict: Verdict,
    draw: Draw,
    text: str | None = None,
    cause: str | None = None,
) -> None:
    named = (cause, text) if cause and text and verdict is not Verdict.MATCH else None
    exam.add(Judged(quantity, "float64", verdict, None, draw, message=text, cause=named))
