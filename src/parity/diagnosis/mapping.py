"""The weights' mapping: names and axis orders under which the layer would be right as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice, permutations, product

from parity.examination import Examination
from parity.findings import Cause, Verdict
from parity.outcomes import Array, LayerError
from parity.pair import Pair
from parity.subjects import NameMap

MOST = 60  # mappings that are tried
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
    for names in islice(_mappings(pair, own), MOST):
        if names == pair.names or not _agrees(pair, names):
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


def _agrees(pair: Pair, names: NameMap) -> bool:
    """Whether everything matches under ``names`` on two draws."""
    tried = replace(pair, names=names)
    seeds = (pair.options.seed, pair.options.seed + 101)
    try:
        for seed in seeds:
            found = tried.float64(tried.draw(seed, True), count=2)
            if any(j.verdict not in (Verdict.MATCH, Verdict.SKIPPED) for j in found):
                return False
    except (LayerError, ValueError, ZeroDivisionError):
        return False
    return True


def _argument(pair: Pair, names: NameMap) -> str:
    """Return the ``weights=`` argument to paste."""
    parts = []
    mentioned = {names.mine(t): t for t in (*pair.reference.params, *names.axes)}
    mentioned |= dict(names.names)
    for mine, theirs in mentioned.items():
        axes = names.axes.get(theirs)
        if axes is not None:
            parts.append(f"{mine!r}: ({theirs!r}, {axes})")
        elif mine != theirs:
            parts.append(f"{mine!r}: {theirs!r}")
    return "{" + ", ".join(parts) + "}"
