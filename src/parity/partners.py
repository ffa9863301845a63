"""Quantities that cannot be compared element by element: missing, of another shape, or integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from parity.draws import Draw
from parity.findings import Verdict
from parity.judged import Judged
from parity.ladder import largest
from parity.outcomes import Array, alike
from parity.wording import quantity_text

if TYPE_CHECKING:
    from parity.pair import Pair


def incomparable(
    pair: Pair, name: str, ref: Array | None, own: Array | None, draw: Draw, returned: int = 0
) -> Judged | None:
    """Return the finding where two quantities cannot be compared element by element."""
    if ref is None:
        if own is not None and largest(own) > 0:
            return _plain(
                name, Verdict.MISMATCH, draw, "torch has no such gradient; mine is not zero"
            )
        return None
    if own is None:
        return missing(pair, name, ref, draw, returned)
    if own.shape != ref.shape:
        text = f"shape {own.shape}, torch's is {ref.shape}"
        return Judged(
            name, "float64", Verdict.MISMATCH, None, draw, own, ref, text,
            ("wrong_shape", f"{quantity_text(name)} has {text}"),
        )  # fmt: skip
    if ref.dtype.kind != "f":
        equal = np.array_equal(own, ref)
        verdict = Verdict.MATCH if equal else Verdict.MISMATCH
        text = "" if equal else f"{int((own != ref).sum())} of {ref.size} integers differ"
        return Judged(name, "float64", verdict, None, draw, own, ref, text or None)
    return None


def missing(pair: Pair, name: str, ref: Array, draw: Draw, returned: int = 0) -> Judged | None:
    """Return what it means that the hand-written side has no such quantity.

    ``returned`` is how many gradients backward handed back: None among them is an answer.
    """
    if name.startswith("buffer_"):
        if ref.dtype.kind != "f":
            return _plain(name, Verdict.SKIPPED, draw, "mine does not count batches")
        if alike(ref, draw.buffers[name.removeprefix("buffer_")]):
            text = "mine keeps no such buffer; torch's is fixed"
            return _plain(name, Verdict.SKIPPED, draw, text)
        return Judged(
            name, "float64", Verdict.ERROR, None, draw, None, ref,
            f"mine has no buffer {name.removeprefix('buffer_')!r}",
            ("missing_buffer", f"the buffer {name.removeprefix('buffer_')!r} has no partner"),
        )  # fmt: skip
    if name.startswith("grad_input"):
        given = int(name.removeprefix("grad_input"))
        if pair.forward_only or (given > 0 and not pair.owes_gradient(given, returned)):
            return _plain(name, Verdict.SKIPPED, draw, "mine returns no such gradient")
        if not largest(ref):
            return _plain(name, Verdict.SKIPPED, draw, "no gradient on either side")
        if given:
            text = (
                f"backward returns no {quantity_text(name)}: return one for each input, as a "
                "tuple, with None for an input that has none on purpose"
            )
            cause = ("missing_gradient", text)
            return Judged(name, "float64", Verdict.ERROR, None, draw, None, ref, text, cause)
    elif pair.forward_only or name.removeprefix("grad_") in pair.unreturned:
        return _plain(name, Verdict.SKIPPED, draw, "mine returns no such gradient")
    return Judged(
        name, "float64", Verdict.ERROR, None, draw, None, ref,
        f"backward left no {quantity_text(name)}",
        ("missing_gradient", f"backward leaves no {quantity_text(name)}"),
    )  # fmt: skip


def _plain(name: str, verdict: Verdict, draw: Draw, message: str) -> Judged:
    return Judged(name, "float64", verdict, None, draw, message=message)
