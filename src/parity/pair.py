"""The two sides of one check: draws numbers, runs both on them, and judges what comes out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from parity.draws import (
    ZEROS,
    Draw,
    log_uniform,
    random_weights,
    small_integers,
    with_tails,
    with_zero_rows,
)
from parity.elements import element_allowances, open_scales, permutes, saturation
from parity.ends import IGNORED, USUAL_IGNORE_INDEX, at_ends, sentinel
from parity.ends import LABEL as ENDS
from parity.findings import Verdict
from parity.judged import Judged, channel_axis
from parity.ladder import (
    ELEMENT64,
    EPS32,
    SECOND_LOOK,
    Judgement,
    arbiter,
    element_allowance,
    farthest,
    held32,
    judge64,
    largest,
    matches,
    response,
    second_look,
    shrink_ratio,
    slight,
    verdict32,
    verdict64,
    widen,
)
from parity.options import Options
from parity.outcomes import Array, LayerError, Outcome
from parity.partners import incomparable
from parity.specs import Spec
from parity.subjects import NameMap, PlainSubject, Runner, Subject, run
from parity.torch_side import TorchSide

PERTURBED = 3  # one-ulp runs of the reference in float64: the noise
LARGE = 1e4  # the scale of large inputs and upstream gradients
LOUD = "large gradients"  # a draw of usual inputs whose upstream gradient alone is large
LOUDER = 2.0**20  # by this factor: a power of two, so that a linear backward scales exactly
QUIET = "small gradients"  # the same with a tiny one, whose first row is zero
QUIETER = 2.0**-40
NEIGHBOURS = 4  # float32 runs before one that is exact is believed to be no chance
YARDSTICKS = 4  # perturbed float32 runs beside torch's plain one


class Looks:
    """What is measured on a draw once the first of its quantities lies outside, for all of them."""

    def __init__(self, pair: Pair, draw: Draw) -> None:
        self.pair, self.draw = pair, draw

    def opened(
        self,
        name: str,
        judged: Judgement,
        verdict: Verdict,
        judge: Callable[..., Judgement],
    ) -> tuple[Judgement, Verdict]:
        """Grant a gradient that lies outside the rounding of one that nothing saturates."""
        bad = verdict in (Verdict.MISMATCH, Verdict.INACCURATE)
        if bad and name.startswith("grad_") and not judged.nonfinite:
            again = judge(floor=self.scales.get(name, 0.0))
            if again.inside:
                return again, Verdict.MATCH
        return judged, verdict

    def inner(
        self, name: str, own: Array, ref: Array, noise: Array, allowed: Array
    ) -> Judgement | None:
        """Judge elements again by what rounding inside of torch does to each; None if outside."""
        runs = [array for run in self.wobbled if (array := run.get(name)) is not None]
        spread = response(ref, runs)
        if name == "forward" and self.pair.elementwise and self.coarse is not None:
            spread = np.maximum(spread, self.coarse)
        bound = allowed + ELEMENT64 * spread
        again = judge64(own, ref, np.maximum(noise, spread), per_element=bound)
        return again if again.inside and not again.undecided else None

    @cached_property
    def coarse(self) -> Array | None:
        """See :func:`parity.granularity.granularity`."""
        from parity.granularity import granularity

        return granularity(self.pair, self.draw)

    @cached_property
    def wobbled(self) -> list[Mapping[str, Array | None]]:
        """See :func:`parity.wobble.wobbled`."""
        from parity.wobble import wobbled

        return wobbled(self.pair.reference, self.draw)

    def borne_out(
        self,
        name: str,
        judged: Judgement,
        verdict: Verdict,
        own: Array,
        ref: Array,
        allowed: Array | None,
    ) -> tuple[Judgement, Verdict]:
        """Grant a gradient that lies slightly outside where torch's own forward says the same."""
        known = verdict is Verdict.INACCURATE and name in self.pair.torch_errors
        wrong = verdict is Verdict.MISMATCH and name.startswith("grad_")
        if (wrong or known) and slight(judged, ref):
            from parity.own_forward import torchs_error

            bound = judged.allowance if allowed is None else allowed
            share = torchs_error(self.pair, self.draw, name, own, ref, bound)
            if share is not None:
                shares = self.pair.torch_errors
                shares[name] = max(shares.get(name, 0.0), share)
                granted = max(judged.allowance, judged.error)
                return replace(judged, inside=True, allowance=granted), Verdict.MATCH
        return judged, verdict

    @cached_property
    def scales(self) -> dict[str, float]:
        """See :func:`parity.elements.open_scales`."""
        return open_scales(self.pair, self.draw)

    @cached_property
    def narrow(self) -> tuple[Outcome, Outcome]:
        """Torch's answers in float32 and in float64, both on numbers rounded to float32."""
        rounded = self.draw.rounded(np.float32)
        return self.pair.theirs(rounded, "float32"), self.pair.theirs(rounded)

    @cached_property
    def moved(self) -> list[dict[str, Array | None]]:
        """More one-ulp runs."""
        return [
            {name: None if array is None else np.array(array) for name, array in run.items()}
            for run in self.pair.perturbed(self.draw, "float64", SECOND_LOOK)
        ]


def _masked_out(g: Array) -> Array:
    """Return ``g`` with its first row zero, as a masked loss makes it, where there are others."""
    if g.ndim and len(g) > 1:
        g[:1] = 0.0
    return g


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
    unheld: frozenset[str] = frozenset()
    torch_errors: dict[str, float] = field(default_factory=dict)  # of gradients: torch's own
    _shapes: dict[Any, tuple[tuple[tuple[int, ...], str], ...]] = field(default_factory=dict)
    _last: tuple[Any, Draw] | None = field(default=None, init=False, repr=False)

    # ---- draws -------------------------------------------------------------------------------

    def draw(
        self,
        seed: int = 0,
        training: bool = True,
        label: str = "generic",
        shapes: Sequence[tuple[int, ...]] | None = None,
    ) -> Draw:
        """Draw weights, inputs and upstream gradients for ``label``.

        Where evaluation alone was asked for (``modes``) every draw is one of evaluation.

        ``label`` is generic, integers (the exact rung, and kinks), magnitudes, extreme, one of the
        other probes' names, or any name for generic values. Raises LayerError where the reference
        refuses the inputs.
        """
        training = training and self._trains
        asked = seed, label, shapes
        if self._last is not None and self._last[0] == asked:
            # evaluation is asked the same numbers as training: they need not be drawn again
            draw = replace(self._last[1], training=training)
            if self._outputs(draw) == self._outputs(self._last[1]):
                return draw
        rng = np.random.default_rng([seed, zlib.crc32(label.encode())])
        specs = self.specs
        if shapes is not None:
            specs = tuple(s.with_shape(shape) for s, shape in zip(specs, shapes, strict=True))
        params, buffers = random_weights(self.reference.params, self.reference.buffers, rng)
        if label == "integers":
            params = {n: small_integers(a.shape, rng, 2) for n, a in params.items()}
        params |= {name: array for name, array in self.fixed.items() if name in params}
        buffers |= {name: array for name, array in self.fixed.items() if name in buffers}
        # a class weight that mine keeps to itself stays as both sides were built with it
        buffers |= {name: self.reference.buffers[name] for name in self.unheld}
        # In C order, as a user's own arrays are: other memory layouts are a check of their own,
        # and a layer that reads them wrongly is to be named for that.
        inputs = tuple(
            np.asarray(self._input(spec, rng, label, i), order="C") for i, spec in enumerate(specs)
        )
        if label == "near kinks" and len(inputs) > 1 and specs[1].shape == inputs[0].shape:
            inputs = (inputs[0] + inputs[1], *inputs[1:])  # a loss looks at the difference
        draw = Draw(inputs, params, buffers, (), training, (), label, seed)
        draw = replace(draw, upstream=self._upstream(draw, rng))
        self._last = asked, draw
        return draw

    @property
    def _trains(self) -> bool:
        """Whether training was asked for, or nothing was."""
        return "train" in (self.options.modes or ("train",))

    def _input(self, spec: Spec, rng: np.random.Generator, label: str, place: int) -> Array:
        if label == ENDS:
            return at_ends(spec, rng, sentinel(self.reference.original))
        if label == IGNORED:
            return at_ends(spec, rng, USUAL_IGNORE_INDEX)
        if not spec.free or (label == "near kinks" and place):
            return spec.draw(rng)
        if label == "integers":
            values = small_integers(spec.shape, rng)
            special = self.special_values()
            if special and values.size:
                # thresholds and margins of the reference are kinks: put some values onto them
                chosen = rng.random(spec.shape) < 0.25
                values = np.where(chosen, rng.choice(special, spec.shape), values)
            return self._with_each([0.0, *special], values, rng)
        if label == "magnitudes":
            values = log_uniform(spec.shape, rng)
            # where every element is judged by itself, chance must not decide which tail is seen
            return with_tails(values, rng) if self.elementwise else values
        if label == "extreme":
            values = rng.standard_normal(spec.shape) * 300.0
            if len(spec.shape) > 1 and spec.shape[0] > 1:
                # rows far apart, the first and the last by 2,000: what is safe for one must be
                # for each, and chance could leave all of them within the 745 of an exponential
                steps = rng.permutation(np.linspace(-1000, 1000, spec.shape[0]))
                values += steps.reshape(-1, *[1] * (values.ndim - 1))
            return values
        if label == "near kinks":
            # beside each threshold, at distances of every size: a threshold moved a little shows
            signs, away = rng.choice([-1.0, 1.0], spec.shape), rng.uniform(-6, -1, spec.shape)
            return rng.choice(self.special_values(), spec.shape) + signs * 10.0**away
        if label == "large":  # what is clipped, or overflows, shows
            return rng.standard_normal(spec.shape) * LARGE
        if label == "small" and spec.shape:
            # what is added to a variance shows, and a threshold below which all counts as zero
            return rng.standard_normal(spec.shape) * 10.0 ** -rng.integers(3, 8, spec.shape)
        if label == "constant" and spec.shape:
            axis = 1 if len(spec.shape) > 1 else 0
            shape = [1] * len(spec.shape)
            shape[axis] = spec.shape[axis]
            # Of few bits, so that a sum of any order is exact: torch's own rounding of it, the same
            # in every nudged run, would be taken for a fault of mine, 316 times enlarged by eps.
            values = np.maximum(np.abs(np.rint(rng.standard_normal(shape) * 8)), 1) / 8
            # Every other channel is negative throughout: padding that counts as 0 wins there.
            signs = np.where(np.arange(spec.shape[axis]) % 2, 1.0, -1.0)
            values *= signs.reshape(shape)
            return np.array(np.broadcast_to(values, spec.shape), order="C")
        if label == ZEROS and spec.shape:
            return with_zero_rows(spec.draw(rng), place)
        return spec.draw(rng)

    @staticmethod
    def _with_each(wanted: list[float], values: Array, rng: np.random.Generator) -> Array:
        """Put each of ``wanted`` somewhere into ``values``: a small draw may well miss a kink."""
        missing = [value for value in dict.fromkeys(wanted) if value not in values]
        if not missing or values.size < 4 * len(missing):
            return values
        at = rng.choice(values.size, len(missing), replace=False)
        values.flat[at] = missing
        return values

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

    def _outputs(self, draw: Draw) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Return the shape of each output of the reference, and "f" where it is floating."""
        key = (tuple(a.shape for a in draw.inputs), draw.training)
        if key not in self._shapes:
            self._shapes[key] = self.reference.outputs(draw)
        return self._shapes[key]

    def outputs_of(self, shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Return what :meth:`_outputs` does, for inputs of ``shapes``. Raises LayerError."""
        rng = np.random.default_rng([self.options.seed, len(shapes)])
        specs = [s.with_shape(shape) for s, shape in zip(self.specs, shapes, strict=True)]
        return self._outputs(Draw(tuple(s.draw(rng) for s in specs), {}, {}, (), self._trains))

    def _upstream(self, draw: Draw, rng: np.random.Generator) -> tuple[Array | None, ...]:
        made: list[Array | None] = []
        for shape, kind in self._outputs(draw):
            if kind != "f":
                made.append(None)
            elif draw.label == "integers":
                signs = rng.choice([-1.0, 1.0], shape)  # never 0, which would hide a kink
                made.append(np.asarray(signs * rng.integers(1, 4, shape)))
            elif draw.label == "large":
                made.append(np.asarray(rng.standard_normal(shape) * LARGE))
            else:
                made.append(np.asarray(rng.standard_normal(shape)))
        if not self.upstream_taken:  # a loss whose backward takes nothing means 1
            made = [None if g is None else np.ones_like(g) for g in made]
        elif draw.label == LOUD:
            made = [None if g is None else g * LOUDER for g in made]
        elif draw.label == QUIET:
            made = [None if g is None else _masked_out(g * QUIETER) for g in made]
        return tuple(made)

    # ---- runs --------------------------------------------------------------------------------

    def mine(self, draw: Draw, dtype: str = "float64", runner: Runner | None = None) -> Outcome:
        """Run the hand-written side. Raises LayerError."""
        runner = self.subject.spawn(dtype) if runner is None else runner
        own_run = getattr(runner, "run", None)
        if own_run is not None:  # a torch module knows how to run itself
            return own_run(draw, dtype, self.names)
        return run(runner, draw, dtype, self.names, masks=bool(self.reference.dropouts))

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
    ) -> Iterator[Mapping[str, Array | None]]:
        """Run the reference ``count`` times with every value moved by one ulp.

        Yields the quantities of each run, which are good until the next: no copies are made.
        """
        rng = np.random.default_rng([draw.seed, 7, count])
        ways = ["up", "down"] if draw.label == "magnitudes" else []
        ways += ["random"] * (count - len(ways))

        def pushed(how: str) -> Outcome:
            moved = draw.nudged(rng, np.dtype(dtype), how, inputs)
            if not inputs:  # what stays where it is belongs to the draw
                moved = replace(moved, inputs=tuple(array.copy() for array in draw.inputs))
            return self.reference.run(moved, dtype, once=True)

        for how in ways:
            try:
                outcome = pushed(how)
            except LayerError:  # pushed out of a bounded domain: towards zero instead
                outcome = pushed("inward")
            yield outcome.quantities

    def noise(
        self,
        draw: Draw,
        refs: Mapping[str, Array | None],
        count: int,
        inputs: bool = True,
        dtype: str = "float64",
    ) -> dict[str, Array]:
        """Return how far each element of ``refs`` moves in ``count`` perturbed runs."""
        found = {name: np.zeros(ref.shape) for name, ref in refs.items() if ref is not None}
        for moved in self.perturbed(draw, dtype, count, inputs):
            for name, noise in found.items():
                ref, other = refs[name], moved.get(name)
                if ref is not None and other is not None:
                    widen(noise, ref, other)
        return found

    # ---- judging -----------------------------------------------------------------------------

    def float64(
        self,
        draw: Draw,
        mine: Outcome | None = None,
        count: int = PERTURBED,
        pinned: bool = False,
        theirs: Outcome | None = None,
        verdicts: bool = False,
    ) -> list[Judged]:
        """Judge every quantity of ``draw`` on the float64 rung.

        ``mine`` and ``theirs`` are runs of ``draw`` that were made already. Where ``verdicts`` are
        all that is wanted, no noise is measured for what matches without any. Raises LayerError of
        mine.
        """
        mine = self.mine(draw) if mine is None else mine
        masked = self.masked(draw, mine)
        if theirs is None or masked is not draw:
            theirs = self.theirs(masked)
        draw = masked
        if verdicts and (matched := self._matched(draw, mine, theirs)) is not None:
            return matched
        noises = self.noise(draw, theirs.quantities, count, inputs=not pinned)
        elements = element_allowances(self, draw, theirs, noises)
        found, looks = [], Looks(self, draw)
        for name, ref, own in self.partners(theirs, mine):
            problem = incomparable(self, name, ref, own, draw, mine.returned)
            if problem is not None or ref is None or own is None:
                if problem is not None:
                    found.append(problem)
                continue
            noise = noises[name]
            judged = judge64(
                own,
                ref,
                noise,
                axis=channel_axis(name, ref),
                per_element=elements.get(name),
                pinned=pinned,
                floor=saturation(self, draw, name),
            )
            verdict = verdict64(judged, 1.0)  # refined where it is outside
            if verdict is Verdict.MISMATCH and not judged.nonfinite:
                judged, verdict = self._classify(draw, name, judged, own, ref, elements)
            rough = verdict is Verdict.INACCURATE or (
                verdict is Verdict.MISMATCH and slight(judged, ref)
            )
            if rough and not pinned and name not in elements:
                judged, verdict = self._second_look(looks, name, judged, own, ref, verdict)
            if name in elements and verdict in (Verdict.MISMATCH, Verdict.INACCURATE):
                inner = looks.inner(name, own, ref, noise, elements[name])
                judged, verdict = (judged, verdict) if inner is None else (inner, Verdict.MATCH)
            if name not in elements:
                again = partial(judge64, own, ref, noise, axis=channel_axis(name, ref), pinned=True)
                judged, verdict = looks.opened(name, judged, verdict, again)
            judged, verdict = looks.borne_out(name, judged, verdict, own, ref, elements.get(name))
            found.append(Judged(name, "float64", verdict, judged, draw, own, ref))
        return found

    def _matched(self, draw: Draw, mine: Outcome, theirs: Outcome) -> list[Judged] | None:
        """Judge without any noise, which only adds to what is allowed; None where some is needed.

        The reference's own runs are most of what a check costs, and most layers need none.
        """
        found = []
        each = draw.label == "magnitudes" and self.elementary
        for name, ref, own in self.partners(theirs, mine):
            problem = incomparable(self, name, ref, own, draw, mine.returned)
            if problem is not None and problem.verdict not in (Verdict.MATCH, Verdict.SKIPPED):
                return None
            if problem is not None or ref is None or own is None:
                found += [] if problem is None else [problem]
                continue
            none = np.zeros(ref.shape) if each else None
            bound = None if none is None else element_allowance(ref, none, none)
            if not matches(own, ref, channel_axis(name, ref), bound):
                return None
            found.append(Judged(name, "float64", Verdict.MATCH, None, draw, own, ref))
        return found

    def _classify(
        self,
        draw: Draw,
        name: str,
        judged: Judgement,
        own: Array,
        ref: Array,
        elements: Mapping[str, Array],
    ) -> tuple[Judgement, Verdict]:
        """Tell a fault from mere rounding: does the error shrink with the precision?

        One float32 run may be exact by chance, and so hide that it rounds: neighbouring numbers are
        asked then as well, where a fault stays what it is.
        """
        rng, narrow = np.random.default_rng([draw.seed, 17]), draw.rounded(np.float32)
        shrink: float | None = None
        for _ in range(NEIGHBOURS):
            own32, ref32 = self._in_float32(narrow, name)
            if own32 is None or ref32 is None or own32.shape != ref32.shape:
                break
            if name in elements and judged.worst is not None:
                at = judged.worst.index
                exact, off = abs(float(ref32[at])), abs(float(own32[at]) - float(ref32[at]))
                found: float | None = judged.error / max(off, EPS32 * exact, 1e-300)
            else:
                exact, off = largest(ref32), farthest(own32, ref32)
                found = shrink_ratio(own, ref, own32, ref32)
            shrink = found if shrink is None or found is None else min(shrink, found)
            if off > EPS32 * exact:
                break
            narrow = narrow.nudged(rng, np.float32).rounded(np.float32)
        return replace(judged, shrink=shrink), verdict64(judged, shrink)

    def _in_float32(self, narrow: Draw, name: str) -> tuple[Array | None, Array | None]:
        """Return mine in float32 and the reference in float64, both on ``narrow``."""
        try:
            own = self.mine(narrow, "float32").quantities.get(name)
            return own, self.theirs(narrow).quantities.get(name)
        except LayerError:
            return None, None

    def _second_look(
        self,
        looks: Looks,
        name: str,
        judged: Judgement,
        own: Array,
        ref: Array,
        verdict: Verdict,
    ) -> tuple[Judgement, Verdict]:
        """Measure the noise again before a slight error is called rough, or a fault."""
        try:
            r32, r64 = (outcome.quantities.get(name) for outcome in looks.narrow)
            runs = [run.get(name) for run in looks.moved]
        except LayerError:
            return judged, verdict
        again = second_look(own, ref, runs, (r32, r64), channel_axis(name, ref))
        return (judged, verdict) if again is None else (again, Verdict.MATCH)

    def float32(
        self,
        draw: Draw,
        count: int = YARDSTICKS,
        errors64: Mapping[str, float] | None = None,
        pinned: bool = False,
        mine: Outcome | None = None,
    ) -> list[Judged]:
        """Judge every quantity of ``draw``, rounded to float32; ``errors64`` are float64's errors.

        ``pinned`` leaves the inputs where they are, on a kink; ``mine`` is a float32 run that was
        made already of ``draw``, which then is a rounded one. Raises LayerError of mine.
        """
        if mine is None:
            draw = draw.rounded(np.float32)
            mine = self.mine(draw, "float32")
        draw = self.masked(draw, mine)
        exact = self.theirs(draw)
        narrow = draw.cast(np.float32)
        plain = self.theirs(narrow, "float32").quantities
        bases: dict[str, Array] = {}
        yardsticks: dict[str, float] = {}
        for name, ref, own in self.partners(exact, mine):
            usual = plain.get(name)
            if ref is None or own is None or usual is None or own.shape != ref.shape:
                continue  # said once, on the float64 rung
            if ref.dtype.kind == "f":
                bases[name] = arbiter(own, ref, usual)
                yardsticks[name] = farthest(usual, bases[name])
        for moved in self.perturbed(narrow, "float32", count, inputs=not pinned):
            for name, base in bases.items():
                other = moved.get(name)
                if other is not None:
                    yardsticks[name] = max(yardsticks[name], farthest(other, base))
        found, looks = [], Looks(self, draw)
        for name, ref, own in self.partners(exact, mine):
            if name not in bases or ref is None or own is None:
                continue
            judge = partial(held32, own, ref, bases[name], yardsticks[name])
            judged = judge(saturation(self, draw, name))
            verdict = verdict32(judged, (errors64 or {}).get(name, 0.0))
            judged, verdict = looks.opened(name, judged, verdict, judge)
            found.append(Judged(name, "float32", verdict, judged, draw, own, ref))
        return found

    def partners(
        self, theirs: Outcome, mine: Outcome
    ) -> list[tuple[str, Array | None, Array | None]]:
        """Return (quantity, reference, hand-written) for all that the reference has."""
        return [
            (name, array, mine.quantities.get(name)) for name, array in theirs.quantities.items()
        ]

    @property
    def forward_only(self) -> bool:
        """Whether the hand-written side has no backward pass at all, by declaration."""
        pair = getattr(self.subject, "pair", None)
        return pair is not None and (pair.backward is None or not pair.input_grads)

    def owes_gradient(self, given: int, returned: int) -> bool:
        """Whether backward must return a gradient for input ``given``, beyond the first.

        A loss need have none for its target, nor a layer of another habit than the plain
        contract's; who returns None in the tuple has said so.
        """
        plain = isinstance(self.subject, PlainSubject) and given >= returned
        scalar = all(shape == () for found in self._shapes.values() for shape, _ in found)
        return plain and not scalar and not self.reference.is_loss

    @property
    def unreturned(self) -> frozenset[str]:
        """Parameters whose gradient the hand-written side does not return, by declaration."""
        pair = getattr(self.subject, "pair", None)
        if pair is None:
            return frozenset()
        returned = {self.names.theirs(name) for name in pair.returns}
        return frozenset(set(self.reference.params) - (returned if pair.backward else set()))

    @cached_property
    def absolute_loss(self) -> float:
        """What torch's own formula loses by cancellation, in float32."""
        from parity.cancelling import absolute_loss as lost

        return lost(self)

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
            self._elementwise = self.elementary and permutes(self)
        return self._elementwise
