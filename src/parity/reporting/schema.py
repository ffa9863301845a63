"""What a report file holds, so that one from elsewhere is read with care or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from parity.findings import GRAVITY

NUMBER = (int, float, str)  # NaN and infinity are written as text
TEXT_OR_NONE = (str, type(None))
TEXTS = [str]

# A type or several; a list of one: a list of these; a table: its keys and what they hold. A key
# with "?" may be missing, or hold null. A frozenset: one of these words.
WORST = {"index": [int], "mine": NUMBER, "theirs": NUMBER, "off": NUMBER}
FINDING = {
    "case": str,
    "quantity": str,
    "layer": TEXT_OR_NONE,
    "step": (int, type(None)),
    "seed": int,
    "dtype": str,
    "verdict": frozenset(GRAVITY),
    "allowance": NUMBER,
    "worst?": WORST,
    "cause?": {"name": str, "sentence": str},
    "evidence": dict,
}
PART = {
    "run": int,
    "case": str,
    "check": str,
    "nodeid": str,
    "strict": bool,
    "rerun": TEXT_OR_NONE,
    "findings": [FINDING],
    "notes": TEXTS,
    "covers": TEXTS,
    "not_covered": TEXTS,
}
RUN = {
    "versions": dict,
    "seeds": [int],
    "dtypes": TEXTS,
    "device": str,
    "strict": bool,
    "created": str,
    "tests": dict,
    "others": [{"nodeid": str, "text": str}],
}
SECTION = [{"run": int}]
REPORT = {"runs": [RUN], "parts": [PART], "sections": dict}


def problems(value: Any, kind: Any, where: str = "it") -> Iterator[str]:
    """Yield what is wrong with ``value``, the place first."""
    if isinstance(kind, Mapping):
        yield from _table_problems(value, kind, where)
    elif isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{where} is {_shown(value)}, not a list"
            return
        for i, item in enumerate(value):
            yield from problems(item, kind[0], f"{where}[{i}]")
    elif isinstance(kind, frozenset):
        if not isinstance(value, str) or value not in kind:
            yield f"{where} is {_shown(value)}; known: {', '.join(sorted(kind))}"
    elif not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, NUMBER)):
        yield f"{where} is {_shown(value)}"


def _table_problems(value: Any, kind: Mapping[str, Any], where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where} is {_shown(value)}, not a table"
        return
    for key, inner in kind.items():
        name = key.removesuffix("?")
        if key.endswith("?") and value.get(name) is None:
            continue
        if name not in value:
            yield f"{where} lacks {name}"
        else:
            yield from problems(value[name], inner, f"{where}.{name}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
