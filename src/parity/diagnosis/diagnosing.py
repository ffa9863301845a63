"""``diagnose``: the order in which hypotheses are tried, and what is said where none fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from parity.diagnosis import catalogue
from parity.diagnosis.compound import compound
from parity.diagnosis.consistency import consistency
from parity.diagnosis.fitting import fitted
from parity.diagnosis.kinks import breaks
from parity.diagnosis.mapping import wrong_mapping
from parity.diagnosis.registry import READINGS, Hypothesis, Reading, words
from parity.diagnosis.scene import SPECIAL, Scene, make_scene
from parity.diagnosis.stepping import repeated_cause, step_scene
from parity.diagnosis.trials import Trial, explained, telling
from parity.diagnosis.where import hint, where
from parity.examination import Examination
from parity.findings import Cause, Finding

BUDGET = 800.0  # work after which no pair of causes is tried
LIMIT = 4000.0  # work (runs of the reference) after which no further hypothesis is tried
NUMERIC = frozenset({"overflow", "cancellation", "boundary_not_guarded", "backward_not_linear",
                     "boundary_value", "kink_derivative"})  # fmt: skip
SOUND = "finite"  # the scope of the draws on which mine is finite where torch is
Causes = dict[str, Cause]


def diagnose(exam: Examination) -> None:
    """Name the cause of every failing finding of ``exam`` that can be explained exactly.

    A cause is set only where it predicts the hand-written side's numbers to float64 accuracy on
    every trial. Otherwise the finding's evidence says what is known: ``hint``, ``where`` and
    ``self_consistency``.
    """
    mapping = wrong_mapping(exam)
    if mapping is not None:
        for index in exam.failed:
            _name(exam, index, mapping, over=("missing_partner", "wrong_shape"))
        return
    for scene in (make_scene(exam), step_scene(exam)):
        if scene is not None and scene.trials:
            _explain(scene)
    for index in exam.failed:
        cause = exam.findings[index].cause
        if cause is not None and cause.name == "not_repeatable":
            _name(exam, index, repeated_cause(exam), over=("not_repeatable",))
        if cause is not None and cause.name == "missing_gradient":
            _name(exam, index, _unused(exam, exam.findings[index]), over=("missing_gradient",))


def _unused(exam: Examination, finding: Finding) -> Cause | None:
    """Return why a parameter has no gradient, where it is found that it is left out."""
    name = finding.quantity.removeprefix("grad_")
    causes = (f.cause for f in exam.findings if f.cause is not None)
    wanted = f"{name.rpartition('.')[2]}_ignored"
    return next((c for c in causes if c.name == wanted and name in c.sentence), None)


def _explain(scene: Scene) -> None:
    """Search, and set what was found on every finding of the scene."""
    found = _Search(scene).run()
    for index, judged in scene.open.items():
        scopes = (None, judged.draw.training, judged.draw.label, SOUND)
        cause = next((c for scope in scopes if (c := found.get((judged.quantity, scope)))), None)
        _name(scene.exam, index, cause, over=("wrong_shape", "raised"))
    _unexplained(scene)


def _name(exam: Examination, index: int, cause: Cause | None, over: tuple[str, ...] = ()) -> None:
    """Set the cause of one finding, unless it has one that is not listed in ``over``."""
    held = exam.findings[index].cause
    if cause is not None and (held is None or held.name in over):
        exam.findings[index] = exam.findings[index].with_cause(cause)


def _unexplained(scene: Scene) -> None:
    """Give the findings what was measured about them: where they differ, and consistency."""
    exam = scene.exam
    consistent = consistency(scene.pair, scene.trials[0])
    for index, judged in scene.open.items():
        finding = exam.findings[index]
        facts = dict(finding.evidence)
        place = where(judged, scene.trials)
        if place:
            facts["where"] = place
        if consistent:
            facts["self_consistency"] = consistent
        if finding.cause is None:
            facts["hint"] = hint(scene, judged, place, consistent)
        exam.findings[index] = replace(finding, evidence=facts)


class _Search:
    """One search: the causes found so far, by quantity and scope (a mode, a label; None: all)."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.found: dict[tuple[str, bool | str | None], Cause] = {}
        self.started = scene.pair.reference.work
        self.hypotheses: list[Hypothesis] | None = None

    def run(self) -> dict[tuple[str, bool | str | None], Cause]:
        """Try every draw together, then each mode, then each kind of draw on its own."""
        trials = self.scene.trials
        self._scope(trials, None, "")
        modes = {t.draw.training for t in trials}
        if len(modes) > 1:
            for training in (True, False):
                text = "in training mode" if training else "in evaluation mode"
                self._scope([t for t in trials if t.draw.training == training], training, text)
        # where mine breaks down that is a fault of its own: what holds elsewhere is named too
        sound = [t for t in trials if not any(breaks(t, n) for n in t.names)]
        if 0 < len(sound) < len(trials):
            self._scope(sound, SOUND, "")
        labels = {t.draw.label for t in trials if t.draw.label in SPECIAL}
        for label in sorted(labels) if len({t.draw.label for t in trials}) > 1 else []:
            special = [t for t in trials if t.draw.label == label]
            plain = [t for t in trials if t.draw.label not in SPECIAL]
            only = {n for n in self.scene.failing(special) if not any(t.differs(n) for t in plain)}
            # what is right elsewhere contradicts a cause that would make it wrong there
            self._scope([*special, *plain], label, "", only, only)
            self._scope(special, label, "", set(), set(self.scene.failing(special)) - only)
        return self.found

    def _scope(
        self,
        trials: list[Trial],
        scope: bool | str | None,
        text: str,
        among: set[str] | None = None,
        asked: set[str] | None = None,
    ) -> None:
        known = {name for name, where in self.found if where != SOUND}
        names = [n for n in self.scene.failing(trials) if n not in known]
        names = [n for n in names if asked is None or n in asked]
        if not names:
            return
        causes = self._causes(trials, names)
        if among is not None:
            # on few draws alone much holds that other draws contradict, but for what numbers do
            causes = {n: c for n, c in causes.items() if n in among or c.name in NUMERIC}
        for name, cause in causes.items():
            sentence = f"{text}, {cause.sentence}" if text else cause.sentence
            self.found[name, scope] = Cause(cause.name, sentence)

    def _causes(self, trials: list[Trial], names: list[str]) -> Causes:
        """Return the causes of ``names``: one for all if there is one, else one for each."""
        innocent = self.scene.innocent(trials)
        partial: list[tuple[Hypothesis, set[str]]] = []
        whole = _whole(
            self._timely(catalogue.early(self.scene.pair)), trials, names, innocent, partial
        )
        if whole is not None:
            return dict.fromkeys(names, whole)
        read = {name: made for name in names if (made := self._read(trials, name))}
        if len(read) == len(names) and len({made.name for made in read.values()}) == 1:
            return read
        whole = _whole(
            self._timely(catalogue.late(self.scene.pair)), trials, names, innocent, partial
        )
        if whole is None:
            revealing = next((t for t in trials if any(t.differs(n) for n in names)), trials[0])
            open_names = [n for n in names if n not in read and revealing.differs(n)]
            fits = fitted(self.scene.pair, revealing, open_names)
            whole = _whole(self._timely(fits), trials, names, innocent, partial)
        if whole is not None:
            return dict.fromkeys(names, whole)
        return self._each(trials, names, read, partial)

    def _timely(self, made: Iterator[Hypothesis]) -> Iterator[Hypothesis]:
        """Stop where a large layer makes each guess dear."""
        for hypothesis in made:
            yield hypothesis
            if self.scene.pair.reference.work - self.started > LIMIT:
                return

    def _each(
        self,
        trials: list[Trial],
        names: list[str],
        read: Causes,
        partial: list[tuple[Hypothesis, set[str]]],
    ) -> Causes:
        """Explain each quantity by itself: readings, partial hypotheses, then two at once."""
        causes = dict(read)
        # what agrees must not be spoilt: of two equal explanations the one that breaks less
        broken = {id(h): self._broken(trials, h) for h, _ in partial}
        partial = [(h, e) for h, e in partial if not _buffers(e) or not _buffers(broken[id(h)])]
        partial.sort(key=lambda item: (-len(item[1]), len(broken[id(item[0])])))
        for hypothesis, explains in partial:
            for name in explains:
                if name not in causes:
                    text = f"{self._words(name)}: {hypothesis.sentence}"
                    causes[name] = Cause(hypothesis.name, text)
        left = [name for name in names if name not in causes]
        if left:
            deadline = self.started + BUDGET
            causes |= compound(self.scene.pair, trials, left, deadline)
        return causes

    def _broken(self, trials: list[Trial], hypothesis: Hypothesis) -> set[str]:
        """Return the quantities that agree with torch's and would not if the hypothesis held."""
        innocent = self.scene.innocent(trials)
        return set(innocent) - explained(trials, hypothesis.predict, innocent)

    def _read(self, trials: Sequence[Trial], name: str) -> Cause | None:
        """Read one quantity in the modes in which it differs: a factor holds in those alone."""
        modes = {t.draw.training for t in trials if t.differs(name)}
        chosen = [t for t in trials if t.draw.training in modes]
        start = "in evaluation mode, " if modes == {False} and len(chosen) < len(trials) else ""
        for maker in READINGS:
            for reading in maker(chosen, name):
                if read_fits(chosen, name, reading):
                    sentence = start + reading.sentence.replace("{q}", self._words(name))
                    return Cause(reading.name, sentence)
        return None

    def _words(self, name: str) -> str:
        floating = sum(not spec.integral for spec in self.scene.pair.specs)
        return words(name, floating)


def _buffers(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("buffer_")}


def _whole(
    made: Iterator[Hypothesis],
    trials: Sequence[Trial],
    names: Sequence[str],
    innocent: Sequence[str],
    partial: list[tuple[Hypothesis, set[str]]],
) -> Cause | None:
    """Return the first hypothesis that explains all; what explains some is kept in ``partial``."""
    for hypothesis in made:
        explains = explained(trials, hypothesis.predict, names)
        if not explains:
            continue
        if len(explains) == len(names):
            if len(explained(trials, hypothesis.predict, innocent)) == len(innocent):
                return Cause(hypothesis.name, hypothesis.sentence)
        partial.append((hypothesis, explains))
    return None


def read_fits(trials: Sequence[Trial], name: str, reading: Reading) -> bool:
    """Whether one reading gives the hand-written quantity on every trial, to float64 accuracy."""
    if not reading.broken and not telling(trials, name):
        return False
    for exact in (False, True):
        for trial in trials:
            if trial.lacks(name):
                continue
            if not _one_fits(trial, name, reading, exact):
                return False
    return True


def _one_fits(trial: Trial, name: str, reading: Reading, exact: bool) -> bool:
    try:
        with np.errstate(all="ignore"):
            own = trial.get(name)
            assert own is not None
            seen = own if reading.view is None else reading.view(trial, own)
            predicted = reading.predict(trial, name)
            if not exact:
                return seen is not None and predicted is not None and trial.close(
                    name, predicted, seen
                )  # fmt: skip
            others = [reading.predict(moved, name) for moved in trial.nudged]
            return trial.fits(name, predicted, others, seen) is not False
    except Exception:  # a reading that cannot be made is no explanation
        return False
