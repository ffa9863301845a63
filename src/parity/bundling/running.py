"""Running a bundle: the whole check again, on the very numbers that were saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from parity.bundling.arrays import damaged
from parity.bundling.reading import Bundle, values
from parity.bundling.rebuilding import rebuild
from parity.draws import Draw
from parity.findings import Cause, Finding, Report, UsageError, Verdict
from parity.options import Options, make_options
from parity.outcomes import Array, LayerError, Outcome


def run(bundle: Bundle, mine: Any, theirs: Any = None) -> Report:
    """Run the whole check on the draws that the bundle holds."""
    from parity.examining import examine

    reference = rebuild(bundle) if theirs is None else theirs
    return examine(_pair(bundle, mine, reference, recorded_draw(bundle)), mine, reference)


def show(bundle: Bundle, theirs: Any = None) -> Report:
    """Judge what mine answered when the bundle was saved against torch here, without mine.

    Raises UsageError where the bundle holds no answer.
    """
    from parity.environment import versions
    from parity.examination import Examination

    if not bundle.arrays["mine"]:
        raise UsageError(f"{bundle.path} holds no answer of mine: it raised, or ran in isolation")
    reference = rebuild(bundle) if theirs is None else theirs
    draw = recorded_draw(bundle)
    mine = Answered(bundle)
    pair = _pair(bundle, mine, reference, draw)
    exam = Examination(pair)
    try:
        if bundle.data["draw"].get("narrow"):
            exam.add_all(pair.float32(draw.rounded("float32"), mine=mine.outcome))
        else:
            exam.add_all(pair.float64(draw, mine.outcome, pinned=draw.label == "integers"))
    except LayerError as error:
        raise UsageError(
            f"{bundle.path}: torch refuses the saved numbers: {error}; save the bundle again, or "
            "name with --theirs the torch side that it was saved from"
        ) from error
    saved = [item for item in bundle.data["findings"] if isinstance(item, dict)]
    named = {str(item.get("quantity")): item.get("cause") for item in saved}
    return Report(
        case=pair.case,
        findings=tuple(_named(found, named.get(found.quantity)) for found in exam.findings),
        notes=("mine was not run: what it answered when the bundle was saved is judged here",),
        covers=(f"the saved draw ({draw.label})",),
        not_covered=("everything else; name mine to run the whole check",),
        versions=versions(),
    )


def _named(found: Finding, cause: Any) -> Finding:
    """Give a mismatch the cause that was found when mine was there."""
    if found.verdict is not Verdict.MISMATCH or not isinstance(cause, dict):
        return found
    return found.with_cause(Cause(str(cause.get("name")), str(cause.get("sentence"))))


class Answered:
    """Mine as it answered on one draw: a subject that cannot be run on any other."""

    def __init__(self, bundle: Bundle) -> None:
        self.title = bundle.data["case"]
        given = bundle.arrays["mine"]
        outputs = tuple(a for name, a in given.items() if name.startswith("forward"))
        masks = tuple(bundle.arrays["mine_mask"].values())
        self.outcome = Outcome(outputs, {**given}, masks=masks)

    def spawn(self, dtype: str) -> Answered:
        """Return itself: there is nothing to copy."""
        return self

    def params(self) -> Mapping[str, Array]:
        """Return nothing."""
        return {}

    buffers = params

    def run(self, draw: Draw, dtype: str, names: Any) -> Outcome:
        """Refuse: the layer is not here."""
        raise LayerError("mine is not here", "forward")


def _pair(bundle: Bundle, mine: Any, reference: Any, recorded: Draw) -> Any:
    """Return the pair whose failing draw is the one that was saved, to the last bit."""
    from parity.checking import make_pair
    from parity.pair import Pair

    given = values(bundle, bundle.data["options"], "options")
    options = make_options({n: v for n, v in given.items() if n in Options.__dataclass_fields__})
    inputs = tuple(_input(bundle, i) for i in range(len(bundle.data["inputs"])))
    made = make_pair(mine, reference, inputs, options)
    for kind, own in (
        ("initial", made.reference.params),
        ("initial_buffer", made.reference.buffers),
    ):
        saved = bundle.arrays[kind]
        if {n: a.shape for n, a in saved.items()} != {n: a.shape for n, a in own.items()}:
            raise UsageError(
                f"{bundle.path} was saved from another torch side: it has "
                f"{_shapes(saved)}, this one {_shapes(own)}"
            )
        own.update(saved)

    class Replayed(Pair):
        """A pair whose failing draw is the one that was saved, to the last bit."""

        def draw(self, seed=0, training=True, label="generic", shapes=None):  # type: ignore
            """Return the saved draw where it is asked for, any other as usual."""
            usual = shapes is None or [*map(tuple, shapes)] == [a.shape for a in recorded.inputs]
            key = (recorded.seed, recorded.training, recorded.label)
            if usual and (seed, training, label) == key:
                return recorded
            return super().draw(seed, training, label, shapes)

    parts = {item.name: getattr(made, item.name) for item in fields(made) if item.init}
    parts |= {"case": bundle.data["case"], "fixed": bundle.arrays["fixed"]}
    return Replayed(**parts)


def _shapes(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"


def recorded_draw(bundle: Bundle) -> Draw:
    """Return the draw that was saved. Raises UsageError where it is damaged."""
    data, arrays = bundle.data["draw"], bundle.arrays

    def row(kind: str) -> list[Array]:
        items = arrays[kind]
        if set(items) != {str(i) for i in range(len(items))}:
            raise damaged(bundle.path, f"its {kind} arrays are not numbered")
        return [items[str(i)] for i in range(len(items))]

    if type(data.get("seed")) is not int or not isinstance(data.get("label"), str):
        raise damaged(bundle.path, f"its draw is {data!r:.60}")
    return Draw(
        tuple(row("input")),
        arrays["param"],
        arrays["buffer"],
        tuple(arrays["upstream"].get(str(i)) for i in range(_outputs(arrays["upstream"]))),
        bool(data.get("training", True)),
        tuple(row("mask")),
        data["label"],
        data["seed"],
    )


def _outputs(upstream: Mapping[str, Array]) -> int:
    return max(
        (int(name) + 1 for name in upstream if name.isdecimal() and len(name) < 4), default=0
    )


def _input(bundle: Bundle, place: int) -> Any:
    from parity import specs
    from parity.literals import SPECS

    data, kept = bundle.data["inputs"][place], bundle.arrays["input"].get(str(place))
    if not isinstance(data, dict) or kept is None:
        raise damaged(bundle.path, f"input {place} is missing")
    if data.get("kind") not in SPECS:
        return kept
    options = values(bundle, data.get("options"), f"input {place}")
    try:
        return getattr(specs, data["kind"])(*data["shape"], **options)
    except (KeyError, TypeError, UsageError) as error:
        raise damaged(bundle.path, f"input {place}: {error}") from error
