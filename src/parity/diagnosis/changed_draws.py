"""Hypotheses that change the numbers: a parameter ignored, flipped or swapped, another mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations, permutations
from typing import Any

import numpy as np

from parity.diagnosis.rearranged import _bfloat16, _float16, _float32
from parity.diagnosis.registry import Hypothesis, hypotheses, late_hypotheses
from parity.diagnosis.trials import Quantities, Trial
from parity.outcomes import Array, alike
from parity.pair import Pair

Change = Callable[[Array], Array]


def with_param(trial: Trial, name: str, array: Array, module: Any = None) -> Quantities | None:
    """Run the reference with one parameter replaced."""
    return trial.run(module, params={**trial.draw.params, name: array})


def _renamed(
    name: str, change: Change, back: Change | None
) -> Callable[[Trial], Quantities | None]:
    """Predict a pass with ``change(param)``; ``back`` takes its gradient to the given layout."""

    def predict(trial: Trial) -> Quantities | None:
        found = with_param(trial, name, change(trial.draw.params[name]))
        key = f"grad_{name}"
        if found is None or back is None or found.get(key) is None:
            return found
        return {**found, key: back(found[key])}  # type: ignore[arg-type]

    return predict


@hypotheses
def other_mode(pair: Pair) -> Iterator[Hypothesis]:
    """Training where torch evaluates, and the other way round."""
    if pair.reference.buffers or pair.reference.dropouts:
        yield Hypothesis("wrong_mode", "training and evaluation mode are exchanged", _switched)
        yield Hypothesis(
            "wrong_mode",
            "in evaluation mode it behaves exactly as in training",
            lambda t: t.theirs if t.draw.training else _switched(t),
        )
        yield Hypothesis(
            "wrong_mode",
            "in training mode it behaves exactly as in evaluation",
            lambda t: _switched(t) if t.draw.training else t.theirs,
        )


def _switched(trial: Trial) -> Quantities | None:
    masks = trial.draw.masks
    out = trial.get("forward")
    if not masks and trial.pair.reference.lone and out is not None and out.shape == trial.x.shape:
        masks = ((out != 0) | (trial.x == 0),)
    return trial.run(training=not trial.draw.training, masks=masks)


@hypotheses
def ignored_parameters(pair: Pair) -> Iterator[Hypothesis]:
    """A bias that is not added, added twice or subtracted; a scale that is not applied."""
    for name, array in pair.reference.params.items():
        short = name.rpartition(".")[2]
        if array.ndim != 1:
            continue
        if "bias" in short:
            for cause, text, change in (
                ("bias_ignored", "is not added", np.zeros_like),
                ("bias_added_twice", "is added twice", lambda a: 2 * a),
                ("bias_subtracted", "is subtracted", np.negative),
            ):
                yield Hypothesis(cause, f"the {name} {text}", _renamed(name, change, None))
        else:
            for cause, text, change in (
                (f"{short}_ignored", "is not applied", np.ones_like),
                (f"{short}_applied_twice", "is applied twice", np.square),
                (f"{short}_divided", "divides where it should multiply", np.reciprocal),
                (f"{short}_added_to_one", "is added to 1: 1 + it is what scales", lambda a: 1 + a),
            ):
                yield Hypothesis(cause, f"the {name} {text}", _renamed(name, change, None))


@hypotheses
def rearranged_parameters(pair: Pair) -> Iterator[Hypothesis]:
    """A weight that is transposed, or a kernel that is flipped."""
    spread = "Transpose" in type(pair.reference.original).__name__
    why = "" if spread else ": torch's is a cross-correlation"
    for name, array in pair.reference.params.items():
        if array.ndim == 2 and array.shape[0] == array.shape[1]:
            yield Hypothesis(
                "transposed",
                f"it computes with {name} transposed",
                _renamed(name, np.transpose, np.transpose),
            )
        if array.ndim < 3:
            continue
        spatial = tuple(range(2, array.ndim))
        for axes in [spatial, *([(axis,) for axis in spatial] if len(spatial) > 1 else [])]:
            which = "" if axes == spatial else f" along axis {axes[0]}"

            def flip(a: Array, axes: tuple[int, ...] = axes) -> Array:
                return np.flip(a, axes)

            yield Hypothesis(
                "kernel_flipped",
                f"it computes with the kernel flipped{which}{why}",
                _renamed(name, flip, flip),
            )
        for first, second in combinations(range(array.ndim), 2):
            if array.shape[first] == array.shape[second]:

                def swap(a: Array, i: int = first, j: int = second) -> Array:
                    return np.swapaxes(a, i, j)

                yield Hypothesis(
                    "kernel_transposed",
                    f"it computes with axes {first} and {second} of {name} exchanged",
                    _renamed(name, swap, swap),
                )


@hypotheses
def swapped(pair: Pair) -> Iterator[Hypothesis]:
    """Two parameters, buffers or inputs of one shape exchanged."""
    for field, store in (("params", pair.reference.params), ("buffers", pair.reference.buffers)):
        for first, second in combinations(store, 2):
            if store[first].shape == store[second].shape and store[first].ndim:

                def predict(
                    t: Trial, field: str = field, a: str = first, b: str = second
                ) -> Quantities | None:
                    held: Mapping[str, Array] = getattr(t.draw, field)
                    found = t.run(**{field: {**held, a: held[b], b: held[a]}})
                    key = "grad_" if field == "params" else "buffer_"
                    if found is None:
                        return None
                    return {**found, key + a: found.get(key + b), key + b: found.get(key + a)}

                yield Hypothesis(
                    "parameters_swapped" if field == "params" else "buffers_swapped",
                    f"{first} and {second} are exchanged",
                    predict,
                )
    for i, j in combinations(range(len(pair.specs)), 2):
        if pair.specs[i].shape == pair.specs[j].shape and pair.specs[i].kind == pair.specs[j].kind:

            def exchanged(t: Trial, i: int = i, j: int = j) -> Quantities | None:
                inputs = list(t.draw.inputs)
                inputs[i], inputs[j] = inputs[j], inputs[i]
                found = t.run(inputs=tuple(inputs))
                a, b = f"grad_input{i}", f"grad_input{j}"
                return found and {**found, a: found.get(b), b: found.get(a)}

            yield Hypothesis("inputs_swapped", f"inputs {i} and {j} are exchanged", exchanged)


ROUNDINGS: tuple[tuple[str, Change], ...] = (
    ("float32", _float32),
    ("float16", _float16),
    ("bfloat16", _bfloat16),
)
PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the input", ("inputs",)),
    ("the upstream gradient", ("upstream",)),
    ("every parameter", ("params",)),
    ("everything", ("inputs", "upstream", "params")),
)


@late_hypotheses
def rounded_numbers(pair: Pair) -> Iterator[Hypothesis]:
    """Inputs, parameters or upstream gradients rounded to a narrower type on the way in."""
    for label, narrow in ROUNDINGS:
        for what, fields in PARTS:
            yield Hypothesis(
                f"rounded_through_{label}",
                f"{what} is rounded through {label}",
                partial(_rounded, narrow, fields),
            )


def _rounded(narrow: Change, fields: tuple[str, ...], trial: Trial) -> Quantities | None:
    def cut(a: Array | None) -> Array | None:
        return narrow(a) if a is not None and a.dtype.kind == "f" else a

    made: dict[str, Any] = {}
    for field in fields:
        held = getattr(trial.draw, field)
        if field == "params":
            made[field] = {name: cut(array) for name, array in held.items()}
        else:
            made[field] = tuple(map(cut, held))
    return trial.run(**made)


@late_hypotheses
def other_upstream(pair: Pair) -> Iterator[Hypothesis]:
    """An upstream gradient that is ignored, summed or signed; a derivative at another place."""
    changes: tuple[tuple[str, str, Change], ...] = (
        ("upstream_ignored", "backward ignores the upstream gradient: it takes ones", np.ones_like),
        ("upstream_averaged", "backward takes the mean of the upstream gradient",
         lambda g: np.full_like(g, g.mean())),
        ("upstream_summed", "backward takes the sum of the upstream gradient",
         lambda g: np.full_like(g, g.sum())),
        ("upstream_squared", "backward applies the upstream gradient twice", np.square),
        ("upstream_absolute", "backward takes the upstream gradient's magnitude", np.abs),
    )  # fmt: skip
    for cause, text, change in changes:
        yield Hypothesis(cause, text, partial(_with_upstream, change))
    for cause, text, kept in ITEMS:
        yield Hypothesis(cause, f"the gradient counts {text}", partial(_with_upstream, kept))
    if len(pair.specs) == 1 and pair.reference.lone:
        yield Hypothesis(
            "derivative_at_output",
            "backward takes the derivative at the output, torch at the input",
            _at_output,
        )


def _items(keep: slice, array: Array) -> Array:
    made = np.zeros_like(array)
    if array.ndim:
        made[keep] = array[keep]
    return made


ITEMS: tuple[tuple[str, str, Change], ...] = (
    ("only_first_item", "the first sample of the batch alone", partial(_items, slice(0, 1))),
    ("only_last_item", "the last sample of the batch alone", partial(_items, slice(-1, None))),
    ("last_item_missing", "all samples of the batch but the last", partial(_items, slice(0, -1))),
    (
        "first_item_missing",
        "all samples of the batch but the first",
        partial(_items, slice(1, None)),
    ),
)


def _with_upstream(change: Change, trial: Trial) -> Quantities | None:
    return trial.run(upstream=tuple(None if g is None else change(g) for g in trial.draw.upstream))


def _at_output(trial: Trial) -> Quantities | None:
    output = trial.theirs["forward"]
    found = None if output is None else trial.run(inputs=(output,))
    return found and {**found, "forward": output}


@late_hypotheses
def changed_inputs(pair: Pair) -> Iterator[Hypothesis]:
    """An input in another order, sign or layout than torch reads it."""
    joint = _products(pair)
    for i, j in joint:
        yield from _scaled_products(i, j)
    entered = {place for places in joint for place in places}
    for i, spec in enumerate(pair.specs):
        if spec.integral or not spec.shape:
            continue
        for cause, text, change, back in _input_changes(len(spec.shape)):
            if cause == "input_scaled" and i in entered:
                continue  # which of the two is scaled nobody can tell
            yield Hypothesis(
                cause, f"input {i} is taken {text}", partial(_changed_input, i, change, back)
            )


def _products(pair: Pair) -> list[tuple[int, int]]:
    """Return the pairs of inputs that enter by their product: a factor may stand at either."""
    floating = [i for i, spec in enumerate(pair.specs) if not spec.integral and spec.shape]
    if len(floating) < 2:
        return []
    draw = pair.draw(pair.options.seed)

    def doubled(i: int) -> Array:
        inputs = [2.0 * a if place == i else a for place, a in enumerate(draw.inputs)]
        return pair.theirs(replace(draw, inputs=tuple(inputs), upstream=())).outputs[0]

    made = {i: doubled(i) for i in floating}
    return [
        (i, j)
        for i, j in combinations(floating, 2)
        if made[i].size and alike(made[i], made[j])  # doubling is exact wherever it is done
    ]


def _scaled_products(i: int, j: int) -> Iterator[Hypothesis]:
    """Yield the product of two inputs without torch's factor, or with another one."""
    both = f"the product of inputs {i} and {j}"
    for cause, text, factor in (
        ("scale_missing", f"{both} is √d times torch's, d the size of the last axis",
         lambda a: float(np.sqrt(a.shape[-1]))),
        ("scale_applied_twice", f"{both} is 1/√d times torch's, d the size of the last axis",
         lambda a: 1 / float(np.sqrt(a.shape[-1]))),
        ("product_scaled", f"{both} is taken doubled", lambda a: 2.0),
        ("product_scaled", f"{both} is taken halved", lambda a: 0.5),
    ):  # fmt: skip

        def scaled(a: Array, factor: Callable[[Array], float] = factor) -> Array:
            return factor(a) * a

        yield Hypothesis(cause, text, partial(_changed_input, i, scaled, scaled))


def _changed_input(i: int, change: Change, back: Change | None, trial: Trial) -> Quantities | None:
    found, key = _with_input(i, change, trial), f"grad_input{i}"
    if found is None or found.get(key) is None or back is None:
        return found
    return {**found, key: back(found[key])}  # type: ignore[arg-type]


def _input_changes(ndim: int) -> Iterator[tuple[str, str, Change, Change | None]]:
    """Yield (cause, text, change, the change that leads a gradient back)."""
    yield "input_sign_lost", "by magnitude", np.abs, None
    yield "input_inverted", "as 1 - x", partial(np.subtract, 1.0), np.negative
    for c, which in ((0.5, "halved"), (2.0, "doubled")):
        scale = partial(np.multiply, c)
        yield "input_scaled", which, scale, scale
    if ndim > 1:
        yield "first_item_repeated", "as its first item, repeated", _first, _into_first
    yield "input_negated", "with its sign flipped", np.negative, np.negative
    for axis in range(ndim):
        flip = partial(np.flip, axis=axis)
        yield "input_reversed", f"reversed along axis {axis}", flip, flip
    for order in permutations(range(ndim)) if ndim <= 4 else ():
        if order == tuple(range(ndim)):
            continue
        back = tuple(int(i) for i in np.argsort(order))
        text = f"with its axes in the order {order}"
        yield "input_transposed", text, partial(np.transpose, axes=order), partial(
            np.transpose, axes=back
        )  # fmt: skip
        how = "reshaped where it was to be transposed"
        yield "memory_order", f"{text}, {how}", partial(_reread, order=order), None
        yield "memory_order", f"{text}, then {how}", partial(_rewritten, order=order), partial(
            _reread, order=order
        )  # fmt: skip


@late_hypotheses
def changed_output(pair: Pair) -> Iterator[Hypothesis]:
    """A flattened output that runs through the input's axes in another order."""
    if not pair.reference.lone or len(pair.specs) != 1 or not 2 < len(pair.specs[0].shape) <= 4:
        return
    axes = range(1, len(pair.specs[0].shape))
    for order in permutations(axes):
        if order != tuple(axes):
            text = f"the output runs through the input's axes in the order {(0, *order)}"
            yield Hypothesis("memory_order", text, partial(_reordered, (0, *order)))


def _reordered(order: tuple[int, ...], trial: Trial) -> Quantities | None:
    out = trial.theirs.get("forward")
    if out is None or out.size != trial.x.size or out.ndim >= trial.x.ndim:
        return None
    shape, back = trial.x.shape, tuple(int(i) for i in np.argsort(order))

    def led(array: Array) -> Array:
        return array.reshape(shape).transpose(order).reshape(array.shape)

    def undone(array: Array) -> Array:
        turned = array.reshape(tuple(shape[i] for i in order))
        return np.ascontiguousarray(turned.transpose(back)).reshape(array.shape)

    found = trial.run(upstream=tuple(None if g is None else undone(g) for g in trial.draw.upstream))
    return found and {**found, "forward": led(out)}


def _first(array: Array) -> Array:
    return np.repeat(array[:1], len(array), axis=0)


def _into_first(grad: Array) -> Array:
    made = np.zeros_like(grad)
    made[:1] = grad.sum(axis=0, keepdims=True)
    return made


def _reread(array: Array, order: tuple[int, ...]) -> Array:
    """Take the memory for an array whose axes stand in ``order``, and put them right."""
    shape = tuple(array.shape[i] for i in order)
    return array.reshape(shape).transpose(np.argsort(order))


def _rewritten(array: Array, order: tuple[int, ...]) -> Array:
    """Transpose, and take the memory for an array of the old shape: undone by ``_reread``."""
    return np.ascontiguousarray(array.transpose(order)).reshape(array.shape)


@late_hypotheses
def changed_labels(pair: Pair) -> Iterator[Hypothesis]:
    """Labels that are shifted, in reverse order, or moved to another sample."""
    for i, spec in enumerate(pair.specs):
        classes = dict(spec.options).get("classes")
        if not spec.integral or not classes or not spec.shape:
            continue
        top = int(classes) if i == 0 else None
        changes: tuple[tuple[str, Callable[[Array, int], Array]], ...] = (
            ("one too low", lambda labels, n: (labels - 1) % n),
            ("one too high", lambda labels, n: (labels + 1) % n),
            ("counted from the last class", lambda labels, n: n - 1 - labels),
            ("of the next sample", lambda labels, n: np.roll(labels, -1, axis=0)),
            ("of the previous sample", lambda labels, n: np.roll(labels, 1, axis=0)),
            ("of the batch in reverse order", lambda labels, n: np.flip(labels, axis=0)),
        )
        yield Hypothesis(
            "first_item_repeated",
            "every sample has the label of the first",
            partial(_with_input, i, _first),
        )
        for text, moved in changes:
            yield Hypothesis(
                "labels_shifted", f"the labels are {text}", partial(_relabelled, i, top, moved)
            )


def _relabelled(
    i: int, top: int | None, moved: Callable[[Array, int], Array], trial: Trial
) -> Quantities | None:
    """Run with other labels, of as many classes as the first input has scores for."""
    count = top if top is not None else trial.x.shape[min(1, trial.x.ndim - 1)]
    return _with_input(i, lambda labels: moved(labels, count), trial)


def _with_input(i: int, change: Change, trial: Trial) -> Quantities | None:
    inputs = list(trial.draw.inputs)
    inputs[i] = np.ascontiguousarray(change(inputs[i]))
    return trial.run(inputs=tuple(inputs))
