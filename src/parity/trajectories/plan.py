"""What a training check was asked for, validated once: the plan that every run follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.adapters.functional import Functions
from parity.adapting import adapt, is_torch_module, keeps_contract
from parity.draws import Draw, random_weights
from parity.findings import UsageError
from parity.names import NameMap, fitting, name_map
from parity.options import NAMES, Options, known_zero, make_options, nearest
from parity.outcomes import Array
from parity.specs import as_spec
from parity.subjects import Subject
from parity.torch_side import TorchSide, as_module
from parity.trajectories.batches import Batches

# what a single layer can be asked for and a training run cannot
ELSEWHERE = ("device", "isolate", "memory", "modes", "rungs", "timeout")
OWN = ("loss", "optimizer", "batches", "epochs", "scheduler")
POSSIBLE = (*OWN, *(name for name in NAMES if name not in ELSEWHERE))


@dataclass(frozen=True)
class Plan:
    """Both sides of a training run and what they are trained on."""

    subject: Subject
    reference: TorchSide
    my_loss: Subject
    their_loss: Any
    my_optimizer: Callable[[Any], Any]
    their_optimizer: Callable[[Any], Any]
    batches: Batches
    options: Options
    names: NameMap = field(default_factory=NameMap)
    fixed: Mapping[str, Array] = field(default_factory=dict)
    my_scheduler: Callable[[Any], Any] | None = None
    their_scheduler: Callable[[Any], Any] | None = None
    originals: tuple[Any, ...] = ()
    case: str = "training"

    def start(self, seed: int) -> Draw:
        """Return the weights that both sides start from.

        The reference's own for the first seed; further seeds draw others near them.
        """
        params, buffers = self.reference.params, self.reference.buffers
        if seed != self.options.seed:
            params, buffers = random_weights(params, buffers, np.random.default_rng([seed, 5]))
        params = dict(params) | {n: a for n, a in self.fixed.items() if n in params}
        return Draw(self.inputs, params, dict(buffers), upstream=(None,), seed=seed)

    @property
    def inputs(self) -> tuple[Array, ...]:
        """The first batch's inputs: adapters read off them how many there are."""
        return self.batches.first[0].inputs


def make_plan(
    model: Any,
    reference: Any,
    loss: Any,
    optimizer: Any,
    batches: Any,
    epochs: Any,
    scheduler: Any,
    given: Mapping[str, Any],
) -> Plan:
    """Return the validated plan.

    Raises UsageError for what cannot be trained, NotImplementedError for options that only
    :func:`parity.check` has.
    """
    for name in ELSEWHERE:
        if given.get(name) is not None and given[name] is not False:
            raise NotImplementedError(f"check_training does not support the option {name!r}")
    for name in given:
        if name not in NAMES:
            raise UsageError(
                f"unknown option {name!r}{nearest(name, POSSIBLE)}; options: {', '.join(POSSIBLE)}"
            )
    options = make_options(given)
    if not is_torch_module(reference):
        raise UsageError(
            f"reference is {type(reference).__name__}; it must be an instance of torch.nn.Module"
        )
    theirs = TorchSide(reference, "reference")
    if not theirs.params:
        raise UsageError("the reference has no parameters: there is nothing to train")
    subject = adapt(model, options)
    names, fixed = name_map(subject, options.weights)
    fitting(options.weights, fixed, theirs.params | theirs.buffers)
    known = [f"{kind}_{name}" for name in theirs.params for kind in ("grad", "parameter")]
    known_zero(options, ["trajectory", *theirs.params, *known])
    losses = _pair("loss", loss, "loss=(MyLoss(), torch.nn.CrossEntropyLoss())")
    makers = _factories("optimizer", "model", optimizer, "lambda params: torch.optim.SGD(params)")
    steppers = (None, None) if scheduler is None else _factories(
        "scheduler", "optimizer", scheduler, "lambda optimizer: StepLR(optimizer, 10)"
    )  # fmt: skip
    plan = Plan(
        subject=subject,
        reference=theirs,
        my_loss=_loss_subject(losses[0], options),
        their_loss=as_module(losses[1], "loss[1]"),
        my_optimizer=makers[0],
        their_optimizer=makers[1],
        batches=Batches(batches, _epochs(epochs)),
        options=options,
        names=names,
        fixed=fixed,
        my_scheduler=steppers[0],
        their_scheduler=steppers[1],
        originals=tuple(o for o in (model, reference) if _is_object(o)),
        case=options.case or f"training {subject.title}",
    )
    _settle(plan)
    return plan


def _settle(plan: Plan) -> None:
    """Let an adapter decide by trial what the shapes leave open, such as square weights."""
    settle = getattr(plan.subject, "settle", None)
    if settle is not None:
        from parity.pair import Pair

        specs = tuple(as_spec(array, i) for i, array in enumerate(plan.inputs))
        settle(Pair(plan.subject, plan.reference, specs, plan.options, plan.names, plan.fixed))


def _is_object(item: Any) -> bool:
    """Whether an optimizer could hold ``item`` itself, where the harness works on copies."""
    return is_torch_module(item) or (keeps_contract(item) and not isinstance(item, Functions))


def _pair(what: str, value: Any, example: str) -> tuple[Any, Any]:
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return value[0], value[1]
    given = "nothing" if value is None else type(value).__name__
    raise UsageError(f"{what} is {given}; it must be a pair (mine, theirs): {example}")


def _factories(what: str, takes: str, value: Any, example: str) -> tuple[Any, Any]:
    """Return a pair of factories; something already made would hold the user's own objects."""
    made = _pair(what, value, f"{what}=(lambda {takes}: …, {example})")
    for side, factory in enumerate(made):
        finished = hasattr(factory, "step") and not isinstance(factory, type)
        if not callable(factory) or finished:
            raise UsageError(
                f"{what}[{side}] is {type(factory).__name__}; give a factory that makes one for "
                f"the harness's own copy: lambda {takes if side == 0 else 'params'}: …"
            )
    return made


def _epochs(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise UsageError(f"epochs is {value!r}; it must be a positive integer")
    return int(value)


def _loss_subject(loss: Any, options: Options) -> Subject:
    if isinstance(loss, type):
        name = loss.__name__
        raise UsageError(f"loss[0] is the class {name}; give an instance: {name}(…)")
    try:
        return adapt(loss, options)
    except UsageError as error:
        raise UsageError(
            f"loss[0] is {getattr(loss, '__name__', type(loss).__name__)}, which no adapter "
            "takes; it needs forward(prediction, target) and backward(grad_output=1.0), or "
            "parity.functions(forward, backward)"
        ) from error
