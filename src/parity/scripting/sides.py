"""The two sides as lines: what is imported, and how each is made."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

from parity.adapters.torch7 import Torch7Runner
from parity.adapting import is_torch_module
from parity.describing import describe, expression
from parity.draws import Draw
from parity.findings import Finding, UsageError
from parity.outcomes import LayerError
from parity.reproducing import Origin
from parity.subjects import PlainRunner


class Sides:
    """What a script is about, and the lines that make both sides."""

    def __init__(
        self, origin: Origin, pair: Any, finding: Finding, draw: Draw, literal: bool = False
    ) -> None:
        self.origin, self.pair, self.finding, self.draw = origin, pair, finding, draw
        self.literal = literal
        held = getattr(pair.subject, "_layer", None)  # an adapter's, or a factory's
        self.given = origin.mine if held is None or isinstance(origin.mine, type) else held
        self.narrow = finding.dtype == "float32"
        self.dtype = "float32" if self.narrow else "float64"
        self.runner = pair.subject.spawn(self.dtype)
        with contextlib.suppress(LayerError):  # the runner learns names and layouts from a draw
            pair.mine(draw, self.dtype, self.runner)
        self.label = finding.evidence.get("draw")
        self.functions = getattr(pair.subject, "pair", None)
        self.torch_mine = hasattr(self.runner, "side")
        self.form = getattr(self.runner, "form", None)
        forward, backward = (getattr(self.form, name, name) for name in ("forward", "backward"))
        self.style = getattr(self.runner, "style", "upstream")
        if isinstance(self.runner, Torch7Runner):
            layer = self.runner.layer
            forward = "forward" if callable(getattr(layer, "forward", None)) else forward
            backward = "backward" if callable(getattr(layer, "backward", None)) else backward
            self.style = "again" if self.runner.criterion else "input first"
        self.names = (forward, backward)
        self.tensors = self.form is not None and bool(self.runner._call.tensors)
        self.grad_paths: dict[str, str] = {}
        self.partners = self._partners()
        plain = type(self.runner) is PlainRunner or self.form or self.torch_mine
        ours = type(self.given).__module__.startswith("parity.") and not self.functions
        if ours or not (plain or self._simple_functions()):
            raise UsageError(
                f"no script is written for {type(pair.subject).__name__}; save a bundle instead"
            )
        self.floating = [i for i, a in enumerate(draw.inputs) if a.dtype.kind == "f"]
        self.several = len(draw.upstream) > 1
        self.forward = self.backward = ""  # the calls of mine, once they are written
        held = getattr(self.runner, "returned", None)
        nested = isinstance(held, tuple) and any(isinstance(item, (tuple, list)) for item in held)
        self.nested = self.several and (nested or self.torch_mine)

    def _partners(self) -> dict[str, tuple[str, Any]]:
        """Return torch's name → (the attribute or argument, how it is laid out)."""
        names = self.pair.names
        if self.functions:
            held = getattr(self.runner, "_names", {})
            layouts = getattr(self.runner, "_layouts", {})
            return {names.theirs(n): (own, layouts.get(n)) for own, n in held.items()}
        found = getattr(self.runner, "partners", {})
        self.grad_paths = {slot.path: slot.grad_path for slot, _ in found.values() if slot.path}
        return {
            names.theirs(n): (slot.path or slot.name, layout) for n, (slot, layout) in found.items()
        }

    def _simple_functions(self) -> bool:
        pair = self.functions
        return bool(
            pair
            and not pair.given
            and not getattr(self.runner, "_state", None)
            and all(
                getattr(f, "__name__", "<")[0] != "<" for f in (pair.forward, pair.backward) if f
            )
        )

    def _sides(self) -> tuple[list[str], str, str]:
        own = self.functions or self.given
        imports = []
        if self.functions:
            mine = f"({own.forward.__name__}, {getattr(own.backward, '__name__', None)})"
            names = [f.__name__ for f in (own.forward, own.backward) if f is not None]
            imports.append(_import(own.forward.__module__, ", ".join(names)))
        else:
            mine, needs = self._call(own if isinstance(own, type) else type(own))
            imports.append("; ".join(_import(module, name) for name, module in needs.items()))
            if self.torch_mine:
                mine += "" if self.narrow else ".double()"
            elif not self.narrow and callable(getattr(own, "astype", None)):
                mine += '.astype("float64")'
        theirs, more = self._theirs()
        return [*imports, *more], mine, theirs

    def _call(self, kind: type) -> tuple[str, dict[str, str]]:
        needs = {kind.__qualname__.partition(".")[0]: kind.__module__}
        if self.origin.recipes is not None:
            return self.origin.recipes[0].call, needs
        if isinstance(self.given, type):
            return f"{kind.__qualname__}()", needs
        found = expression(self.given)
        # arguments that cannot be read from the object are left to the reader
        return found or (f"{kind.__qualname__}(...)", needs)

    def _theirs(self) -> tuple[str, list[str]]:
        theirs, more = self.origin.theirs, []
        made = describe(theirs)
        if made is not None:
            text = made.call
        elif is_torch_module(theirs) and self.origin.recipes is not None:
            recipe = self.origin.recipes[1]
            text, place = recipe.call, recipe.target.rpartition(":")[0]
            place = Path(place).stem if place.endswith(".py") else place
            more.append(_import(place, recipe.target.rpartition(":")[2].partition(".")[0]))
        elif is_torch_module(theirs):
            found = expression(theirs)
            # arguments that cannot be read from the object are left to the reader
            text = found[0] if found else f"{type(theirs).__name__}(...)"
            more.append(_import(type(theirs).__module__, type(theirs).__name__))
        else:
            name = getattr(theirs, "__name__", "function")
            if getattr(importlib.import_module("torch.nn.functional"), name, None) is theirs:
                return f"torch.nn.functional.{name}", []
            return name, [_import(getattr(theirs, "__module__", "__main__"), name)]
        return text + ("" if self.narrow else ".double()"), more

    def _evaluation(self) -> str:
        if hasattr(self.given, "eval"):
            return "mine.eval()"
        if hasattr(self.given, "evaluate"):
            return "mine.evaluate()"
        return "mine.training = False"


def _import(module: str, name: str) -> str:
    if module in ("__main__", "builtins"):
        return f"# paste {name} here"
    return f"from {module} import {name}"
