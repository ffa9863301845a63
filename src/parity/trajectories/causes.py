"""Why two training runs part: the first step's numbers read for a known fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch import nn

from parity.diagnosis.registry import multiple
from parity.diagnosis.settings import NO_EPS, NOT_ADDED
from parity.findings import Cause, Verdict
from parity.ladder import EPS64
from parity.outcomes import Array
from parity.trajectories.batches import Batch
from parity.trajectories.exact import ExactRun
from parity.trajectories.lockstep import Course, Record
from parity.trajectories.replay import Replay, optimizer_cause
from parity.trajectories.theirs import TorchRun
from parity.trajectories.verdicts import Judge

Grads = dict[str, Array]
BEYOND = 3  # steps after the first parting that an explanation must make too
AGREES = 1e-10  # relative: losses of a counterfactual run beside mine


def cause_of(judge: Judge) -> Cause | None:
    """Return the fault that explains the first parting, or None; it never guesses."""
    course = judge.course
    if course is None:
        return None
    firsts = {
        name: track.first.step
        for name, track in course.tracks.items()
        if track.first and judge._verdict(track) is Verdict.MISMATCH
    }
    step = min(firsts.values(), default=0)
    if not 0 < step <= len(course.records):
        return None
    kinds = {name.partition("_")[0] for name, at in firsts.items() if at == step}
    if kinds & {"trajectory", "grad"}:
        return _of_gradients(judge, course, step, kinds) or _counterfactual(judge, course, step)
    if "buffer" in kinds:
        return _counterfactual(judge, course, step)
    if kinds & {"parameter", "state"}:
        records = course.records[: step + BEYOND]
        replay = Replay(
            judge.plan, judge.plan.start(judge.seed), records, set(course.built),
            exact=bool(course.exact), later=course.records[step + BEYOND :],
        )  # fmt: skip
        named = None if "parameter" in kinds else _of_state(course, step, replay)
        return named or optimizer_cause(replay)
    return _of_predictions(judge, course) if kinds == {"predictions"} else None


def _of_gradients(judge: Judge, course: Course, step: int, kinds: set[str]) -> Cause | None:
    record = course.records[step - 1]
    total: Grads = {}
    for earlier in course.records[:step]:
        total = {n: g + total.get(n, 0.0) for n, g in earlier.theirs.items()}
    if step > 1 and _equal(record.mine, total, course):
        return Cause(
            "gradients_not_zeroed",
            f"the gradient of step {step} is the sum of all gradients so far: they are not zeroed",
        )
    if step > 1 and _equal(record.mine, course.records[step - 2].theirs, course):
        return Cause("stale_gradients", f"the gradient of step {step} is that of step {step - 1}")
    unmoved = [n for n, g in record.mine.items() if not g.any() and record.theirs.get(n, g).any()]
    if unmoved and _equal(record.mine, {**record.theirs, **{n: record.mine[n] for n in unmoved}},
                          course):  # fmt: skip
        return Cause("zero", f"no gradient reaches {', '.join(unmoved)}: it stays zero")
    k = _factor(record, course)
    if k is None:
        return None
    if "trajectory" in kinds:
        # a loss that is scaled shows the same factor in its value
        ratio = course.mine[step - 1] / course.theirs[step - 1]
        if abs(ratio - k) > 1e-6 * abs(k):
            return None
    return _scaled(judge, step, k)


def _scaled(judge: Judge, step: int, k: float) -> Cause | None:
    rows = _rows(judge, step)
    first = judge.plan.batches.first[0].rows
    if rows and first and rows != first:
        for value, text in ((rows / first, f"{rows}/{first}"), (first / rows, f"{first}/{rows}")):
            if abs(k - value) <= 1e-7 * value:
                return Cause(
                    "short_batch_normalised",
                    f"the batch of step {step} holds {rows} items, and mine is {text} × torch's: "
                    f"it is divided by the size of another batch",
                )
    if rows and rows > 1:
        if abs(k * rows - 1) <= 1e-7:
            text = f"mine is torch's divided by {rows}, the batch size: the loss is averaged twice"
            return Cause("loss_averaged_twice", text)
        if abs(k - rows) <= 1e-7 * rows:
            text = f"mine is {rows} × torch's, the batch size: the batch sum was not averaged"
            return Cause("batch_sum_not_averaged", text)
    return Cause("loss_scaled", f"all gradients are {multiple(k)} × torch's")


def _rows(judge: Judge, step: int) -> int | None:
    for i, (_, batch) in enumerate(judge.plan.batches, 1):
        if i == step:
            return batch.rows
    return None


def _equal(mine: Grads, theirs: Grads, course: Course) -> bool:
    for name, array in theirs.items():
        if name in course.built or name not in mine:
            continue
        room = 1e-9 * float(np.abs(array).max(initial=0.0)) + 64 * EPS64 * course.heights[name]
        if mine[name].shape != array.shape or not (np.abs(mine[name] - array) <= room).all():
            return False
    return bool(theirs)


def _factor(record: Record, course: Course) -> float | None:
    """The one factor between all gradients of a step, or None."""
    names = [n for n in record.theirs if n in record.mine and n not in course.built]
    if not names or any(record.mine[n].shape != record.theirs[n].shape for n in names):
        return None
    a = np.concatenate([record.theirs[n].ravel() for n in names])
    b = np.concatenate([record.mine[n].ravel() for n in names])
    size = float(a @ a)
    if not size or not np.isfinite(size):
        return None
    k = float(a @ b) / size
    close = np.abs(b - k * a).max() <= 1e-9 * np.abs(b).max()
    return k if close and abs(k - 1) > 1e-9 else None


def _of_state(course: Course, step: int, replay: Replay) -> Cause | None:
    """State that differs while the parameters agree: a buffer kept in other units."""
    rate = float(replay.options()[step - 1]["lr"])
    ratios = []
    for name, track in course.tracks.items():
        if track.first and track.first.step == step and name.endswith(".momentum_buffer"):
            a, b = track.first.theirs.ravel(), track.first.mine.ravel()
            ratios.append(float(a @ b) / float(a @ a))
    if ratios and np.allclose(ratios, rate, rtol=1e-9, atol=0):
        text = (
            f"the momentum buffer is {rate:g} × torch's, the learning rate: it stands inside the "
            "buffer, which takes other steps as soon as the rate changes"
        )
        return Cause("lr_inside_buffer", text)
    return None


def _of_predictions(judge: Judge, course: Course) -> Cause | None:
    """Training that agrees under predictions that do not: another mode."""
    parted = course.tracks["predictions"].first
    if parted is None or judge.plan.reference.dropouts:
        return None
    run = _torch_run(judge, course)
    epoch_before = 0
    for epoch, batch in judge.plan.batches:
        if epoch != epoch_before:
            run.end_epoch()
            epoch_before = epoch
        run.step(batch)
    last = judge.plan.batches.epoch(judge.plan.batches.epochs - 1)
    run.module.eval = lambda: run.module.train()
    made = np.concatenate([np.atleast_1d(run.predict(batch)) for batch in last])
    if made.shape != parted.mine.shape or not np.allclose(
        made, parted.mine, rtol=0, atol=1e-9 * float(np.abs(made).max(initial=0.0))
    ):
        return None
    text = "the predictions are those of training mode: evaluation mode is never set"
    return Cause("evaluation_mode_never_set", text)


def _torch_run(judge: Judge, course: Course) -> TorchRun:
    """Return the reference at its start, run as the one that mine was compared with."""
    kind = ExactRun if course.exact else TorchRun
    return kind(judge.plan, "float64", judge.plan.start(judge.seed))


# ---- the reference rebuilt with one thing changed ------------------------------------------------

Change = Callable[[TorchRun], None]
Relabel = Callable[[Batch, Batch | None], Batch]


def _counterfactual(judge: Judge, course: Course, step: int) -> Cause | None:
    last = min(step + BEYOND, len(course.records))
    for name, sentence, change, relabel in _changes(judge):
        if _same_run(judge, course, last, change, relabel):
            return Cause(name, sentence)
    return None


def _same_run(
    judge: Judge, course: Course, last: int, change: Change | None, relabel: Relabel | None
) -> bool:
    run = _torch_run(judge, course)
    if change is not None:
        change(run)
    before: Batch | None = None
    epoch_before = 0
    for i, (epoch, batch) in enumerate(judge.plan.batches):
        if i == last:
            break
        if epoch != epoch_before:
            run.end_epoch()
            epoch_before = epoch
        seen = relabel(batch, before) if relabel else batch
        record = course.records[i]
        try:
            value = run.step(seen, record.masks)
        except ValueError:
            return False
        if not abs(value - course.mine[i]) <= AGREES * abs(value):
            return False
        if not _equal(record.mine, run.kept_grads, course) or not _buffers(run, record):
            return False
        before = batch
    return True


def _buffers(run: TorchRun, record: Record) -> bool:
    own = run.quantities()
    return all(
        np.allclose(own[name], array, rtol=AGREES, atol=0)
        for name, array in record.buffers.items()
        if name in own
    )


def _changes(judge: Judge) -> Iterator[tuple[str, str, Change | None, Relabel | None]]:
    module = judge.plan.reference.original
    text = "it behaves exactly like torch's net in evaluation mode: training mode is never set"
    yield "wrong_mode", text, _evaluation, None
    for path, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            yield from _norm_changes(path, child)
    text = "the labels stand in reverse order"
    yield "labels_misaligned", text, None, lambda b, _: Batch(b.inputs, b.target[::-1])
    for by in (1, -1):
        text = f"the labels are shifted by {abs(by)} item"
        yield "labels_misaligned", text, None, _rolled(by)


def _rolled(by: int) -> Relabel:
    return lambda batch, _: Batch(batch.inputs, np.roll(batch.target, by, axis=0))


def _evaluation(run: TorchRun) -> None:
    run.module.train = lambda mode=True: nn.Module.train(run.module, False)


def _norm_changes(
    path: str, layer: nn.Module
) -> Iterator[tuple[str, str, Change | None, Relabel | None]]:
    def put(option: str, value: float) -> Change:
        return lambda run: setattr(run.module.get_submodule(path), option, value)

    kind = type(layer).__name__
    for eps in (1e-20, 0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-3):
        if eps != layer.eps:
            text = f"layer {path} behaves exactly like {kind}(eps={eps:g}); torch has {layer.eps:g}"
            if eps < NO_EPS <= layer.eps:
                text = f"layer {path}: {NOT_ADDED}"
            yield "wrong_eps", text, put("eps", eps), None
    if layer.momentum is not None and layer.momentum != 1 - layer.momentum:
        text = (
            f"layer {path} behaves exactly like {kind}(momentum={1 - layer.momentum:g}): the "
            "running average weighs the old value where torch weighs the new one"
        )
        yield "momentum_swapped", text, put("momentum", 1 - layer.momentum), None
