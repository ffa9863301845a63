"""Other memory layouts of the same numbers, fed to the hand-written side alone."""

from __future__ import annotations

from functools import cache

import numpy as np

from parity.draws import Draw
from parity.examination import Examination
from parity.findings import Verdict
from parity.judged import Judged
from parity.ladder import farthest, judge64, matches
from parity.outcomes import Array, LayerError, Outcome
from parity.pair import Pair
from parity.subjects import PlainRunner

LAYOUTS = ("Fortran-ordered", "strided", "reversed", "read-only")
GAP = 1024.0  # a layout that is read wrongly is off by far more than summation order


def layouts(exam: Examination, small: tuple[tuple[int, ...], ...] | None) -> None:
    """Feed the same numbers in other memory layouts, and read-only, to the hand-written side."""
    pair = exam.pair
    runner = pair.subject.spawn("float64")
    torch_mine = hasattr(runner, "held")
    plain_mine = isinstance(runner, PlainRunner)
    if not (plain_mine or torch_mine) or pair.reference.dropouts:
        return
    dtype = "float32" if exam.float32_only else "float64"
    try:
        draw = pair.draw(pair.options.seed, True, "generic", small)
        if exam.float32_only:
            draw = draw.rounded(np.float32)
        theirs = pair.theirs(draw)
        plain = pair.mine(draw).quantities
    except LayerError:
        return

    @cache
    def noise() -> dict[str, Array]:
        return pair.noise(draw, theirs.quantities, 2, dtype=dtype)

    for name in LAYOUTS if plain_mine else ("strided",):
        try:
            if torch_mine:
                mine = runner.run(draw, "float64", pair.names, strided=True)
            else:
                mine = _Relaid(pair, name).run(draw)
        except LayerError as failure:
            if "read-only" in str(failure):
                text = f"mine writes to its input: {failure}"
                exam.fault("untouched", draw, "input_modified", text)
            else:
                exam.not_covered.append(f"{name} arrays: only mine refuses them ({failure})")
            continue
        for quantity, ref, own in pair.partners(theirs, mine):
            if ref is None or own is None or own.shape != ref.shape or ref.dtype.kind != "f":
                continue
            if matches(own, ref):
                continue  # noise, which is dear, only adds to what is allowed
            # float32's noise is too large for float64 to decide by, and enough to tell a layout
            judged = judge64(own, ref, noise()[quantity], pinned=exam.float32_only)
            already = any(f.quantity == quantity and f.failed for f in exam.findings)
            if not judged.inside and not judged.undecided and not already:
                usual = plain.get(quantity)
                error = farthest(usual, ref) if usual is not None else 0.0
                if judged.error < GAP * max(error, judged.allowance):
                    continue  # another order of summation, no more
                text = f"differs for {name} arrays, not for contiguous ones"
                exam.add(
                    Judged(
                        quantity, "float64", Verdict.MISMATCH, judged, draw, own, ref, text,
                        ("memory_layout", text),
                    ),
                    probe=f"{name} arrays",
                )  # fmt: skip
    exam.covers.append("memory layouts")


def _relaid(array: Array, name: str) -> Array:
    if name == "Fortran-ordered":
        return np.asfortranarray(array) if array.ndim else array  # it would make () into (1,)
    if name == "strided" and array.ndim:
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if name == "reversed" and array.ndim:
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    if name == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


class _Relaid:
    """Runs a fresh copy whose inputs and upstream gradients have another memory layout."""

    def __init__(self, pair: Pair, name: str) -> None:
        self.pair = pair
        self.name = name

    def run(self, draw: Draw) -> Outcome:
        runner = self.pair.subject.spawn("float64")
        forward, backward = runner.forward, runner.backward

        def relaid_forward(*inputs: Array) -> object:
            return forward(*(_relaid(a, self.name) for a in inputs))

        def relaid_backward(*upstream: Array) -> object:
            return backward(
                *(_relaid(g, self.name) if isinstance(g, np.ndarray) else g for g in upstream)
            )

        runner.forward = relaid_forward
        runner.backward = relaid_backward
        return self.pair.mine(draw, "float64", runner)
