"""Models as trees of layers: what each side consists of, and which layer is which."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from parity.diagnosis.settings import public_name
from parity.findings import UsageError
from parity.options import nearest


@dataclass(frozen=True)
class Unit:
    """One layer that both sides have: its path on either side, and the hand-written class."""

    mine: str
    theirs: str
    kind: str

    @property
    def label(self) -> str:
        """The layer in words: ``layer 4 (BatchNorm2d)``."""
        return f"layer {self.theirs} ({self.kind})"


def is_layer(item: Any) -> bool:
    """Whether ``item`` is an object that runs forward and backward."""
    return not isinstance(item, type) and all(
        callable(getattr(item, name, None)) for name in ("forward", "backward")
    )


def torch_layers(module: Any) -> dict[str, Any]:
    """Return path → module of everything below a torch module, each module once.

    What torch adds for a parametrized weight is a part of the layer, not one of its own.
    """
    return {
        path: item
        for path, item in module.named_modules()
        if path and "parametrizations" not in path.split(".")
    }


def plain_layers(root: Any) -> dict[str, Any]:
    """Return path → layer of everything below a hand-written model, each layer once.

    Looked through: ``named_children()``, ``children()``, attributes, lists, tuples and dicts.
    """
    found: dict[str, Any] = {}
    seen = {id(root)}

    def visit(owner: Any, path: str) -> None:
        for name, child in _children(owner):
            if id(child) in seen:
                continue
            seen.add(id(child))
            full = f"{path}.{name}" if path else name
            found[full] = child
            visit(child, full)

    visit(root, "")
    return found


def _children(owner: Any) -> Iterator[tuple[str, Any]]:
    named = getattr(owner, "named_children", None)
    if callable(named):
        yield from ((str(name), child) for name, child in named() if is_layer(child))
        return
    held = dict(vars(owner)) if hasattr(owner, "__dict__") else {}
    for kind in type(owner).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if hasattr(owner, slot) and slot not in ("__dict__", "__weakref__"):
                held.setdefault(slot, getattr(owner, slot))
    found = [pair for name, value in held.items() for pair in _within(name, value)]
    children = getattr(owner, "children", None)
    if not found and callable(children):
        found = [(str(i), child) for i, child in enumerate(children()) if is_layer(child)]
    yield from found


def _within(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if is_layer(value):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _within(f"{name}.{i}", item)
    elif isinstance(value, Mapping):
        for key, item in list(value.items()):
            if isinstance(key, (str, int)):
                yield from _within(f"{name}.{key}", item)


def match(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], declared: Mapping[str, str] | None = None
) -> list[Unit]:
    """Return the layers that both sides have: as declared, by name, else by order and class.

    Raises UsageError where a declared path is on neither side.
    """
    if declared:
        pairs = _declared(mine, theirs, declared)
    else:
        pairs = _by_name(mine, theirs) or _by_order(mine, theirs)
    pairs = {own: other for own, other in pairs.items() if not _descends(own, pairs)}
    return [Unit(own, other, public_name(mine[own])) for own, other in pairs.items()]


def _descends(path: str, pairs: Mapping[str, str]) -> bool:
    """A container is looked into, not judged, where layers inside it have partners."""
    return any(other.startswith(path + ".") for other in pairs)


def _declared(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], declared: Mapping[str, str]
) -> dict[str, str]:
    if not isinstance(declared, Mapping):
        raise UsageError(
            f"layers is {declared!r}; it must map paths: layers={{'mine.path': 'theirs.path'}}"
        )
    for own, other in declared.items():
        for side, path, known in (("mine", own, mine), ("theirs", other, theirs)):
            if path not in known:
                shown = ", ".join(list(known)[:12]) or "none"
                raise UsageError(
                    f"layers names {path!r}, which {side} has not{nearest(str(path), known) or ';'}"
                    f" it has: {shown}"
                )
    return dict(declared)


def _by_name(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, str]:
    """Match equal paths; a list attribute in front (``layers.0``) is looked through."""
    readings: list[Callable[[str], str]] = [lambda path: path]
    heads = {path.partition(".")[0] for path in mine if "." in path}
    readings += [lambda path, head=head: path.removeprefix(f"{head}.") for head in heads]  # type: ignore[misc]
    best: dict[str, str] = {}
    for reading in readings:
        found = {path: reading(path) for path in mine if reading(path) in theirs}
        if len(set(found.values())) == len(found) > len(best):
            best = found
    leaves = [path for path in mine if not any(other.startswith(path + ".") for other in mine)]
    matched = sum(path in best for path in leaves)
    return best if 2 * matched > len(leaves) else {}


def _by_order(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, str]:
    own, other = _leaves(mine), _leaves(theirs)
    if len(own) == len(other):
        return dict(zip(own, other, strict=True))
    kinds = [_kind(mine[path]) for path in own], [_kind(theirs[path]) for path in other]
    matcher = difflib.SequenceMatcher(a=kinds[0], b=kinds[1], autojunk=False)
    return {
        own[block.a + i]: other[block.b + i]
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    }


def _leaves(layers: Mapping[str, Any]) -> list[str]:
    return [path for path in layers if not any(other.startswith(path + ".") for other in layers)]


def _kind(layer: Any) -> str:
    """A class name without its ornaments: MyLinear, LinearLayer and Linear are one kind."""
    name = type(layer).__name__.lower().replace("_", "")
    for word in ("my", "layer", "module"):
        name = name.removeprefix(word).removesuffix(word)
    return {"dense": "linear", "affine": "linear", "conv": "conv2d"}.get(name, name)
