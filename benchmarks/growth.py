"""Growth: time against batch, channels and image size on log axes, NumPy and torch in one picture.

python -m benchmarks.growth FILE.svg
"""

import sys

import matplotlib
import numpy as np
import torch
from torch import nn

import impl
from benchmarks.timing import interleaved, threads
from fixtures.weights import share

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BASE = {"batch": 16, "channels": 16, "size": 16}
STEPS = {"batch": (1, 4, 16, 64, 256), "channels": (2, 8, 16, 32, 64), "size": (4, 8, 16, 32, 64)}
LABELS = {"batch": "batch", "channels": "channels in and out", "size": "image height and width"}
COLOURS = {"NumPy": "#0072b2", "torch": "#d55e00"}  # told apart by colour-blind readers too


def convolution(library, channels, size):
    """Return a 3×3 convolution that keeps the image's size."""
    return library.Conv2d(channels, channels, 3, padding=1)


def normalisation(library, channels, size):
    """Return a BatchNorm2d."""
    return library.BatchNorm2d(channels)


def linear(library, channels, size):
    """Return a Linear layer of as many features as an image has columns, times channels."""
    return library.Linear(channels * size, channels * size)


LAYERS = {"Conv2d": convolution, "BatchNorm2d": normalisation, "Linear": linear}


def measured(build, batch, channels, size, rounds=5):
    """Return the medians of (NumPy's, torch's) forward+backward, in seconds."""
    mine, theirs = build(impl, channels, size), build(nn, channels, size)
    share(theirs, mine)
    rng = np.random.default_rng(0)
    flat = isinstance(mine, impl.Linear)
    shape = (batch, channels * size) if flat else (batch, channels, size, size)
    x = rng.standard_normal(shape).astype(np.float32)
    g = rng.standard_normal(mine.forward(x).shape).astype(np.float32)
    t, tg = torch.from_numpy(x.copy()).requires_grad_(True), torch.from_numpy(g)

    def own():
        mine.zero_grad()
        mine.forward(x)
        mine.backward(g)

    def other():
        t.grad = None
        theirs.zero_grad()
        theirs(t).backward(tg)

    ratio = interleaved(own, other, rounds)
    return ratio.mine, ratio.theirs


def main(target):
    """Measure, draw and write the picture to ``target``."""
    figure, axes = plt.subplots(len(LAYERS), len(STEPS), figsize=(11, 9), sharey="row")
    with threads(1):
        for row, (name, build) in zip(axes, LAYERS.items(), strict=True):
            for axis, (what, steps) in zip(row, STEPS.items(), strict=True):
                times = [measured(build, **(BASE | {what: step})) for step in steps]
                for side, values in zip(COLOURS, np.array(times).T, strict=True):
                    axis.loglog(
                        steps,
                        values * 1e3,
                        color=COLOURS[side],
                        label=side,
                        marker="o" if side == "NumPy" else "s",
                        linestyle="-" if side == "NumPy" else "--",
                    )
                axis.set_xlabel(LABELS[what] if name != "Linear" else f"{what} (of its features)")
                axis.set_xticks(steps, map(str, steps))
                axis.minorticks_off()
                axis.grid(alpha=0.3)
                if what == "batch":
                    axis.set_ylabel("ms, forward + backward")
                    axis.legend()
                axis.set_title(name)
    axes[2, 0].set_xlabel("batch")
    base = ", ".join(f"{LABELS[name]} {value}" for name, value in BASE.items())
    figure.suptitle(f"Time of one layer, one thread; where not varied: {base}")
    figure.tight_layout()
    figure.savefig(target)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "growth.svg")
