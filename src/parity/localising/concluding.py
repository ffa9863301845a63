"""``localise``: which layer of a model is the first to part from its reference, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.draws import Draw
from parity.findings import Cause, Finding, UsageError, Verdict
from parity.localising.forcing import Forced, Parting, compare, judge_forced, judged, local_names
from parity.localising.tracing import Trace, trace_plain, trace_torch
from parity.localising.trees import Unit, match, plain_layers, torch_layers
from parity.outcomes import LayerError
from parity.pair import Pair
from parity.subjects import PlainRunner
from parity.torch_subject import TorchRunner
from parity.wording import quantity_text

MOST_STEPS = 100


@dataclass(frozen=True)
class Localisation:
    """Where two models part: ``layer`` is torch's path of it, or None where no layer parts.

    ``direction`` is forward or backward; ``step`` counts from 1; ``own_fault`` is True where the
    layer is wrong although it is given torch's numbers, False where it was handed wrong ones, None
    where it cannot be run alone (random elements, arguments by keyword).
    ``faulty`` names every layer with a fault of its own; ``findings`` are data for a report.
    """

    sentence: str
    layer: str | None = None
    kind: str | None = None
    direction: str | None = None
    quantity: str | None = None
    step: int | None = None
    own_fault: bool | None = None
    faulty: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    units: tuple[Unit, ...] = ()

    def __bool__(self) -> bool:
        return self.layer is not None or bool(self.findings)

    def __str__(self) -> str:
        return self.sentence


def localise(
    mine: Any,
    theirs: Any,
    *inputs: Any,
    layers: Mapping[str, str] | None = None,
    steps: int = 1,
    **options: Any,
) -> Localisation:
    """Find the first layer, direction and step at which two models part.

    Takes what :func:`parity.check` takes. Layers are matched by path (``"2"``, ``"body.0"``), else
    by order; ``layers`` maps paths that differ: {"mine.path": "theirs.path"}. ``steps`` above 1
    runs the models again after gradient steps, for faults that show only then. Each step costs
    four passes: each model once, the reference once more with rounding noise, and every
    hand-written layer once on the reference's inputs and upstream gradients.

    Raises UsageError where a side has no layers to look into, or ``layers`` names none of them.
    """
    from parity.checking import make_pair
    from parity.options import make_options

    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"steps is {steps!r}; it must be an integer from 1 to {MOST_STEPS}")
    pair = make_pair(mine, theirs, inputs, make_options(options))
    locator = _Locator(pair, layers)
    modes = pair.options.modes or (("train", "eval") if pair.reference.buffers else ("train",))
    found = None
    for mode in modes:
        try:
            draw = pair.draw(pair.options.all_seeds[0], mode == "train")
        except LayerError as refusal:
            raise UsageError(f"the reference refuses these inputs: {refusal}") from refusal
        found = locator.locate(draw, steps)
        if found:
            break
    assert found is not None
    return found


def localise_failure(exam: Any) -> None:
    """Add where two models part to a failing examination; nothing where neither is a model."""
    failed = {i: j for i, j in exam.failed.items() if exam.findings[i].failed and j.draw.inputs}
    causes = {finding.cause.name for finding in exam.findings if finding.cause}
    if not failed or exam.pair.reference.lone or "wrong_mapping" in causes:
        return
    first = next(iter(failed.values()))
    try:
        locator = _Locator(exam.pair, None)
        training = first.draw.training
        draw = exam.pair.draw(exam.pair.options.seed, training)
        late = not any(f.evidence.get("draw") == "generic" for f in exam.findings if f.failed)
        found = locator.locate(draw, 3 if late else 1)
        explained = locator.explained(found)
    except (UsageError, LayerError):
        return  # the layers cannot be told apart: the findings stand without a place
    except (Exception, SystemExit) as error:
        # somebody's layers may do anything when they are run one by one
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        exam.notes.append(f"the layers could not be looked into: {text}")
        return
    if not found:
        exam.notes.append(found.sentence)
    # in front: where it begins is what a reader of twenty findings wants to know
    exam.findings[:0] = explained
    exam.failed = {index + len(found.findings): j for index, j in exam.failed.items()}


@dataclass
class _Step:
    """What one step showed: the free run of either side, and each layer on its own."""

    reference: Trace
    others: list[Trace]
    mine: Trace
    own: list[Parting] = field(default_factory=list)
    untried: set[int] = field(default_factory=set)
    shared: list[Parting] = field(default_factory=list)  # of parameters that are used outside too


class _Locator:
    """Two models prepared for looking inside: layers matched, copies made."""

    def __init__(self, pair: Pair, layers: Mapping[str, str] | None) -> None:
        self.pair = pair
        self.module = pair.reference.copy("float64")
        theirs = torch_layers(self.module)
        self.runner = pair.subject.spawn("float64")
        self.torch_mine = isinstance(self.runner, TorchRunner)
        mine = self._layers(self.runner)
        for side, held in (("mine", mine), ("theirs", theirs)):
            if not held:
                raise UsageError(
                    f"{side} has no layers inside that could be looked at: {self._is()}"
                )
        self.units = match(mine, theirs, layers)
        if not self.units:
            raise UsageError(
                f"no layer of mine ({', '.join(list(mine)[:8])}) has a partner among "
                f"{', '.join(list(theirs)[:8])}; declare layers={{'mine.path': 'theirs.path'}}"
            )
        self.mine = [mine[unit.mine] for unit in self.units]
        self.theirs = [theirs[unit.theirs] for unit in self.units]
        self.forced = self._forced()

    def _is(self) -> str:
        return f"{self.pair.subject.title} beside {type(self.pair.reference.original).__name__}"

    def _layers(self, runner: Any) -> dict[str, Any]:
        if isinstance(runner, TorchRunner):
            return torch_layers(runner.side.copy("float64"))
        return plain_layers(runner.layer) if isinstance(runner, PlainRunner) else {}

    def _forced(self) -> list[Forced]:
        """Every layer once more, from a copy that nobody watches."""
        spare = self._layers(self.pair.subject.spawn("float64"))
        return [
            Forced(
                unit,
                spare[unit.mine],
                partner,
                self.torch_mine,
                local_names(self.pair.names, unit, partner),
            )
            for unit, partner in zip(self.units, self.theirs, strict=True)
        ]

    def locate(self, draw: Draw, steps: int) -> Localisation:
        """Return where the models part on ``draw``, at the first step at which they do."""
        self._zero_tied()
        self.mode = "train" if draw.training else "eval"
        for number in range(1, steps + 1):
            step = self._run(draw)
            found = self._conclude(step, number)
            if found or number == steps:
                return found
            draw = _stepped(draw, step.reference)
        raise AssertionError  # steps is at least 1

    def _zero_tied(self) -> None:
        """Gradients of weights that several layers share belong to none of them alone."""
        owners: dict[int, int] = {}
        for module in self.module.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        self.tied = {name for name, p in self.module.named_parameters() if owners.get(id(p), 0) > 1}

    def _run(self, draw: Draw) -> _Step:
        pair = self.pair
        if self.torch_mine:
            mine = trace_torch(
                self.mine, lambda: self.runner.run(draw, "float64", pair.names), False
            )
        else:
            mine = trace_plain(self.mine, lambda: pair.mine(draw, runner=self.runner))
        if mine.outcome is not None:
            draw = pair.masked(draw, mine.outcome)
        moved = draw.nudged(np.random.default_rng([draw.seed, 13]), np.float64)
        step = self.traced = _Step(self._reference(draw), [], mine)
        try:
            step.others = [self._reference(moved)]
        except LayerError:  # pushed out of a bounded domain
            moved = draw.nudged(np.random.default_rng([draw.seed, 13]), np.float64, "inward")
            step.others = [self._reference(moved)]
        self.last = step.reference
        # the weights of the draw itself, which the perturbed run has moved
        pair.reference.load(self.module, draw)
        for index, forced in enumerate(self.forced):
            found = judge_forced(index, forced, step.reference, step.others, draw)
            step.own += [part for part in found or [] if not part.shared]
            step.shared += [p for p in found or [] if p.shared and self._parts(step, p.unit, p)]
            if found is None:
                step.untried.add(index)
        return step

    def _parts(self, step: _Step, unit: int, part: Parting) -> bool:
        """Whether a parameter's gradient parts in the whole models as well."""
        name = f"grad_{self.units[unit].theirs}.{part.quantity.removeprefix('grad_')}"
        return bool(self._whole(step, [name]))

    def _whole(self, step: _Step, names: Iterable[str] | None = None) -> list[Parting]:
        """Return the quantities of the whole models that part; all of them without ``names``."""
        mine, reference = step.mine.outcome, step.reference.outcome
        if mine is None or reference is None:
            return []
        others = [t.outcome.quantities for t in step.others if t.outcome is not None]
        return [
            part
            for name in (reference.quantities if names is None else names)
            for part in judged(
                0,
                "forward" if name.startswith("forward") else "",
                name,
                mine.quantities.get(name),
                reference.quantities.get(name),
                [o.get(name) for o in others],
            )
        ]

    def _reference(self, draw: Draw) -> Trace:
        trace = trace_torch(self.theirs, lambda: self.pair.theirs(draw, module=self.module))
        if trace.outcome is not None:
            for name in self.tied:
                trace.outcome.quantities.pop(f"grad_{name}", None)
        return trace

    def explained(self, found: Localisation) -> list[Finding]:
        """Return the findings, each own fault with the cause that its layer alone shows."""
        from parity.checking import check

        findings = []
        for finding in found.findings:
            findings.append(finding)
            if not finding.evidence.get("own_fault") or finding.cause is None:
                continue
            forced = next(f for f in self.forced if f.unit.theirs == finding.layer)
            try:
                report = check(
                    forced.layer,
                    forced.partner,
                    *self._shapes(forced),
                    seed=self.pair.options.seed,
                    rungs=("float64",),
                    weights=forced.weights(),
                )
            except (UsageError, LayerError):
                continue
            named = [f.cause for f in report.of(finding.quantity) if f.cause]
            cause = named[0] if named else None if report.passed else report.cause
            if cause is not None:
                sentence = f"{finding.cause.sentence}: {cause.sentence}"
                findings[-1] = finding.with_cause(Cause(cause.name, sentence))
        return findings

    def _shapes(self, forced: Forced) -> list[Any]:
        """Inputs of one layer alone, as large as in the model; labels as they were."""
        call = self.last.of(self.forced.index(forced))[0]
        arrays = [array for array in call.inputs if array is not None]
        return [array.shape if array.dtype.kind == "f" else array for array in arrays]

    # ---- conclusions -----------------------------------------------------------------------------

    def _conclude(self, step: _Step, number: int) -> Localisation:
        free = self._free(step)
        own: dict[tuple[int, str], Parting] = {}
        for parting in step.own:
            own.setdefault((parting.unit, parting.direction), parting)
        # a buffer that is wrong does not show in what the model hands on, only in its own layer
        parted = [*free, *own.values(), *step.shared]
        outputs = [p for p in self._whole(step) if p.direction == "forward"]
        if outputs and self._seen(step) and all(p.direction == "backward" for p in parted):
            return self._beyond(step, number, outputs[0])
        first = min(parted, key=self._when(step), default=None)
        faulty = tuple(dict.fromkeys(self.units[unit].theirs for unit, _ in own))
        if first is None:
            return Localisation(self._nothing(step), units=tuple(self.units))
        mine_too = own.get((first.unit, first.direction))
        fault = None if first.unit in step.untried else mine_too is not None
        found = [self._finding(mine_too or first, number, fault, True)]
        for (index, _), parting in own.items():
            if index != first.unit:
                found.append(self._finding(parting, number, True, False))
        unit = self.units[first.unit]
        cause = found[0].cause
        assert cause is not None
        return Localisation(
            cause.sentence,
            unit.theirs,
            unit.kind,
            first.direction,
            found[0].quantity,
            number,
            fault,
            faulty,
            tuple(found),
            tuple(self.units),
        )

    def _seen(self, step: _Step) -> bool:
        """Whether every layer was compared at every place where it stands."""
        ran = [(len(step.mine.of(i)), len(step.reference.of(i))) for i in range(len(self.units))]
        return step.mine.failure is None and all(own == ref for own, ref in ran)

    def _beyond(self, step: _Step, number: int, output: Parting) -> Localisation:
        """Say that the layers are right, and what the model makes of their answers is not."""
        last = self.units[step.reference.calls[-1].unit]
        sentence = (
            "every layer that both have gives what torch's gives, and the model's output is "
            "another: look at what the model does after its last one, "
            f"{last.label.removeprefix('layer ')}, or beside them"
        )
        finding = self._found(output, number, Cause("parts_after_layers", sentence), None, {
            "direction": "forward", "own_fault": False,
        })  # fmt: skip
        return Localisation(
            sentence,
            direction="forward",
            quantity=output.quantity,
            step=number,
            own_fault=False,
            findings=(finding,),
            units=tuple(self.units),
        )

    def _nothing(self, step: _Step) -> str:
        """Say why no layer is named: the models agree, or they differ outside the layers."""
        ran = step.mine.outcome is not None and step.reference.outcome is not None
        if ran and not self._whole(step):
            return "both models agree here: no layer parts from its partner"
        return "no layer parts from its partner: the difference lies in what joins them"

    def _when(self, step: _Step) -> Callable[[Parting], tuple[int, int]]:
        """When a quantity is computed: forward in order, then backward from the end."""
        places: dict[int, list[int]] = {}
        for position, call in enumerate(step.reference.calls):
            places.setdefault(call.unit, []).append(position)

        def key(parting: Parting) -> tuple[int, int]:
            position = places[parting.unit][parting.place]
            return (0, position) if parting.direction == "forward" else (1, -position)

        return key

    def _free(self, step: _Step) -> list[Parting]:
        """Where the two free runs part, in the order in which they ran."""
        found: list[Parting] = []
        seen: dict[int, int] = {}
        for call in step.reference.calls:
            place = seen.get(call.unit, 0)
            seen[call.unit] = place + 1
            mine, ref = step.mine.of(call.unit), step.reference.of(call.unit)
            if not mine and step.mine.failure is not None:
                continue
            if len(mine) != len(ref):
                continue
            twins = [
                t.of(call.unit)[place] for t in step.others if len(t.of(call.unit)) == len(ref)
            ]
            parts = compare(call.unit, mine[place], call, twins)
            if step.mine.failure is not None:
                parts = [p for p in parts if p.message != "nothing comes back"]
            found += [replace(part, place=place) for part in parts]
        forward = [p for p in found if p.direction == "forward"]
        return forward + [p for p in reversed(found) if p.direction == "backward"]

    def _other_mode(self, parting: Parting) -> str:
        """Return in which mode a layer runs, if another than torch's and that makes a change."""
        if parting.direction != "forward":
            return ""
        kept = self.forced[parting.unit]
        if not kept.random and not list(kept.partner.buffers()):
            return ""
        mine, ref = self.traced.mine.of(parting.unit), self.traced.reference.of(parting.unit)
        if len(mine) != len(ref) or mine[parting.place].training in (None, ref[0].training):
            return ""
        own, other = "training mode", "evaluation mode"
        own, other = (own, other) if mine[parting.place].training else (other, own)
        return f"{own} where torch's is in {other}"

    def _finding(self, parting: Parting, step: int, own: bool | None, first: bool) -> Finding:
        unit = self.units[parting.unit]
        where = f"in {parting.direction}"
        if parting.quantity not in ("forward", "backward", "grad_input0"):
            where += f" ({quantity_text(parting.quantity)})"
        if step > 1:
            where += f" at step {step}"
        start = "is the first to part" if first else "parts too"
        mode = self._other_mode(parting)
        if parting.shared:
            why = (
                "given torch's numbers it is right by itself: the parameter is used outside of the "
                "layer too (tied, or in a penalty), and what comes from there is lost or wrong"
            )
        elif mode:
            why = f"it runs in {mode}: look at what sets its mode"
        elif own is None:
            why = "whose fault it is could not be tried: it cannot be run alone here"
        elif own:
            why = "it is its own fault: given torch's inputs it is still wrong"
        else:
            backward = parting.direction == "backward"
            given, side = ("upstream gradient", "after") if backward else ("input", "before")
            why = (
                f"it was handed a wrong {given}: given torch's it is right, so look at what the "
                f"model does {side} it"
            )
        detail = f" ({parting.message})" if parting.message else ""
        sentence = f"{unit.label} {start}, {where}: {why}{detail}"
        facts: dict[str, Any] = {"direction": parting.direction, "own_fault": own}
        facts |= {"kind": unit.kind, "mine_path": unit.mine}
        cause = Cause("layer_at_fault" if own else "layer_handed_wrong_numbers", sentence)
        return self._found(parting, step, cause, unit.theirs, facts)

    def _found(
        self, parting: Parting, step: int, cause: Cause, layer: str | None, facts: dict[str, Any]
    ) -> Finding:
        j = parting.judgement
        facts = {**facts, "draw": "localised", "step": step, "mode": self.mode}
        if j is not None:
            facts |= {"differing": j.differing, "size": j.size, "error": j.error}
        return Finding(
            case=self.pair.case,
            quantity=parting.quantity,
            layer=layer,
            step=step if step > 1 else None,
            verdict=Verdict.MISMATCH,
            allowance=j.allowance if j else 0.0,
            worst=j.worst if j else None,
            cause=cause,
            evidence=facts,
        )


def _stepped(draw: Draw, reference: Trace) -> Draw:
    """Return the draw after one gradient step of the reference: both sides go on from there."""
    assert reference.outcome is not None
    kept = reference.outcome.quantities

    def moved(name: str, array: Any) -> Any:
        grad = kept.get(f"grad_{name}")
        if grad is None or not grad.size:
            return array
        scale = float(np.abs(grad).max())
        return array - 0.01 * grad / scale if scale and np.isfinite(scale) else array

    buffers = {name: kept.get(f"buffer_{name}") for name in draw.buffers}
    return replace(
        draw,
        params={name: moved(name, array) for name, array in draw.params.items()},
        buffers={n: draw.buffers[n] if a is None else a for n, a in buffers.items()},
    )
