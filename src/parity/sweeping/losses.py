"""Option ranges of torch's losses, as its documentation gives them, for random cases."""

from __future__ import annotations

import numpy as np

from parity.specs import Spec, labels, log_probabilities, normal, probabilities, uniform
from parity.sweeping.spaces import Drawn, Draws, Sampler

CLASSES = 5


def _reduction(d: Draws) -> None:
    d.option("reduction", "mean", lambda: d.pick("sum", "none"), 0.6)


def _weights(d: Draws, name: str, shape: tuple[int, ...], share: float = 0.4) -> None:
    d.option(name, None, lambda: d.rng.uniform(0.1, 2.0, shape), share)


def _scores(d: Draws) -> tuple[int, ...]:
    """A shape (C,), (N, C) or (N, C, d1, …)."""
    classes = d.size(1, CLASSES)
    if d.chance(0.15):
        return (classes,)
    return (d.size(1, 6), classes, *(d.shape(1, 2, 3) if d.chance(0.4) else ()))


def _labels(shape: tuple[int, ...]) -> Spec:
    axis = 1 if len(shape) > 1 else 0
    return labels(*shape[:axis], *shape[axis + 1 :], classes=shape[axis])


def squared(d: Draws) -> Drawn:
    """MSELoss on any shape."""
    shape = d.spread(1, 4)
    _reduction(d)
    return d.drawn((), normal(*shape), normal(*shape))


def likelihood(d: Draws, drawer: str = "log") -> Drawn:
    """NLLLoss with class weights and an ignored class."""
    shape = _scores(d)
    classes = shape[1 if len(shape) > 1 else 0]
    _weights(d, "weight", (classes,))
    d.option("ignore_index", -100, lambda: d.size(0, classes - 1), 0.3)
    _reduction(d)
    scores = log_probabilities(*shape) if drawer == "log" else probabilities(*shape)
    return d.drawn((), scores, _labels(shape))


def cross_entropy(d: Draws) -> Drawn:
    """CrossEntropyLoss with labels or probabilities, weights, smoothing, an ignored class."""
    shape = _scores(d)
    classes = shape[1 if len(shape) > 1 else 0]
    _weights(d, "weight", (classes,))
    d.option("label_smoothing", 0.0, lambda: d.pick(0.1, 1.0, float(d.rng.random())), 0.4)
    _reduction(d)
    if d.chance(0.4):
        return d.drawn((), normal(*shape), probabilities(*shape))
    d.option("ignore_index", -100, lambda: d.size(0, classes - 1), 0.3)
    return d.drawn((), normal(*shape), _labels(shape))


def binary(d: Draws) -> Drawn:
    """BCELoss on probabilities."""
    shape = d.shape(1, 3)
    _weights(d, "weight", shape[-1:] if d.chance(0.5) else shape)
    _reduction(d)
    return d.drawn((), uniform(*shape, low=0.001, high=0.999), uniform(*shape))


def binary_scores(d: Draws) -> Drawn:
    """BCEWithLogitsLoss with weights of items and of positives."""
    shape = d.shape(1, 3)
    _weights(d, "weight", shape[-1:] if d.chance(0.5) else shape)
    _weights(d, "pos_weight", shape[-1:])
    _reduction(d)
    return d.drawn((), normal(*shape), uniform(*shape))


def margin(d: Draws) -> Drawn:
    """MultiMarginLoss, linear and squared."""
    classes = d.size(2, CLASSES)
    shape = (classes,) if d.chance(0.15) else (d.size(1, 6), classes)
    d.option("p", 1, lambda: 2)
    d.option("margin", 1.0, lambda: d.pick(0.5, 2.0, float(np.abs(d.rng.normal()))), 0.4)
    _weights(d, "weight", (classes,))
    _reduction(d)
    return d.drawn((), normal(*shape), _labels(shape))


LOSSES: dict[str, Sampler] = {
    "MSELoss": squared,
    "NLLLoss": likelihood,
    "CrossEntropyLoss": cross_entropy,
    "BCELoss": binary,
    "BCEWithLogitsLoss": binary_scores,
    "MultiMarginLoss": margin,
}
