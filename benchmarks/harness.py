"""What the harness costs: checks of every family's small layer, and of medium ones by the pass.

python -m benchmarks.harness
"""

from time import process_time

import numpy as np
import torch
from torch import nn

import impl
import parity
from benchmarks.timing import threads

LAYERS = (
    ("Linear", (4, 3), (8, 4)),
    ("Conv2d", (3, 8, 3), (2, 3, 8, 8)),
    ("BatchNorm1d", (4,), (8, 4)),
    ("BatchNorm2d", (3,), (4, 3, 5, 5)),
    ("AvgPool2d", (2,), (2, 3, 8, 8)),
    ("MaxPool2d", (2,), (2, 3, 8, 8)),
    ("Flatten", (), (2, 3, 4, 4)),
    ("Dropout", (0.5,), (8, 4)),
    ("Threshold", (0.1, 0.5), (8, 4)),
    *((name, (), (8, 4)) for name in ("ReLU", "LeakyReLU", "ELU", "Softplus", "Sigmoid", "Tanh")),
    *((name, (1,), (8, 4)) for name in ("Softmax", "LogSoftmax")),
)
LABELS, SHARES = parity.labels(8, classes=4), parity.uniform(8, 4, low=0.05, high=0.95)
LOSSES = (
    ("MSELoss", (8, 4), (8, 4)),
    ("CrossEntropyLoss", (8, 4), LABELS),
    ("NLLLoss", (8, 4), LABELS),
    ("MultiMarginLoss", (8, 4), LABELS),
    ("BCELoss", SHARES, SHARES),
    ("BCEWithLogitsLoss", (8, 4), SHARES),
)
MEDIUM = (
    ("Conv2d", (16, 32, 3), (64, 16, 28, 28)),
    ("BatchNorm2d", (32,), (64, 32, 28, 28)),
    ("Linear", (784, 256), (64, 784)),
)


class Clock:
    """Counts the calls of wrapped functions by their argument's shape, and adds their time."""

    def __init__(self):
        self.seconds, self.sizes, self._inside = 0.0, [], False

    def around(self, function, size=None):
        """Return ``function`` that is timed; calls inside of a timed call are not."""

        def timed(*arguments, **options):
            if self._inside:
                return function(*arguments, **options)
            if size is not None:
                self.sizes.append(size(*arguments))
            self._inside, start = True, process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += process_time() - start
                self._inside = False

        return timed


def small():
    """Return name → milliseconds of a default check, the median of seven."""
    found = {}
    for name, arguments, *inputs in (
        *LAYERS,
        *((name, (), *inputs) for name, *inputs in LOSSES),
    ):
        mine, theirs = getattr(impl, name)(*arguments), getattr(nn, name)(*arguments)
        times = []
        for _ in range(8):  # the first loads what the family needs
            start = process_time()
            parity.check(mine, theirs, *inputs)
            times.append(process_time() - start)
        found[name] = 1e3 * float(np.median(times[1:]))
    return found


def medium(name, arguments, shape):
    """Return (seconds of a check, seconds of its passes, NumPy's passes at the full size)."""
    clock, base, other = Clock(), getattr(impl, name), getattr(nn, name)
    members = {
        kind: clock.around(getattr(base, kind), lambda layer, x: np.shape(x))
        for kind in ("forward", "backward")
    }
    mine = type(name, (base,), members)(*arguments)
    theirs = type(name, (other,), {"forward": clock.around(other.forward)})(*arguments)
    full = {shape, mine(np.zeros(shape, np.float32)).shape}
    engine = torch.autograd.graph._engine_run_backward
    backwards = [torch.autograd.graph, torch.autograd]
    for module in backwards:
        module._engine_run_backward = clock.around(engine)
    try:
        parity.check(mine, theirs, shape)  # loads what the family needs
        clock.seconds, clock.sizes = 0.0, []
        start = process_time()
        parity.check(mine, theirs, shape)
        seconds = process_time() - start
    finally:
        for module in backwards:
            module._engine_run_backward = engine
    return seconds, clock.seconds, sum(size in full for size in clock.sizes)


def main():
    """Print both tables."""
    with threads(1):
        times = small()
        for name, milliseconds in times.items():
            print(f"{name:20} {milliseconds:5.0f} ms")
        print(f"{'median':20} {np.median(list(times.values())):5.0f} ms")
        for row in MEDIUM:
            seconds, passes, count = medium(*row)
            print(
                f"{row[0]} of {row[2]}: {seconds:.2f} s, {passes:.2f} s of it in forward and "
                f"backward: overhead {100 * (seconds / passes - 1):.0f} %; "
                f"{count} of NumPy's passes at full size"
            )


if __name__ == "__main__":
    main()
