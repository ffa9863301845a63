"""Objects named on the command line as FILE_OR_MODULE:NAME: found, imported, constructed."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from parity.findings import UsageError
from parity.options import nearest

FORM = "write FILE_OR_MODULE:NAME, such as my_layers.py:MyConv or torch.nn:Conv2d"
SHOWN = 12  # names that a message lists


@dataclass(frozen=True)
class Recipe:
    """How one side is made: where it comes from and its constructor's arguments."""

    target: str
    args: tuple[Any, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def call(self) -> str:
        """The constructor call as text, such as ``Conv2d(3, 8, kernel_size=3)``."""
        name = self.target.rpartition(":")[2]
        given = [repr(item) for item in self.args]
        given += [f"{key}={value!r}" for key, value in self.config.items()]
        return f"{name}({', '.join(given)})"


def find(target: str) -> Any:
    """Return the object that ``target`` names.

    Raises UsageError for a missing file, module or name, with the nearest and what there is.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name or name.startswith(("/", "\\")):
        raise UsageError(_no_name(target))
    found: Any = _module(place)
    done: list[str] = []
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(_no_such(found, part, ".".join([place, *done])))
        found = getattr(found, part)
        done.append(part)
    return found


def _no_name(target: str) -> str:
    stem = target.rstrip(":")
    if stem.endswith(".py") and Path(stem).is_file():
        offers = _offers(_module(stem))
        return f"{target} names no object; it offers: {_listed(offers)}; write {stem}:NAME"
    module, dot, name = stem.rpartition(".")
    advice = f"; did you mean {module}:{name}?" if dot and name != "py" else ""
    return f"{target!r} names no object{advice or '; ' + FORM}"


def _no_such(holder: Any, name: str, place: str) -> str:
    offers = _offers(holder)
    alike = [offer for offer in offers if offer.lower() == name.lower()]
    close = nearest(name, alike or offers or dir(holder))
    return f"{place} has no {name!r}{close or ';'} it offers: {_listed(offers)}".replace(
        "? it", "? It"
    )


def _offers(holder: Any) -> list[str]:
    """Public names of callables; those that a module defines itself come first."""
    public = (
        [n for n in vars(holder) if not n.startswith("_")] if hasattr(holder, "__dict__") else []
    )
    own = getattr(holder, "__name__", "")
    items = [(n, getattr(holder, n, None)) for n in public]
    kept = [(n, item) for n, item in items if callable(item) or hasattr(item, "forward")]
    homes = {n: str(getattr(item, "__module__", None) or own) for n, item in kept}
    mine = [n for n, home in homes.items() if (home + ".").startswith(own + ".")]
    return mine or [n for n, _ in kept]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more


def _module(place: str) -> ModuleType:
    if place.endswith((".py", ".ipynb")) or "/" in place or os.sep in place:
        return _from_file(Path(place))
    if not all(part.isidentifier() for part in place.split(".")):
        raise UsageError(f"{place!r} is neither a .py file nor a module; {FORM}")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place + ".").startswith(error.name + "."):
            raise UsageError(_failed(place, error)) from error
        raise UsageError(_no_module(place, error.name)) from error
    except (Exception, SystemExit) as error:
        raise UsageError(_failed(place, error)) from error


def _no_module(place: str, missing: str) -> str:
    parent, _, name = missing.rpartition(".")
    if parent:
        paths = getattr(sys.modules.get(parent), "__path__", [])
        known = [info.name for info in pkgutil.iter_modules(paths)]
        holder = sys.modules.get(parent)
        if holder is not None and hasattr(holder, name):
            return f"{missing} is no module; did you mean {parent}:{name}?"
    else:
        known = [*sys.modules, *(info.name for info in pkgutil.iter_modules([os.getcwd()]))]
        known = [item for item in known if "." not in item] + ["torch", "numpy"]
    close = nearest(name, known)
    if not parent and Path(f"{place}.py").is_file():
        close = f", did you mean {place}.py?"
    return f"there is no module {missing!r}{close or '; ' + FORM}"


def _from_file(path: Path) -> ModuleType:
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the .py file in it")
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        known = sorted(item.name for item in folder.glob("*.py"))
        close = nearest(path.name, known)
        raise UsageError(f"there is no file {path}{close or '; ' + FORM}")
    if path.suffix != ".py":
        raise UsageError(f"{path} is no .py file; put the class into one")
    file = path.resolve()
    name = file.stem if file.stem.isidentifier() else f"parity_{abs(hash(file))}"
    there = sys.modules.get(name)
    if there is not None and getattr(there, "__file__", None) == str(file):
        return there
    if there is not None:
        name = f"{name}_of_{abs(hash(str(file)))}"
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # its neighbours import as they do for a script
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(_failed(str(path), error)) from error
    return module


def _failed(place: str, error: BaseException) -> str:
    line = ""
    trace = error.__traceback__
    while trace is not None:
        if place.endswith(".py") and trace.tb_frame.f_code.co_filename.endswith(Path(place).name):
            line = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.lineno:
        line = f", line {error.lineno}"
    text = str(error).partition("\n")[0]
    return f"{place} cannot be imported: {type(error).__name__}: {text}{line}"


def build(recipe: Recipe, side: str) -> Any:
    """Return one side (``mine`` or ``torch``) of a comparison.

    A class is called with the recipe's arguments; a function of the torch side is taken as it is,
    the arguments after its inputs; any other object as it is.
    Raises UsageError that names the side and the signature where the arguments do not fit.
    """
    found = find(recipe.target)
    given = bool(recipe.args or recipe.config)
    if isinstance(found, type):
        return _call(found, recipe, side)
    if not callable(found) or hasattr(found, "forward"):
        if given:
            raise UsageError(
                f"{side}: {recipe.target} is an object, not a class; it takes no --args"
            )
        return found
    if side == "mine":
        return _call(found, recipe, side) if given else found
    return _function(found, recipe, given)


def _function(found: Any, recipe: Recipe, given: bool) -> Any:
    """A function that makes a module is a factory; any other is the reference itself."""
    if given or not _required(found):
        try:
            made = found(*recipe.args, **recipe.config)
        except Exception:
            made = None
        if type(made).__module__ != "torch" and callable(getattr(made, "forward", None)):
            return made
    if not given:
        return found

    def bound(*inputs: Any) -> Any:
        return found(*inputs, *recipe.args, **recipe.config)

    bound.__name__ = getattr(found, "__name__", "function")
    return bound


def _required(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(
        p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters
    )


def _call(maker: Any, recipe: Recipe, side: str) -> Any:
    try:
        return maker(*recipe.args, **recipe.config)
    except (Exception, SystemExit) as error:
        text = str(error).partition("\n")[0]
        raise UsageError(
            f"{side}: {recipe.call} raised {type(error).__name__}: {text}; "
            f"its signature is {signature(maker)}"
        ) from error


def signature(maker: Any) -> str:
    """Return ``Name(arguments)`` of a class or function, for messages."""
    name = getattr(maker, "__name__", repr(maker))
    try:
        return name + str(inspect.signature(maker))
    except (TypeError, ValueError):
        return f"{name}(…)"
