"""Counterfactuals from the reference's own constructor: the module rebuilt with another option."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from parity.diagnosis.registry import Hypothesis, hypotheses
from parity.diagnosis.trials import Predict, Quantities, Trial
from parity.pair import Pair

NOT_OPTIONS = {"self", "device", "dtype", "inplace", "size_average", "reduce", "bias", "eps",
               "in_features", "out_features", "in_channels", "out_channels", "num_features",
               "num_channels", "num_embeddings", "embedding_dim", "return_indices"}  # fmt: skip
EPSILONS = (1e-5, 0.0, 1e-20, 1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-4, 1e-3, 1e-2)
BEYOND = 1e30  # stands for no threshold at all
LINEAR = 37.0  # where log(1 + exp(x)) is x
NO_EPS = 1e-16  # what is smaller stands for none: some layers of torch refuse 0 itself
CHOICES = {
    "reduction": ("mean", "sum", "none", "batchmean"),
    "padding_mode": ("zeros", "reflect", "replicate", "circular"),
    "approximate": ("none", "tanh"),
    "nonlinearity": ("tanh", "relu"),
    "mode": ("sum", "mean", "max", "nearest", "nearest-exact", "linear", "bilinear", "bicubic",
             "trilinear"),
}  # fmt: skip
UNSET = {"momentum": (0.1, 0.9, 1.0, 0.0), "output_size": (1,), "align_corners": (True,)}
OWN = "torch.nn.utils.parametr"  # parametrize and parametrizations
WHY = {
    "momentum": ": the running average weighs the old value where torch weighs the new one",
}
# a floor below the smallest number that is met shows in nothing
NOT_ADDED = "eps is not added: it is left out, or no more than a bound from below"
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm,
         *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))  # fmt: skip
MISSING = object()


@dataclass(frozen=True)
class Change:
    """One option of one layer set to another value."""

    path: str
    option: str
    value: Any
    default: Any
    given: Any

    @property
    def name(self) -> str:
        """The stable name of the cause."""
        if self.option == "momentum" and _near(self.value, 1 - (self.given or 0.0)):
            return "momentum_swapped"
        if self.option == "reduction":
            return "wrong_reduction"
        if self.option == "threshold" and self.value == BEYOND:
            return "threshold_ignored"
        if self.option == "weight" and self.value is None:
            return "class_weight_ignored"
        default = self.default
        if isinstance(self.value, tuple) and isinstance(default, int):
            default = (default,) * len(self.value)
        if isinstance(self.value, float) and type(default) is int:  # an older torch's beta=1
            default = float(default)
        if _same(self.value, default) and not _same(default, self.given):
            return f"{self.option}_ignored"
        return f"wrong_{self.option}"


def _near(value: Any, other: float) -> bool:
    return isinstance(value, (int, float)) and math.isclose(value, other, rel_tol=1e-9)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return a is b
    return type(a) is type(b) and bool(a == b)


def private(module: nn.Module) -> bool:
    """Whether torch keeps a module's class to itself: its attributes are no options of anyone's.

    Some hand them to native code unchecked, which a wrong value makes write out of bounds.
    """
    kind = type(module)
    home = kind.__module__ or ""
    return home.startswith(OWN) or (kind.__name__.startswith("_") and home.startswith("torch."))


def _open(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of ``root`` but for what computes a parametrized weight."""
    for path, layer in root.named_modules():
        if "parametrizations" not in path.split("."):
            yield path, layer


def arguments(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return option → (value, default), read from the constructor's names and the attributes."""
    found: dict[str, tuple[Any, Any]] = {}
    if private(module):
        return found
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(module, name, MISSING)
        if name == "bias" and (value is None or isinstance(value, torch.Tensor)):
            value = value is not None
        if name.startswith("elementwise_affine") and value is MISSING:
            continue
        default = None if parameter.default is parameter.empty else parameter.default
        if value is MISSING:
            if parameter.default is parameter.empty:
                return {}
            continue
        found[name] = (value, default)
    return found


def rebuilt(module: nn.Module, option: str, value: Any) -> nn.Module | None:
    """Return ``module`` built anew with one option changed and its state copied; None if refused.

    Where a constructor cannot be called again the attribute of a copy is set instead.
    """
    given = {name: held for name, (held, _) in arguments(module).items()}
    try:
        with torch.random.fork_rng(devices=[]):
            made = type(module)(**{**given, option: value})
        if type(made) is not type(module):
            return None
    except Exception:  # a value that the constructor refuses is no counterfactual
        return None
    made = made.to(torch.float64)
    held = made.state_dict()
    state = {n: t for n, t in module.state_dict().items() if n in held and held[n].shape == t.shape}
    made.load_state_dict(state, strict=False)
    return made.train(module.training)


def alternatives(option: str, value: Any, default: Any, module: nn.Module) -> Iterator[Any]:
    """Yield other values of one option, the likeliest first."""
    if default is None and value is not None and not isinstance(value, (bool, str, torch.Tensor)):
        yield None
    if option == "threshold" and isinstance(module, nn.Softplus):
        # above LINEAR it is a line to the last digit: to have no threshold is a variant of its own
        near = (default, 10, 30, 15, 5, 2, 1, 0, 2 * value, value / 2, value + 1, value - 1)
        yield from (float(t) for t in near if 0 <= t < LINEAR and t != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, str):
        choices = CHOICES.get(option, ())
        yield from (choice for choice in choices if choice != value)
        if option == "padding":
            yield from (0, 1, 2)
    elif isinstance(value, torch.Tensor):
        yield None
        yield from (value.square(), value.sqrt(), value.reciprocal(), value / value.sum())
    elif value is None:
        yield from UNSET.get(option, ())
    elif isinstance(value, float) or (isinstance(value, int) and isinstance(default, float)):
        yield from _floats(option, float(value), default, module)
    elif isinstance(value, int):
        yield from _integers(option, value, default)
    elif isinstance(value, (tuple, list)) and value and all(isinstance(v, int) for v in value):
        yield from _tuples(option, tuple(value), default)
    elif isinstance(value, (tuple, list)) and value and all(isinstance(v, float) for v in value):
        kind = type(value)
        yield kind(value[::-1])
        for change in (lambda v: 0.0, lambda v: 1.0, lambda v: v * v, lambda v: 1 / v if v else 0):
            yield kind(map(change, value))


def _floats(option: str, v: float, default: Any, module: nn.Module) -> Iterator[float]:
    if isinstance(default, (int, float)) and default != v:
        yield float(default)
    if option == "threshold":
        yield from (BEYOND, -BEYOND)
    if option == "label_smoothing":
        yield from (0.0, v / 2, 2 * v)
        return
    yield from (1 - v, 2 * v, v / 2, -v, 0.0, 1.0)
    if v:
        yield from (1 / v, v * v, math.sqrt(abs(v)), v + 1)
    if v != 0.01:
        yield 0.01


def _integers(option: str, v: int, default: Any) -> Iterator[float]:
    if isinstance(default, int) and default != v:
        yield default
    if option == "ignore_index":
        yield from (n for n in (-100, -1, *range(10)) if n != v)
        return
    if option == "threshold":
        yield from (BEYOND, -BEYOND)
    if option in ("dim", "start_dim", "end_dim", "axis"):
        yield from (i for i in (0, 1, 2, 3, -1) if i != v)
        return
    yield from (n for n in (v + 1, v - 1, 0, 1, 2, -v) if n != v)


def _tuples(option: str, v: tuple[int, ...], default: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(default, int) and (default,) * len(v) != v:
        yield (default,) * len(v)
    if len(set(v)) > 1:
        yield v[::-1]
        yield from ((n,) * len(v) for n in set(v))
    for step in (-1, 1):
        yield tuple(n + step for n in v)
        if len(v) > 1:
            for i in range(len(v)):
                yield tuple(n + step * (i == j) for j, n in enumerate(v))


def changes(module: nn.Module) -> Iterator[tuple[str, nn.Module, Change]]:
    """Yield (path, layer, change) for every layer within ``module``."""
    for path, layer in _open(module):
        for option, (value, default) in arguments(layer).items():
            if isinstance(value, (nn.Module, nn.Parameter)):
                continue
            if option == "eps":
                other = [e for e in EPSILONS if e != value]
            elif option in NOT_OPTIONS or (option == "weight" and not _loss(layer)):
                continue
            else:
                other = list(alternatives(option, value, default, layer))
            seen: list[Any] = []
            for new in other:
                if any(_same(new, old) for old in seen) or _same(new, value):
                    continue
                seen.append(new)
                yield path, layer, Change(path, option, new, default, value)


def _loss(layer: nn.Module) -> bool:
    return hasattr(layer, "reduction")


def replaced(root: nn.Module, path: str, layer: nn.Module) -> nn.Module:
    """Return a copy of ``root`` with the layer at ``path`` exchanged."""
    if not path:
        return layer
    clone = copy.deepcopy(root)
    parent, _, last = path.rpartition(".")
    setattr(clone.get_submodule(parent), last, layer)
    return clone


def public_name(layer: Any) -> str:
    """Return the class of a layer as its user knows it."""
    name = type(layer).__name__
    if isinstance(layer, nn.Module) and name == "_SharedMask":  # what stands in for a dropout
        return "Dropout"
    if type(layer).__module__.startswith(OWN):  # a layer whose parameter is computed from others
        return name.removeprefix("Parametrized")
    return name


def shown(layer: nn.Module, change: Change) -> str:
    """Return ``BatchNorm2d(momentum=0.9)``, with the path of a layer within a model."""
    value = change.value
    if isinstance(value, float):
        value = float(f"{value:.6g}")
    if isinstance(value, torch.Tensor):
        value = "…"
    if isinstance(value, tuple) and len(set(value)) == 1:
        value = value[0]
    text = f"{public_name(layer)}({change.option}={value!r})"
    return f"{text} as layer {change.path!r}" if change.path else text


def hypothesis(root: nn.Module, layer: nn.Module, change: Change) -> Hypothesis | None:
    """Return the hypothesis that ``layer`` has one option changed; None where it cannot be."""
    made = rebuilt(layer, change.option, change.value)
    if made is None:
        return None
    module = replaced(root, change.path, made)
    text = shown(layer, change)
    name = change.name
    why = WHY.get(change.option, "") if name == "momentum_swapped" else ""
    if name.endswith("_ignored"):
        why = f": the option {change.option} is ignored"
    if change.option == "threshold" and change.value in (BEYOND, -BEYOND):
        text = f"{text.partition('(')[0]} without its threshold"
        why = f", in layer {change.path!r}" if change.path else ""
    sentence = f"behaves exactly like {text}{why}"
    if isinstance(layer, NORMS) and _without_eps(change):
        sentence = NOT_ADDED + (f" in layer {change.path!r}" if change.path else "")
    return Hypothesis(name, sentence, _asked_for(module), module)


def _without_eps(change: Change) -> bool:
    held = isinstance(change.given, float) and change.given >= NO_EPS
    return change.option == "eps" and held and change.value < NO_EPS


def _asked_for(module: nn.Module) -> Predict:
    """Return the prediction of ``module``; none where the option makes torch itself overflow.

    Whoever forgot to guard an exponential has set no threshold of 1e30, though it looks alike.
    """

    def predict(trial: Trial) -> Quantities | None:
        made = trial.run(module)
        return None if made is None or trial.overflows(made) else made

    return predict


def runner(module: nn.Module) -> Predict:
    """Return the prediction that runs ``module`` in the reference's place."""
    return lambda trial: trial.run(module)


def root_of(pair: Pair) -> nn.Module:
    """Return the reference in float64, with shared dropout masks."""
    return pair.reference.copy("float64")


@hypotheses
def other_options(pair: Pair) -> Iterator[Hypothesis]:
    """Every option of every layer of the reference set to another value, one at a time."""
    root = root_of(pair)
    for _, layer, change in changes(root):
        made = hypothesis(root, layer, change)
        if made is not None:
            yield made


def numeric(pair: Pair) -> Iterator[tuple[nn.Module, nn.Module, Change]]:
    """Yield (root, layer, change) for each numeric option: those whose value can be fitted."""
    root = root_of(pair)
    for path, layer in _open(root):
        for option, (value, default) in arguments(layer).items():
            if option in NOT_OPTIONS - {"eps"} or isinstance(value, bool):
                continue
            if isinstance(value, float) or (isinstance(value, int) and isinstance(default, float)):
                yield root, layer, Change(path, option, float(value), default, float(value))
