"""The options of a check, validated once, with the defaults that nobody has to know."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from parity.findings import UsageError

RUNGS = ("exact", "float64", "float32", "probes", "promises")
DTYPES = ("float64", "float32")
MODES = ("train", "eval")


MOST_SEED, MOST_SEEDS = 2**63 - 1, 100_000  # what torch takes, and how many draws


@dataclass(frozen=True)
class Options:
    """What :func:`parity.check` may be asked for.

    ``seed`` the first seed, ``seeds`` how many, or a list of seeds in place of both; ``dtypes``
    among float64 and float32; ``device`` for a torch layer under test; ``modes`` among train and
    eval; ``weights`` a mapping of names, axis orders or arrays; ``rungs`` among exact, float64,
    float32, probes, promises; ``expects_zero`` quantities that are zero on purpose (True: all);
    ``gaps`` {quantity: reason}; ``isolate`` run in a process of its own; ``strict`` INACCURATE and
    UNDECIDED fail too; ``diagnose`` name the cause of a mismatch.
    """

    seed: int = 0
    seeds: int | tuple[int, ...] = 1
    dtypes: tuple[str, ...] = DTYPES
    device: str | None = None
    modes: tuple[str, ...] | None = None
    weights: Mapping[str, Any] = field(default_factory=dict)
    rungs: tuple[str, ...] = RUNGS
    expects_zero: frozenset[str] | bool = False
    gaps: Mapping[str, str] = field(default_factory=dict)
    isolate: bool = False
    timeout: float | None = None
    memory: float | None = None
    strict: bool = False
    diagnose: bool = True
    case: str | None = None

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Every seed of the check."""
        if isinstance(self.seeds, tuple):
            return self.seeds
        return tuple(range(self.seed, self.seed + self.seeds))

    def zero_expected(self, quantity: str) -> bool:
        """Whether ``quantity`` is meant to be zero."""
        if isinstance(self.expects_zero, bool):
            return self.expects_zero
        return quantity in self.expects_zero


NAMES = tuple(f.name for f in fields(Options))


def make_options(given: Mapping[str, Any]) -> Options:
    """Return validated options.

    Raises UsageError that says what was given, what is possible, and the nearest name.
    """
    for name in given:
        if name not in NAMES:
            raise UsageError(
                f"unknown option {name!r}{nearest(name, NAMES)}; options: {_list(NAMES)}"
            )
    values = dict(given)
    if isinstance(values.get("seeds"), (list, tuple, range)):
        values["seeds"] = tuple(_seed("seed", seed) for seed in values["seeds"])
        if not values["seeds"]:
            raise UsageError("seeds is empty; give a number of draws or a list of seeds")
        values["seed"] = values["seeds"][0]
    for name in ("seed", "seeds"):
        if name in values and not (name == "seeds" and isinstance(values[name], tuple)):
            values[name] = _seed(name, values[name])
    for name, possible in (("dtypes", DTYPES), ("modes", MODES), ("rungs", RUNGS)):
        if values.get(name) is None:
            values.pop(name, None)
        else:
            values[name] = _among(name, values[name], possible)
    if "expects_zero" in values and not isinstance(values["expects_zero"], bool):
        chosen = values["expects_zero"]
        if not iterable(chosen) or not all(isinstance(item, str) for item in chosen):
            raise UsageError(
                f"expects_zero is {chosen!r}; it must be True, a quantity such as 'grad_weight', "
                "or a list of them"
            )
        values["expects_zero"] = frozenset([chosen] if isinstance(chosen, str) else chosen)
    for name in ("weights", "gaps"):
        if values.get(name) is None:
            values.pop(name, None)
        elif not isinstance(values[name], Mapping):
            raise UsageError(f"{name} is {values[name]!r}; it must be a mapping")
    for quantity, reason in (values.get("gaps") or {}).items():
        if not isinstance(reason, str) or not reason.strip():
            raise UsageError(f"gaps[{quantity!r}] is {reason!r}; say why: {{quantity: reason}}")
    for name in ("isolate", "strict", "diagnose"):
        if not isinstance(values.get(name, False), (bool, np.bool_)):
            raise UsageError(f"{name} is {values[name]!r}; it must be True or False")
    if values.get("device") is not None and not isinstance(values["device"], str):
        values["device"] = str(values["device"])
    for name in ("timeout", "memory"):
        value = values.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not (isinstance(value, (int, float)) and value > 0):
            raise UsageError(f"{name} is {value!r}; it must be a positive number")
        if not values.get("isolate"):
            raise UsageError(
                f"{name}={value!r} needs isolate=True: only a process of its own can be held to it"
            )
    options = Options(**values)
    if set(options.rungs) <= set(DTYPES) - set(options.dtypes):
        raise UsageError(
            f"rungs={list(options.rungs)} with dtypes={list(options.dtypes)} leaves nothing to "
            "compare: a rung of a precision needs that precision among dtypes"
        )
    return options


def known_zero(options: Options, possible: Iterable[str]) -> None:
    """Raise UsageError where ``expects_zero`` names what nothing is called here."""
    if isinstance(options.expects_zero, bool):
        return
    known = list(possible)
    for name in sorted(options.expects_zero):
        if name not in known and not re.fullmatch(r"forward\d*", name):
            raise UsageError(
                f"expects_zero names {name!r}{nearest(name, known)}; possible: {_list(known)}"
            )


def _seed(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise UsageError(f"{name} is {value!r}; it must be a non-negative integer")
    if name == "seeds" and value < 1:
        raise UsageError("seeds is 0; at least one draw is needed: seeds=1")
    most = MOST_SEEDS if name == "seeds" else MOST_SEED
    if value > most:
        raise UsageError(f"{name} is {value!r}; the most is {most}")
    return int(value)


def _among(name: str, value: Any, possible: tuple[str, ...]) -> tuple[str, ...]:
    items: Iterable[Any] = [value] if isinstance(value, str) or not iterable(value) else value
    chosen = tuple(_plain_name(item) for item in items)
    if not chosen:
        raise UsageError(f"{name} is empty; possible: {_list(possible)}")
    for item in chosen:
        if item not in possible:
            raise UsageError(
                f"unknown {name.removesuffix('s')} {item!r}{nearest(item, possible)}; "
                f"possible: {_list(possible)}"
            )
    return tuple(item for item in possible if item in chosen)


def iterable(value: Any) -> bool:
    """Whether ``value`` is an object to be gone through, and not a class."""
    if isinstance(value, type):
        return False
    try:
        iter(value)  # an array without axes has the method, and raises
    except TypeError:
        return False
    return True


def _plain_name(item: Any) -> str:
    """dtype objects of NumPy and torch are welcome beside their names."""
    if isinstance(item, str):
        return item
    if str(item).startswith("torch."):
        return str(item).removeprefix("torch.")
    try:
        return np.dtype(item).name
    except (TypeError, ValueError):
        return repr(item)


def nearest(name: str, possible: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" where a possible name is close, else nothing."""
    close = difflib.get_close_matches(str(name), list(possible), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
