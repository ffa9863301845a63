"""Draws that unmask what generic data hides: integers, kinks, magnitudes, sizes, layouts."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np

from parity.draws import FAR, Draw
from parity.ends import IGNORED, USUAL_IGNORE_INDEX, bounded, unasked
from parity.ends import LABEL as ENDS
from parity.examination import Examination
from parity.findings import FAILING, Verdict
from parity.finite import infinities, unbroken, zeros
from parity.judged import Judged
from parity.ladder import EPS32, SLIGHT, farthest, largest, nonfinite_differs, same_bits
from parity.layouts import layouts
from parity.outcomes import LayerError, Outcome
from parity.overflow import UNMEASURED, leaves_domain, no_measure
from parity.pair import LOUD, LOUDER, QUIET, Pair
from parity.rungs import near_kink
from parity.sizes import Shapes, batches, other_sizes, probe_shapes, resized, spread

DENSE = 1024  # elements of a function's draw: what is off between 4 and 5 alone is met as well
USUALLY_IGNORED = f"labels of {USUAL_IGNORE_INDEX}, which torch leaves out unless told otherwise"
# What torch's answer for is nobody's habit: another one is said, and is no finding.
LENIENT = {
    "batch of 0": "batch of 0: mine answers otherwise than torch",
    IGNORED: f"{USUALLY_IGNORED}: mine answers otherwise",
}


def exact_rung(exam: Examination) -> None:
    """Judge small integers, where the order of summation cannot matter: sides must be equal."""
    pair = exam.pair
    if not any(spec.free for spec in pair.specs) or pair.reference.dropouts:
        return
    try:
        draw = pair.draw(pair.options.seed, True, "integers", probe_shapes(pair))
        wide, narrow = pair.theirs(draw), pair.theirs(draw, "float32")
    except LayerError:
        return
    exact = same_bits(wide.quantities, narrow.quantities)
    if not exact and not (pair.reference.lone and _agree(wide, narrow)):
        return
    if exam.float32_only:
        _exact_in_float32(exam, draw, exact)
        return
    try:
        mine64, mine32 = pair.mine(draw), pair.mine(draw, "float32")
    except LayerError as failure:
        exam.error(failure, draw)
        return
    exam.covers.append("exact integers" if exact else "kinks")
    # where mine is exact too, nothing is left for rounding to explain: a kink inside a net shows
    sharp = exact and all(
        np.array_equal(own, ref) for own, ref in zip(mine64.outputs, wide.outputs, strict=False)
    )
    found = pair.float64(draw, mine64, count=0 if sharp else 2, pinned=True, theirs=wide)
    for judged in found:
        if judged.theirs is not None:
            exam.references.setdefault(judged.quantity, []).append(judged.theirs)
        if judged.judgement is None:
            continue
        equal = exact and _equal(judged, mine64, mine32)
        if exact and not equal and judged.verdict is Verdict.MATCH:
            exam.notes.append(f"{judged.quantity} is not exact on small integers, only accurate")
        if judged.verdict is Verdict.INACCURATE:
            continue  # rounding on integers is a note; the float64 rung has judged rounding
        exam.add(replace(judged, dtype="exact"))


def _exact_in_float32(exam: Examination, draw: Draw, exact: bool) -> None:
    """Judge integers and kinks by float32's own rounding, where mine has no other precision."""
    pair = exam.pair
    try:
        found = pair.float32(draw, pinned=True)
    except LayerError as failure:
        exam.error(failure, draw, "float32")
        return
    exam.covers.append("exact integers" if exact else "kinks")
    for judged in found:
        if judged.verdict is not Verdict.INACCURATE:
            exam.add(judged)


def _equal(judged: Judged, mine64: Outcome, mine32: Outcome) -> bool:
    own64, own32 = mine64.quantities[judged.quantity], mine32.quantities.get(judged.quantity)
    if own64 is None or own32 is None or judged.theirs is None:
        return False
    return np.array_equal(own64, judged.theirs) and np.array_equal(own32, judged.theirs)


def _agree(wide: Outcome, narrow: Outcome) -> bool:
    """Whether float32 and float64 take the same side of every kink: they differ by rounding."""
    for name, array in wide.quantities.items():
        other = narrow.quantities[name]
        if array is None or other is None or array.dtype.kind != "f":
            continue
        if farthest(other, array) > 64 * EPS32 * largest(array):
            return False
    return True


def probe(exam: Examination) -> None:
    """Try the data that unmask hidden faults; what matches is covered, what does not is found."""
    pair = exam.pair
    small = probe_shapes(pair)
    if pair.elementary:
        many = spread(pair, DENSE) if pair.elementwise else small
        _try(exam, "magnitudes", pair.options.seed, True, "magnitudes", many)
        if pair.elementwise:  # else one infinity is no matter of one element alone
            infinities(exam, small)
    if _saturates(pair):
        _try(exam, "extreme values", pair.options.seed, True, "extreme", small)
    if any(spec.free for spec in pair.specs):
        _try(exam, "small values", pair.options.seed, True, "small", small)
        _try(exam, "constant channels", pair.options.seed, True, "constant", small)
        if not _saturates(pair):  # extreme values have been there already
            _try(exam, "large values", pair.options.seed, True, "large", small)
    if pair.specs[0].free and not pair.reference.params and pair.special_values():
        _try(exam, "thresholds", pair.options.seed, True, "near kinks", small)
    ignored = getattr(pair.reference.original, "ignore_index", None)
    labelled = ignored is not None and any(spec.kind == "labels" for spec in pair.specs)
    if any(map(bounded, pair.specs)) or (labelled and ignored != USUAL_IGNORE_INDEX):
        _try(exam, ENDS, pair.options.seed, True, ENDS, small)
    if labelled and ignored == USUAL_IGNORE_INDEX:
        _try(exam, IGNORED, pair.options.seed, True, IGNORED, small)
    zeros(exam, small)
    _sizes(exam)
    if "eval" not in (pair.options.modes or ()) and not pair.reference.buffers:
        if pair.options.modes is None and not pair.reference.dropouts:
            _try(exam, "evaluation mode", pair.options.seed, False, "generic", small)
    layouts(exam, small)


def _sizes(exam: Examination) -> None:
    """Try other batch sizes, and other sizes of whatever else the reference lets change."""
    pair, before = exam.pair, len(exam.covers)
    for batch in batches(pair):
        _try(exam, f"batch of {batch}", pair.options.seed, True, "generic", resized(pair, batch))
    taken = sorted(int(name.removeprefix("batch of ")) for name in exam.covers[before:])
    if taken:
        exam.covers[before:] = [f"batches of {', '.join(map(str, taken))}"]
    # of a function, one element is as good as another, and a long draw of them is there already
    for shapes, instead in islice(other_sizes(pair), 2 if pair.elementwise else None):
        if _try(exam, f"size {shapes[0]}", pair.options.seed, True, "generic", shapes):
            continue
        if instead is None or not _try(
            exam, f"size {instead[0]}", pair.options.seed, True, "generic", instead
        ):
            return  # made for its own size: said, and enough


def loud(exam: Examination, draw: Draw, usual: Outcome | None) -> None:
    """Hand backward a gradient much larger than that of ``draw``, and one much smaller.

    What is clipped shows, what is dropped, and what a row of zeros breaks. Of the large one, mine
    is held against ``usual``, its own answer, of which the new one must be a multiple: one run,
    where the ladder takes five. What did not scale, or has masks that are never twice the same
    (``usual`` is None), is judged by the reference: mine may clip where that does.
    """
    pair = exam.pair
    if not pair.upstream_taken or all(g is None for g in draw.upstream):
        return
    _try(exam, QUIET, pair.options.seed, True, QUIET, probe_shapes(pair))
    more = tuple(None if g is None else g * LOUDER for g in draw.upstream)
    try:
        if usual is not None and _scales(usual, pair.mine(replace(draw, upstream=more))):
            exam.covers.append(LOUD)
            return
    except LayerError:
        pass  # said below, as a refusal
    _try(exam, LOUD, pair.options.seed, True, LOUD, probe_shapes(pair))


def _scales(usual: Outcome, loud: Outcome) -> bool:
    """Whether every gradient grew by LOUDER, but for rounding."""
    for name, once in usual.quantities.items():
        grown = loud.quantities.get(name)
        if not name.startswith("grad_") or once is None or once.dtype.kind != "f":
            continue
        if grown is None or grown.shape != once.shape:
            return False
        expected = once * LOUDER
        if nonfinite_differs(grown, expected).any():
            return False
        if farthest(grown, expected) > SLIGHT * largest(expected):
            return False
    return True


def _saturates(pair: Pair) -> bool:
    """Whether large inputs are meaningful: a lone function of unbounded numbers, or a loss."""
    reference = pair.reference
    lone = reference.lone and not reference.params and not reference.buffers
    return lone and any(spec.free for spec in pair.specs) and not reference.dropouts


def _try(
    exam: Examination,
    name: str,
    seed: int,
    training: bool,
    label: str,
    shapes: Shapes | None,
) -> bool:
    """Judge one probing draw: failures become findings, refusals of one side notes.

    Returns False where mine alone refuses it.
    """
    pair = exam.pair
    try:
        draw = pair.draw(seed, training, label, shapes)
        theirs = pair.theirs(draw)
        beyond = leaves_domain(pair, draw, theirs.quantities)
    except LayerError:
        _both_refuse(exam, name, seed, training, label, shapes)
        return True
    try:
        if exam.float32_only:
            found = _in_float32(exam, name, draw)
        elif label == ENDS:
            found = _at_ends(pair, draw, theirs)
        else:
            mine = pair.mine(draw)
            if beyond:
                mine.quantities = no_measure(mine.quantities, theirs.quantities)
                exam.notes.append(f"{name}: torch itself overflows; {UNMEASURED}")
            count = 3 if label == "magnitudes" else 2
            found = pair.float64(draw, mine, count, theirs=theirs, verdicts=True)
    except LayerError as failure:
        what = f"{USUALLY_IGNORED}: mine refuses them" if name == IGNORED else (
            f"{name}: only mine refuses it"
        )  # fmt: skip
        exam.not_covered.append(f"{what} ({failure})")
        return False
    if name in LENIENT and any(judged.verdict in FAILING for judged in found):
        exam.not_covered.append(LENIENT[name])
        return True
    if label == "generic" and shapes is not None:
        found = [judged for judged in found if not _vanishes(exam, judged)]
    for judged in found:
        if judged.theirs is not None:
            exam.references.setdefault(judged.quantity, []).append(judged.theirs)
        rough = judged.verdict is Verdict.INACCURATE and label not in ("large", ENDS)
        alone = judged.verdict is Verdict.MATCH and "float64" not in pair.options.rungs
        if judged.verdict in (Verdict.MISMATCH, Verdict.ERROR) or rough or alone:
            exam.add(judged, probe=name)
    exam.covers.append(name)
    both = "float32" in pair.options.dtypes and "float32" in pair.options.rungs
    if label in FAR and both and not exam.float32_only:
        unbroken(exam, name, draw, found)
    return True


def _vanishes(exam: Examination, judged: Judged) -> bool:
    """Whether nothing is left at this size but rounding: two elements of a group, normalised.

    What stays there of a quantity, and by how much mine is off, is nothing beside what it usually
    is.
    """
    j, ref = judged.judgement, judged.theirs
    usual = exam.references.get(judged.quantity)
    if judged.verdict is Verdict.MATCH or j is None or ref is None or not usual or j.nonfinite:
        return False
    return max(j.error, largest(ref)) <= SLIGHT * largest(usual[0])  # of the usual numbers


def _in_float32(exam: Examination, name: str, draw: Draw) -> list[Judged]:
    """Judge a probing draw for a layer that has no other precision, where float32 can.

    Roughness is left to the usual draws. What overflows in torch's float32 too, and in whatever
    way, is not judged; a value that rounds across a kink is said not to be covered.
    """
    pair, draw = exam.pair, draw.rounded(np.float32)
    mine, narrow = pair.mine(draw, "float32"), pair.theirs(draw, "float32").quantities
    for quantity, ref in narrow.items():
        own = mine.quantities.get(quantity)
        if ref is None or own is None or own.shape != ref.shape or ref.dtype.kind != "f":
            continue
        neither = ~(np.isfinite(ref) | np.isfinite(own))
        if neither.any():
            mine.quantities[quantity] = np.where(neither, ref, own)
    if draw.label == ENDS:
        mine.quantities = unasked(mine.quantities, narrow)
    found = pair.float32(draw, pinned=draw.label == ENDS, mine=mine)
    found = [j for j in found if j.verdict is not Verdict.INACCURATE]
    off = {j.quantity for j in found if j.judgement and not j.judgement.nonfinite}
    off &= {j.quantity for j in found if j.verdict is Verdict.MISMATCH}
    if off and near_kink(pair, draw, off):
        exam.not_covered.append(f"{name}: a value rounds across a kink in float32")
        found = [j for j in found if j.quantity not in off]
    return found


def _at_ends(pair: Pair, draw: Draw, theirs: Outcome) -> list[Judged]:
    """Judge a draw whose inputs stand at the ends of their domain, where none may be moved."""
    mine = pair.mine(draw)
    mine.quantities = unasked(mine.quantities, theirs.quantities)
    return pair.float64(draw, mine, count=2, pinned=True, theirs=theirs, verdicts=True)


def _both_refuse(
    exam: Examination, name: str, seed: int, training: bool, label: str, shapes: Shapes | None
) -> None:
    """Where torch refuses a size, a hand-written side that answers is worth a note."""
    pair = exam.pair
    rng = np.random.default_rng(seed)
    specs = pair.specs if shapes is None else [
        spec.with_shape(shape) for spec, shape in zip(pair.specs, shapes, strict=True)
    ]  # fmt: skip
    params = dict(pair.reference.params)
    draw = Draw(
        tuple(s.draw(rng) for s in specs), params, dict(pair.reference.buffers), (), training
    )
    try:
        pair.mine(draw)
    except LayerError:
        return
    exam.notes.append(f"{name}: torch refuses it, mine answers")
