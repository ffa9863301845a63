"""What every optimizer shares: parameters by name, options, state and its storage."""

import copy
from collections.abc import Mapping
from numbers import Real

import numpy as np

from impl.blocks import BLOCK, blocks
from impl.tree import parameters


def option(name):
    """Return a property that reads and writes ``param_groups[0][name]``, its only storage."""

    def read(self):
        return self.param_groups[0][name]

    def write(self, value):
        self.param_groups[0][name] = value

    return property(read, write, doc=f"The hyper-parameter ``{name}``; may change between steps.")


class Optimizer:
    """Base of the optimizers: steps over any object with ``params`` and ``grads`` mappings.

    Names are looked up at every step, so arrays may be replaced and gradients arrive late; a
    parameter whose gradient is missing or None is skipped. An array under two names takes one
    step, with the sum of the gradients that differ. Parameters are updated in place, as in torch,
    so views of them stay true; a read-only array or a scalar is replaced in ``params`` instead.

    ``param_groups[0]`` holds the hyper-parameters, also readable and writable as attributes
    (``optimizer.lr = 0.1``); ``state`` maps name → {slot: array}, slots named as in torch.

    Raises TypeError for a model without the mappings, ValueError for one without parameters and
    for options out of range, NotImplementedError for torch's foreach, fused, capturable and
    differentiable, and for more than one parameter group.
    """

    lr = option("lr")
    weight_decay = option("weight_decay")
    maximize = option("maximize")

    def __init__(self, model, options, unsupported):
        for name, value in unsupported.items():
            if value:
                raise NotImplementedError(f"{self._name}: {name}={value!r} is not supported")
        if isinstance(model, list | tuple) and any(isinstance(g, Mapping) for g in model):
            raise self._groups()
        for kind in ("params", "grads"):
            if not hasattr(getattr(model, kind, None), "items"):
                raise TypeError(
                    f"{self._name} got {type(model).__name__}, which has no mapping {kind!r}; "
                    f"it takes the model itself, an object with params and grads by name"
                )
        if not len(model.params):
            raise ValueError(f"{self._name} got an empty parameter list: the model has no params")
        self.model = model
        self.param_groups = [options]
        self.state = {}
        self._check_options()

    def step(self, closure=None):
        """Update every parameter that has a gradient; return ``closure()`` where one is given."""
        loss = None if closure is None else closure()
        if len(self.param_groups) != 1:
            raise self._groups()
        self._step_all()
        return loss

    @np.errstate(all="ignore")  # a diverging run overflows to inf and nan, as in torch
    def _step_all(self):
        for name, stored, grad in self._gradients():
            self._step_one(name, stored, grad)

    def zero_grad(self, set_to_none=True):
        """Clear the gradients: the model's own ``zero_grad``, or else every array set to 0.

        With ``set_to_none=False`` every array is set to 0 in any case.
        """
        if set_to_none and hasattr(self.model, "zero_grad"):
            self.model.zero_grad()
            return
        for name, grad in list(self.model.grads.items()):
            if isinstance(grad, np.ndarray) and grad.flags.writeable:
                grad[...] = 0
            elif grad is not None:
                self.model.grads[name] = np.zeros_like(grad)[()]

    def add_param_group(self, param_group):
        """Raise NotImplementedError: there is one group, of all the model's parameters."""
        raise self._groups()

    def _groups(self):
        return NotImplementedError(f"{self._name} supports one parameter group alone")

    def state_dict(self):
        """Return copies: {"state": {name: {slot: array}}, "param_groups": [options]}."""
        group = copy.deepcopy(self.param_groups[0])
        group["params"] = list(self.model.params)
        return {"state": copy.deepcopy(self.state), "param_groups": [group]}

    def load_state_dict(self, state_dict):
        """Take over what ``state_dict`` returned; arrays are copied and cast to their parameter's
        dtype. Raises ValueError, before anything has changed, for unknown names and wrong shapes.
        """
        groups = state_dict["param_groups"]
        if len(groups) != 1:
            raise self._groups()
        options = {name: value for name, value in groups[0].items() if name != "params"}
        if options.keys() != self.param_groups[0].keys():
            raise ValueError(
                f"{self._name} got the options {sorted(options)}; "
                f"it has {sorted(self.param_groups[0])}"
            )
        unknown = [name for name in state_dict["state"] if name not in self.model.params]
        if unknown:
            raise ValueError(
                f"{self._name} got state for {unknown}; the model has {list(self.model.params)}"
            )
        state = {}
        for name, slots in state_dict["state"].items():
            param = np.asarray(self.model.params[name])
            state[name] = {
                slot: self._loaded(f"{name}.{slot}", slot, array, param)
                for slot, array in slots.items()
            }
        self.state = state
        self.param_groups[0].update(copy.deepcopy(options))

    def __repr__(self):
        options = ", ".join(f"{name}={value!r}" for name, value in self.param_groups[0].items())
        return f"{self._name}({options})"

    @property
    def _name(self):
        return type(self).__name__

    def _loaded(self, label, slot, array, param):
        if slot == "step":
            return np.array(array, dtype=np.float32)
        if np.shape(array) != param.shape:
            raise ValueError(
                f"{self._name} got {label} with shape {np.shape(array)}; "
                f"the parameter has {param.shape}"
            )
        return np.array(array, dtype=param.dtype)

    def _check_options(self):
        for name in ("lr", "weight_decay"):
            self._check_not_negative(name)

    def _check_not_negative(self, name):
        value = getattr(self, name)
        number = isinstance(value, Real) or (np.ndim(value) == 0 and isinstance(value, np.ndarray))
        if not number or not value >= 0:  # "not >=" refuses NaN as well
            raise ValueError(f"{self._name} got {name}={value!r}; it must be a number ≥ 0")

    def _gradients(self):
        """Return (name, parameter, gradient) of all to step; all checked before any moves."""
        owners, found = {}, {}
        for name, stored, grad in parameters(self.model):
            if grad is None:
                continue
            # Scalars have no identity worth the name: Python shares equal ones.
            owner = owners.setdefault(id(stored) if isinstance(stored, np.ndarray) else name, name)
            if owner is name:
                found[name] = stored, [grad]
            elif not any(grad is other for other in found[owner][1]):
                found[owner][1].append(grad)
        return [
            (name, stored, self._fitting(name, stored, grads))
            for name, (stored, grads) in found.items()
        ]

    def _fitting(self, name, stored, grads):
        """Return the sum of the gradients in their parameter's dtype, or raise ValueError."""
        param = np.asarray(stored)
        grad = np.asarray(grads[0] if len(grads) == 1 else sum(grads), param.dtype)
        if param.dtype.kind != "f":
            raise ValueError(
                f"{self._name}: parameter {name!r} has dtype {param.dtype}; "
                f"only floating point parameters can be stepped"
            )
        if grad.shape != param.shape:
            raise ValueError(
                f"{self._name}: the gradient of {name!r} has shape {grad.shape}; "
                f"its parameter has {param.shape}"
            )
        return grad

    def _step_one(self, name, stored, grad):
        in_place = isinstance(stored, np.ndarray) and stored.flags.writeable
        param = stored if in_place else np.array(stored)
        slots = self.state.get(name, {})
        self._update(param, -grad if self.maximize else grad, slots)
        if slots:
            self.state[name] = slots
        if not in_place:
            self.model.params[name] = param if isinstance(stored, np.ndarray) else param[()]

    def _update(self, param, grad, slots):
        """Change ``param`` and the arrays of ``slots`` in place; leave ``grad`` as it is."""
        raise NotImplementedError(f"{self._name} has no update rule")

    def _decayed(self, param, grad):
        decay = float(self.weight_decay)
        return grad if decay == 0 else grad + decay * param

    def _slot(self, slots, slot, param):
        """Return the state array ``slot``, zeros at first, in the parameter's dtype."""
        array = slots.get(slot)
        if array is None:
            array = slots[slot] = np.zeros_like(param, order="C", subok=False)
        elif array.dtype != param.dtype:  # the model was cast between two steps
            array = slots[slot] = array.astype(param.dtype)
        if array.shape != param.shape:
            raise ValueError(
                f"{self._name}: {slot} has shape {array.shape}, its parameter {param.shape} by "
                f"now; make a new optimizer after changing a shape"
            )
        return array


def parts(*arrays):
    """Return the arrays, or matching blocks of large ones: each pass then stays in the cache."""
    if arrays[0].size <= 2 * BLOCK or not all(array.flags.c_contiguous for array in arrays):
        return (arrays,)
    flat = [array.reshape(-1) for array in arrays]
    return ([array[part] for array in flat] for part in blocks(arrays[0].size, 1))
