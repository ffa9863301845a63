"""What changed between versions of torch and NumPy, as data: ranges, reasons, and what we do.

Code asks :func:`holds` and never compares versions itself; a test observes each quirk on the
version that is installed, so a range that is wrong is noticed on the leg where it is. Between two
versions of the matrix the later one stands, where it is not known which release brought a change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class Quirk:
    """A behaviour of ``package`` from version ``since`` (included) up to ``until`` (excluded)."""

    name: str
    package: str
    since: str
    until: str
    what: str
    instead: str

    def covers(self, installed: str) -> bool:
        """Whether ``installed`` lies in the range; local and pre-release tails do not count."""
        have = release(installed)
        return (not self.since or have >= release(self.since)) and (
            not self.until or have < release(self.until)
        )


QUIRKS = (
    Quirk(
        "zero_grad_fills_zeros",
        "torch",
        "",
        "2.0",
        "optimizer.zero_grad() and Module.zero_grad() fill with zeros; later they set None",
        "gradients are cleared by hand, set to None",
    ),
    Quirk(
        "load_runs_code",
        "torch",
        "",
        "2.6",
        "torch.load unpickles anything by default; later weights_only is True",
        "weights_only=True is always said",
    ),
    Quirk(
        "sgd_needs_lr",
        "torch",
        "",
        "2.2",
        "SGD has no default learning rate; later 1e-3",
        "lr is always said; the table of bad input leaves its absence out",
    ),
    Quirk(
        "sgd_is_fused",
        "torch",
        "2.4",
        "",
        "SGD takes fused=",
        "fused stays off: a fused step rounds otherwise",
    ),
    Quirk(
        "adam_is_decoupled",
        "torch",
        "2.7",
        "",
        "Adam takes decoupled_weight_decay=",
        "cases with that option exist only there",
    ),
    Quirk(
        "half_on_cpu",
        "torch",
        "2.2",
        "",
        "matrix products and convolutions take float16 on the CPU",
        "a reference that refuses 16 bit is a SKIPPED finding, no fault",
    ),
    Quirk(
        "device_is_context",
        "torch",
        "2.0",
        "",
        "torch.device is a context manager that sets the default device",
        "bundles are read without one before",
    ),
    Quirk(
        "numpy_two_is_unknown",
        "torch",
        "",
        "2.3",
        "torch.from_numpy fails under NumPy 2",
        "the environments of these versions pin numpy<2",
    ),
    Quirk(
        "elu_cancels",
        "torch",
        "",
        "2.9",
        "ELU is exp(x) - 1 on the CPU and loses its digits near 0; later expm1",
        "a gap in the rows that see it: there torch is the one that is wrong",
    ),
    Quirk(
        "softplus_prints_whole_numbers",
        "torch",
        "",
        "2.2",
        "Softplus() prints beta=1, threshold=20; later 1.0 and 20.0",
        "its printed form is not compared",
    ),
    Quirk(
        "mse_wants_one_dtype",
        "torch",
        "",
        "2.13",
        "the backward pass of MSELoss refuses a target of integers",
        "the row with such a target is left out",
    ),
    Quirk(
        "batch_norm_takes_any_eps",
        "torch",
        "",
        "2.13",
        "batch norm takes eps = 0 in training; later it must be positive",
        "the hand-written side alone must refuse it",
    ),
    Quirk(
        "circular_wants_a_batch",
        "torch",
        "",
        "2.4",
        "Conv2d with circular padding refuses an image without a batch axis",
        "the row with such an image is left out",
    ),
    Quirk(
        "compile_wants_older_python",
        "torch",
        "",
        "2.1",
        "torch.compile does not know Python 3.11, or is not there at all",
        "compiled modules are not tried",
    ),
    Quirk(
        "scalars_widen",
        "numpy",
        "",
        "2.0",
        "a float32 array () times a Python float is float64; later it stays float32",
        "results of shape () are cast back to the input's dtype",
    ),
)


def release(text: str) -> tuple[int, ...]:
    """Return ``(2, 13, 0)`` for ``"2.13.0+cpu"`` and ``(1, 13, 0)`` for ``"1.13.0a0"``."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def holds(name: str, installed: str | None = None) -> bool:
    """Whether the quirk ``name`` is there in ``installed``, by default what is installed here.

    Raises KeyError for a name that no quirk has.
    """
    quirk = {item.name: item for item in QUIRKS}[name]
    return quirk.covers(version(quirk.package) if installed is None else installed)
