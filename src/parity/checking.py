"""``check`` and ``assert_parity``: one call that proves a layer equal to its reference, or not."""

from __future__ import annotations

from typing import Any

from parity.adapting import adapt
from parity.findings import Report, UsageError
from parity.names import fitting, name_map
from parity.options import Options, make_options
from parity.specs import Spec, as_spec


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

    return examine(make_pair(mine, theirs, inputs, options), mine, theirs)


def make_pair(mine: Any, theirs: Any, inputs: tuple[Any, ...], options: Options) -> Any:
    """Return the :class:`parity.pair.Pair` of two sides.

    Raises UsageError where a side, an input or an option is not usable.
    """
    from parity.pair import Pair
    from parity.subjects import unheld
    from parity.torch_side import TorchSide

    if not inputs:
        raise UsageError(
            "check got no input; give a shape for each input, as in check(mine, theirs, (8, 4))"
        )
    specs: tuple[Spec, ...] = tuple(as_spec(value, i) for i, value in enumerate(inputs))
    reference = TorchSide(theirs, "theirs")
    subject = adapt(mine, options)
    names, fixed = name_map(subject, options.weights)
    fitting(options.weights, fixed, reference.params | reference.buffers)
    runner = subject.spawn("float64")
    taken = getattr(runner, "takes_upstream", None)
    pair = Pair(
        subject,
        reference,
        specs,
        options,
        names,
        fixed,
        case=options.case or subject.title,
        upstream_taken=taken is None or taken(),
        unheld=unheld(runner, reference.buffers, names),
    )
    settle = getattr(subject, "settle", None)
    if settle is not None:
        settle(pair)
    return pair


def assert_parity(mine: Any, theirs: Any, *inputs: Any, **options: Any) -> None:
    """Raise :class:`ParityError` with the whole report unless :func:`check` passes.

    Takes what :func:`check` takes, and raises UsageError where it does.
    """
    __tracebackhide__ = True
    check(mine, theirs, *inputs, **options).raise_if_failed()
