"""Sequential, a chain of layers that behaves as one layer."""

import operator
from collections.abc import Iterator, Mapping

from impl.module import Module


def _layer(item):
    """Return `item` when it keeps the contract of a layer, Module or not; else raise TypeError."""
    callables = (getattr(item, "forward", None), getattr(item, "backward", None))
    if isinstance(item, type) or not all(map(callable, callables)):
        given = item.__name__ if isinstance(item, type) else type(item).__name__
        advice = f"; write {given}(...)" if isinstance(item, type) else ""
        raise TypeError(
            f"Sequential takes layers, objects with forward and backward; got {given}{advice}"
        )
    return item


class Sequential(Module):
    """Layers applied in order, named "0", "1", … or as in the given mapping.

    As torch.nn.Sequential: x and y have the first layer's and the last layer's shapes. A Module
    may stand at several places, also of nested chains: each place remembers its own forward. A
    layer that is no Module may stand at one place.

    Raises TypeError for what is no layer, KeyError for names that are not text without dots.
    """

    def __init__(self, *layers):
        self._set_layers({})
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            for name, layer in layers[0].items():
                if not isinstance(name, str) or not name or "." in name:
                    raise KeyError(f"Sequential got the name {name!r}; names are text without dots")
                self._put(name, layer)
        else:
            self.extend(layers)

    def _named_children(self) -> Mapping[str, Module]:
        return vars(self).get("_layers", {})

    def __getattr__(self, name: str):
        """Return the layer of that name, as torch does; asked only where no attribute has it."""
        layers = self._named_children()
        if name not in layers:
            raise AttributeError(f"Sequential has no attribute or layer {name!r}")
        return layers[name]

    def __setattr__(self, name: str, value) -> None:
        """Set an attribute; a Module takes the place of the layer of that name, or a new one."""
        if isinstance(value, Module) or name in self._named_children():
            self._put(name, value)
        else:
            super().__setattr__(name, value)

    def _put(self, name: str, layer) -> None:
        shared = any(layer is other for key, other in self._layers.items() if key != name)
        if shared and not isinstance(layer, Module):
            kind = type(layer).__name__
            raise ValueError(
                f"{kind} occurs twice in Sequential; derive it from Module to share it"
            )
        self._set_layers({**self._layers, name: _layer(layer)})

    def _set_layers(self, layers: dict) -> None:
        vars(self)["_layers"] = layers
        Module._walks = object()

    # Running.

    def forward(self, input):
        """Return the last layer's output."""
        x, trace = input, []
        for layer in self._layers.values():
            x = layer.forward(x)
            # A layer that stands elsewhere too will forward again before this place is due.
            trace.append((layer, self._remembered(layer)))
        self._cache = trace
        return x

    @staticmethod
    def _remembered(layer):
        """Return (part, cache) of all that backward will need to find as it is now."""
        if not isinstance(layer, Module):
            return ()
        # The trace that a chain keeps holds its layers' caches.
        if not layer._named_children() or type(layer).forward is Sequential.forward:
            return ((layer, layer._cache),)
        return [(part, part._cache) for part in layer.modules() if isinstance(part, Module)]

    def backward(self, grad_output):
        """Return the gradient for the input; every layer adds to its `grads`."""
        grad = grad_output
        for layer, caches in reversed(self._recall()):
            for part, cache in caches:
                vars(part)["_cache"] = cache  # no layer, so no need to look for one
            grad = layer.backward(grad)
        return grad

    # A list of layers.

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._layers.values())

    def _name(self, index) -> str:
        try:
            number = operator.index(index)
        except TypeError:
            raise TypeError(f"Sequential got index {index!r}; it must be an integer") from None
        if not -len(self) <= number < len(self):
            raise IndexError(f"index {number} is out of range for Sequential of {len(self)} layers")
        return list(self._layers)[number]

    def __getitem__(self, index):
        """Return a layer, or for a slice a Sequential of the same layers under the same names."""
        if isinstance(index, slice):
            part = type(self).__new__(type(self))
            part._set_layers(dict(list(self._layers.items())[index]))
            part.training = self.training
            return part
        return self._layers[self._name(index)]

    def __setitem__(self, index, layer) -> None:
        self._put(self._name(index), layer)

    def __delitem__(self, index) -> None:
        """Remove layers; those that stay are numbered anew, as in torch."""
        names = list(self._layers)
        gone = names[index] if isinstance(index, slice) else [self._name(index)]
        stay = [layer for name, layer in self._layers.items() if name not in gone]
        self._set_layers({str(number): layer for number, layer in enumerate(stay)})

    def append(self, layer) -> "Sequential":
        """Add a layer at the end; return self."""
        self._put(str(len(self)), layer)
        return self

    def extend(self, layers) -> "Sequential":
        """Add several layers at the end; return self."""
        for layer in list(layers):
            self.append(layer)
        return self

    def insert(self, index: int, layer) -> "Sequential":
        """Put a layer before `index` and number all anew; return self."""
        if not -len(self) <= index <= len(self):
            raise IndexError(f"index {index} is out of range for Sequential of {len(self)} layers")
        layers = list(self)
        layers.insert(index, _layer(layer))
        self._set_layers({})
        return self.extend(layers)

    def pop(self, index: int):
        """Remove a layer and return it."""
        layer = self[index]
        del self[index]
        return layer

    def __add__(self, other) -> "Sequential":
        if not isinstance(other, Sequential):
            return NotImplemented
        return Sequential(*self, *other)

    def __iadd__(self, other) -> "Sequential":
        return self.extend(other) if isinstance(other, Sequential) else NotImplemented

    def __mul__(self, times: int) -> "Sequential":
        """Return the same layers `times` times over; they share their parameters."""
        if times < 1:
            raise ValueError(f"Sequential was multiplied by {times}; it must be 1 or more")
        return Sequential(*list(self) * times)

    __rmul__ = __mul__
