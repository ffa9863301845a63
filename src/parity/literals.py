"""What is typed on the command line: Python literals, inputs and name maps, never evaluated."""

from __future__ import annotations

import ast
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from parity.findings import UsageError
from parity.options import nearest

SPECS = (
    "normal",
    "uniform",
    "integers",
    "labels",
    "probabilities",
    "log_probabilities",
    "one_hot",
)
MOST_ELEMENTS = 2**27  # of one input: a gigabyte in float64
INPUTS = (
    "an input is a shape such as 2,3,8,8, a spec such as 'labels(8, classes=10)', "
    "or a file data.npy"
)
_NOT_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
_TARGET = re.compile(r"[^=\s'\"(){}\[\],]+:[A-Za-z_][\w.]*")


def literal(text: str) -> Any:
    """Return ``text`` as a Python literal; a bare word that is none is text.

    Raises UsageError for an opened bracket or quote that is never closed.
    """
    try:
        return ast.literal_eval(text.strip())
    except _NOT_LITERAL as error:
        if text.strip()[:1] in tuple("([{'\""):
            raise UsageError(
                f"{text!r} is no Python literal ({_reason(error)}); quote it for the shell, as in "
                "'kernel_size=(3, 3)'"
            ) from error
        return text


def _reason(error: BaseException) -> str:
    text = getattr(error, "msg", None) or str(error).partition("\n")[0]
    # ast names the node by its address, which tells a reader nothing
    return "no literal" if not text or text.startswith("malformed node") else text


def arguments(texts: Iterable[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (positional, keyword) arguments of ``3 8 kernel_size=3``.

    Raises UsageError for a positional one after a keyword, or a keyword given twice.
    """
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if equals and name.isidentifier():
            if name in keywords:
                raise UsageError(f"the argument {name} is given twice")
            keywords[name] = literal(value)
        elif keywords:
            raise UsageError(
                f"the argument {text!r} comes after {list(keywords)[-1]}=…; "
                "positional arguments come first"
            )
        else:
            positional.append(literal(text))
    return tuple(positional), keywords


def one_input(text: str) -> Any:
    """Return what :func:`parity.check` takes for ``2,3,8,8``, ``labels(8, classes=10)``, a file.

    Raises UsageError that says what is possible.
    """
    text = text.strip()
    call = re.fullmatch(r"(?:parity\.)?([A-Za-z_]\w*)\s*\(.*\)", text, re.DOTALL)
    if call:
        made = _spec(call[1], text)
        return _bounded(made.shape, text) and made
    if text.endswith((".npy", ".npz")) or os.sep in text:
        return _array(Path(text))
    try:
        value = ast.literal_eval(text)
    except _NOT_LITERAL as error:
        raise UsageError(f"cannot read the input {text!r}; {INPUTS}") from error
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value,)
    whole = isinstance(value, tuple) and all(type(size) is int for size in value)
    if not whole or any(size < 0 for size in value):
        raise UsageError(f"the input {text!r} is no shape of non-negative sizes; {INPUTS}")
    return _bounded(value, text) and value


def _bounded(shape: tuple[int, ...], text: str) -> bool:
    if math.prod(shape) > MOST_ELEMENTS:
        raise UsageError(
            f"the input {text!r} has {math.prod(shape):,} elements; the most is "
            f"{MOST_ELEMENTS:,}: give a smaller shape"
        )
    return True


def _spec(name: str, text: str) -> Any:
    from parity import specs

    if name not in SPECS:
        raise UsageError(
            f"unknown input {name!r}{nearest(name, SPECS)}; possible: {', '.join(SPECS)}"
        )
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call) or any(k.arg is None for k in node.keywords):
            raise ValueError("only plain arguments are read")
        given = [ast.literal_eval(item) for item in node.args]
        options = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except _NOT_LITERAL as error:
        raise UsageError(f"cannot read the input {text!r} ({_reason(error)}); {INPUTS}") from error
    try:
        return getattr(specs, name)(*given, **options)
    except TypeError as error:
        raise UsageError(f"the input {text!r}: {error}") from error


def _array(path: Path) -> Any:
    import numpy as np

    shown = str(path) if str(path).isprintable() else repr(str(path))
    if path.suffix != ".npy":
        raise UsageError(f"{shown} is no .npy file; write it with numpy.save('data.npy', array)")
    if not path.is_file():
        raise UsageError(f"{shown} is not there; {INPUTS}")
    most = 8 * MOST_ELEMENTS + 4096
    if path.stat().st_size > most:
        raise UsageError(
            f"{shown} has {path.stat().st_size:,} bytes; an input has {most:,} at most: save a "
            "part of it, array[:100]"
        )
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if file.read(4) == b"PK\x03\x04":
                raise ValueError("it is an archive; write one array with numpy.save")
            # mapped, and not read, until the header's claims have been held against the file
            return np.array(np.lib.format.open_memmap(path, mode="r"))
    except Exception as error:  # numpy's reader lets through what its tokenizer raises, and more
        text = str(error).partition("\n")[0]
        raise UsageError(f"{shown} cannot be read as a NumPy array: {text}") from error


def name_map(texts: Iterable[str]) -> dict[str, Any]:
    """Return the ``weights`` mapping of ``W=weight``, with what turns torch's array after a colon.

    ``W=weight:1,0`` is an axis order, ``W=weight:blocks,0,1,3,2`` blocks of the first axis; both
    may stand. Raises UsageError for anything else.
    """
    found: dict[str, Any] = {}
    for text in texts:
        mine, equals, value = text.partition("=")
        theirs, *turns = value.split(":")
        if not (mine and equals and theirs):
            raise UsageError(
                f"--weights got {text!r}; write mine=theirs, or mine=theirs:1,0 with an axis order"
            )
        found[mine] = (theirs, *(_turn(turn, text) for turn in turns)) if turns else theirs
    return found


def _turn(turn: str, text: str) -> tuple[Any, ...]:
    """Return ``1,0`` as an axis order, ``blocks,1,0,2`` as an order of blocks."""
    head, _, rest = turn.partition(",")
    blocks = head.strip() == "blocks"
    try:
        order = tuple(int(place) for place in (rest if blocks else turn).strip(",").split(","))
    except ValueError:
        order = ()
    if sorted(order) != list(range(len(order))) or not order:
        what = "order of blocks" if blocks else "axis order"
        raise UsageError(
            f"--weights got the {what} {turn!r} in {text!r}; write 1,0 or 2,3,1,0, or "
            "blocks,0,1,3,2 for the blocks of the first axis"
        )
    return ("blocks", *order) if blocks else order


def words(texts: Iterable[str]) -> list[str]:
    """Return the words of ``float64,float32`` or ``float64 float32``."""
    return [word for text in texts for word in text.replace(",", " ").split()]


def seeds(text: str) -> int | tuple[int, ...]:
    """Return a number of seeds, or the seeds themselves for ``0,3,7``.

    Raises UsageError for anything that is not made of non-negative integers.
    """
    try:
        numbers = tuple(int(part) for part in text.strip(",").split(","))
    except ValueError as error:
        raise UsageError(
            f"--seeds got {text!r}; write a number, or a list such as 0,3,7"
        ) from error
    return numbers if "," in text else numbers[0]


def split(
    tokens: Sequence[str], flags: frozenset[str], lists: frozenset[str], wanted: int
) -> tuple[list[str], list[str]]:
    """Return (the ``wanted`` names, every option as ``--name=value``) of a command line.

    A list option (``--args 3 8 -1``) takes what follows up to the next option; where the names
    come after it, the last values that look like FILE_OR_MODULE:NAME are the names. Negative
    numbers are values. Raises UsageError for an option without its value.
    """
    names: list[tuple[int, str]] = []
    options: list[tuple[int, str, str | None]] = []
    current, rest_are_names = "", False
    queue = list(enumerate(tokens))
    while queue:
        place, token = queue.pop(0)
        if rest_are_names or (not current and not token.startswith("-")):
            names.append((place, token))
        elif token == "--":
            rest_are_names = True
        elif re.match(r"--?[A-Za-z]", token) and not re.fullmatch(r"-(inf|nan)", token):
            name, equals, value = token.partition("=")
            current = name if name in lists else ""
            if equals or name in flags or name in lists:
                options.append((place, name, value if equals else None))
            elif queue and not queue[0][1].startswith("--"):
                options.append((place, name, queue.pop(0)[1]))
            else:
                options.append((place, name, None))
        elif current:
            options.append((place, current, token))
        else:
            raise UsageError(f"cannot read {token!r}; a value follows an option, as in --args -1")
    missing = wanted - len(names)
    loose = [o for o in options if o[1] in lists and o[2] and _TARGET.fullmatch(o[2])]
    moved = loose[-missing:] if missing > 0 else []
    # without an item after a list option, the option itself is no value
    kept = [o for o in options if o not in moved and not (o[1] in lists and o[2] is None)]
    names += [(place, str(value)) for place, _, value in moved]
    written = [n if value is None else f"{n}={value}" for _, n, value in kept]
    return [name for _, name in sorted(names)], written
