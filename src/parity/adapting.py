"""Which adapter fits an object, or an error that says what was looked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parity.adapters.calling import takes_target
from parity.adapters.functional import Functions, FunctionSubject, functions
from parity.adapters.recognise import forward_name, has_backward, recognise, unknown
from parity.casting import arrays_of
from parity.findings import UsageError
from parity.options import Options
from parity.subjects import Subject


def is_torch_module(item: Any) -> bool:
    """Whether ``item`` is a torch.nn.Module, without importing torch for one that is not."""
    return any(
        cls.__module__ == "torch.nn.modules.module" and cls.__name__ == "Module"
        for cls in type(item).__mro__
    )


def keeps_contract(item: Any) -> bool:
    """Whether ``item`` has a forward and a backward method, as the plain contract asks."""
    return forward_name(item) is not None and has_backward(item)


def adapt(item: Any, options: Options | None = None) -> Subject:
    """Return the subject for ``item``, in the form that it is recognised to be written in.

    Raises UsageError that lists what was looked for and the shortest way to adapt.
    """
    device = options.device if options is not None else None
    if hasattr(item, "spawn") and hasattr(item, "title"):
        return item  # an adapter already
    if isinstance(item, Functions):
        return FunctionSubject(item)
    if isinstance(item, tuple) and len(item) == 2 and all(map(_is_function, item)):
        return FunctionSubject(functions(*item))
    if is_torch_module(item):
        return _torch_subject(item, device)
    if isinstance(item, type):
        return _from_factory(item, item.__name__, device)
    found = recognise(item)
    if found is not None:
        return found
    if _is_function(item):
        if takes_target(item):
            return FunctionSubject(functions(item))
        return _from_factory(item, getattr(item, "__name__", type(item).__name__), device)
    raise UsageError(unknown(item))


def _is_function(item: Any) -> bool:
    """Whether ``item`` is called rather than looked into: no class, no layer with a forward."""
    return callable(item) and not isinstance(item, type) and not hasattr(item, "forward")


def _torch_subject(module: Any, device: str | None) -> Subject:
    from parity.torch_subject import TorchSubject

    subject = TorchSubject(module, device)
    inner = getattr(module, "_orig_mod", None)
    if inner is not None:  # torch.compile wraps: its names are those of the module inside
        import torch._dynamo  # noqa: F401  changes settings when it is first imported, so not in mid-check

        subject.title = type(inner).__name__
        subject.forgiven = ("sys.setrecursionlimit",)  # the compiler's doing, not the layer's
        names = [name for name, _ in inner.named_parameters()]
        names += [name for name, _ in inner.named_buffers()]
        subject.renamed = {f"_orig_mod.{name}": name for name in names}
    return subject


def _from_factory(factory: Callable[[], Any], name: str, device: str | None) -> Subject:
    try:
        made = factory()
    except TypeError as error:
        raise UsageError(
            f"mine is {name}, which cannot be called without arguments ({error}); give an "
            f"instance, a factory (lambda: {name}(…)), or a pair of functions: "
            "parity.functions(forward, backward)"
        ) from error
    except Exception as error:
        raise UsageError(
            f"mine is {name}, which raised {type(error).__name__}: {error}; it must make the layer"
        ) from error
    if is_torch_module(made):
        return _torch_subject(made, device)
    found = recognise(made, factory)
    if found is None:
        raise UsageError(unknown(made))
    _refuse_hoarders(made, factory(), name)
    return found


def _refuse_hoarders(first: Any, second: Any, name: str) -> None:
    """A factory that hands out one object, or one set of arrays, twice is none."""
    mine = {id(array): array for array in arrays_of(first)}
    if first is second or any(
        np.may_share_memory(array, other)
        for array in arrays_of(second)
        for other in mine.values()
        if array.size and other.size
    ):
        what = "the same object" if first is second else "objects that share arrays"
        raise UsageError(
            f"the factory {name} returned {what} twice; it must make a new one at every call: "
            f"lambda: {type(first).__name__}(…)"
        )
