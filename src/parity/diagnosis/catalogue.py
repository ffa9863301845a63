"""The hypotheses in the order in which they are tried; importing it registers them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from parity.diagnosis import (
    attention,
    changed_draws,
    factors,
    history,
    kinks,
    rearranged,
    settings,
    terms,
    variants,
    variants_activations,
    variants_conv,
    variants_functions,
    variants_layer_norms,
    variants_losses,
    variants_norm,
    variants_other,
    variants_others,
    variants_pool,
    variants_recurrent,
)
from parity.diagnosis.registry import HYPOTHESES, LATE, READINGS, Hypothesis
from parity.pair import Pair

# simple things first; a new file takes its place here
ORDER = [
    module.__name__
    for module in (
        factors,
        rearranged,
        terms,
        changed_draws,
        attention,
        variants_norm,
        variants_layer_norms,
        variants_activations,
        settings,
        variants,
        kinks,
        variants_other,
        history,
    )
]


def _place(maker: Callable[..., Any]) -> int:
    # an extension of one's own comes last
    return ORDER.index(maker.__module__) if maker.__module__ in ORDER else len(ORDER)


for registry in (HYPOTHESES, LATE, READINGS):
    registry.sort(key=_place)
# they register changed layers
VARIED = (variants_activations, variants_conv, variants_pool, variants_functions, variants_losses,
          variants_others, variants_recurrent)  # fmt: skip


def early(pair: Pair) -> Iterator[Hypothesis]:
    """Yield the hypotheses that come before the readings of single quantities."""
    for maker in HYPOTHESES:
        yield from _made(maker(pair))


def late(pair: Pair) -> Iterator[Hypothesis]:
    """Yield the hypotheses that come after them."""
    for maker in LATE:
        yield from _made(maker(pair))


def _made(found: Iterator[Hypothesis]) -> Iterator[Hypothesis]:
    try:
        yield from found
    except Exception:  # an exotic reference may break a maker: the others go on
        return
