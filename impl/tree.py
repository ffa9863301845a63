"""TreeView, the parameters of a whole tree of layers as one mapping."""

from collections.abc import Iterator, MutableMapping


def is_tree(module) -> bool:
    """Tell a Module from a layer that merely keeps the contract."""
    return hasattr(module, "_named_children")


def own_mapping(module, kind: str):
    """Return the dict `kind` ("params", "grads" or "buffers") of `module` without its children."""
    if is_tree(module):
        return vars(module)["_" + kind]
    return getattr(module, kind, None) or {}


class TreeView(MutableMapping):
    """One kind of array over a whole tree, by dotted name ("0.weight"); writes reach the child.

    A layer that occurs several times is listed once, under its first name (the others are
    still understood), as in torch's named_parameters.
    """

    def __init__(self, root, kind: str):
        self._root = root
        self._kind = kind

    def _resolve(self, name: str):
        module, rest = self._root, name
        while is_tree(module):
            head, dot, tail = rest.partition(".")
            child = module._named_children().get(head) if dot else None
            if child is None:
                break
            module, rest = child, tail
        return own_mapping(module, self._kind), rest, module

    def __getitem__(self, name: str):
        mapping, key, _ = self._resolve(name)
        if key not in mapping:
            raise KeyError(f"{name!r} is not among the {self._kind}: {', '.join(self) or 'none'}")
        return mapping[key]

    def __setitem__(self, name: str, array) -> None:
        mapping, key, module = self._resolve(name)
        if is_tree(module) and "." in key:
            raise KeyError(f"{name!r} names no child layer; {self._kind}: {', '.join(self)}")
        if not hasattr(module, self._kind):
            raise KeyError(f"{name!r}: {type(module).__name__} has no {self._kind}")
        # A child with an empty dict of its own is falsy, so own_mapping would hand out a new one.
        target = mapping if is_tree(module) else getattr(module, self._kind)
        target[key] = array

    def __delitem__(self, name: str) -> None:
        mapping, key, _ = self._resolve(name)
        if key not in mapping:
            raise KeyError(name)
        del mapping[key]

    def __iter__(self) -> Iterator[str]:
        for prefix, module in self._root.named_modules():
            for key in list(own_mapping(module, self._kind)):
                yield f"{prefix}.{key}" if prefix else key

    def items(self) -> list[tuple[str, object]]:
        """Return the (name, array) pairs, all found in one walk: looking names up is slower."""
        pairs = []
        for prefix, module in self._root.named_modules():
            for key, array in own_mapping(module, self._kind).items():
                pairs.append((f"{prefix}.{key}" if prefix else key, array))
        return pairs

    def __len__(self) -> int:
        return sum(len(own_mapping(module, self._kind)) for _, module in self._root.named_modules())

    def __repr__(self) -> str:
        return repr(dict(self))


def parameters(model) -> list[tuple[str, object, object]]:
    """Return (name, parameter, gradient or None) of every parameter of `model`.

    A whole tree is walked once: looking each name up would cost more than a small net's layers.
    """
    if not is_tree(model):
        grads = model.grads
        return [(name, param, grads.get(name)) for name, param in model.params.items()]
    found = []
    for path, module in model.named_modules():
        if own := own_mapping(module, "params"):
            grads, path = own_mapping(module, "grads"), path and path + "."
            found += [(path + name, param, grads.get(name)) for name, param in own.items()]
    return found
