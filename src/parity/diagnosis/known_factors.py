"""The numbers that a layer has reason to multiply by, and what it means that one is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from parity.diagnosis.axes import labelled, size
from parity.diagnosis.trials import Trial


@dataclass(frozen=True)
class Factor:
    """One known number: its value on a trial, and what it means that it is there."""

    name: str
    value: Callable[[Trial], float | None]
    meaning: str
    inverse: bool = False

    def of(self, trial: Trial) -> float | None:
        """Return the factor on ``trial``, None where it does not exist."""
        value = self.value(trial)
        if value is None or not math.isfinite(value) or value == 0:
            return None
        return 1 / value if self.inverse else value


def batch(trial: Trial) -> float | None:
    """N, the number of samples."""
    return size(trial, "sample")


def channels(trial: Trial) -> float | None:
    """C, the number of channels, classes or features, or of what a bag holds."""
    return size(trial, "channel", "class", "feature", "entry of a bag")


def positions(trial: Trial) -> float | None:
    """H·W, the number of positions of an image, or of steps of a sequence."""
    return size(trial, "position", "step")


def _product(*parts: Callable[[Trial], float | None]) -> Callable[[Trial], float | None]:
    def value(trial: Trial) -> float | None:
        found = [part(trial) for part in parts]
        return None if None in found else math.prod(f for f in found if f is not None)

    return value


def _out(axes: slice) -> Callable[[Trial], float | None]:
    def value(trial: Trial) -> float | None:
        out = trial.theirs.get("forward")
        sizes = () if out is None else out.shape[axes]
        return float(math.prod(sizes)) if sizes else None

    return value


def _setting(name: str, change: Callable[[Any], float] = float) -> Callable[[Trial], float | None]:
    def value(trial: Trial) -> float | None:
        given = getattr(trial.pair.reference.original, name, None)
        if given is None or isinstance(given, (bool, str)):
            return None
        return float(change(given))

    return value


def _area(layer: Any, kernel: Any) -> float:
    axes = 1 if type(layer).__name__.endswith("1d") else 2
    return float(math.prod(kernel)) if isinstance(kernel, (tuple, list)) else float(kernel**axes)


def _window(trial: Trial) -> float | None:
    return _setting("kernel_size", partial(_area, trial.pair.reference.original))(trial)


def _keep(trial: Trial) -> float | None:
    rates = set(trial.pair.reference.dropouts)
    return 1 - rates.pop() if len(rates) == 1 else None


def _count(trial: Trial) -> float | None:
    return None if trial.x.ndim < 2 else trial.x.size / trial.x.shape[1]


def _bessel(trial: Trial) -> float | None:
    n = _count(trial)
    return None if n is None or n < 2 else n / (n - 1)


def _others(trial: Trial) -> float | None:
    """(C - 1)/C of the classes that labels name: nothing else has reason to leave one out."""
    c = channels(trial) if labelled(trial.pair) else None
    return None if c is None or c < 2 else (c - 1) / c


def _in_evaluation(trial: Trial) -> float | None:
    return None if trial.draw.training else _keep(trial)


def _copies(trial: Trial) -> float | None:
    """How many positions of the output each of the input is copied to."""
    whole, out = positions(trial), _out(slice(2, None))(trial)
    copied = isinstance(trial.pair.reference.original, nn.Upsample)
    return out / whole if copied and whole and out and out > whole else None


def _width(trial: Trial) -> float | None:
    """√d, by which transformers scale their embeddings."""
    layer = trial.pair.reference.original
    held = isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
    return math.sqrt(layer.embedding_dim) if held else None


def _norm_of_window(trial: Trial) -> float | None:
    """n^(1/p) of a window of n elements: what a mean in place of the sum makes of a p-norm."""
    layer: Any = trial.pair.reference.original
    area = _setting("kernel_size", partial(_area, layer))(trial)
    power = getattr(layer, "norm_type", None)
    return area ** (1 / power) if area and power else None


def _upstream(trial: Trial) -> float | None:
    g = trial.upstream
    return float(g.reshape(())) if g is not None and g.size == 1 else None


def _ignore(trial: Trial) -> float | None:
    """Share of labels that count, where some are to be ignored."""
    ignored = getattr(trial.pair.reference.original, "ignore_index", None)
    if ignored is None or len(trial.draw.inputs) < 2 or trial.draw.inputs[1].dtype.kind == "f":
        return None
    target = trial.draw.inputs[1]
    kept = int((target != ignored).sum())
    return kept / target.size if 0 < kept < target.size else None


N = "the batch size is {n:g}"
FACTORS: tuple[Factor, ...] = (
    Factor("sign_flipped", lambda t: -1.0, "the sign is flipped"),
    Factor("batch_sum_not_averaged", batch, N + ": the batch sum was not averaged"),
    Factor("averaged_over_batch", batch, N + ": it was averaged where torch sums", True),
    Factor(
        "scaled_in_evaluation",
        _in_evaluation,
        "1 - p is {n:g}: it is scaled by 1 - p in evaluation, torch scales in training",
    ),
    Factor("dropout_not_scaled", _keep, "1 - p is {n:g}: what is kept is not scaled by 1/(1 - p)"),
    Factor("dropout_scaled_twice", _keep, "1 - p is {n:g}: 1/(1 - p) is applied twice", True),
    Factor("ignored_labels_counted", _ignore, "{n:g} of the labels count: the mean divides by all"),
    Factor("positions_sum_not_averaged", positions, "there are {n:g} positions: not averaged"),
    Factor("averaged_over_positions", positions, "there are {n:g} positions: averaged", True),
    Factor("positions_sum_not_averaged", _out(slice(2, None)), "the output has {n:g} positions"),
    Factor("averaged_over_positions", _out(slice(2, None)), "the output has {n:g} positions", True),
    Factor("channels_sum_not_averaged", channels, "there are {n:g} {axis}: not averaged"),
    Factor("averaged_over_channels", channels, "there are {n:g} {axis}: averaged", True),
    Factor(
        "batch_and_positions_sum_not_averaged",
        _product(batch, positions),
        "batch times positions is {n:g}: the sum over both was not averaged",
    ),
    Factor(
        "averaged_over_batch_and_positions",
        _product(batch, positions),
        "batch times positions is {n:g}: it was averaged where torch sums",
        True,
    ),
    Factor(
        "averaged_over_batch_and_positions",
        _product(batch, _out(slice(2, None))),
        "batch times output positions is {n:g}: it was averaged where torch sums",
        True,
    ),
    Factor(
        "elements_sum_not_averaged",
        lambda t: float(t.x.size),
        "the input has {n:g} elements: the sum was not averaged",
    ),
    Factor(
        "averaged_over_elements",
        lambda t: float(t.x.size),
        "the input has {n:g} elements: it was averaged where torch sums",
        True,
    ),
    Factor(
        "averaged_over_window",
        _norm_of_window,
        "n^(1/p) is {n:g} for a window of n elements: averaged where torch sums",
        True,
    ),
    Factor("averaged_over_copies", _copies, "a position is copied {n:g} times: averaged", True),
    Factor("scaled_by_width", _width, "the square root of embedding_dim is {n:g}: multiplied"),
    Factor("doubled", lambda t: 2.0, "it is counted twice"),
    Factor("halved", lambda t: 0.5, "a factor of 2 is missing"),
    Factor(
        "window_sum_not_averaged",
        _window,
        "the window has {n:g} elements: their sum was not averaged",
    ),
    Factor(
        "averaged_over_window",
        _window,
        "the window has {n:g} elements: it was averaged once more",
        True,
    ),
    Factor("averaged_over_outputs", _out(slice(1, 2)), "there are {n:g} outputs: averaged", True),
    Factor("multiplied_by_outputs", _out(slice(1, 2)), "there are {n:g} outputs: not averaged"),
    Factor("unbiased_not_biased", _bessel, "n/(n - 1) is {n:g}: unbiased where torch is biased"),
    Factor("biased_not_unbiased", _bessel, "n/(n - 1) is {n:g}: biased, torch is unbiased", True),
    Factor("divided_by_other_classes", _others, "(C - 1)/C is {n:g}: divided by C - 1", True),
    Factor("divided_by_all_classes", _others, "(C - 1)/C is {n:g}: divided by C, not C - 1"),
    Factor(
        "upstream_ignored", _upstream, "the upstream gradient is {n:g}: backward ignores it", True
    ),
    Factor("upstream_applied_twice", _upstream, "the upstream gradient is {n:g}: applied twice"),
)
SETTINGS = (
    "momentum",
    "alpha",
    "beta",
    "delta",
    "negative_slope",
    "p",
    "margin",
    "groups",
    "eps",
    "scale",
)


def known(trial: Trial) -> list[Factor]:
    """Return the factors, with one pair for each of the reference's own numeric settings."""
    found = []
    for name in SETTINGS:
        value = _setting(name)
        if name == "p" and trial.pair.reference.dropouts:
            continue  # what is dropped is scaled by 1/(1 - p), which is 2 as well for p = 0.5
        if value(trial) not in (None, 0.0, 1.0):
            found.append(
                Factor(f"multiplied_by_{name}", value, f"{name} is {{n:g}}: once too often")
            )
            found.append(
                Factor(
                    f"divided_by_{name}", value, f"{name} is {{n:g}}: that factor is missing", True
                )
            )
    return found + list(FACTORS)
