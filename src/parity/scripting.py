"""A failure as a short script of NumPy and torch alone, to paste into an issue."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.adapters.slots import (
    GRAD_STORES,
    LISTS,
    VALUES,
    grad_names,
    is_numbers,
    is_parameter,
)
from parity.adapters.torch7 import Torch7Runner
from parity.adapting import is_torch_module
from parity.describing import describe, expression
from parity.draws import Draw
from parity.findings import Finding, Report, UsageError
from parity.outcomes import LayerError
from parity.reproducing import Origin, first_failure
from parity.subjects import PlainRunner
from parity.wording import quantity_text

MOST_LINES = 15


def write(report: Report, origin: Origin) -> str:
    """Return the script of the failure that is easiest to show."""
    finding = first_failure(report)
    pair = origin.pair()
    try:
        draw = pair.draw(finding.seed, finding.evidence.get("mode", "train") == "train")
    except LayerError as refusal:
        raise UsageError(f"torch itself refuses these inputs: {refusal}") from refusal
    writer = _Script(origin, pair, finding, draw)
    lines = writer.lines()
    assert len(lines) <= MOST_LINES
    return "\n".join(lines) + "\n"


class _Script:
    """Writes the lines; one method a part."""

    def __init__(self, origin: Origin, pair: Any, finding: Finding, draw: Draw) -> None:
        self.origin, self.pair, self.finding, self.draw = origin, pair, finding, draw
        self.narrow = finding.dtype == "float32"
        self.dtype = "float32" if self.narrow else "float64"
        self.runner = pair.subject.spawn(self.dtype)
        with contextlib.suppress(LayerError):  # the runner learns names and layouts from a draw
            pair.mine(draw, self.dtype, self.runner)
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
        self.partners = self._partners()
        plain = type(self.runner) is PlainRunner or self.form or self.torch_mine
        if not (plain or self._simple_functions()):
            raise UsageError(
                f"no script is written for {type(pair.subject).__name__}; save a bundle instead"
            )
        self.floating = [i for i, a in enumerate(draw.inputs) if a.dtype.kind == "f"]
        self.several = len(draw.upstream) > 1
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
        return {names.theirs(n): (slot.name, layout) for n, (slot, layout) in found.items()}

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

    def lines(self) -> list[str]:
        """Return the whole script."""
        imports, mine, theirs = self._sides()
        found = ["import numpy as np, torch", *imports, "rng = np.random.default_rng(0)"]
        found.append(f"mine, theirs = {mine}, {theirs}")
        if not self.draw.training:
            found.append(f"theirs.eval(); {self._evaluation()}")
        found += self._weights()
        rest = [*self._passes(), self._closing()]
        inputs = self._inputs()
        if len(found) + len(inputs) + len(rest) > MOST_LINES:
            inputs = ["; ".join(inputs)]
        spare = MOST_LINES - len(found) - len(inputs)
        if len(rest) > spare:  # the closing print stays alone
            rest = [*rest[: spare - 2], "; ".join(rest[spare - 2 : -1]), rest[-1]]
        return [*found, *inputs, *rest]

    # ---- the two sides ---------------------------------------------------------------------------

    def _sides(self) -> tuple[list[str], str, str]:
        own = self.functions or self.origin.mine
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
        if isinstance(self.origin.mine, type):
            return f"{kind.__qualname__}()", needs
        found = expression(self.origin.mine)
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
        if hasattr(self.origin.mine, "eval"):
            return "mine.eval()"
        if hasattr(self.origin.mine, "evaluate"):
            return "mine.evaluate()"
        return "mine.training = False"

    # ---- numbers ---------------------------------------------------------------------------------

    def _weights(self) -> list[str]:
        names = self.pair.names
        params, buffers = self.pair.reference.params, self.pair.reference.buffers
        if not params and not buffers:
            return []
        positive = ".abs()" if buffers else ""
        found = [
            "for name, tensor in theirs.state_dict().items():",
            f"    tensor.copy_(torch.tensor(rng.uniform(-1, 1, tensor.shape)){positive})",
        ]
        if self.torch_mine:
            return [*found, "mine.load_state_dict(theirs.state_dict())"]
        if self.partners:
            return found + self._laid_out()
        mapping = {n: names.mine(n) for n in [*params, *buffers] if names.mine(n) != n}
        key = f"{mapping!r}.get(name, name)" if mapping else "name"
        turn = self._blocks("len(tensor)")
        if names.axes:
            axes = {n: tuple(a) for n, a in names.axes.items()}
            turn += f".transpose({axes!r}.get(name, range(tensor.ndim)))"
        store = f"(mine.params if {key} in mine.params else mine.buffers)"
        store = store if buffers else "mine.params"
        place = "[...]" if self._writable() else ""
        write = f"{store}[{key}]{place} = tensor.numpy(){turn}.copy()"
        return [*found, f"    if tensor.is_floating_point(): {write}"]

    def _laid_out(self) -> list[str]:
        """Lines for weights that are attributes, or arguments, with a layout of their own."""
        rows = []
        for name, (own, layout) in self.partners.items():
            tensor = {**self.pair.reference.params, **self.pair.reference.buffers}[name]
            shape, axes = tuple(tensor.shape), self.pair.names.axes.get(name)
            axes = tuple(range(len(shape))) if axes is None else tuple(axes)
            row: tuple[Any, ...] = (name, own, shape, axes, tuple(shape[a] for a in axes))
            if layout is not None:
                inner = layout.folded or layout.theirs
                row = (name, own, inner, layout.axes or tuple(range(len(inner))), layout.mine)
            rows.append(row)
        names = "name, own, inner, axes, shape"
        value = "theirs.state_dict()[name].numpy()" + self._blocks("len(theirs.state_dict()[name])")
        value += ".reshape(inner).transpose(axes).reshape(shape)"
        if self.functions:
            return [f"weights = {{own: {value}.copy() for {names} in {rows!r}}}"]
        rows = [(name, self._line(own), *rest) for name, own, *rest in rows]
        value = f"torch.tensor({value})" if self.tensors else f"{value}.copy()"
        return [
            f"for {names.replace('own', 'line')} in {rows!r}:",
            f"    value = {value}; exec(line)",
        ]

    def _line(self, own: str) -> str:
        """The statement that sets a hand-written array to ``value``."""
        layer = self.runner.layer
        setter, getter = getattr(layer, "set_params", None), getattr(layer, "get_params", None)
        if callable(setter) and callable(getter) and own in getter():
            return f"mine.set_params({{**mine.get_params(), {own!r}: value}})"
        return f"{self._place(own)} = value"

    def _place(self, own: str) -> str:
        """Where a hand-written array is kept, as an expression. Raises UsageError for elsewhere."""
        layer, text = self.runner.layer, f"mine.{own}"
        try:
            held = eval(text, {"mine": layer})
        except Exception:  # no attribute: the entry of a dict, or nothing that a line can reach
            store = getattr(layer, "params", None)
            if not isinstance(store, Mapping) or own not in store:
                raise UsageError(f"no script can write {own!r}; save a bundle instead") from None
            text, held = f"mine.params[{own!r}]", store[own]
        if is_parameter(held):
            return f"{text}.{next(v for v in VALUES if is_numbers(getattr(held, v, None)))}"
        return text if own.replace(".", "").replace("_", "").isalnum() else f"{text}[...]"

    def _blocks(self, length: str) -> str:
        """The index that puts the blocks of torch's array ``name`` in the layer's own order."""
        orders = {name: list(order) for name, order in self.pair.names.blocks.items()}
        if not orders:
            return ""
        order = f"{orders!r}.get(name, [0])"
        return f"[np.arange({length}).reshape(len(o := {order}), -1)[o].ravel()]"

    def _writable(self) -> bool:
        """Whether the layer's own arrays can take the numbers, in the precision that is asked."""
        own = getattr(self.origin.mine, "params", None)
        if not isinstance(own, Mapping) or callable(getattr(self.origin.mine, "astype", None)):
            return not isinstance(self.origin.mine, type)
        return all(str(getattr(a, "dtype", "")) == self.dtype for a in own.values())

    def _inputs(self) -> list[str]:
        found = []
        for i, spec in enumerate(self.pair.specs):
            found.append(f"x{i} = {self._values(spec, i)}")
            grad = ", requires_grad=True" if i in self.floating else ""
            found[-1] += f"; t{i} = torch.tensor(x{i}{grad})"
            if self.torch_mine:
                found[-1] += f"; s{i} = torch.tensor(x{i}{grad})"
        return found

    def _values(self, spec: Any, place: int) -> str:
        shape, options = spec.shape, dict(spec.options)
        cast = '.astype("float32")' if self.narrow and place in self.floating else ""
        label = self.finding.evidence.get("draw")
        given = self.finding.evidence.get("shapes") or []
        if place < len(given) and spec.reshapable:
            shape = tuple(given[place])
        if spec.kind == "labels":
            return f"rng.integers(0, {options['classes']}, {shape})"
        if spec.kind == "integers":
            return f"rng.integers({options['low']}, {options['high']}, {shape})"
        if spec.kind == "uniform":
            return f"rng.uniform({options['low']}, {options['high']}, {shape}){cast}"
        if spec.kind in ("probabilities", "log_probabilities"):
            axis = options["axis"]
            log = "" if spec.kind == "probabilities" else "log_"
            return f"torch.randn({shape}).double().{log}softmax({axis}).numpy(){cast}"
        if spec.kind == "one_hot":
            return f"np.eye({shape[-1]})[rng.integers(0, {shape[-1]}, {shape[:-1]})]{cast}"
        if spec.kind == "normal" and label == "integers":
            return f'rng.integers(-3, 4, {shape}).astype("{self.dtype}")'
        if spec.kind == "normal" and label == "magnitudes":
            return f"rng.choice([-1, 1], {shape}) * 10.0 ** rng.uniform(-30, 2, {shape}){cast}"
        if spec.kind == "normal":
            scale = options.get("scale", 300.0 if label == "extreme" else 1.0)
            return f"rng.normal({options.get('mean', 0.0)}, {scale}, {shape}){cast}"
        array = self.draw.inputs[place]
        if array.size <= 64:
            return f"np.array({array.tolist()!r}, dtype={array.dtype.name!r}){cast}"
        return f"np.load({f'input{place}.npy'!r}){cast}  # save it beside this script"

    # ---- forward, backward, and the difference ---------------------------------------------------

    def _passes(self) -> list[str]:
        count = len(self.draw.inputs)
        xs, ts = (", ".join(f"{letter}{i}" for i in range(count)) for letter in "xt")
        if self.torch_mine:
            xs = ", ".join(f"s{i}" for i in range(count))
        call = "mine" if self.torch_mine else f"mine.{self.names[0]}"
        if self.tensors:
            xs = ", ".join(f"torch.tensor(x{i})" for i in range(count))
        if self.functions:
            given = [f"weights[{own!r}]" for own, _ in self.partners.values()]
            found = [f"result, z = mine[0]({', '.join([xs, *given])}), theirs({ts})"]
            found.append("y, *cache = result if isinstance(result, tuple) else (result,)")
            if self.functions.backward is None and getattr(self.runner, "_delta", None) is not None:
                return [*found, "dx = cache[0]; z.backward()"]
        else:
            y = "(y, dx)" if self.style == "with forward" else "y"
            found = [f"{y}, z = {call}({xs}), theirs({ts})"]
            if self.nested:
                found = [
                    "flat = lambda v: [v] if hasattr(v, 'shape') else sum(map(flat, v), [])",
                    f"y, z = flat({call}({xs})), flat(theirs({ts}))",
                ]
        if not any(g is not None for g in self.draw.upstream) or not self._has_backward():
            return found
        if self.several:
            return found + self._several()
        start = "g = np.ones(z.shape)" if not self.pair.upstream_taken else (
            "g = np.asarray(rng.standard_normal(z.shape), dtype=str(z.dtype)[6:])"
        )  # fmt: skip
        upstream = "g if g.ndim else g[()]" if not self.draw.upstream[0].shape else "g"  # type: ignore
        found.append(f"{start}; z.backward(torch.tensor(g).to(z))")
        found.append(f"dx = {self._back(upstream, 'torch.tensor(g).to(y)')}")
        return found

    def _several(self) -> list[str]:
        """Lines for several outputs, nested ones too: laid flat, and nested for backward again."""
        found = ["g = [rng.standard_normal(each.shape) for each in z]"]
        given = "torch.autograd.backward({0}, [torch.tensor(e).to({0}[0]) for e in g])"
        found.append(given.format("z"))
        if self.torch_mine:
            return [*found, given.format("y")]
        texts = tuple(f"g[{i}]" for i in range(len(self.draw.upstream)))
        if self.nested:
            parts = self.runner.handed(self.runner.layer.backward, texts)
            return [*found, f"dx = {self._back(', '.join(map(_spelled, parts)), '')}"]
        return [*found, f"dx = {self._back('*g', '*g')}"]

    def _has_backward(self) -> bool:
        return not (self.functions and self.functions.backward is None)

    def _back(self, plain: str, tensor: str) -> str:
        if self.torch_mine:
            return f"y.backward({tensor})"
        if self.functions:
            return f"mine[1]({plain}, *cache)"
        given = ", ".join(f"x{i}" for i in range(len(self.draw.inputs)))
        if self.tensors:
            given, plain = (
                ", ".join(f"torch.tensor({each})" for each in given.split(", ")),
                f"torch.tensor({plain})",
            )
        if self.style == "with forward":
            return "dx"
        plain = plain if self.pair.upstream_taken or self.style.startswith("input") else ""
        handed = {"again": given, "input first": f"{given}, {plain}"}
        handed["input last"] = f"{plain}, {given}"
        text = handed.get(self.style, plain)
        more = ""
        if self.names[1] == "updateGradInput" and self.style == "input first":
            if callable(getattr(self.runner.layer, "accGradParameters", None)):
                more = f"; mine.accGradParameters({text})"
        return f"mine.{self.names[1]}({text}){more}"

    def _closing(self) -> str:
        name = self.finding.quantity
        words = quantity_text(name)
        two = self._both(name)
        if two is None:
            return self._promise(name, words)
        mine, theirs = two
        return f"print({words + ' is off by'!r}, np.abs(np.asarray({mine}) - {theirs}).max())"

    def _both(self, name: str) -> tuple[str, str] | None:
        if name.startswith("forward"):
            place = f"[{name.removeprefix('forward')}]" if name != "forward" else ""
            own = f"y{place}.detach()" if self.torch_mine else f"y{place}"
            return own, f"z{place}.detach().numpy()"
        if name.startswith("grad_input"):
            i = int(name.removeprefix("grad_input"))
            own = f"s{i}.grad" if self.torch_mine else "dx"
            if not self.torch_mine and (len(self.floating) > 1 or self.functions):
                own = f"(dx if isinstance(dx, (tuple, list)) else (dx,))[{i}]"
            return own, f"t{i}.grad.numpy()"
        for prefix, store, get in (
            ("grad_", "grads", "theirs.get_parameter({!r}).grad.numpy()"),
            ("buffer_", "buffers", "theirs.get_buffer({!r}).numpy()"),
        ):
            if name.startswith(prefix):
                theirs = name.removeprefix(prefix)
                text = self._own_array(theirs, store, get)
                return None if text is None else (text, get.format(theirs))
        return None

    def _own_array(self, theirs: str, store: str, get: str) -> str | None:
        """The expression of a hand-written gradient or buffer, turned as torch's."""
        own = self.pair.names.mine(theirs)
        if self.torch_mine:
            return get.format(own).replace("theirs.", "mine.")
        if theirs not in self.partners:
            if not hasattr(self.runner.layer, store):
                raise UsageError(f"no script can write {own!r}; save a bundle instead")
            return self._unturned(f"mine.{store}[{own!r}]", theirs)
        own, layout = self.partners[theirs]
        if self.functions:
            names = [name for name, _ in self.partners.values()]
            given = list(self.functions.returns or names)
            known = [name for name in (own, theirs) if name in given]
            text = f"dx[{given.index(known[0]) - len(given)}]" if known else ""
        else:
            text = self._held(own, store)
        if not text or layout is None:
            return self._unturned(text, theirs) if text else None
        inner = layout.folded or layout.theirs
        axes = layout.axes or tuple(range(len(inner)))
        turned = tuple(inner[axis] for axis in axes)
        text = f"{text}.reshape({turned}).transpose({_back(axes)}).reshape({layout.theirs})"
        return text + self._unblocked(theirs)

    def _held(self, own: str, store: str) -> str:
        """The expression of a buffer, or of the gradient of what is kept as ``own``."""
        if "set_params" in self._line(own):
            place = f"mine.get_params()[{own!r}]"
        else:
            place = self._place(own)
        if store == "buffers":
            return f"np.asarray({place})"
        stem, _, leaf = place.removesuffix("[...]").rpartition(".")
        listed = re.fullmatch(r"mine\.(\w+)(\(\))?\[(\d+)\]", place.removesuffix("[...]"))
        found = [f"{stem}.{name}" for name in grad_names(leaf)]
        if leaf in VALUES:
            found = [f"{stem}.grad"]
        elif listed:
            getters = [name for head, names in LISTS if head == listed[1] for name in names]
            found = [f"mine.{n}()[{listed[3]}]" for n in getters]
            found += [f"mine.{n}[{listed[3]}]" for n in GRAD_STORES]
        for key in (own, *grad_names(own)):
            found += [f"mine.{n}()[{key!r}]" for n in ("get_grads", "get_gradients", "gradients")]
            found += [f"mine.{n}[{key!r}]" for n in GRAD_STORES]
        for text in found:
            with contextlib.suppress(Exception):
                if is_numbers(eval(text, {"mine": self.runner.layer})):
                    return f"np.asarray({text})"
        return ""

    def _unturned(self, text: str, theirs: str) -> str:
        axes = self.pair.names.axes.get(theirs)
        return (
            text + ("" if axes is None else f".transpose({_back(axes)})") + self._unblocked(theirs)
        )

    def _unblocked(self, theirs: str) -> str:
        """The index that puts the blocks of the layer's array in torch's order again."""
        order = self.pair.names.blocks.get(theirs)
        if order is None:
            return ""
        length = len(self.pair.reference.params[theirs])
        back = list(_back(order))
        return f"[np.arange({length}).reshape({len(back)}, -1)[{back}].ravel()]"

    def _promise(self, name: str, words: str) -> str:
        if name == "dtype":
            return f"print({words!r}, np.asarray(y).dtype, 'for', x0.dtype)"
        if name == "aliasing":
            return "print('the output shares the input\\'s memory:', np.shares_memory(y, x0))"
        if name == "untouched":
            return "print('the input changed by', np.abs(x0 - t0.detach().numpy()).max())"
        if self.torch_mine or self.functions:
            off = "np.abs(np.asarray(y) - z.detach().numpy()).max()"
            return f"print('forward output is off by', {off})"
        if name == "accumulate":
            return (
                "once = {k: np.array(v) for k, v in mine.grads.items()}; mine.forward(x0); "
                "mine.backward(g); "
                "print({k: np.abs(mine.grads[k] - 2 * once[k]).max() for k in once})"
            )
        return (
            f"print({words + ': a second forward is off by'!r}, np.abs(mine.forward(x0) - y).max())"
        )


def _spelled(part: Any) -> str:
    if isinstance(part, tuple):
        return f"({', '.join(map(_spelled, part))}{',' if len(part) == 1 else ''})"
    return str(part)


def _back(axes: Any) -> tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=lambda place: axes[place]))


def _import(module: str, name: str) -> str:
    if module in ("__main__", "builtins"):
        return f"# paste {name} here"
    return f"from {module} import {name}"
