"""The passes of a script: forward and backward of both sides."""

from __future__ import annotations

from typing import Any

from parity.pair import LOUD, QUIET
from parity.scripting.numbers import Numbers


class Passes(Numbers):
    """The lines of forward and backward."""

    def _passes(self) -> list[str]:
        count = len(self.draw.inputs)
        xs, ts = (", ".join(f"{letter}{i}" for i in range(count)) for letter in "xt")
        if self.torch_mine:
            xs = ", ".join(f"s{i}" for i in range(count))
        if self.tensors:
            xs = ", ".join(f"torch.tensor(x{i})" for i in range(count))
        self.forward = f"mine({xs})" if self.torch_mine else f"mine.{self.names[0]}({xs})"
        if self.functions:
            given = [f"weights[{own!r}]" for own, _ in self.partners.values()]
            found = [f"result, z = mine[0]({', '.join([xs, *given])}), theirs({ts})"]
            found.append("y, *cache = result if isinstance(result, tuple) else (result,)")
            if self.functions.backward is None and getattr(self.runner, "_delta", None) is not None:
                return [*found, "dx = cache[0]; z.backward()"]
        else:
            y = "(y, dx)" if self.style == "with forward" else "y"
            found = [f"{y}, z = {self.forward}, theirs({ts})"]
            if self.nested:
                found = [
                    "flat = lambda v: [v] if hasattr(v, 'shape') else sum(map(flat, v), [])",
                    f"y, z = flat({self.forward}), flat(theirs({ts}))",
                ]
        if not any(g is not None for g in self.draw.upstream) or not self._has_backward():
            return found
        if self.several:
            return found + self._several()
        start = "g = np.ones(z.shape)" if not self.pair.upstream_taken else (
            f"g = np.asarray(rng.standard_normal(z.shape){self._enlarged()}, "
            "dtype=str(z.dtype)[6:])"
        )  # fmt: skip
        shape = self.draw.upstream[0].shape  # type: ignore[union-attr]
        upstream = "g" if shape else "g if g.ndim else g[()]"
        if self.label == QUIET and shape and shape[0] > 1:
            start += "; g[:1] = 0"
        kept = "; h = g.copy()" if self.finding.quantity == "untouched" else ""
        found.append(f"{start}{kept}; z.backward(torch.tensor(g).to(z))")
        self.backward = self._back(upstream, "torch.tensor(g).to(y)")
        found.append(f"dx = {self.backward}")
        return found

    def _several(self) -> list[str]:
        """Lines for several outputs, nested ones too: laid flat, and nested for backward again."""
        found = [f"g = [rng.standard_normal(each.shape){self._enlarged()} for each in z]"]
        given = "torch.autograd.backward({0}, [torch.tensor(e).to({0}[0]) for e in g])"
        found.append(given.format("z"))
        if self.torch_mine:
            return [*found, given.format("y")]
        texts = tuple(f"g[{i}]" for i in range(len(self.draw.upstream)))
        if self.nested:
            parts = self.runner.handed(self.runner.layer.backward, texts)
            return [*found, f"dx = {self._back(', '.join(map(_spelled, parts)), '')}"]
        return [*found, f"dx = {self._back('*g', '*g')}"]

    def _enlarged(self) -> str:
        factors = {"large": " * 1e4", LOUD: " * 2.0**20", QUIET: " * 2.0**-40"}
        return factors.get(str(self.label), "")

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


def _spelled(part: Any) -> str:
    if isinstance(part, tuple):
        return f"({', '.join(map(_spelled, part))}{',' if len(part) == 1 else ''})"
    return str(part)
