"""Teacher forcing: each hand-written layer alone, on what the reference's layer was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.draws import Draw
from parity.findings import UsageError
from parity.judged import channel_axis
from parity.ladder import Judgement, judge64, response
from parity.localising.tracing import Call, Trace
from parity.localising.trees import Unit
from parity.outcomes import Array, LayerError, Outcome
from parity.subjects import NameMap, run


@dataclass(frozen=True)
class Parting:
    """A quantity of one layer that is not the reference's."""

    unit: int
    direction: str
    quantity: str
    judgement: Judgement | None = None
    message: str = ""
    place: int = 0  # which of the layer's calls, where it stands at several places
    shared: bool = False  # whether the parameter is used outside the layer as well


@dataclass
class Forced:
    """One hand-written layer on its own; it keeps what it remembers from call to call."""

    unit: Unit
    layer: Any
    partner: Any
    torch_side: bool
    names: NameMap = field(default_factory=NameMap)
    _runner: Any = None

    def run(self, draw: Draw) -> Outcome:
        """Run the layer on ``draw``. Raises LayerError, and UsageError where it cannot be run."""
        if self.torch_side:
            from parity.torch_side import TorchSide
            from parity.torch_subject import TorchRunner

            if self._runner is None:
                self._runner = TorchRunner(TorchSide(self.layer, "mine"))
            outcome: Outcome = self._runner.run(draw, "float64", self.names)
            return outcome
        if self._runner is None:
            from parity.adapting import adapt

            self._runner = adapt(self.layer, None).spawn("float64")
        return run(self._runner, draw, "float64", self.names)

    def weights(self) -> dict[str, Any]:
        """Return the name map in the form of the option ``weights``."""
        names = self.names
        listed = dict.fromkeys([*names.names.values(), *names.axes, *names.blocks])
        return {names.mine(name): names.declared(names.mine(name), name) for name in listed}

    @property
    def random(self) -> bool:
        """Whether the reference drops elements at random here: nothing can be forced then."""
        return any(hasattr(part, "keep") and hasattr(part, "p") for part in self.partner.modules())


def local_names(names: NameMap, unit: Unit, partner: Any) -> NameMap:
    """Return the part of a model's name map that concerns one layer, without its path."""
    own: dict[str, str] = {}
    axes: dict[str, tuple[int, ...]] = {}
    blocks: dict[str, tuple[int, ...]] = {}
    tensors = [*partner.named_parameters(), *partner.named_buffers()]
    for name in (name for name, _ in tensors):
        full = f"{unit.theirs}.{name}"
        mine = names.mine(full).removeprefix(unit.mine + ".")
        if names.mine(full) != full and mine != name:
            own[mine] = name
        if full in names.axes:
            axes[name] = names.axes[full]
        if full in names.blocks:
            blocks[name] = names.blocks[full]
    return NameMap(own, axes, blocks)


def draw_for(call: Call, partner: Any, draw: Draw) -> Draw:
    """Return what the reference's layer was given at ``call``, as a draw of its own."""
    params = {n: np.array(p.detach().cpu().numpy()) for n, p in partner.named_parameters()}
    inputs = tuple(array for array in call.inputs if array is not None)
    return Draw(
        inputs, params, call.before, tuple(call.upstream), partner.training, (), "forced", 0
    )


def judge_forced(
    index: int, forced: Forced, reference: Trace, others: list[Trace], draw: Draw
) -> list[Parting] | None:
    """Return where the layer parts from the reference although it is given the same.

    None where it cannot be run alone: elements dropped at random, arguments given by keyword, or
    a partner that torch never calls (it reads the weights of nn.MultiheadAttention's out_proj).
    """
    calls = reference.of(index)
    if not calls or (forced.random and draw.training):
        return None
    found: list[Parting] = []
    sums: dict[str, Array] = {}
    for place, call in enumerate(calls):
        if call.opaque:
            return None
        twins = [t.of(index)[place] for t in others if len(t.of(index)) == len(calls)]
        try:
            outcome = forced.run(draw_for(call, forced.partner, draw))
        except LayerError as failure:
            if failure.phase not in ("forward", "backward"):
                return None
            direction = "backward" if failure.phase == "backward" else "forward"
            return [Parting(index, direction, direction, message=f"it raises {failure}")]
        except UsageError:
            return None
        parts = compare(index, outcome_call(index, outcome, call), call, twins)
        found += [replace(part, place=place) for part in parts]
        for name, array in outcome.quantities.items():
            if name.startswith("grad_") and not name.startswith("grad_input") and array is not None:
                sums[name] = sums[name] + array if name in sums else array
    parts = judge_params(index, forced, sums, reference, others)
    if parts:
        shared = _used_outside(index, forced, reference, others, draw)
        parts = [replace(part, shared=part.quantity in shared) for part in parts]
    return found + parts


def _used_outside(
    index: int, forced: Forced, reference: Trace, others: list[Trace], draw: Draw
) -> set[str]:
    """Return the gradients to which more than the layer adds: those of torch's alone fall short."""
    alone = Forced(forced.unit, forced.partner, forced.partner, torch_side=True)
    sums: dict[str, Array] = {}
    try:
        for call in reference.of(index):
            outcome = alone.run(draw_for(call, forced.partner, draw))
            for name, array in outcome.quantities.items():
                if array is not None:
                    sums[name] = sums[name] + array if name in sums else array
    except (LayerError, UsageError):
        return set()
    return {part.quantity for part in judge_params(index, forced, sums, reference, others)}


def outcome_call(index: int, outcome: Outcome, like: Call) -> Call:
    """Return an outcome in the form of a call."""
    kept = outcome.quantities
    return Call(
        index,
        like.inputs,
        outcome.outputs,
        list(like.upstream),
        [kept.get(f"grad_input{i}") for i in range(len(like.inputs))],
        {},
        {
            n.removeprefix("buffer_"): a
            for n, a in kept.items()
            if n[:7] == "buffer_" and a is not None
        },
    )


def judge_params(
    index: int, forced: Forced, sums: Mapping[str, Array], reference: Trace, others: list[Trace]
) -> list[Parting]:
    """Judge the parameters' gradients, added over the places at which the layer stands."""
    found = []
    for name, _ in forced.partner.named_parameters():
        ref = _total(reference, f"{forced.unit.theirs}.{name}")
        if ref is None:
            continue
        own = sums.get(f"grad_{name}")
        noise = [a for t in others if (a := _total(t, f"{forced.unit.theirs}.{name}")) is not None]
        if own is None:
            text = f"backward leaves no grad of {name}"
            found.append(Parting(index, "backward", f"grad_{name}", message=text))
            continue
        found += judged(index, "backward", f"grad_{name}", own, ref, noise)
    return found


def _total(trace: Trace, name: str) -> Array | None:
    return trace.outcome.quantities.get(f"grad_{name}") if trace.outcome is not None else None


def compare(index: int, own: Call, ref: Call, twins: list[Call]) -> list[Parting]:
    """Judge outputs, buffers and input gradients of one call; ``twins`` are its perturbed runs."""
    found = []
    for i, wanted in enumerate(ref.outputs):
        others = [t.outputs[i] for t in twins if i < len(t.outputs)]
        given = own.outputs[i] if i < len(own.outputs) else None
        name = "forward" if len(ref.outputs) == 1 else f"forward{i}"
        found += judged(index, "forward", name, given, wanted, others)
    for key, wanted in ref.after.items():
        if key in own.after:
            others = [t.after.get(key) for t in twins]
            found += judged(index, "forward", f"buffer_{key}", own.after[key], wanted, others)
    for i, grad in enumerate(ref.grads):
        given = own.grads[i] if i < len(own.grads) else None
        if grad is None or (given is None and i > 0):
            continue
        others = [t.grads[i] for t in twins if i < len(t.grads)]
        found += judged(index, "backward", f"grad_input{i}", given, grad, others)
    return found


def judged(
    index: int, direction: str, name: str, own: Any, ref: Any, others: list[Any]
) -> list[Parting]:
    """Return one parting where ``own`` is outside what rounding explains, else none."""
    if ref is None:
        return []
    if own is None:
        return [Parting(index, direction, name, message="nothing comes back")]
    if own.shape != ref.shape and own.size == ref.size == 1:
        own = own.reshape(ref.shape)
    if own.shape != ref.shape:
        text = f"its shape is {own.shape}, torch's {ref.shape}"
        return [Parting(index, direction, name, message=text)]
    if ref.dtype.kind != "f":
        if np.array_equal(own, ref):
            return []
        return [Parting(index, direction, name, message=f"{int((own != ref).sum())} differ")]
    noise = response(ref, [other for other in others if other is not None])
    judgement = judge64(own, ref, noise, axis=channel_axis(name, ref))
    if judgement.inside or (judgement.undecided and not judgement.nonfinite):
        return []
    return [Parting(index, direction, name, judgement)]
