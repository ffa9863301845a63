"""What a training report says beside its verdicts: what was left out, and how close it was."""

from __future__ import annotations

from parity.trajectories.lockstep import Course
from parity.trajectories.verdicts import Judge


def notes_of(judge: Judge) -> list[str]:
    """Return the remarks on one seed's runs."""
    found: list[str] = []
    course, envelope = judge.course, judge.envelope
    found += getattr(judge.plan.subject, "notes", [])
    if course is not None:
        found += [f"mine warned: {text}" for text in course.warnings]
        found += _course(judge, course)
    if envelope is not None and envelope.mine:
        if envelope.opened is not None:
            found.append(
                f"float32: from step {envelope.opened} on correct runs differ by more than a "
                "thousandth of the loss; the float32 curve can no longer tell right from wrong"
            )
        if envelope.labels_agree is not None:
            found.append(f"float32: {envelope.labels_agree:.2%} of the final labels are equal")
    return found


def _course(judge: Judge, course: Course) -> list[str]:
    found = []
    if course.exact:
        found.append(course.exact)
    if course.narrow:
        found.append("mine computes in float32 only: float32 decides, against its envelope")
    if course.overflow:
        found.append(
            f"the run diverges: both sides are compared until the overflow at step "
            f"{course.overflow}"
        )
    for name in course.built:
        text = f"the gradient of {name} is zero by construction: both sides are rounding noise"
        if course.adaptive:
            text += ", which an adaptive optimizer turns into steps; not compared after them"
        found.append(text)
    for name, last in course.alive.items():
        if last < len(course.theirs) and not course.overflow:
            found.append(f"the gradient of {name} is exactly zero from step {last + 1} on")
    expected = judge.plan.options.expects_zero
    if not isinstance(expected, bool):
        for name in sorted(expected):
            bare = name.removeprefix("grad_").removeprefix("parameter_")
            if course.heights.get(bare):
                found.append(f"expects_zero names {name}, whose gradient is not zero")
    return found


def uncovered(judge: Judge) -> list[str]:
    """Return what the reference has and the hand-written side does not show."""
    course = judge.course
    if course is None:
        return ["float64: gradients, parameters, buffers and optimizer state at every step"]
    missing = list(course.missing)
    states = [name for name in missing if name.startswith("state_")]
    found = [name.replace("_", " ", 1) for name in missing if name not in states]
    if states and len(states) == sum(name.startswith("state_") for name in course.seen):
        found.append("optimizer state (mine shows none: state, name → {slot: array})")
    else:
        found += [name.replace("_", " ", 1) for name in states]
    if course.extra:
        found.append(f"parameters that the reference lacks: {', '.join(course.extra)}")
    return found
