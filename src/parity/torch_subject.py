"""A torch module as the layer under test: custom code, an autograd.Function inside, compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parity.draws import Draw
from parity.outcomes import Array, LayerError, Outcome
from parity.subjects import NameMap, quietly
from parity.torch_side import TorchSide


class TorchRunner:
    """Runs a torch module under test; its gradients come from autograd."""

    def __init__(self, side: TorchSide) -> None:
        self.side = side

    def params(self) -> Mapping[str, Array]:
        """Return the module's initial parameters by name."""
        return self.side.params

    def buffers(self) -> Mapping[str, Array]:
        """Return the module's initial buffers by name."""
        return self.side.buffers

    def held(self) -> Mapping[str, Array]:
        """Return the float64 copy's parameters as they are now."""
        return self.side.held()

    def run(
        self,
        draw: Draw,
        dtype: str,
        names: NameMap,
        between: Sequence[Array] | None = None,
        strided: bool = False,
    ) -> Outcome:
        """Run one forward and backward pass: see :meth:`parity.torch_side.TorchSide.run`.

        Raises LayerError, in the phase ``weights`` where a parameter has no partner.
        """
        params, buffers = self._own(draw.params, names, dtype), {}
        for name, array in draw.buffers.items():
            if names.mine(name) in self.side.buffers:
                buffers[names.mine(name)] = names.to_mine(name, array)
        remarks: list[tuple[str, str]] = []
        with quietly(remarks):
            own = replace(draw, params=params, buffers=buffers)
            outcome = self.side.run(own, dtype, between=between, strided=strided)
        outcome.quantities = {
            self._renamed(key, names): self._reordered(key, value, names)
            for key, value in outcome.quantities.items()
        }
        for output in outcome.outputs:
            if output.ndim and output.dtype.kind == "f" and output.dtype != dtype:
                text = f"the output is {output.dtype} for {dtype} input"
                outcome.remarks.append(("wrong_dtype", text))
        outcome.remarks += remarks
        return outcome

    def _own(self, params: Mapping[str, Array], names: NameMap, dtype: str) -> dict[str, Array]:
        found = {}
        for name, array in params.items():
            mine = names.mine(name)
            if mine not in self.side.params:
                have = ", ".join(self.side.params) or "none"
                raise LayerError(
                    f"parameter {name!r} of the reference has no partner; mine has: {have}. "
                    "Name it alike, or declare weights={'mine': 'theirs'}",
                    "weights",
                )
            value = names.to_mine(name, array)
            if value.shape != self.side.params[mine].shape:
                raise LayerError(
                    f"parameter {mine!r} has shape {self.side.params[mine].shape}, the "
                    f"reference's {name!r} {value.shape}; declare the axis order with "
                    "weights={'" + mine + "': ('" + name + "', axes)}",
                    "weights",
                )
            found[mine] = value
        return found

    def _renamed(self, key: str, names: NameMap) -> str:
        for prefix in ("grad_", "buffer_"):
            if key.startswith(prefix) and not key.startswith("grad_input"):
                return prefix + names.theirs(key.removeprefix(prefix))
        return key

    def _reordered(self, key: str, value: Array | None, names: NameMap) -> Array | None:
        renamed = self._renamed(key, names).removeprefix("grad_").removeprefix("buffer_")
        return None if value is None else names.to_theirs(renamed, value)


class TorchSubject:
    """A torch module under test, as given."""

    def __init__(self, module: Any, device: str | None = None) -> None:
        self.side = TorchSide(module, "mine", device)
        self.title = type(self.side.original).__name__
        self.forgiven: tuple[str, ...] = ()  # global settings that may be changed
        self.renamed: dict[str, str] = {}  # own name → torch's, where they differ

    def spawn(self, dtype: str) -> TorchRunner:
        """Return a runner; the module is copied once a dtype and reloaded at every run."""
        return TorchRunner(self.side)
