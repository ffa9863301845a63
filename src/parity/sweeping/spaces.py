"""What a sweep draws from: layers, and the ranges of options and inputs that torch documents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.findings import Cause, Finding, Report, UsageError, Verdict
from parity.options import nearest
from parity.specs import Spec

LIGHT = ("float64", "float32")
FULL = ("exact", "float64", "float32", "probes", "promises")
LONG = 33_000  # elements beyond which torch divides an elementwise operation among its threads
SHARE_LONG = 1 / 32


@dataclass(frozen=True)
class Drawn:
    """One random configuration: constructor arguments, options that are not defaults, inputs."""

    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Spec, ...] = ()

    def config(self) -> dict[str, Any]:
        """Return plain data for JSON; arrays appear as lists."""
        return {
            "args": [_plain(a) for a in self.args],
            "options": {n: _plain(v) for n, v in sorted(self.options.items())},
            "inputs": [spec.describe() for spec in self.inputs],
        }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


class Draws:
    """Draws options one by one; an option outside ``allowed`` keeps its default."""

    def __init__(self, rng: np.random.Generator, allowed: frozenset[str] | None = None) -> None:
        self.rng = rng
        self.allowed = allowed
        self.options: dict[str, Any] = {}

    def size(self, low: int, high: int) -> int:
        """Return an integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, *values: Any) -> Any:
        """Return one of ``values``."""
        return values[self.size(0, len(values) - 1)]

    def chance(self, share: float) -> bool:
        """Return True in this share of the draws."""
        return bool(self.rng.random() < share)

    def shape(self, least: int, most: int, high: int = 5) -> tuple[int, ...]:
        """Return a shape of ``least`` to ``most`` axes."""
        return tuple(self.size(1, high) for _ in range(self.size(least, most)))

    def spread(self, least: int, most: int) -> tuple[int, ...]:
        """Return a shape as :meth:`shape` does, now and then large enough for several threads."""
        shape = self.shape(least, most)
        if not shape or not self.chance(SHARE_LONG):
            return shape
        rest = int(np.prod(shape[:-1]))
        return (*shape[:-1], LONG // rest + self.size(1, 9))

    def pair(self, low: int, high: int) -> Any:
        """Return an integer or, as often, a pair of them."""
        if self.chance(0.5):
            return self.size(low, high)
        return (self.size(low, high), self.size(low, high))

    def option(self, name: str, default: Any, draw: Callable[[], Any], share: float = 0.5) -> Any:
        """Return option ``name``: drawn in ``share`` of the cases where it is allowed."""
        if not self.chance(share) or (self.allowed is not None and name not in self.allowed):
            return default
        value = draw()
        if value is not default:
            self.options[name] = value
        return value

    def drawn(self, args: tuple[Any, ...], *inputs: Spec) -> Drawn:
        """Return what has been drawn."""
        return Drawn(args, self.options, inputs)


Sampler = Callable[[Draws], Drawn]


@dataclass(frozen=True)
class CaseDraw:
    """A case before it is run: its configuration, mode, seed and torch's number of threads."""

    name: str
    drawn: Drawn
    mode: str
    seed: int
    full: bool
    threads: int = 1


@dataclass(frozen=True)
class Layer:
    """One layer of a space: how both sides are made, and what is drawn for them.

    ``mine`` and ``theirs`` are called with the drawn arguments and options; arrays among them
    are NumPy's for ``mine`` and tensors for ``theirs``. ``valid`` says which configurations may
    be run at all, where torch itself does not refuse the others.
    """

    name: str
    mine: Callable[..., Any]
    theirs: Callable[..., Any]
    sampler: Sampler
    modes: tuple[str, ...] = ("train",)
    allowed: frozenset[str] | None = None
    valid: Callable[[Drawn], bool] | None = None

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw one configuration."""
        return self.sampler(Draws(rng, self.allowed))

    def build(self, drawn: Drawn) -> tuple[Any, Any]:
        """Return (hand-written object, torch module) of one configuration."""
        import torch

        def tensor(value: Any) -> Any:
            return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

        def array(value: Any) -> Any:
            return value.copy() if isinstance(value, np.ndarray) else value

        mine = self.mine(*map(array, drawn.args), **{n: array(v) for n, v in drawn.options.items()})
        theirs = self.theirs(
            *map(tensor, drawn.args), **{n: tensor(v) for n, v in drawn.options.items()}
        )
        return mine, theirs

    def examine(self, draw: CaseDraw) -> Report:
        """Return the report on one case."""
        try:
            mine, theirs = self.build(draw.drawn)
        except Exception as error:
            return refused(draw, error)
        return self._judge(draw, mine, theirs)

    def _judge(self, draw: CaseDraw, mine: Any, theirs: Any) -> Report:
        from parity.checking import check

        return check(
            mine,
            theirs,
            *draw.drawn.inputs,
            seed=draw.seed,
            modes=draw.mode,
            rungs=FULL if draw.full else LIGHT,
            expects_zero=True,  # one draw may well be all dead ReLUs; nothing is concluded from it
            case=draw.name,
        )

    @classmethod
    def warm(cls) -> None:
        """Import what a case needs, without a line of the user's."""
        import torch

        from parity.checking import check

        linear = torch.nn.Linear(1, 1)
        check(linear, torch.nn.Sequential(linear), (1, 1))


def refused(draw: CaseDraw, error: Exception) -> Report:
    """Return the report of one finding for a constructor that raised."""
    from parity.subjects import said

    text = f"the constructor raised {said(error)}"
    supported = not isinstance(error, NotImplementedError)
    verdict = Verdict.ERROR if supported else Verdict.SKIPPED
    cause = Cause("constructor_raised" if supported else "not_supported", text)
    finding = Finding(draw.name, "construction", seed=draw.seed, verdict=verdict, cause=cause)
    return Report(draw.name, (finding,))


Space = Mapping[str, Layer]


def torch_layer(name: str, mine: Callable[..., Any], theirs: Any) -> Layer:
    """Return the layer, loss or optimizer whose ranges are those of the torch class ``theirs``.

    Options that ``mine`` does not take are left at their defaults. Raises UsageError where there
    are no ranges for the class.
    """
    from parity.sweeping.losses import LOSSES
    from parity.sweeping.optimizers import OPTIMIZERS, OptimizerLayer
    from parity.sweeping.samplers import SAMPLERS, VALID

    known = {**SAMPLERS, **LOSSES, **OPTIMIZERS}
    owners = getattr(theirs, "__mro__", (theirs,))
    owner = next((c.__name__ for c in owners if c.__name__ in known), None)
    if owner is None:
        given = getattr(theirs, "__name__", repr(theirs))
        raise UsageError(
            f"no option ranges for {given}{nearest(given, known)}; there are: "
            f"{', '.join(sorted(known))}. Others: --space MODULE:NAME with a mapping of "
            "parity.sweeping.spaces.Layer"
        )
    if owner in OPTIMIZERS:
        return OptimizerLayer(name, mine, theirs, known[owner], allowed=accepted(mine))
    modes = ("train", "eval") if owner.startswith(("BatchNorm", "Dropout")) else ("train",)
    return Layer(name, mine, theirs, known[owner], modes, accepted(mine), VALID.get(owner))


def accepted(maker: Callable[..., Any]) -> frozenset[str] | None:
    """Return the option names that a constructor takes; None where it takes any."""
    try:
        parameters = inspect.signature(maker).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)
