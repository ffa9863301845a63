"""Module, the base class that holds a layer's parameters and walks a tree of layers."""

from collections import namedtuple
from collections.abc import Iterator, Mapping

import numpy as np

from impl.tree import TreeView, own_mapping

LoadResult = namedtuple("LoadResult", ["missing_keys", "unexpected_keys"])


def check_device(layer: str, device) -> None:
    """Refuse a `device` other than the CPU: NumPy has no other."""
    if device is not None and str(device) != "cpu":
        raise NotImplementedError(
            f"{layer}: device={device!r} is not supported; arrays are on 'cpu'"
        )


def check_inplace(layer: str, inplace: bool) -> None:
    """Refuse `inplace=True`: no layer here modifies its input."""
    if inplace:
        raise NotImplementedError(
            f"{layer}: inplace=True is not supported; inputs are not modified"
        )


def check_dtype(layer: str, dtype) -> np.dtype:
    """Return `dtype` as a NumPy dtype, None meaning float32; refuse what is not floating."""
    try:
        dtype = np.dtype(np.float32 if dtype is None else dtype)
    except TypeError:
        raise TypeError(
            f"{layer} got dtype={dtype!r}; give a NumPy dtype such as 'float32'"
        ) from None
    if dtype.kind != "f":
        raise TypeError(f"{layer} got dtype={dtype}; it must be floating, such as 'float32'")
    return dtype


def _tree_property(kind: str, text: str) -> property:
    def get(self):
        return TreeView(self, kind) if self._named_children() else vars(self)["_" + kind]

    def put(self, mapping):
        if not self._named_children():
            vars(self)["_" + kind] = mapping
            return
        view = TreeView(self, kind)
        if kind == "grads":
            view.clear()
        view.update(mapping)

    return property(get, put, doc=text)


class Module:
    """Base of the layers: parameters, gradients, buffers, a mode, and children.

    An attribute that is itself a Module is a child, as in torch.nn. A subclass writes `forward`
    and `backward`, keeps all that backward needs in `self._cache` (replaced by every forward,
    never changed in place: that is what lets one layer stand at several places of a network) and
    adds gradients with `_accumulate`. It need not call `super().__init__()`.
    """

    params = _tree_property("params", "Name → array; names and shapes are torch's.")
    grads = _tree_property("grads", "Name → array; added to by backward, emptied by zero_grad.")
    buffers = _tree_property("buffers", "Name → array that is not trained.")

    def __new__(cls, *args, **kwargs):
        """Make the dicts here, so that a subclass with an `__init__` of its own is complete."""
        self = super().__new__(cls)
        vars(self).update(_params={}, _grads={}, _buffers={}, training=True, _cache=None)
        vars(self)["_children"] = {}
        return self

    # Children are noted as they are assigned: every training step walks the tree several times,
    # and looking through all attributes would cost more than the layers of a small net. The dict
    # is replaced, never written to: a shallow copy of the layer holds the same one.

    def __setattr__(self, name: str, value) -> None:
        """Set an attribute; a Module becomes a child of that name."""
        object.__setattr__(self, name, value)
        if isinstance(value, Module):
            self._set_children({**self._children, name: value})
        elif name in self._children:
            self._forget(name)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute, and with it the child of that name."""
        object.__delattr__(self, name)
        self._forget(name)

    def _forget(self, name: str) -> None:
        self._set_children({k: v for k, v in self._children.items() if k != name})

    def _set_children(self, children: dict) -> None:
        vars(self)["_children"] = children
        Module._walks = object()

    def __call__(self, *inputs, **options):
        """Return `forward(*inputs)`; torch's name `input` is understood as a keyword."""
        if "input" in options:
            inputs = (options.pop("input"), *inputs)
        return self.forward(*inputs, **options)

    def forward(self, *inputs):
        """Return the output; a subclass writes it."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, grad_output):
        """Return the gradient for the input, and add to `grads`; a subclass writes it."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    # The tree.

    def _named_children(self) -> Mapping[str, "Module"]:
        return self._children

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """Yield (name, layer) for the direct children, each layer once."""
        seen = set()
        for name, child in self._named_children().items():
            if id(child) not in seen:
                seen.add(id(child))
                yield name, child

    def children(self) -> Iterator["Module"]:
        """Yield the direct children, each once."""
        for _, child in self.named_children():
            yield child

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """Yield (dotted name, layer) for this layer and everything below, each layer once."""
        yield prefix, self
        for path, module in self._below():
            yield (f"{prefix}.{path}" if prefix else path), module

    def modules(self) -> Iterator["Module"]:
        """Yield this layer and everything below, each once."""
        yield self
        for _, module in self._below():
            yield module

    # A step of a small net would spend a tenth of its time on walks over its tree. So a walk is
    # remembered, with the object that stood for the state of all trees: any change of any tree
    # puts a new one in its place. An object, since copies and pickles of it are never the same; in
    # a slot, since who looks at a layer's attributes does not change them.

    __slots__ = ("__dict__", "__weakref__", "_walk")
    _walks = object()

    def _below(self) -> list[tuple[str, "Module"]]:
        walks, found = getattr(self, "_walk", (None, None))
        if walks is not Module._walks:
            found = []
            self._walk_into(found, "", {id(self)})
            object.__setattr__(self, "_walk", (Module._walks, found))
        return found

    def _walk_into(self, found: list, prefix: str, seen: set) -> None:
        for name, child in self._named_children().items():
            if id(child) not in seen:
                seen.add(id(child))
                found.append((prefix + name, child))
                if isinstance(child, Module):
                    child._walk_into(found, f"{prefix}{name}.", seen)

    def train(self, mode: bool = True) -> "Module":
        """Set training (or evaluation) mode for the whole tree; return self."""
        if not isinstance(mode, bool | np.bool_):
            raise ValueError(f"{type(self).__name__}.train got mode={mode!r}; it must be a bool")
        for module in self.modules():
            if isinstance(module, Module) or not hasattr(module, "train" if mode else "eval"):
                module.training = bool(mode)
            else:
                (module.train if mode else module.eval)()
        return self

    def eval(self) -> "Module":
        """Set evaluation mode for the whole tree; return self."""
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients (torch's default since 2.0), or fill them with zeros."""
        for module in self.modules():
            if isinstance(module, Module) and set_to_none:
                module._grads.clear()
            elif not isinstance(module, Module) and hasattr(module, "zero_grad"):
                module.zero_grad()
            else:
                for grad in own_mapping(module, "grads").values():
                    grad[...] = 0

    def astype(self, dtype) -> "Module":
        """Cast every floating parameter, gradient and buffer of the tree; return self."""
        dtype = check_dtype(f"{type(self).__name__}.astype", dtype)
        for module in self.modules():
            if not isinstance(module, Module) and hasattr(module, "astype"):
                module.astype(dtype)
                continue
            for kind in ("params", "grads", "buffers"):
                mapping = own_mapping(module, kind)
                for name, array in mapping.items():
                    if array is not None and np.asarray(array).dtype.kind == "f":
                        mapping[name] = np.asarray(array).astype(dtype)
        return self

    # Saving and loading.

    def _state(self, prefix: str = "") -> Iterator[tuple[str, dict, str]]:
        for kind in ("params", "buffers"):
            mapping = own_mapping(self, kind)
            for key, array in mapping.items():
                if array is not None:
                    yield prefix + key, mapping, key
        # Unlike `params`, the state lists a shared layer under each of its names, as in torch.
        for name, child in self._named_children().items():
            yield from Module._state_of(child, f"{prefix}{name}.")

    @staticmethod
    def _state_of(module, prefix: str):
        if isinstance(module, Module):
            yield from module._state(prefix)
            return
        for kind in ("params", "buffers"):
            mapping = own_mapping(module, kind)
            for key in mapping:
                yield prefix + key, mapping, key

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return name → copy of every parameter and buffer; names and order are torch's."""
        return {name: np.array(mapping[key]) for name, mapping, key in self._state()}

    def load_state_dict(self, state: Mapping, strict: bool = True) -> LoadResult:
        """Copy `state` into the parameters and buffers, keeping their dtypes.

        Raises RuntimeError naming every missing, unexpected and wrongly shaped entry, and then
        changes nothing. With `strict=False` missing and unexpected entries are returned only.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping of names to arrays, got {type(state)}")
        entries = {name: (mapping, key) for name, mapping, key in self._state()}
        missing = [name for name in entries if name not in state]
        unexpected = [name for name in state if name not in entries]
        faults, loaded = [], {}
        if strict and missing:
            faults.append(f"missing: {', '.join(missing)}")
        if strict and unexpected:
            faults.append(f"unexpected: {', '.join(map(str, unexpected))}")
        for name, (mapping, key) in entries.items():
            if name in state:
                target, given = np.asarray(mapping[key]), np.asarray(state[name])
                if given.dtype.kind not in "biuf":
                    faults.append(f"wrong dtype: {name} has {given.dtype}, wants {target.dtype}")
                elif given.shape != target.shape:
                    faults.append(f"wrong shape: {name} has {given.shape}, wants {target.shape}")
                else:
                    loaded[name] = given.astype(target.dtype)
        if faults:
            lines = "\n  ".join(faults)
            raise RuntimeError(f"the state does not fit {type(self).__name__}:\n  {lines}")
        for name, array in loaded.items():
            mapping, key = entries[name]
            if isinstance(mapping[key], np.ndarray) and mapping[key].flags.writeable:
                mapping[key][...] = array
            else:
                mapping[key] = array
        return LoadResult(missing, unexpected)

    # Help for subclasses.

    def _accumulate(self, name: str, grad) -> None:
        """Add `grad` to `grads[name]`; store the first as a copy, in the parameter's dtype."""
        grads = vars(self)["_grads"]
        if grads.get(name) is not None:
            grads[name] += grad
        else:
            dtype = np.asarray(vars(self)["_params"].get(name, grad)).dtype
            grads[name] = np.array(grad, dtype=dtype, order="C")

    def _recall(self):
        """Return what forward kept, or say that there was no forward."""
        if self._cache is None:
            raise RuntimeError(f"{type(self).__name__}.backward was called before forward")
        return self._cache

    def _floating(self, x, like=None) -> np.ndarray:
        """Return x as a floating array, of the dtype of the parameter `like` when there is one.

        Raises TypeError for integers, booleans and complex numbers, also in the parameter.
        """
        x = np.asarray(x)
        dtype = x.dtype
        if dtype.kind == "f" and dtype.isnative and (like is None or dtype is like.dtype):
            return x  # nearly always: small nets make this call thousands of times a second
        if like is not None and getattr(like, "dtype", np.dtype(object)).kind != "f":
            raise TypeError(
                f"{type(self).__name__} has a parameter {getattr(like, 'dtype', type(like))}; "
                "parameters must be floating arrays, for example weight.astype('float32')"
            )
        if x.dtype.kind != "f":
            raise TypeError(
                f"{type(self).__name__} got x with dtype {x.dtype}; it must be floating, "
                "for example x.astype('float32')"
            )
        if like is not None:
            return x.astype(like.dtype, copy=False)
        # Files hold either byte order; what is computed from them is the machine's own.
        return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))

    def _upstream(self, grad_output, shape: tuple, dtype) -> np.ndarray:
        """Return the upstream gradient as `dtype`; raise ValueError for another shape."""
        grad = np.asarray(grad_output)
        if grad.shape != tuple(shape):
            raise ValueError(
                f"{type(self).__name__}.backward got grad_output with shape {grad.shape}; "
                f"the output had shape {tuple(shape)}"
            )
        return grad.astype(dtype, copy=False)

    # Printing.

    def extra_repr(self) -> str:
        """Return what stands between the brackets of `repr`; a subclass may write it."""
        return ""

    def __repr__(self) -> str:
        """Return torch's picture of a tree, one indented line a child."""
        lines = []
        for name, child in self._named_children().items():
            lines.append(f"  ({name}): " + repr(child).replace("\n", "\n  "))
        if not lines:
            return f"{type(self).__name__}({self.extra_repr()})"
        if self.extra_repr():
            lines.insert(0, "  " + self.extra_repr())
        return f"{type(self).__name__}(\n" + "\n".join(lines) + "\n)"
