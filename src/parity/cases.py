"""A case: one row of a table, data alone, that checks are run on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from parity.findings import Finding, Report, UsageError, Verdict
from parity.options import make_options


@dataclass(frozen=True, eq=False)
class Case:
    """One comparison: constructors of both sides, their arguments, and the inputs.

    ``mine`` and ``theirs`` are called with ``args`` and ``config`` (plus ``mine_config`` and
    ``theirs_config``), or taken as they are where they are objects. ``inputs`` are what
    :func:`parity.check` takes; ``options`` its options. Everything is built when it is first used.
    """

    id: str
    mine: Any
    theirs: Any
    inputs: tuple[Any, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    mine_config: Mapping[str, Any] = field(default_factory=dict)
    theirs_config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def build_mine(self) -> Any:
        """Return the hand-written side."""
        return self._build(self.mine, self.mine_config)

    def build_theirs(self) -> Any:
        """Return the reference; its initial weights are the same in every run."""
        from parity.torch_side import seeded

        with seeded(0):
            return self._build(self.theirs, self.theirs_config)

    def _build(self, maker: Any, extra: Mapping[str, Any]) -> Any:
        if isinstance(maker, type) or (callable(maker) and (self.args or self.config or extra)):
            return maker(*self.args, **{**self.config, **extra})
        return maker

    def report(self, **overrides: Any) -> Report:
        """Return the report of this case; options given here win over the row's."""
        from parity.checking import check

        options = {**self.options, **overrides, "case": self.id}
        return check(self.build_mine(), self.build_theirs(), *self.inputs, **options)

    @cached_property
    def checks(self) -> tuple[str, ...]:
        """The names of the checks that apply, one test each."""
        from parity.torch_side import TorchSide

        options = make_options(self.options)
        side = TorchSide(self.build_theirs(), "theirs")
        names = ["forward"]
        names += [f"grad_input{i}" for i in self._float_inputs()]
        names += [f"grad_{name}" for name in side.params]
        names += [f"buffer_{name}" for name in side.buffers]
        names += ["untouched", "layouts"] if "probes" in options.rungs else ["untouched"]
        if "promises" in options.rungs:
            names += _promises(side)
        return tuple(names)

    def _float_inputs(self) -> list[int]:
        from parity.specs import as_spec

        return [i for i, value in enumerate(self.inputs) if not as_spec(value, i).integral]


def _promises(side: Any) -> list[str]:
    """The promises that make sense for a reference: see :mod:`parity.promises`."""
    names = ["dropout_mask"] if side.dropouts and side.lone else []
    if not side.dropouts:
        names.append("repeat")
    if side.params:
        names.append("accumulate")
    if side.params or side.buffers:
        names.append("step")
    return names


@dataclass(frozen=True, eq=False)
class Rejects:
    """A row for bad input: both sides must refuse, and the hand-written words are pinned.

    ``make`` is ``"constructor"`` or ``"call"``: where the refusal is expected. ``error`` is the
    hand-written side's exception type, ``says`` a regular expression its text must match.
    """

    id: str
    mine: Any
    theirs: Any
    error: type[BaseException] | tuple[type[BaseException], ...]
    says: str
    inputs: tuple[Any, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    make: str = "call"
    theirs_too: bool = True

    checks: tuple[str, ...] = ("rejects",)

    def report(self, **overrides: Any) -> Report:
        """Return a report with one finding: refused alike, or not."""
        problem = self._problem()
        finding = Finding(
            case=self.id,
            quantity="rejects",
            verdict=Verdict.MATCH if problem is None else Verdict.MISMATCH,
            evidence={} if problem is None else {"message": problem},
        )
        return Report(self.id, (finding,))

    def _problem(self) -> str | None:
        refusal = self._refusal(self.mine, numpy_side=True)
        if refusal is None:
            return "mine accepts what it should refuse"
        if not isinstance(refusal, self.error):
            return f"mine raised {type(refusal).__name__}: {refusal}"
        if not re.search(self.says, str(refusal)):
            return f"mine says {str(refusal)!r}, which does not match {self.says!r}"
        if self.theirs_too and self._refusal(self.theirs, numpy_side=False) is None:
            return "torch accepts what mine refuses"
        return None

    def _refusal(self, maker: Callable[..., Any], numpy_side: bool) -> Exception | None:
        import numpy as np

        from parity.specs import as_spec

        try:
            made = maker(*self.args, **self.config)
        except Exception as error:
            return error
        if self.make == "constructor":
            return None
        rng = np.random.default_rng(0)
        arrays = [as_spec(value, i).draw(rng) for i, value in enumerate(self.inputs)]
        arrays = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays]
        try:
            if numpy_side:
                getattr(made, "forward", made)(*arrays)
            else:
                import torch

                made(*(torch.from_numpy(a) for a in arrays))
        except Exception as error:
            return error
        return None


def as_case(row: Any, position: int = 0) -> Case | Rejects:
    """Return ``row`` as a case: a Case, a mapping of its fields, or (id, mine, theirs, *inputs).

    Raises UsageError for anything else.
    """
    if isinstance(row, (Case, Rejects)) or hasattr(row, "checks"):
        return row
    if isinstance(row, Mapping):
        try:
            return Case(**row)
        except TypeError as error:
            raise UsageError(f"case {position}: {error}") from error
    if isinstance(row, tuple) and len(row) >= 3 and isinstance(row[0], str):
        return Case(row[0], row[1], row[2], tuple(row[3:]))
    raise UsageError(
        f"case {position} is {type(row).__name__}; a row is parity.Case(id, mine, theirs, inputs), "
        "a mapping of its fields, or a tuple (id, mine, theirs, *inputs)"
    )
