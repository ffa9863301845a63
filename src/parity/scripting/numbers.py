"""The numbers of a script: weights given to both sides, inputs drawn or spelled out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from parity.adapters.slots import VALUES, is_numbers, is_parameter
from parity.adapters.walking import attributes_of
from parity.draws import ZEROS
from parity.ends import LABEL as ENDS
from parity.findings import UsageError
from parity.pair import LARGE
from parity.scripting.refusing import unshown
from parity.scripting.sides import Sides

MOST_PRINTED = 64  # elements of an array that a script spells out
REFERENCES_OWN = ("near kinks", ENDS)  # draws around what the reference is made with


class Numbers(Sides):
    """The lines of weights and inputs."""

    def _weights(self) -> list[str]:
        names = self.pair.names
        params, buffers = self.pair.reference.params, self.pair.reference.buffers
        own = [n for n, a in buffers.items() if n in self.pair.unheld and a.dtype.kind == "f"]
        buffers = {n: a for n, a in buffers.items() if n not in own}
        if not params and not any(a.dtype.kind == "f" for a in buffers.values()):
            return []
        if self.functions and not self.partners:
            raise unshown(self.finding.quantity, "mine takes none of torch's arrays as arguments")
        items = "theirs.state_dict().items()"
        if own:  # what mine has no place for stays as both sides were built with it
            items = f"((n, t) for n, t in {items} if n not in {own!r})"
        positive = ".abs()" if buffers else ""
        whole = self.label == "integers" and not buffers  # else no sum would meet a kink
        drawn = "rng.integers(-2, 3, tensor.shape)" if whole else "rng.uniform(-1, 1, tensor.shape)"
        found = [
            f"for name, tensor in {items}:",
            f"    tensor.copy_(torch.tensor({drawn}){positive})",
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
        if names.shapes:
            shapes = {n: own for n, (own, _) in names.shapes.items()}
            turn += f".reshape({shapes!r}.get(name, tensor.shape))"
        store = f"(mine.params if {key} in mine.params else {self._buffers()})"
        store = "mine.params" if not buffers else store if params else self._buffers()
        place = "[...]" if self._writable() else ""
        write = f"{store}[{key}]{place} = tensor.numpy(){turn}.copy()"
        return [*found, f"    if tensor.is_floating_point(): {write}"]

    def _buffers(self) -> str:
        """Where a layer of the plain contract keeps its buffers, as the expression of a dict."""
        layer, names = self.runner.layer, self.pair.names
        buffers = self.pair.reference.buffers
        wanted = [names.mine(n) for n, array in buffers.items() if array.dtype.kind == "f"]
        wanted = [name for name in wanted if name not in map(names.mine, self.pair.unheld)]
        for text, store in (("mine.buffers", "buffers"), ("vars(mine)", "__dict__")):
            held = getattr(layer, store, None)
            if isinstance(held, Mapping) and all(name in held for name in wanted):
                return text
        kind = type(layer).__name__
        raise UsageError(
            f"no script can write {', '.join(wanted)}: {kind} keeps them neither all in buffers "
            "nor all as attributes; save a bundle instead"
        )

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
        layer, text, held = self.runner.layer, self._path(own), None
        stores = {name: getattr(layer, name, None) for name in ("params", "buffers")}
        named = [n for n, store in stores.items() if isinstance(store, Mapping) and own in store]
        if named and own not in self.grad_paths:
            text = f"mine.{named[0]}[{own!r}]"
        try:
            held = eval(text, {"mine": layer})
        except Exception:
            arrays = ", ".join(n for n, value in attributes_of(layer) if is_numbers(value))
            raise UsageError(
                f"no script can write {own!r} of {type(layer).__name__}, whose own arrays are: "
                f"{arrays or 'none'}; save a bundle instead"
            ) from None
        if is_parameter(held):
            return f"{text}.{next(v for v in VALUES if is_numbers(getattr(held, v, None)))}"
        return text if own.replace(".", "").replace("_", "").isalnum() else f"{text}[...]"

    @staticmethod
    def _path(path: str) -> str:
        """The expression of an attribute; dots lead into children, numbers into lists of them."""
        return "mine." + re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path)

    def _blocks(self, length: str) -> str:
        """The index that puts the blocks of torch's array ``name`` in the layer's own order."""
        orders = {name: list(order) for name, order in self.pair.names.blocks.items()}
        if not orders:
            return ""
        order = f"{orders!r}.get(name, [0])"
        return f"[np.arange({length}).reshape(len(o := {order}), -1)[o].ravel()]"

    def _writable(self) -> bool:
        """Whether the layer's own arrays can take the numbers, in the precision that is asked."""
        own = getattr(self.given, "params", None)
        if not isinstance(own, Mapping) or callable(getattr(self.given, "astype", None)):
            return not isinstance(self.given, type)
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
        label = self.label
        if self.literal or label in REFERENCES_OWN:
            return self._literal(place, cast)
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
        if spec.kind == "normal" and label == "extreme":
            each = f" + rng.uniform(-1000, 1000, {(shape[0], *[1] * (len(shape) - 1))})"
            return f"(rng.normal(0, 300, {shape}){each if len(shape) > 1 else ''}){cast}"
        if spec.kind == "normal" and label == "constant" and shape:
            axis = 1 if len(shape) > 1 else 0
            one = tuple(n if i == axis else 1 for i, n in enumerate(shape))
            signs = f"(-1.0) ** np.arange(1, {shape[axis] + 1}).reshape({one})"
            return f"(np.ones({shape}) * rng.integers(1, 9, {one}) / 8 * {signs}){cast}"
        if spec.kind == "normal" and label == ZEROS and shape:
            drawn = f"rng.normal({options.get('mean', 0.0)}, {options.get('scale', 1.0)}, {shape})"
            one = (-1, *[1] * (len(shape) - 1))
            kept = f"~np.isin(np.arange({shape[0]}), [0, {place + 1}]).reshape({one})"
            return f"({drawn} * {kept}){cast}"
        if spec.kind == "normal" and label == "magnitudes":
            powers = f"rng.uniform(-30, 2, {shape})"
            if self.pair.elementwise:  # both tails in every draw
                powers = f"np.where(rng.random({shape}) < 0.5, {powers}, 1.75)"
            return f"rng.choice([-1, 1], {shape}) * 10.0 ** {powers}{cast}"
        if spec.kind == "normal" and label == "small" and shape:
            return f"rng.normal(0, 1, {shape}) * 10.0 ** -rng.integers(3, 8, {shape}){cast}"
        if spec.kind == "normal":
            scale = options.get("scale", LARGE if label == "large" else 1.0)
            return f"rng.normal({options.get('mean', 0.0)}, {scale}, {shape}){cast}"
        return self._literal(place, cast)

    def _literal(self, place: int, cast: str) -> str:
        """The very numbers of an input, where there are few of them or the user has them."""
        array = self.draw.inputs[place]
        if array.size <= MOST_PRINTED:
            numbers = re.sub(r"\b(inf|nan)\b", r"np.\1", repr(array.tolist()))
            return f"np.array({numbers}, dtype={array.dtype.name!r}){cast}"
        if self.pair.specs[place].source is None:
            why = f"its {array.size} inputs ({self.label}) are too many to print"
            raise unshown(self.finding.quantity, why)
        return f"np.load({f'input{place}.npy'!r}){cast}  # save it beside this script"
