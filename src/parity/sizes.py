"""The other sizes at which a pair is probed: batches, images, lengths of sequences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.outcomes import LayerError
from parity.pair import Pair

SMALL = 4096  # elements an input may have before a probe shrinks its batch
FEW = 3  # samples, where another axis is long
MANY = 67  # samples: beyond the blocks of 16, 32 and 64 that kernels take, and no multiple of any
LONG = 33  # of another axis, for the same reason
SHORTEST = 8  # an axis is not shortened to this size or beyond
Shapes = tuple[tuple[int, ...], ...]
Group = tuple[tuple[int, int], ...]  # (input, axis) of sizes that change together


def batched(pair: Pair) -> bool:
    """Whether axis 0 of every input can be taken for a batch that may be resized."""
    specs = pair.specs
    sizes = {spec.shape[0] for spec in specs if spec.shape}
    return (
        all(spec.reshapable and spec.shape for spec in specs)
        and len(sizes) == 1
        and (len(specs) > 1 or len(specs[0].shape) > 1)
    )


def resized(pair: Pair, batch: int) -> Shapes:
    """Return the input shapes with another batch size."""
    return tuple((batch, *spec.shape[1:]) for spec in pair.specs)


def probe_shapes(pair: Pair) -> Shapes | None:
    """Return smaller shapes for probes where the inputs are big; None for as they are."""
    if not batched(pair):
        return None
    batch, each = pair.specs[0].shape[0], _each(pair)
    if batch * each <= SMALL:
        return None
    smaller = max(2, min(batch, SMALL // max(each, 1)))
    return resized(pair, smaller) if smaller < batch else None


def _each(pair: Pair) -> int:
    """Return the elements that a sample has in the largest input."""
    return max(int(np.prod(spec.shape[1:])) for spec in pair.specs)


def batches(pair: Pair) -> list[int]:
    """Return batch sizes that the user did not ask for: none, one, a few, many."""
    if not batched(pair):
        return []
    asked = pair.specs[0].shape[0]
    usual = max(3, min(asked, 8) + 1)
    many = min(MANY, 2 * SMALL // max(_each(pair), 1))
    sizes = [1, 0, 2, usual, many if many > max(usual, asked) else usual]
    return [size for size in dict.fromkeys(sizes) if size != asked]


def spread(pair: Pair, rows: int) -> Shapes | None:
    """Return the shape of a lone input with as many elements as ``rows`` at least, in its batch."""
    if not batched(pair) or len(pair.specs) > 1:
        return probe_shapes(pair)
    batch = -(-rows // max(_each(pair), 1))
    return resized(pair, batch) if batch > pair.specs[0].shape[0] else probe_shapes(pair)


def other_sizes(pair: Pair) -> Iterator[tuple[Shapes, Shapes | None]]:
    """Yield sizes that the user did not ask for: odd against even, wide against high, extremes.

    The axes are those that the reference lets change: of an image, a sequence, a number of
    features. Beside some stands a size that divides as the user's own does, for layers that want
    that.
    """
    groups = _elastic(pair)
    if not groups:
        return
    base = resized(pair, min(pair.specs[0].shape[0], FEW)) if batched(pair) else _asked(pair)
    sizes = [min(_size(base, group), 16) for group in groups]
    odd, other = sizes.copy(), sizes.copy()
    odd[-1] += 1
    other[-2:] = [n + more for n, more in zip(sizes[-2:], (3, 1), strict=False)]
    for changed, group in ((odd, groups[-1]), (other, groups[-2:][0]))[: len(groups)]:
        shapes = _all_with(base, groups, changed)
        divides = _with(base, group, 2 * _size(base, group))
        if not _taken(pair, shapes):
            yield divides, None
        elif changed != [_size(_asked(pair), g) for g in groups]:
            yield shapes, divides
    short = [_shortest(pair, base, group) for group in groups]
    long = [_longest(pair, base, group) for group in groups]
    for turn in (0, 1):
        ends = [(short[i][turn], long[i])[(i + turn) % 2] for i in range(len(groups))]
        shapes = _all_with(base, groups, ends)
        if shapes != base and _taken(pair, shapes):
            yield shapes, None
    if len(groups) == 1 and short[0][1] != _size(base, groups[0]):
        yield _with(base, groups[0], short[0][1]), None


def _elastic(pair: Pair) -> list[Group]:
    """Return the sizes that the reference lets change, the batch apart.

    Sizes of several inputs that are equal on the same axis change together (queries and keys), or
    else all that are equal (an image and its labels).
    """
    specs = pair.specs
    if not all(spec.reshapable for spec in specs) or all(spec.integral for spec in specs):
        return []
    shapes = _asked(pair)
    first = 1 if batched(pair) else 0
    places = [(i, a) for i, shape in enumerate(shapes) for a in range(first, len(shape))]
    found: list[Group] = []
    for i, axis in places:
        size = shapes[i][axis]
        if size == 0 or any((i, axis) in group for group in found):
            continue
        alike = tuple(place for place in places if shapes[place[0]][place[1]] == size)
        level = tuple(place for place in alike if place[1] == axis)
        for group in dict.fromkeys((level, alike)):
            if any(_taken(pair, _with(shapes, group, n)) for n in (size + 1, 2 * size)):
                found.append(group)
                break
    return found


def _asked(pair: Pair) -> Shapes:
    return probe_shapes(pair) or tuple(spec.shape for spec in pair.specs)


def _size(shapes: Shapes, group: Group) -> int:
    i, axis = group[0]
    return shapes[i][axis]


def _with(shapes: Shapes, group: Group, size: int) -> Shapes:
    """Return ``shapes`` with another size in the places of ``group``."""
    return tuple(
        tuple(size if (i, axis) in group else n for axis, n in enumerate(shape))
        for i, shape in enumerate(shapes)
    )


def _all_with(shapes: Shapes, groups: list[Group], sizes: list[int]) -> Shapes:
    for group, size in zip(groups, sizes, strict=True):
        shapes = _with(shapes, group, size)
    return shapes


def _taken(pair: Pair, shapes: Shapes) -> bool:
    """Whether the reference takes inputs of these shapes."""
    try:
        pair.outputs_of(shapes)
    except LayerError:
        return False
    return True


def _shortest(pair: Pair, base: Shapes, group: Group) -> tuple[int, int]:
    """Return the shortest size and the next: a lone element is its own mean, and its own mirror."""
    size = _size(base, group)
    taken = (n for n in range(1, min(size, SHORTEST)) if _taken(pair, _with(base, group, n)))
    return next(taken, size), next(taken, size)


def _longest(pair: Pair, base: Shapes, group: Group) -> int:
    size = _size(base, group)
    tried = (n for n in (LONG, 4 * size) if n > size)
    return next((n for n in tried if _taken(pair, _with(base, group, n))), size)
