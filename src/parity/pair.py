"""The two sides of one check: draws numbers, runs both on them, and judges what comes out."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from parity.draws import Draw, log_uniform, random_weights, small_integers
from parity.findings import Verdict
from parity.ladder import (
    EPS32,
    EPS64,
    SCALE_GAP,
    Judgement,
    differences,
    element_allowance,
    judge32,
    judge64,
    largest,
    response,
    shrink_ratio,
    verdict32,
    verdict64,
)
from parity.options import Options
from parity.outcomes import Array, LayerError, Outcome
from parity.specs import Spec
from parity.subjects import NameMap, Runner, Subject, run
from parity.torch_side import TorchSide

PERTURBED = 3  # one-ulp runs of the reference in float64: the noise
YARDSTICKS = 4  # perturbed float32 runs beside torch's plain one


@dataclass(frozen=True)
class Judged:
    """One quantity of one draw on one rung, judged, with the arrays it was judged on."""

    quantity: str
    dtype: str
    verdict: Verdict
    judgement: Judgement | None
    draw: Draw
    mine: Array | None = None
    theirs: Array | None = None
    message: str | None = None
    cause: tuple[str, str] | None = None


@dataclass
class Pair:
    """A hand-written side and its reference, ready to be run on the same draws."""

    subject: Subject
    reference: TorchSide
    specs: tuple[Spec, ...]
    options: Options
    names: NameMap = field(default_factory=NameMap)
    fixed: Mapping[str, Array] = field(default_factory=dict)
    case: str = "check"
    upstream_taken: bool = True
    _shapes: dict[Any, tuple[tuple[tuple[int, ...], str], ...]] = field(default_factory=dict)

    # ---- draws -------------------------------------------------------------------------------

    def draw(
        self,
        seed: int = 0,
        training: bool = True,
        label: str = "generic",
        shapes: Sequence[tuple[int, ...]] | None = None,
    ) -> Draw:
        """Draw weights, inputs and upstream gradients for ``label``.

        ``label`` is generic, integers (the exact rung, and kinks), magnitudes, extreme, or any
        other name for generic values. Raises LayerError where the reference refuses the inputs.
        """
        rng = np.random.default_rng([seed, zlib.crc32(label.encode())])
        specs = self.specs
        if shapes is not None:
            specs = tuple(s.with_shape(shape) for s, shape in zip(specs, shapes, strict=True))
        params, buffers = random_weights(self.reference.params, self.reference.buffers, rng)
        if label == "integers":
            params = {n: small_integers(a.shape, rng, 2) for n, a in params.items()}
        params |= {name: array for name, array in self.fixed.items() if name in params}
        buffers |= {name: array for name, array in self.fixed.items() if name in buffers}
        inputs = tuple(self._input(spec, rng, label) for spec in specs)
        draw = Draw(inputs, params, buffers, (), training, (), label, seed)
        return replace(draw, upstream=self._upstream(draw, rng))

    def _input(self, spec: Spec, rng: np.random.Generator, label: str) -> Array:
        if not spec.free:
            return spec.draw(rng)
        if label == "integers":
            values = small_integers(spec.shape, rng)
            special = self.special_values()
            if special and values.size:
                # thresholds and margins of the reference are kinks: put some values onto them
                chosen = rng.random(spec.shape) < 0.25
                values = np.where(chosen, rng.choice(special, spec.shape), values)
            return values
        if label == "magnitudes":
            return log_uniform(spec.shape, rng)
        if label == "extreme":
            values = rng.standard_normal(spec.shape) * 300.0
            if len(spec.shape) > 1:  # rows far apart: what is safe for one must be for each
                values += rng.uniform(-1000, 1000, (spec.shape[0], *[1] * (values.ndim - 1)))
            return values
        if label == "small" and spec.shape:
            return rng.standard_normal(spec.shape) * 1e-3  # what is added to a variance shows
        if label == "constant" and spec.shape:
            axis = 1 if len(spec.shape) > 1 else 0
            shape = [1] * len(spec.shape)
            shape[axis] = spec.shape[axis]
            return np.array(np.broadcast_to(rng.standard_normal(shape), spec.shape))
        return spec.draw(rng)

    def special_values(self) -> list[float]:
        """Numbers among the reference's own settings at which it may have a kink."""
        if not self.reference.lone:
            return []
        found: set[float] = set()
        for name, value in vars(self.reference.original).items():
            if name.startswith("_") or isinstance(value, bool) or name == "training":
                continue
            if isinstance(value, (int, float)) and abs(value) <= 1e3:
                found |= {float(value), -float(value)}
        return sorted(found)

    def _upstream(self, draw: Draw, rng: np.random.Generator) -> tuple[Array | None, ...]:
        key = (tuple(a.shape for a in draw.inputs), draw.training)
        if key not in self._shapes:
            outputs = self.reference.run(draw).outputs
            self._shapes[key] = tuple((out.shape, out.dtype.kind) for out in outputs)
        made: list[Array | None] = []
        for shape, kind in self._shapes[key]:
            if kind != "f":
                made.append(None)
            elif draw.label == "integers":
                made.append(small_integers(shape, rng))
            else:
                made.append(np.asarray(rng.standard_normal(shape)))
        if not self.upstream_taken:  # a loss whose backward takes nothing means 1
            made = [None if g is None else np.ones_like(g) for g in made]
        return tuple(made)

    # ---- runs --------------------------------------------------------------------------------

    def mine(self, draw: Draw, dtype: str = "float64", runner: Runner | None = None) -> Outcome:
        """Run the hand-written side. Raises LayerError."""
        runner = self.subject.spawn(dtype) if runner is None else runner
        own_run = getattr(runner, "run", None)
        if own_run is not None:  # a torch module knows how to run itself
            return own_run(draw, dtype, self.names)
        return run(runner, draw, dtype, self.names)

    def theirs(self, draw: Draw, dtype: str = "float64", module: Any = None) -> Outcome:
        """Run the reference, or ``module`` in its place. Raises LayerError."""
        return self.reference.run(draw, dtype, module)

    def masked(self, draw: Draw, mine: Outcome) -> Draw:
        """Return ``draw`` with the dropout masks that the hand-written side used."""
        wanted = self.reference.dropouts if draw.training else []
        if not wanted:
            return draw
        if len(mine.masks) == len(wanted):
            return replace(draw, masks=mine.masks)
        if len(wanted) == 1 and self.reference.lone and len(mine.outputs) == 1:
            x, y = draw.inputs[0], mine.outputs[0]
            if y.shape == x.shape:
                return replace(draw, masks=((y != 0) | (x == 0),))
        return draw

    def perturbed(
        self, draw: Draw, dtype: str, count: int, inputs: bool = True
    ) -> list[dict[str, Array | None]]:
        """Run the reference ``count`` times with every value moved by one ulp."""
        rng = np.random.default_rng([draw.seed, 7, count])
        ways = ["up", "down"] if draw.label == "magnitudes" else []
        ways += ["random"] * (count - len(ways))
        found = []
        for how in ways:
            try:
                moved = draw.nudged(rng, np.dtype(dtype), how, inputs)
                found.append(self.theirs(moved, dtype).quantities)
            except LayerError:  # pushed out of a bounded domain: towards zero instead
                moved = draw.nudged(rng, np.dtype(dtype), "inward", inputs)
                found.append(self.theirs(moved, dtype).quantities)
        return found

    # ---- judging -----------------------------------------------------------------------------

    def float64(
        self, draw: Draw, mine: Outcome | None = None, count: int = PERTURBED, pinned: bool = False
    ) -> list[Judged]:
        """Judge every quantity of ``draw`` on the float64 rung. Raises LayerError of mine."""
        mine = self.mine(draw) if mine is None else mine
        draw = self.masked(draw, mine)
        theirs = self.theirs(draw)
        runs = self.perturbed(draw, "float64", count, inputs=not pinned)
        elements = self._element_allowances(draw, theirs, runs)
        found = []
        for name, ref, own in self.partners(theirs, mine):
            problem = self._incomparable(name, ref, own, draw)
            if problem is not None or ref is None or own is None:
                if problem is not None:
                    found.append(problem)
                continue
            others = [r[name] for r in runs if r.get(name) is not None]
            noise = response(ref, [o for o in others if o is not None])
            judged = judge64(
                own,
                ref,
                noise,
                axis=channel_axis(name, ref),
                per_element=elements.get(name),
                pinned=pinned,
                floor=self._floor(draw, name),
            )
            verdict = verdict64(judged, 1.0)  # refined where it is outside
            if verdict is Verdict.MISMATCH and not judged.nonfinite:
                judged, verdict = self._classify(draw, name, judged, own, ref, elements)
            found.append(Judged(name, "float64", verdict, judged, draw, own, ref))
        return found

    def _floor(self, draw: Draw, name: str) -> float:
        """The derivative of a lone function may saturate (1 - y²): it rounds as upstream does."""
        if not name.startswith("grad_input") or not self.reference.lone or self.reference.params:
            return 0.0
        return max((largest(g) for g in draw.upstream if g is not None), default=0.0) / max(
            1, draw.inputs[0].size if draw.upstream and np.size(draw.upstream[0]) == 1 else 1
        )

    def _classify(
        self,
        draw: Draw,
        name: str,
        judged: Judgement,
        own: Array,
        ref: Array,
        elements: Mapping[str, Array],
    ) -> tuple[Judgement, Verdict]:
        """Tell a fault from mere rounding: does the error shrink with the precision?"""
        shrink: float | None = None
        try:
            narrow = draw.rounded(np.float32)
            m32 = self.mine(narrow, "float32").quantities.get(name)
            r64 = self.theirs(self.masked_like(narrow, draw)).quantities.get(name)
        except LayerError:
            m32 = r64 = None
        if m32 is not None and r64 is not None and m32.shape == r64.shape:
            if name in elements and judged.worst is not None:
                at = judged.worst.index
                floor = EPS32 * abs(float(r64[at]))
                shrink = judged.error / max(abs(float(m32[at]) - float(r64[at])), floor, 1e-300)
            else:
                shrink = shrink_ratio(own, ref, m32, r64)
        return replace(judged, shrink=shrink), verdict64(judged, shrink)

    def masked_like(self, draw: Draw, other: Draw) -> Draw:
        """Return ``draw`` with the masks of ``other``."""
        return replace(draw, masks=other.masks)

    def float32(
        self, draw: Draw, count: int = YARDSTICKS, errors64: Mapping[str, float] | None = None
    ) -> list[Judged]:
        """Judge every quantity of ``draw``, rounded to float32; ``errors64`` are float64's errors.

        Raises LayerError of mine.
        """
        draw = draw.rounded(np.float32)
        mine = self.mine(draw, "float32")
        draw = self.masked(draw, mine)
        exact = self.theirs(draw)
        runs = [self.theirs(draw, "float32").quantities]
        runs += self.perturbed(draw, "float32", count)
        found = []
        for name, ref, own in self.partners(exact, mine):
            if ref is None or own is None or own.shape != ref.shape:
                continue  # said once, on the float64 rung
            if ref.dtype.kind != "f":
                continue
            others = [array for r in runs if (array := r.get(name)) is not None]
            judged = judge32(own, ref, others, self._floor(draw, name))
            verdict = verdict32(judged, (errors64 or {}).get(name, 0.0))
            found.append(Judged(name, "float32", verdict, judged, draw, own, ref))
        return found

    def partners(
        self, theirs: Outcome, mine: Outcome
    ) -> list[tuple[str, Array | None, Array | None]]:
        """Return (quantity, reference, hand-written) for all that the reference has."""
        return [
            (name, array, mine.quantities.get(name)) for name, array in theirs.quantities.items()
        ]

    def _incomparable(
        self, name: str, ref: Array | None, own: Array | None, draw: Draw
    ) -> Judged | None:
        """Return the finding where two quantities cannot be compared element by element."""
        if ref is None:
            if own is not None and largest(own) > 0:
                return self._plain(
                    name, Verdict.MISMATCH, draw, "torch has no such gradient; mine is not zero"
                )
            return None
        if own is None:
            return self.missing(name, ref, draw)
        if own.shape != ref.shape:
            text = f"shape {own.shape}, torch's is {ref.shape}"
            return Judged(
                name, "float64", Verdict.MISMATCH, None, draw, own, ref, text,
                ("wrong_shape", f"{label_of(name)} has {text}"),
            )  # fmt: skip
        if ref.dtype.kind != "f":
            equal = np.array_equal(own, ref)
            verdict = Verdict.MATCH if equal else Verdict.MISMATCH
            text = "" if equal else f"{int((own != ref).sum())} of {ref.size} integers differ"
            return Judged(name, "float64", verdict, None, draw, own, ref, text or None)
        return None

    def missing(self, name: str, ref: Array, draw: Draw) -> Judged | None:
        """Return what it means that the hand-written side has no such quantity."""
        if name.startswith("buffer_"):
            if ref.dtype.kind != "f":
                return self._plain(name, Verdict.SKIPPED, draw, "mine does not count batches")
            return Judged(
                name, "float64", Verdict.ERROR, None, draw, None, ref,
                f"mine has no buffer {name.removeprefix('buffer_')!r}",
                ("missing_buffer", f"the buffer {name.removeprefix('buffer_')!r} has no partner"),
            )  # fmt: skip
        if name.startswith("grad_input"):
            given = int(name.removeprefix("grad_input"))
            if given > 0 or self.forward_only:
                return self._plain(name, Verdict.SKIPPED, draw, "mine returns no such gradient")
            if not largest(ref):
                return self._plain(name, Verdict.SKIPPED, draw, "no gradient on either side")
        elif self.forward_only or name.removeprefix("grad_") in self.unreturned:
            return self._plain(name, Verdict.SKIPPED, draw, "mine returns no such gradient")
        return Judged(
            name, "float64", Verdict.ERROR, None, draw, None, ref,
            f"backward left no {label_of(name)}",
            ("missing_gradient", f"backward leaves no {label_of(name)}"),
        )  # fmt: skip

    @property
    def forward_only(self) -> bool:
        """Whether the hand-written side has no backward pass at all, by declaration."""
        pair = getattr(self.subject, "pair", None)
        return pair is not None and (pair.backward is None or not pair.input_grads)

    @property
    def unreturned(self) -> frozenset[str]:
        """Parameters whose gradient the hand-written side does not return, by declaration."""
        pair = getattr(self.subject, "pair", None)
        if pair is None:
            return frozenset()
        returned = {self.names.theirs(name) for name in pair.returns}
        return frozenset(set(self.reference.params) - (returned if pair.backward else set()))

    def _plain(self, name: str, verdict: Verdict, draw: Draw, message: str) -> Judged:
        return Judged(name, "float64", verdict, None, draw, message=message)

    def _element_allowances(
        self, draw: Draw, theirs: Outcome, runs: Sequence[Mapping[str, Array | None]]
    ) -> dict[str, Array]:
        """Return per-element bounds where the reference is a lone function of one input."""
        if draw.label not in ("magnitudes",) or not self.elementary:
            return {}
        narrow = draw.rounded(np.float32)
        r32, r64 = self.theirs(narrow, "float32").quantities, self.theirs(narrow).quantities
        found = {}
        for name in ("forward", "grad_input0") if self.elementwise else ("forward",):
            ref = theirs.quantities.get(name)
            if ref is None or r32.get(name) is None:
                continue
            noise = response(ref, [a for r in runs if (a := r.get(name)) is not None])
            a32, a64 = r32[name], r64[name]
            assert a32 is not None
            assert a64 is not None
            floor: Array | float = 0.0 if self.elementwise else self._absolute_loss * SCALE_GAP
            if name == "grad_input0" and draw.upstream[0] is not None:
                # 1 - y² and its like saturate: their rounding is that of the upstream value
                floor = EPS64 * np.abs(draw.upstream[0])
            # a sum of n terms is rounded n times, and these errors add up like √n
            terms = 1.0 if self.elementwise else float(np.sqrt(max(ref.shape, default=1)))
            found[name] = terms * element_allowance(ref, noise, differences(a32, a64), floor)
        return found

    @cached_property
    def _absolute_loss(self) -> float:
        from parity.cancelling import absolute_loss

        return absolute_loss(self)

    @property
    def elementary(self) -> bool:
        """Whether the reference is one parameter-free function with output like its input."""
        return (
            self.reference.lone
            and len(self.specs) == 1
            and self.specs[0].free
            and all(a.size <= 1 for a in self.reference.params.values())
            and not self.reference.buffers
            and not self.reference.dropouts
        )

    @property
    def elementwise(self) -> bool:
        """Whether each element of the output follows from one of the input, bit by bit."""
        if not hasattr(self, "_elementwise"):
            self._elementwise = self.elementary and self._permutes()
        return self._elementwise

    def _permutes(self) -> bool:
        draw = self.draw(label="permutation")
        x = draw.inputs[0]
        order = np.random.default_rng(1).permutation(x.size)
        y = self.theirs(draw).outputs[0]
        moved = replace(draw, inputs=(x.reshape(-1)[order].reshape(x.shape),))
        z = self.theirs(moved).outputs[0]
        if y.shape != x.shape or not np.array_equal(y.reshape(-1)[order], z.reshape(-1)):
            return False
        other = x.copy()  # softmax of a vector permutes too, but every element moves all of it
        other.reshape(-1)[:1] += 1.0
        w = self.theirs(replace(draw, inputs=(other,))).outputs[0]
        return np.array_equal(w.reshape(-1)[1:], y.reshape(-1)[1:])


def channel_axis(name: str, array: Array) -> int | None:
    """Return the axis whose slices are judged on their own: channels, or a parameter's rows."""
    if array.ndim < 2:
        return None
    return 0 if name.startswith("grad_") and not name.startswith("grad_input") else 1


def label_of(quantity: str) -> str:
    """Return a quantity in words: ``grad_weight`` is "grad of weight"."""
    if quantity.startswith("grad_input"):
        return f"grad of input {quantity.removeprefix('grad_input')}"
    if quantity.startswith("grad_"):
        return f"grad of {quantity.removeprefix('grad_')}"
    if quantity.startswith("buffer_"):
        return f"buffer {quantity.removeprefix('buffer_')}"
    if quantity.startswith("forward"):
        number = quantity.removeprefix("forward")
        return f"output {number}" if number else "forward output"
    return quantity.replace("_", " ")
