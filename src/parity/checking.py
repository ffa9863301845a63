"""``check`` and ``assert_parity``: one call that proves a layer equal to its reference, or not."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from parity.adapting import adapt
from parity.findings import Cause, Finding, Report, UsageError, Verdict
from parity.names import fitting, name_map
from parity.options import Options, known_zero, make_options, nearest
from parity.outcomes import LayerError
from parity.settings import EveryDevice
from parity.specs import Spec, as_spec
from parity.subjects import PlainRunner, buffer_store, said, unheld


def check(mine: Any, theirs: Any, *inputs: Any, **options: Any) -> Report:
    """Compare a hand-written layer or loss with its torch counterpart.

    ``mine`` keeps the contract of a layer (``params``, ``grads``, ``buffers``, ``forward``,
    ``backward``), or is a torch.nn.Module, ``parity.functions(…)``, or a factory without
    arguments. ``theirs`` is a torch.nn.Module, a torch loss or a callable on tensors. Each input
    is a shape tuple, an array, a spec (``parity.normal(8, 4)``, ``parity.labels(8, classes=10)``)
    or a function of a NumPy Generator. Options: see :class:`parity.options.Options`.

    Returns a :class:`Report`; neither object is touched. Raises UsageError for what cannot be
    checked at all; a layer that fails is a finding, never an exception.
    """
    from parity.reproducing import remember

    chosen = make_options(options)
    if chosen.isolate:
        from parity.isolation import check_isolated

        report = check_isolated(mine, theirs, inputs, options, chosen)
    else:
        report = examine_pair(mine, theirs, inputs, chosen)
    remember(report, mine, theirs, inputs, options)
    return report


def examine_pair(mine: Any, theirs: Any, inputs: tuple[Any, ...], options: Options) -> Report:
    """Run the whole examination in this process; see :func:`check`."""
    from parity.examining import examine

    try:
        pair = make_pair(mine, theirs, inputs, options)
        return examine(pair, mine, theirs)
    except Unreadable as error:
        kind = mine if isinstance(mine, type) else type(mine)
        return _unreadable(error, options.case or kind.__name__)
    except MemoryError as error:  # of the harness's own arrays; a layer's is a finding
        sizes = ", ".join(_size(as_spec(value, i).shape) for i, value in enumerate(inputs))
        raise UsageError(f"the memory is too small for the inputs ({sizes}): {SMALLER}") from error


SMALLER = "give smaller shapes, for what is wrong shows in those as well"


class Unreadable(UsageError):
    """The hand-written side raised while it was looked at, before it was run."""


@contextmanager
def _reading() -> Iterator[None]:
    """Turn whatever mine's attributes raise into :class:`Unreadable`."""
    try:
        yield
    except (UsageError, LayerError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Unreadable(f"reading mine's attributes raised {said(error)}") from error


def _unreadable(error: Unreadable, case: str) -> Report:
    from parity.environment import versions

    trace = "".join(traceback.format_exception(error.__cause__, limit=-6))
    facts = {"message": str(error), "traceback": trace}
    cause = Cause("raised", str(error))
    finding = Finding(case, "forward", verdict=Verdict.ERROR, cause=cause, evidence=facts)
    return Report(case, (finding,), versions=versions())


def make_pair(mine: Any, theirs: Any, inputs: tuple[Any, ...], options: Options) -> Any:
    """Return the :class:`parity.pair.Pair` of two sides.

    Raises UsageError where a side, an input or an option is not usable.
    """
    from parity.pair import Pair
    from parity.torch_side import TorchSide

    if not inputs:
        raise UsageError(
            "check got no input; give a shape for each input, as in check(mine, theirs, (8, 4))"
        )
    specs: tuple[Spec, ...] = tuple(as_spec(value, i) for i, value in enumerate(inputs))
    _affordable(specs)
    reference = TorchSide(theirs, "theirs")
    with _reading():
        subject = adapt(mine, options)
    names, fixed = name_map(subject, options.weights)
    fitting(options.weights, fixed, reference.params | reference.buffers)
    known_zero(options, _quantities(reference, len(specs)))
    _refuse_device(options, subject)
    with _reading():
        runner = subject.spawn("float64")
        taken = getattr(runner, "takes_upstream", None)
        takes_upstream = taken is None or taken()
        lacking = unheld(runner, reference.buffers, names)
        if type(runner) is PlainRunner or hasattr(runner, "side"):  # the adapters see to theirs
            own = {**runner.params(), **runner.buffers()}
            _known(options.weights, fixed, own, runner)
            names = names.fitted(own, reference.params | reference.buffers)
    pair = Pair(
        subject,
        reference,
        specs,
        options,
        names,
        fixed,
        case=options.case or subject.title,
        upstream_taken=takes_upstream,
        unheld=lacking,
    )
    settle = getattr(subject, "settle", None)
    if settle is not None:
        with _reading():
            settle(pair)
    return pair


def _known(
    weights: Mapping[str, Any], fixed: Mapping[str, Any], own: Mapping[str, Any], runner: Any
) -> None:
    """Raise UsageError where ``weights`` renames what the hand-written side does not have."""
    for name in weights:
        if name in fixed or name in own or buffer_store(runner, name) is not None:
            continue
        have = ", ".join(own) or "none"
        raise UsageError(f"weights names {name!r}{nearest(name, own)}; mine has: {have}")


def _affordable(specs: tuple[Spec, ...]) -> None:
    """Raise UsageError for an input that no memory of this machine could hold."""
    for i, spec in enumerate(specs):
        if 8 * math.prod(spec.shape) > physical_memory():
            raise UsageError(
                f"input {i} of shape {_size(spec.shape)}, more than this machine's memory: "
                f"{SMALLER}"
            )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape} takes {8 * math.prod(shape) / 2**30:,.3g} GiB in float64"


def physical_memory() -> float:
    """Return the bytes of memory of this machine; infinity where that is not known."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def _quantities(reference: Any, inputs: int) -> list[str]:
    """Return what is compared under these names, outputs beyond the first aside."""
    found = ["forward", *(f"grad_input{i}" for i in range(inputs))]
    found += [f"grad_{name}" for name in reference.params]
    return found + [f"buffer_{name}" for name in reference.buffers]


def _refuse_device(options: Options, subject: Any) -> None:
    """A device is for a torch layer under test: arrays are computed on the CPU."""
    device = options.device
    if device in (None, "cpu") or hasattr(subject, "side") or isinstance(device, EveryDevice):
        return
    raise UsageError(
        f"device={device!r} is for a torch module under test; mine is {subject.title}, which "
        "computes on the CPU: leave device out"
    )


def assert_parity(mine: Any, theirs: Any, *inputs: Any, **options: Any) -> None:
    """Raise :class:`ParityError` with the whole report unless :func:`check` passes.

    Takes what :func:`check` takes, and raises UsageError where it does.
    """
    __tracebackhide__ = True
    check(mine, theirs, *inputs, **options).raise_if_failed()
