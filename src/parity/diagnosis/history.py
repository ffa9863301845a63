"""Hypotheses about what an object remembers: stale inputs, weights and gradients after a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from parity.diagnosis.registry import Hypothesis, hypotheses
from parity.diagnosis.trials import Quantities, Trial
from parity.pair import Pair


@hypotheses
def remembered(pair: Pair) -> Iterator[Hypothesis]:
    """What an earlier pass left behind, on trials that have one."""
    for which, at in (("previous", -1), ("first", 0)):
        for cause, what, change in (
            ("stale_input", "input", lambda t, e: {"inputs": e.draw.inputs}),
            ("stale_weights", "parameters", lambda t, e: {"params": e.draw.params}),
            ("stale_buffers", "buffers", lambda t, e: {"buffers": e.draw.buffers}),
            ("stale_upstream", "upstream gradient", lambda t, e: {"upstream": e.draw.upstream}),
        ):
            for keep in (True, False):
                done = "backward works" if keep else "it works"
                yield Hypothesis(
                    cause,
                    f"{done} with the {what} of the {which} pass",
                    _stale(at, change, keep),
                )
        yield Hypothesis("stale", f"it gives what belongs to the {which} pass", _whole(at))
    yield Hypothesis(
        "gradient_not_zeroed",
        "gradients of earlier passes are still in it: zeroing does not reach them",
        _summed,
    )


def _stale(
    at: int, change: Callable[[Trial, Trial], dict[str, object]], keep: bool
) -> Callable[[Trial], Quantities | None]:
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
        if name.startswith("grad_") and not name.startswith("grad_input") and array is not None:
            made[name] = array + sum(e.theirs.get(name, 0) for e in trial.earlier)  # type: ignore[misc]
    return made
