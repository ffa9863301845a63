"""Hypotheses about what an object remembers: stale inputs, weights and gradients after a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from parity.diagnosis.registry import Hypothesis, hypotheses
from parity.diagnosis.trials import Quantities, Trial
from parity.pair import Pair

Change = Callable[[Trial, Trial], dict[str, Any]]


@hypotheses
def remembered(pair: Pair) -> Iterator[Hypothesis]:
    """What an earlier pass left behind, on trials that have one."""
    for which, at in (("previous", -1), ("first", 0)):
        for cause, what, change in _old(pair):
            for keep in (True, False):
                done = "backward works" if keep else "it works"
                text = f"{done} with the {what} of the {which} pass"
                yield Hypothesis(cause, text, _stale(at, change, keep))
        yield Hypothesis("stale", f"it gives what belongs to the {which} pass", _whole(at))
    yield Hypothesis(
        "gradient_not_zeroed",
        "gradients of earlier passes are still in it: zeroing does not reach them",
        _summed,
    )


def _old(pair: Pair) -> Iterator[tuple[str, str, Change]]:
    """Yield (cause, what is old, the change of the draw)."""
    yield "stale_input", "input", lambda t, e: {"inputs": e.draw.inputs}
    yield "stale_upstream", "upstream gradient", lambda t, e: {"upstream": e.draw.upstream}
    yield "stale_weights", "parameters", lambda t, e: {"params": e.draw.params}
    yield "stale_buffers", "buffers", lambda t, e: {"buffers": e.draw.buffers}
    for field, cause, store in (
        ("params", "stale_weights", pair.reference.params),
        ("buffers", "stale_buffers", pair.reference.buffers),
    ):
        for name in store if len(store) > 1 else ():
            yield cause, name, partial(_one_old, field, name)


def _one_old(field: str, name: str, trial: Trial, old: Trial) -> dict[str, Any]:
    held = {**getattr(trial.draw, field), name: getattr(old.draw, field)[name]}
    return {field: held}


def _stale(at: int, change: Change, keep: bool) -> Callable[[Trial], Quantities | None]:
    def predict(trial: Trial) -> Quantities | None:
        if trial.earlier is None:
            return None
        if not trial.earlier:
            return trial.theirs
        found = trial.run(**change(trial, trial.earlier[at]))
        if found is None or not keep:
            return found
        return {**found, **{n: a for n, a in trial.theirs.items() if not n.startswith("grad_")}}

    return predict


def _whole(at: int) -> Callable[[Trial], Quantities | None]:
    def predict(trial: Trial) -> Quantities | None:
        if trial.earlier is None:
            return None
        return trial.earlier[at].theirs if trial.earlier else trial.theirs

    return predict


def _summed(trial: Trial) -> Quantities | None:
    if trial.earlier is None:
        return None
    made = dict(trial.theirs)
    for name, array in trial.theirs.items():
        if not name.startswith("grad_") or name.startswith("grad_input") or array is None:
            continue
        for old in trial.earlier:
            before = old.theirs.get(name)
            array = array if before is None else array + before
        made[name] = array
    return made
