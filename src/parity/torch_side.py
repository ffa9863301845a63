"""A torch module, loss or callable run on a draw: the reference, or a torch layer under test."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.draws import Draw
from parity.findings import UsageError
from parity.outcomes import Array, LayerError, Outcome, alike, forward_names

CPU = torch.device("cpu")
LARGE = 20_000  # elements that make a run cost about twice its overhead
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_NUMPYS = (torch.float64, torch.float32, torch.int64)  # NumPy reads and writes these in place
FLOATS: dict[str, np.dtype[Any]] = {  # NumPy's
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
}


class _SharedMask(nn.Module):
    """Dropout whose keep mask is given: both sides must drop the same elements."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keep: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0.0:
            return x
        if self.p == 1.0:
            return x * 0.0
        keep = self.keep
        if keep is None or keep.shape != x.shape:
            rng = np.random.default_rng(0)
            keep = torch.from_numpy(rng.random(tuple(x.shape)) >= self.p)
        return x * (keep.to(x) / (1.0 - self.p))


class _Function(nn.Module):
    """A plain callable on tensors, dressed as a module without parameters."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def _made_whole(module: nn.Module, side: str) -> None:
    """Raise UsageError for a module that torch's own constructor never saw."""
    if "_parameters" not in vars(module):
        raise UsageError(
            f"{side} is {type(module).__name__}, a torch.nn.Module whose __init__ leaves out "
            "torch's own: call super().__init__() first in it"
        )


def usable_device(name: str | None) -> torch.device:
    """Return the torch device of that name, the CPU for None.

    Raises UsageError where torch knows no such device or cannot use it here.
    """
    if name is None:
        return CPU
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        text = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"device {name!r} cannot be used here ({text}); 'cpu' always can, 'cuda' needs a GPU"
        ) from error
    return device


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generator alone and put it back: torch.manual_seed asks every backend."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def as_module(target: Any, side: str) -> nn.Module:
    """Return ``target`` as a module: a module itself, a loss, or a callable on tensors.

    Raises UsageError for a class in place of an instance, or something that cannot be called.
    """
    if isinstance(target, nn.Module):
        return target
    if isinstance(target, type) and issubclass(target, nn.Module):
        raise UsageError(
            f"{side} is the class {target.__name__}; give an instance: {target.__name__}(…)"
        )
    if callable(getattr(target, "backward", None)):
        raise UsageError(
            f"{side} is {type(target).__name__}, which has a backward of its own: it looks "
            "hand-written, and mine comes first, torch's second"
        )
    if callable(target):
        return _Function(target)
    raise UsageError(
        f"{side} is {type(target).__name__}; it must be a torch.nn.Module, a torch loss or a "
        "callable on tensors"
    )


class TorchSide:
    """Runs copies of one torch module; the caller's module is never touched."""

    def __init__(self, target: Any, side: str = "theirs", device: str | None = None) -> None:
        self.original = as_module(target, side)
        self.custom = side == "mine"  # somebody's own backward may write to its upstream gradient
        _made_whole(self.original, side)
        self.device = usable_device(device)
        self._copies: dict[str, nn.Module] = {}
        self.state = {
            name: tensor.detach().cpu() for name, tensor in self.original.named_parameters()
        }
        self.params = {n: _numpy(t) for n, t in self.state.items()}
        self.buffers = {n: _numpy(t) for n, t in self.original.named_buffers()}
        self.is_loss = isinstance(self.original, nn.modules.loss._Loss)
        self.work = 0.0  # runs so far, large ones counting more: a budget that no clock moves
        self.dropouts = [
            module.p for module in self.original.modules() if isinstance(module, DROPOUTS)
        ]

    @property
    def lone(self) -> bool:
        """Whether the module has no children: its inputs reach the formula directly."""
        return not any(True for _ in self.original.children())

    @property
    def drops_elements(self) -> bool:
        """Whether the module is torch's dropout of single elements."""
        return isinstance(self.original, nn.Dropout)

    @property
    def title(self) -> str:
        """The constructor text, such as ``Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))``."""
        if isinstance(self.original, _Function):
            return getattr(self.original.function, "__name__", repr(self.original.function))
        return repr(self.original).partition("\n")[0]

    def copy(self, dtype: str) -> nn.Module:
        """Return this side's own copy in ``dtype``, dropout layers replaced by shared masks."""
        if dtype not in self._copies:
            module = copy.deepcopy(self.original).to(device=self.device, dtype=DTYPES[dtype])
            self._copies[dtype] = _share_masks(module)
        return self._copies[dtype]

    def own_masks(self, draw: Draw, count: int) -> list[Array]:
        """Return what torch's own dropout, not the shared mask, keeps of ones in several calls."""
        module = copy.deepcopy(self.original).to(device=self.device).train()
        with seeded(draw.seed), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inputs = [self._tensor(array, "float32") for array in draw.inputs]
            return [_numpy(flatten(_call(module, inputs))[0]) != 0 for _ in range(count)]

    def held(self) -> dict[str, Array]:
        """Return the parameters of the float64 copy as the last pass left them."""
        return {name: _numpy(p) for name, p in self.copy("float64").named_parameters()}

    def run(
        self,
        draw: Draw,
        dtype: str = "float64",
        module: nn.Module | None = None,
        between: Sequence[Array] | None = None,
        strided: bool = False,
        once: bool = False,
    ) -> Outcome:
        """Run forward and backward on ``draw`` in ``dtype``.

        ``between`` are the inputs of another forward pass that comes between the two; ``strided``
        hands over tensors of which every second number in memory counts; ``once`` says that nobody
        else has the floating arrays of ``draw``, and that the outcome is read before the next run:
        then neither is copied. Raises LayerError, with the phase, where the module refuses.
        """
        module = self.copy(dtype) if module is None else module
        sizes = [array.size for array in (*draw.inputs, *draw.params.values())]
        self.work += 1.0 + sum(sizes) / LARGE
        self.load(module, draw)
        inputs = self._leaves(draw, dtype, strided, once)
        with seeded(draw.seed), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on speed is no business of the check
            outputs = _forward(module, inputs)
            if between is not None:
                _call(module, [self._tensor(array, dtype) for array in between])
            quantities, touched = self._quantities(module, draw, inputs, outputs, strided, once)
        arrays = tuple(_numpy(output, once) for output in outputs)
        outcome = Outcome(arrays, dict(zip(forward_names(len(arrays)), arrays, strict=True)))
        outcome.quantities.update(quantities)
        if any(_shares(output, tensor) for output in outputs for tensor in inputs):
            outcome.remarks.append(("view_of_input", "the output is a view of the input"))
        if touched:
            outcome.remarks.append(("upstream_modified", "the upstream gradient was changed"))
        return outcome

    def outputs(self, draw: Draw) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Return the shape of each output, and "f" where it is floating, from a forward pass alone.

        Raises LayerError where the module refuses.
        """
        module = self.copy("float64")
        self.work += 1.0
        self.load(module, draw)
        inputs = self._leaves(draw, "float64")  # of which gradients may be asked: hooks want that
        with seeded(draw.seed), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = _forward(module, inputs)
        return tuple((tuple(o.shape), "f" if o.is_floating_point() else "i") for o in outputs)

    def _quantities(
        self,
        module: nn.Module,
        draw: Draw,
        inputs: list[torch.Tensor],
        outputs: list[torch.Tensor],
        strided: bool,
        once: bool,
    ) -> tuple[dict[str, Array | None], bool]:
        """Return gradients and buffers, and whether backward wrote to what it was handed."""
        targets = {f"grad_input{i}": t for i, t in enumerate(inputs) if t.requires_grad}
        targets |= {f"grad_{n}": p for n, p in module.named_parameters() if p.requires_grad}
        found: dict[str, Array | None] = dict.fromkeys(targets)
        pairs = []
        for output, g in zip(outputs, draw.upstream, strict=False):
            if g is None:
                continue
            if g.size != output.numel():
                text = f"the output has shape {tuple(output.shape)}, torch's is {g.shape}"
                raise LayerError(text, "shape")
            if output.requires_grad:
                upstream = self._tensor(g, _name(output.dtype), once)
                as_output = g.shape == output.shape  # a view costs a tenth of a small pass
                pairs.append((output, upstream if as_output else upstream.view(output.shape)))
        if strided:
            pairs = [(output, _strided(g)) for output, g in pairs]
        kept = [g.clone() for _, g in pairs] if self.custom else []
        if pairs and targets:
            try:
                grads = torch.autograd.grad(
                    [output for output, _ in pairs],
                    list(targets.values()),
                    [g for _, g in pairs],
                    allow_unused=True,
                )
            except (Exception, SystemExit) as error:
                # torch.heaviside and its like have no derivative: compared forward alone
                if "derivative for" not in str(error):
                    raise LayerError(_first_line(error), "backward") from error
                grads = (None,) * len(targets)
            found = {
                name: None if g is None else _numpy(g, once)
                for name, g in zip(targets, grads, strict=True)
            }
        for name, buffer in module.named_buffers():
            found[f"buffer_{name}"] = _numpy(buffer, once)
        touched = any(
            not alike(_numpy(g), _numpy(before))
            for (_, g), before in zip(pairs, kept, strict=False)
        )
        return found, touched

    def load(self, module: nn.Module, draw: Draw) -> None:
        """Write the draw's numbers, mode and masks into ``module``."""
        if draw.params:
            for name, parameter in module.named_parameters():
                if name in draw.params:
                    _write(parameter, draw.params[name])
        if draw.buffers:
            for name, buffer in module.named_buffers():
                if name in draw.buffers:
                    _write(buffer, draw.buffers[name])
        module.train(draw.training)
        if not self.dropouts:
            return
        masked = [child for child in module.modules() if isinstance(child, _SharedMask)]
        for child, mask in zip(masked, draw.masks, strict=False):
            child.keep = torch.from_numpy(np.ascontiguousarray(mask)).to(self.device)
        for child in masked[len(draw.masks) :]:
            child.keep = None

    def _leaves(
        self, draw: Draw, dtype: str, strided: bool = False, once: bool = False
    ) -> list[torch.Tensor]:
        """Return the inputs as leaves of a graph."""
        inputs = [self._tensor(array, dtype, once) for array in draw.inputs]
        if strided:
            inputs = [_strided(tensor) for tensor in inputs]
        for tensor in inputs:
            if tensor.is_floating_point():
                tensor.requires_grad_(True)
        return inputs

    def _tensor(self, array: Array, dtype: str, once: bool = False) -> torch.Tensor:
        """Return the array as a tensor of its own: the module may write into it."""
        array = np.asarray(array)
        floating = array.dtype.kind == "f"
        wanted = FLOATS.get(dtype, array.dtype) if floating else array.dtype
        if wanted == array.dtype:
            own = array if once and floating else array.copy()
        else:
            # NumPy casts and copies into large pages, torch into thousands of small ones
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                own = array.astype(wanted, order="C")
        tensor = torch.from_numpy(np.asarray(own, order="C"))
        if dtype in FLOATS and self.device == CPU:
            return tensor
        # a dtype that NumPy does not have is left to torch
        return tensor.to(device=self.device, dtype=DTYPES[dtype] if floating else None)


def _write(tensor: torch.Tensor, array: Array) -> None:
    """Write the array into a parameter or buffer, by NumPy where that reaches its memory."""
    array = np.asarray(array, order="C")
    if tensor.dtype in _NUMPYS and tensor.layout is torch.strided and tensor.is_cpu:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            np.copyto(tensor.detach().numpy(), array, casting="unsafe")
        return
    lent = torch.from_numpy(array if array.flags.writeable else array.copy())
    with torch.no_grad():
        tensor.copy_(lent)


def _strided(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same numbers with a gap after each of them in memory."""
    if not tensor.ndim:
        return tensor
    wide = torch.zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]), dtype=tensor.dtype)
    view = wide.to(tensor.device)[..., ::2]
    return view.copy_(tensor)


def _forward(module: nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors that forward returns. Raises LayerError where it refuses, or has none."""
    try:
        returned = _call(module, inputs)
        outputs = flatten(returned)
        if not outputs:
            raise _no_tensor(returned)
    except LayerError:
        raise
    except (Exception, SystemExit) as error:
        raise LayerError(_first_line(error), "forward") from error
    return outputs


def _call(module: nn.Module, inputs: list[torch.Tensor]) -> Any:
    try:
        return module(*inputs)
    except RuntimeError as error:
        # some losses have no derivative for their target and refuse one that asks for it
        if "not differentiable with respect to" not in str(error):
            raise
        for tensor in inputs[1:]:
            tensor.requires_grad_(False)
        return module(*inputs)


def flatten(value: Any) -> list[torch.Tensor]:
    """Return the tensors of a nested output in order: tuples, lists and mappings are walked."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in flatten(item)]
    if isinstance(value, Iterable) and not isinstance(value, (str, np.ndarray)):
        return [tensor for item in value for tensor in flatten(item)]
    if value is None:
        return []
    if isinstance(value, (bool, int, float)):
        return [torch.as_tensor(value)]
    raise _no_tensor(value)


def _no_tensor(value: Any) -> LayerError:
    kind = "None" if value is None else type(value).__name__
    return LayerError(
        f"returned {kind}, which holds no tensor; return a tensor, or a tuple, list or dict of "
        "tensors",
        "forward",
    )


def _share_masks(module: nn.Module) -> nn.Module:
    if isinstance(module, DROPOUTS):
        return _SharedMask(module.p)
    for name, child in module.named_children():
        setattr(module, name, _share_masks(child))
    return module


def _numpy(tensor: torch.Tensor, once: bool = False) -> Array:
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype in _NUMPYS and tensor.layout is torch.strided and not tensor.is_neg():
        if not tensor.is_cpu:
            tensor = tensor.cpu()
        return tensor.numpy() if once else tensor.numpy().copy()
    tensor = tensor.cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.to(torch.float32)
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    array = tensor.resolve_conj().resolve_neg().numpy()
    return array if once else np.array(array)


def _shares(output: torch.Tensor, tensor: torch.Tensor) -> bool:
    return bool(output.numel()) and output.data_ptr() == tensor.data_ptr()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
