"""Readers of what users hand to the statistics: plain arrays and numbers, or what is wrong."""

import math
from numbers import Integral, Real

import numpy as np

from parity.findings import UsageError, WrongType


def as_array(values, who):
    """`values` as a NumPy array; tensors are detached and copied to the host first.

    Raises UsageError for what NumPy cannot read (or reads as a mere object), ragged lists and
    masked entries.
    """
    if np.ma.is_masked(values):
        raise UsageError(f"{who} has masked entries; remove them from all three arrays first")
    try:
        array = _to_numpy(values)
    except (ValueError, TypeError, RuntimeError) as error:
        kind = UsageError if isinstance(error, ValueError) else WrongType
        reason = str(error).splitlines()[0]
        raise kind(f"{who} cannot be read as an array: {reason}") from None
    if array.dtype == object:
        array = _from_objects(array, who)
    elif array.dtype.kind == "T":
        array = array.astype(str)
    if array.dtype.kind not in "biufU":
        raise WrongType(
            f"{who} has dtype {array.dtype}; give integers, strings, booleans or floats"
        )
    return array


def _to_numpy(values):
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if "bfloat16" in str(values.dtype):  # NumPy has no such type; float32 holds every value
            values = values.float()
    array = np.asarray(values)
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def _from_objects(array, who):
    """An object array as one of strings or of numbers, where all its entries are of one kind."""
    items = array.ravel().tolist()
    for kind in (str, Integral, Real):
        if items and all(isinstance(item, kind) for item in items):
            return np.array(items).reshape(array.shape)
    odd = [item for item in items if not isinstance(item, str | Real)]
    found = repr(odd[0]) if odd else "a mixture of strings and numbers"
    raise WrongType(f"{who} holds {found}; give labels of one kind, integers or strings")


def read_labels(values, who):
    """Labels (N,) from labels (N,) or, by the first largest entry of each row, from scores (N, C).

    Returns the labels and C (None where labels were given).
    """
    array = as_array(values, who)
    if array.size == 0:
        raise UsageError(f"{who} is empty, shape {array.shape}; there is nothing to compare")
    if array.ndim == 2 and array.dtype.kind != "U":
        return _from_scores(array, who), array.shape[1]
    if array.ndim != 1:
        what = "strings" if array.dtype.kind == "U" else "an array"
        raise UsageError(
            f"{who} is {what} with shape {array.shape}; give labels (N,) or scores (N, C)"
        )
    return _whole(array, who), None


def read_truth(values):
    """True labels (N,): scores and one-hot rows are refused, for a truth is not a guess."""
    array = as_array(values, "truth")
    if array.ndim != 1:
        raise UsageError(
            f"truth has shape {array.shape}; give labels (N,), "
            "for one-hot rows truth.argmax(axis=1)"
        )
    return read_labels(array, "truth")[0]


def _from_scores(scores, who):
    if scores.shape[1] == 1:
        raise UsageError(
            f"{who} has shape {scores.shape}, a single column whose argmax is always 0; "
            "give labels (N,), for a probability (p[:, 0] > 0.5)"
        )
    bad = np.isnan(scores).any(axis=1) if scores.dtype.kind == "f" else np.zeros(1, bool)
    if bad.any():
        raise UsageError(f"{who} has NaN scores in {bad.sum()} rows, the first {bad.argmax()}")
    return scores.argmax(axis=1)


def _whole(labels, who):
    """Float labels as integers where they are whole numbers; everything else as it is."""
    if labels.dtype.kind != "f":
        return labels
    # Beyond 2^53 neighbouring whole numbers share one float, so equal labels would prove nothing.
    bad = ~(np.isfinite(labels) & (labels == np.round(labels)) & (np.abs(labels) <= 2.0**53))
    if bad.any():
        first = int(bad.argmax())
        raise UsageError(
            f"{who} holds {labels[first]} at position {first}, which is no class label; "
            "give whole numbers or strings (N,), or scores (N, C)"
        )
    return labels.astype(np.int64)


def check_alike(mine, theirs, truth, classes, names):
    """Refuse labels of other lengths or kinds, and true classes that no score stands for."""
    sides = {names[0]: mine, names[1]: theirs, "truth": truth}
    if len({len(labels) for labels in sides.values()}) > 1:
        given = ", ".join(f"{len(labels)} for {name}" for name, labels in sides.items())
        raise UsageError(f"predictions and truth differ in length: {given}")
    texts = [name for name, labels in sides.items() if labels.dtype.kind == "U"]
    if 0 < len(texts) < 3:
        rest = [name for name in sides if name not in texts]
        raise WrongType(
            f"{' and '.join(texts)} holds strings where {' and '.join(rest)} holds numbers; "
            "give all three the same labels"
        )
    for name, count in zip(names, classes, strict=True):
        if count is not None and (truth.min() < 0 or truth.max() >= count):
            raise UsageError(
                f"{name} has scores for {count} classes, labels 0 to {count - 1}, but truth holds "
                f"{int(truth.min())} to {int(truth.max())}"
            )


def check_fraction(value, name, low, high, hint):
    """`value` as a float strictly between `low` and `high`, else one line ending in `hint`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise WrongType(f"{name} is {value!r}; give a number, {hint}")
    if not (math.isfinite(value) and low < value < high):
        raise UsageError(f"{name} is {value!r}; it must lie between {low} and {high}, {hint}")
    return float(value)


def check_confidence(value):
    """A confidence level strictly between one half and one."""
    return check_fraction(value, "confidence", 0.5, 1, "0.95 for 95 percent")


def check_margin(value):
    """An equivalence margin as a share of all items."""
    return check_fraction(value, "margin", 0, 1, "0.01 for one percentage point")


def plain(value):
    """`value` ready for JSON: tuples as lists, infinities and NaN as None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
