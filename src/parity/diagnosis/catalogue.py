"""The hypotheses in the order in which they are tried; importing it registers them all."""

from __future__ import annotations

from collections.abc import Iterator

# the order of these imports is the order of the search: simple things first
from parity.diagnosis import factors as factors  # isort: skip
from parity.diagnosis import rearranged as rearranged  # isort: skip
from parity.diagnosis import changed_draws as changed_draws  # isort: skip
from parity.diagnosis import settings as settings  # isort: skip
from parity.diagnosis import variants_norm as variants_norm  # isort: skip
from parity.diagnosis import variants_layers as variants_layers  # isort: skip
from parity.diagnosis import kinks as kinks  # isort: skip
from parity.diagnosis import history as history  # isort: skip
from parity.diagnosis.registry import HYPOTHESES, LATE, Hypothesis
from parity.pair import Pair


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
