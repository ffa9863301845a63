"""The weights' mapping: names, axes and gates under which the layer would be right as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice, permutations, product

import numpy as np

from parity.draws import Draw
from parity.examination import Examination
from parity.findings import Cause, Verdict
from parity.names import NameMap
from parity.outcomes import Array, LayerError
from parity.pair import Pair

MOST = 60  # mappings that are tried
MOST_GATES = 100  # orders of gates that are tried, one forward pass each
GATES = (3, 4, 2)  # blocks that a recurrent layer, or an attention's projection, may have
NEAR = 1e-6  # a right mapping agrees to rounding, a wrong one to nothing
Partner = tuple[str, "tuple[int, ...] | None"]


def wrong_mapping(exam: Examination) -> Cause | None:
    """Return the cause ``wrong_mapping`` where another mapping makes everything agree.

    Tried only where the forward pass differs or the weights could not be copied: a layer whose
    forward pass is right has its weights where they belong.
    """
    pair = exam.pair
    if not pair.reference.params or not _suspect(exam):
        return None
    runner = pair.subject.spawn("float64")
    functions = getattr(runner, "pair", None)
    if functions is not None:  # a pair of functions takes its parameters by position
        mine = {n: pair.reference.params.get(pair.names.theirs(n)) for n in functions.params}
    else:
        mine = dict(runner.params())
    own = {name: array for name, array in mine.items() if array is not None}
    failing = [j.draw for j in exam.failed.values() if j.draw.inputs and j.draw.upstream][:1]
    candidates = chain(islice(_mappings(pair, own), MOST), _in_blocks(pair, own))
    for names in candidates:
        if names == pair.names or not _agrees(pair, names, failing):
            continue
        text = _argument(pair, names)
        return Cause(
            "wrong_mapping", f"the layer is right, the mapping is wrong: give weights={text}"
        )
    return None


def _suspect(exam: Examination) -> bool:
    for index in exam.failed:
        finding = exam.findings[index]
        if finding.cause is not None and finding.cause.name == "missing_partner":
            return True
        if finding.quantity.startswith("forward") and finding.verdict is Verdict.MISMATCH:
            if finding.dtype == "float64" and finding.evidence.get("draw") == "generic":
                return True
    return False


def _mappings(pair: Pair, mine: Mapping[str, Array]) -> Iterator[NameMap]:
    """Yield assignments of names by shape, own names first, with every axis order that fits."""
    theirs = pair.reference.params
    if not set(theirs) or len(mine) < len(theirs):
        return
    for chosen in _assignments(list(theirs), list(mine)):
        orders = [list(_orders(mine[m].shape, theirs[t].shape)) for t, m in chosen.items()]
        if not all(orders):
            continue
        for axes in product(*orders):
            names = {m: t for t, m in chosen.items() if m != t}
            kept = {t: a for t, a in zip(chosen, axes, strict=True) if a is not None}
            yield NameMap(names, kept)
    buffers = [n for n, a in pair.reference.buffers.items() if a.ndim]
    if len(buffers) == 2:
        first, second = buffers
        yield NameMap({**pair.names.names, first: second, second: first}, pair.names.axes)


def _in_blocks(pair: Pair, mine: Mapping[str, Array]) -> Iterator[NameMap]:
    """Yield mappings with the gates of recurrent layers in another order, where outputs agree.

    All weights and biases of a layer change together, beside every fitting transpose.
    """
    groups = _gates(pair.reference.params)
    if not groups:
        return
    draw = replace(pair.draw(pair.options.seed, True, "mapping"), upstream=())
    theirs = pair.theirs(draw).outputs
    orders = [
        {name: order for name in names}
        for count, names in groups.items()
        for order in permutations(range(count))
        if order != tuple(range(count))
    ]
    tried = product(islice(_mappings(pair, mine), MOST), orders)
    for names, blocks in islice(tried, MOST_GATES):
        found = replace(names, blocks=blocks)
        try:
            own = replace(pair, names=found).mine(draw).outputs
        except (LayerError, ValueError):
            continue
        if all(_alike(a, b) for a, b in zip(own, theirs, strict=False)):
            yield found


def _alike(own: Array, ref: Array) -> bool:
    off = np.max(np.abs(own - ref), initial=0) if own.shape == ref.shape else np.inf
    return bool(off <= NEAR * np.max(np.abs(ref), initial=0))


def _gates(params: Mapping[str, Array]) -> dict[int, list[str]]:
    """Return how many blocks → the parameters that have them, where one is (blocks · h, h)."""
    found: dict[int, list[str]] = {}
    for count in GATES:
        lengths = {len(a) for a in params.values() if a.ndim == 2 and len(a) == count * a.shape[1]}
        names = [n for n, a in params.items() if a.ndim and len(a) in lengths]
        if names:
            found[count] = names
    return found


def _assignments(theirs: list[str], mine: list[str]) -> Iterator[dict[str, str]]:
    """Yield {torch's name: mine}, those that keep equal names first."""
    missing = [name for name in theirs if name not in mine]
    spare = [name for name in mine if name not in theirs]
    alike = {name: name for name in theirs if name in mine}
    if missing:
        for order in islice(permutations(spare, len(missing)), MOST):
            yield alike | dict(zip(missing, order, strict=True))
        return
    yield alike
    for order in islice(permutations(theirs), 24):
        if list(order) != theirs:
            yield dict(zip(theirs, order, strict=True))


def _orders(mine: tuple[int, ...], theirs: tuple[int, ...]) -> Iterator[tuple[int, ...] | None]:
    """Yield the axis orders that turn torch's shape into mine; None is "as it is"."""
    if mine == theirs:
        yield None
    if len(mine) != len(theirs) or not 2 <= len(theirs) <= 4:
        return
    for order in permutations(range(len(theirs))):
        if order != tuple(range(len(theirs))) and tuple(theirs[i] for i in order) == mine:
            yield order


def _agrees(pair: Pair, names: NameMap, failing: list[Draw]) -> bool:
    """Whether everything matches under ``names`` on two draws, and on those that showed a fault.

    A fault may show in another size alone, and some parameters may be exchanged without effect.
    """
    tried = replace(pair, names=names)
    seeds = (pair.options.seed, pair.options.seed + 101)
    try:
        for draw in [*(tried.draw(seed, True) for seed in seeds), *failing]:
            found = tried.float64(draw, count=2)
            if any(j.verdict not in (Verdict.MATCH, Verdict.SKIPPED) for j in found):
                return False
    except (LayerError, ValueError):
        return False
    return True


def _argument(pair: Pair, names: NameMap) -> str:
    """Return the ``weights=`` argument to paste."""
    parts = []
    mentioned = {names.mine(t): t for t in (*pair.reference.params, *names.axes)}
    mentioned |= dict(names.names)
    for mine, theirs in mentioned.items():
        value = names.declared(mine, theirs)
        if value != mine:
            parts.append(f"{mine!r}: {value!r}")
    return "{" + ", ".join(parts) + "}"
