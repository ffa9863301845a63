"""Torch7's form: updateOutput, updateGradInput, accGradParameters, getParameters, Criterion."""

from __future__ import annotations

from typing import Any

from parity.adapters.calling import takes_target
from parity.adapters.forms import Form, FormRunner, FormSubject
from parity.adapters.slots import LISTS, Slot
from parity.adapters.stores import flat, list_slots, plain_slots
from parity.adapters.walking import attribute_slots

CALLS = ("updateOutput", "updateGradInput", "accGradParameters")


def looks_like_torch7(item: Any) -> bool:
    """Whether ``item`` has updateOutput and a way back."""
    ways = ("updateGradInput", "backward")
    return callable(getattr(item, "updateOutput", None)) and any(
        callable(getattr(item, way, None)) for way in ways
    )


def torch7_slots(item: Any) -> list[Slot]:
    """Return the slots of a module: Lua's parameters(), getParameters() lists, else attributes."""
    attributes = attribute_slots(item)
    buffers = [slot for slot in attributes if slot.kind == "buffers"]
    params = [slot for slot in attributes if slot.kind == "params"]
    lists = listed(item)
    # names tell more than positions; a list is used where it knows of more
    if len(lists) > len(params):
        params = lists
    return (params or plain_slots(item)) + buffers


def listed(item: Any) -> list[Slot]:
    """Return the slots of a pair of methods that return lists of arrays and of gradients."""
    for name, others in LISTS:
        read = getattr(item, name, None)
        grads = next((g for o in others if callable(g := getattr(item, o, None))), None)
        if callable(read) and not (grads is None and _flattened(read())):
            return list_slots(read, grads or (lambda: []), f"{name}()")
    lua = getattr(item, "parameters", None)
    if callable(lua):
        both = lua()
        if isinstance(both, tuple) and len(both) == 2 and all(isinstance(b, list) for b in both):
            return list_slots(lambda: lua()[0], lambda: lua()[1], "parameters()")
        if any(hasattr(p, "grad") for p in flat(both)):
            return list_slots(lua, lambda: [], "parameters()")
    return []


def _flattened(value: Any) -> bool:
    """Whether getParameters() gives Torch7's pair of flat vectors: copies, of no use here."""
    return isinstance(value, tuple) and len(value) == 2


class Torch7Runner(FormRunner):
    """A module or criterion: the input is handed to the way back again."""

    @property
    def criterion(self) -> bool:
        """Whether the object takes (input, target)."""
        return takes_target(self.layer.updateOutput)

    def takes_upstream(self) -> bool:
        """A criterion takes none."""
        return not self.criterion

    def forward(self, *inputs: Any) -> Any:
        """See :class:`parity.subjects.Runner`."""
        self._inputs = inputs
        call = getattr(self.layer, "forward", None)
        result = self._call(call if callable(call) else self.layer.updateOutput, *inputs)
        self.subject.tensors = self._call.tensors
        return result

    def backward(self, *upstream: Any) -> Any:
        """See :class:`parity.subjects.Runner`; updateGradInput, then accGradParameters."""
        arguments = self._inputs if self.criterion else (*self._inputs, *upstream)
        whole = getattr(self.layer, "backward", None)
        if callable(whole):
            return self._call(whole, *arguments)
        grad = self._call(self.layer.updateGradInput, *arguments)
        accumulate = getattr(self.layer, "accGradParameters", None)
        if callable(accumulate) and not self.criterion:
            self._call(accumulate, *arguments)
        return grad


class Torch7Subject(FormSubject):
    """A Torch7 module or criterion, or a factory of one."""

    runner = Torch7Runner


FORM = Form("Torch7 form", torch7_slots, "updateOutput", "updateGradInput")
