"""Comparisons that prove nothing, and gaps that were declared: said, never passed over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from parity.draws import Draw
from parity.examination import Examination
from parity.findings import FAILING, Finding, Verdict, unique
from parity.judged import Judged
from parity.ladder import largest
from parity.likeness import same_code
from parity.options import nearest
from parity.outcomes import Array

ONE_CODE = "both sides are the same object or the same code"


def vacuous(exam: Examination, quantity: str, message: str) -> None:
    """Add the finding that a comparison proves nothing."""
    draw = Draw(())
    exam.add(Judged(quantity, "float64", Verdict.VACUOUS, None, draw, message=message))


def look_for_one_code(exam: Examination, mine: Any, theirs: Any) -> None:
    """Say so where both sides are one object, or one code; one code whose answers differ is two."""
    differ = any(f.verdict is Verdict.MISMATCH for f in exam.findings)
    if mine is theirs or (not differ and same_code(mine, theirs)):
        vacuous(exam, "both", ONE_CODE)


def look_for_vacuity(exam: Examination) -> None:
    """A comparison of zero with zero, over every draw, proves nothing: say so."""
    options, pair = exam.pair.options, exam.pair
    given = not pair.reference.params and all(spec.kind == "array" for spec in pair.specs)
    for name, arrays in exam.references.items():
        if options.zero_expected(name) or name.startswith("buffer_"):
            continue
        if any(array.dtype.kind != "f" for array in arrays):
            continue
        # arrays that the user gave are the same in every draw, and so is what follows from them
        values = [a for a in arrays if a.size][: 1 if given and name == "forward" else None]
        if not values:
            vacuous(exam, name, "there is nothing to compare: the tensor is empty")
        elif name.startswith("forward") and all(np.isnan(a).all() for a in arrays):
            vacuous(exam, name, "the reference's output is NaN throughout")
        elif name.startswith("grad_") and not any(
            largest(a) or not np.isfinite(a).all() for a in values
        ):
            vacuous(exam, name, "the reference gradient is zero throughout")
        elif name.startswith("forward") and _constant_everywhere(values):
            vacuous(exam, name, "the output is constant: it does not depend on anything")


def _constant_everywhere(values: list[Array]) -> bool:
    first = values[0].flat[0]
    if len(values) == 1 and values[0].size == 1:
        return False  # one number cannot show whether it moves
    return all(bool((array == first).all()) for array in values)


def gap_text(quantity: str, reason: str, others: Iterable[Finding]) -> str:
    """Say that a gap has closed or, where ``others`` were compared, that it names nothing."""
    known = unique(f.quantity for f in others)
    if not known:
        return f"the gap {quantity!r} ({reason}) is closed: delete its line"
    return (
        f"the gap names {quantity!r}, which is not compared{nearest(quantity, known)}; "
        f"compared: {', '.join(known)}"
    )


def close_gaps(exam: Examination) -> None:
    """A declared gap is skipped while it is open, and an error once it has closed."""
    gaps = exam.pair.options.gaps
    for quantity, reason in gaps.items():
        mine = [i for i, f in enumerate(exam.findings) if f.quantity == quantity]
        still = [i for i in mine if exam.findings[i].verdict in FAILING | {Verdict.INACCURATE}]
        for i in still:
            facts = {**exam.findings[i].evidence, "message": f"declared gap: {reason}"}
            exam.findings[i] = replace(
                exam.findings[i], verdict=Verdict.SKIPPED, cause=None, evidence=facts
            )
            exam.failed.pop(i, None)
        if not still:
            text = gap_text(quantity, reason, [] if mine else exam.findings)
            exam.add(
                Judged(
                    quantity, "float64", Verdict.ERROR, None, Draw(()), message=text,
                    cause=("gap_closed", text),
                )
            )  # fmt: skip
