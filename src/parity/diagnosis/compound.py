"""Two faults at once: one hypothesis under another, and a factor on top of a hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from parity.diagnosis import catalogue
from parity.diagnosis.factors import describe, matching, measured, ratio
from parity.diagnosis.registry import Hypothesis, words
from parity.diagnosis.trials import Quantities, Trial, explained
from parity.findings import Cause
from parity.pair import Pair

PAIRS = 4000  # combinations that are looked at, time permitting


class Under(Trial):
    """A trial whose reference is already changed: what runs on it has both changes."""

    base: Trial
    module: Any

    @classmethod
    def of(cls, trial: Trial, module: Any) -> Under:
        """Return ``trial`` seen with ``module`` in the reference's place."""
        made = cls(trial.pair, trial.draw, trial.own, trial.earlier)
        made.base, made.module = trial, module
        return made

    def run(self, module: Any = None, **changes: Any) -> Quantities | None:
        """Run the changed reference."""
        return self.base.run(self.module if module is None else module, **changes)


def compound(
    pair: Pair, trials: Sequence[Trial], names: Sequence[str], deadline: float
) -> dict[str, Cause]:
    """Return causes made of two known ones, for those of ``names`` that two explain."""
    causes: dict[str, Cause] = {}
    known = _distinct(list(catalogue.early(pair)), trials[0])
    for hypothesis in known:
        for name in names:
            if name not in causes:
                made = _scaled(trials, name, hypothesis)
                if made is not None:
                    causes[name] = made
        if len(causes) == len(names) or pair.reference.work > deadline:
            return causes
    left = [n for n in names if n not in causes]
    modules = [h for h in known if h.module is not None]
    changes = [h for h in known if h.module is None]
    tried = 0
    for outer in modules:
        for inner in changes:
            tried += 1
            if pair.reference.work > deadline or tried > PAIRS or not left:
                return causes

            def both(t: Trial, o: Hypothesis = outer, i: Hypothesis = inner) -> Quantities | None:
                return i.predict(Under.of(t, o.module))

            for name in explained(trials, both, left):
                causes[name] = _joined(outer, inner, name)
                left.remove(name)
    return causes | _options(pair, trials, left, deadline)


def _distinct(found: list[Hypothesis], trial: Trial) -> list[Hypothesis]:
    """Drop what changes nothing on the trial, or cannot be run there."""
    kept = []
    for hypothesis in found:
        try:
            with np.errstate(all="ignore"):
                made = hypothesis.predict(trial)
        except Exception:  # a guess that cannot be made is no explanation
            continue
        if made is None or not any(_moves(made.get(n), trial.theirs.get(n)) for n in trial.names):
            continue
        kept.append(hypothesis)
    return kept


def _moves(made: Any, ref: Any) -> bool:
    return made is not None and (made.shape != ref.shape or not np.array_equal(made, ref))


def _scaled(trials: Sequence[Trial], name: str, hypothesis: Hypothesis) -> Cause | None:
    """Read a quantity as a known multiple of what ``hypothesis`` predicts."""
    first = trials[0]
    with np.errstate(all="ignore"):
        made = (hypothesis.predict(first) or {}).get(name)
        own = first.get(name)
        if made is None or own is None or ratio(own, made) is None:
            return None
        ks = measured(trials, name, lambda t: hypothesis.predict(t) or {})
    if ks is None or np.isnan(ks[0]):
        return None
    for factors, value in matching(trials, ks):

        def scaled(t: Trial, v: Any = value) -> Quantities:
            found = hypothesis.predict(t) or {}
            return {n: None if a is None else v(t) * a for n, a in found.items()}

        if explained(trials, scaled, [name]):
            label = "+".join((hypothesis.name, *dict.fromkeys(f.name for f in factors)))
            text = describe(factors, first, ks[0]).replace("torch's", "that")
            return Cause(label, f"{hypothesis.sentence}; and {words(name)} is {text}")
    return None


def _joined(first: Hypothesis, second: Hypothesis, name: str) -> Cause:
    return Cause(
        f"{first.name}+{second.name}",
        f"two faults at once: {first.sentence}; and {second.sentence}",
    )


def _options(
    pair: Pair, trials: Sequence[Trial], left: list[str], deadline: float
) -> dict[str, Cause]:
    """Two options of one layer changed together."""
    from parity.diagnosis.settings import changes, rebuilt, replaced, root_of, runner, shown

    causes: dict[str, Cause] = {}
    root = root_of(pair)
    listed = list(changes(root))
    for (path, layer, one), (other_path, _, two) in combinations(listed, 2):
        if not left or pair.reference.work > deadline:
            return causes
        if path != other_path or one.option == two.option:
            continue
        first = rebuilt(layer, one.option, one.value)
        made = None if first is None else rebuilt(first, two.option, two.value)
        if made is None:
            continue
        module = replaced(root, path, made)
        for name in explained(trials, runner(module), left):
            text = f"behaves exactly like {shown(layer, one)} with {two.option}={two.value!r}"
            causes[name] = Cause(f"{one.name}+{two.name}", f"two faults at once: {text}")
            left.remove(name)
    return causes
