"""The reference's own rounding: its operations' results moved by one ulp, each at random.

Moving the inputs by one ulp does not show what a formula rounds inside: x - tanh(x) of a small x
moves as little as x³ does, and is wrong by the last bit of x.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from parity.draws import Draw
from parity.outcomes import Array, LayerError
from parity.torch_side import TorchSide

try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:  # a torch without it: nothing is measured, and nothing granted
    TorchDispatchMode = None

RUNS = 8  # every result is moved up in some and down in others
# They hand on numbers as they are (or turn a sign): nothing is rounded, so nothing is moved.
EXACT = frozenset(
    "abs cat clamp clamp_max clamp_min clone constant_pad_nd copy embedding empty_like flip"
    " full_like gather hardtanh index index_select lift_fresh masked_fill max"
    " max_pool2d_with_indices max_pool3d_with_indices maximum min minimum neg new_full new_zeros"
    " ones_like relu repeat roll scatter select_backward sign slice_backward sort stack"
    " threshold threshold_backward topk tril triu where zeros_like _to_copy".split()
)


def wobbled(side: TorchSide, draw: Draw) -> list[Mapping[str, Array | None]]:
    """Return the answers of RUNS float64 runs whose every operation is off by one ulp.

    None at all where torch has no such mode, or the module refuses to run under it.
    """
    if TorchDispatchMode is None:
        return []
    found: list[Mapping[str, Array | None]] = []
    for number in range(RUNS):
        try:
            with _mode(number):
                found.append(side.run(draw).quantities)
        except LayerError:
            return []
    return found


def _mode(seed: int) -> Any:
    """Return the mode that moves results; it draws from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)

    class Wobble(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if not _rounds(func, args):
                return result
            if isinstance(result, torch.Tensor):
                return _moved(result, generator)
            if isinstance(result, (tuple, list)):
                return type(result)(_moved(item, generator) for item in result)
            return result

    return Wobble()


def _rounds(func: Any, args: Any) -> bool:
    """Whether an operation makes new numbers from others: no view, no write, nothing random."""
    name = func._schema.name.rpartition("::")[2]
    if name in EXACT or any(item.alias_info is not None for item in func._schema.returns):
        return False
    tags = {str(tag).rpartition(".")[2] for tag in getattr(func, "tags", ())}
    return "nondeterministic_seeded" not in tags and _has_tensor(args)


def _has_tensor(args: Any) -> bool:
    return any(
        isinstance(item, torch.Tensor) or (isinstance(item, (tuple, list)) and _has_tensor(item))
        for item in args
    )


def _moved(item: Any, generator: torch.Generator) -> Any:
    """Return a floating CPU tensor with each number but 0 moved to a neighbour; others as is."""
    if not isinstance(item, torch.Tensor) or item.dtype != torch.float64:
        return item
    if item.device.type != "cpu" or item.layout != torch.strided:
        return item
    coins = torch.rand(item.shape, generator=generator) - 0.5
    ends = torch.copysign(torch.full_like(item, torch.inf), coins.to(item))
    still = (item == 0) | ~torch.isfinite(item)
    return torch.where(still, item, torch.nextafter(item, ends))
