"""The peers a user would pick, on a medium convolution and BatchNorm: numpy-ml and tinygrad.

    pip install --no-deps numpy-ml tinygrad
    python -m benchmarks.peers

A peer that is not installed is named and skipped. tinygrad's CPU backend needs a compiler, clang.
"""

import importlib
import importlib.util
import os
import sys
import types

import numpy as np

import impl
from benchmarks.timing import interleaved, threads

SHAPE, CHANNELS = (64, 16, 28, 28), 32
NAMES = {  # numpy-ml's and ours
    "Conv2d": {"W": "weight", "b": "bias"},
    "BatchNorm2d": {"scaler": "weight", "intercept": "bias"},
}


def numpy_ml_layers():
    """Import numpy-ml's layers under today's NumPy, without the rest of the package.

    Its last release is of 2020: the names below are gone from NumPy, and the package's own
    ``__init__`` imports what needs packages of its own.
    """
    spec = importlib.util.find_spec("numpy_ml")
    if spec is None:
        raise ModuleNotFoundError("numpy-ml is not installed: pip install --no-deps numpy-ml")
    for name, kind in (("float", float), ("int", int), ("bool", bool), ("object", object)):
        if name not in vars(np):
            setattr(np, name, kind)
    package = types.ModuleType("numpy_ml")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["numpy_ml"] = package
    nets = types.ModuleType("numpy_ml.neural_nets")
    nets.__path__ = [os.path.join(path, "neural_nets") for path in package.__path__]
    sys.modules["numpy_ml.neural_nets"] = nets
    return importlib.import_module("numpy_ml.neural_nets.layers")


def arrays(out_channels):
    """Return x (N, C, H, W) and the gradient for an output of as many images."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(SHAPE, np.float32)
    return x, rng.standard_normal((SHAPE[0], out_channels, *SHAPE[2:]), np.float32)


def own(layer, x, grad):
    """Return a function that runs forward and backward of a layer of this repository."""

    def run():
        layer.zero_grad()
        layer.forward(x)
        return layer.backward(grad)

    return run


def against_numpy_ml():
    """Yield (what, ratio of our time to numpy-ml's); its images are (N, H, W, C)."""
    layers = numpy_ml_layers()
    for name, mine, theirs, out in (
        (
            "Conv2d 3×3, padding 1",
            impl.Conv2d(SHAPE[1], CHANNELS, 3, padding=1),
            layers.Conv2D(CHANNELS, (3, 3), pad=1),
            CHANNELS,
        ),
        ("BatchNorm2d", impl.BatchNorm2d(SHAPE[1]), layers.BatchNorm2D(), SHAPE[1]),
    ):
        x, grad = arrays(out)
        last = [np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in (x, grad)]

        def other(theirs=theirs, last=last):
            theirs.forward(last[0])
            dx = theirs.backward(last[1])
            theirs.flush_gradients()
            return dx

        theirs.forward(last[0])  # draws its weights: ours are made the same
        for key, parameter in NAMES[name.split()[0]].items():
            drawn = theirs.parameters[key].astype(np.float32)
            drawn = drawn.transpose(3, 2, 0, 1) if drawn.ndim == 4 and key == "W" else drawn.ravel()
            mine.params[parameter] = np.ascontiguousarray(drawn)
        theirs.backward(last[1])
        theirs.flush_gradients()
        mine_run = own(mine, x, grad)
        agree(mine_run(), other().transpose(0, 3, 1, 2))
        yield f"numpy-ml, {name}", interleaved(mine_run, other, 5)


def against_tinygrad():
    """Yield (what, ratio of our time to tinygrad's) with its kernels compiled beforehand."""
    if importlib.util.find_spec("tinygrad") is None:
        raise ModuleNotFoundError("tinygrad is not installed: pip install tinygrad")
    os.environ.update(DEV="CPU", CPU_COUNT="1")
    tinygrad = importlib.import_module("tinygrad")
    theirs = importlib.import_module("tinygrad.nn").Conv2d(SHAPE[1], CHANNELS, 3, padding=1)
    mine = impl.Conv2d(SHAPE[1], CHANNELS, 3, padding=1)
    mine.params["weight"] = theirs.weight.numpy()
    mine.params["bias"] = theirs.bias.numpy()
    x, grad = arrays(CHANNELS)
    t, g = tinygrad.Tensor(x, requires_grad=True).realize(), tinygrad.Tensor(grad).realize()

    def other():
        for tensor in (t, theirs.weight, theirs.bias):
            tensor.grad = None
        theirs(t).backward(g)
        tinygrad.Tensor.realize(t.grad, theirs.weight.grad, theirs.bias.grad)
        return t.grad

    mine_run = own(mine, x, grad)
    agree(mine_run(), other().numpy())
    yield "tinygrad, Conv2d 3×3, padding 1", interleaved(mine_run, other, 5)


def agree(mine, theirs):
    """Speed of a wrong answer is worth nothing."""
    if not np.abs(mine - theirs).max() <= 1e-3 * np.abs(theirs).max():
        raise AssertionError("the two sides compute different things")


def main():
    """Print the ratios; say which peers are missing."""
    print(f"our time / the peer's, forward and backward of {SHAPE}, one thread")
    with threads(1):
        for peer in (against_numpy_ml, against_tinygrad):
            try:
                for what, ratio in peer():
                    low, high = (f"{1 / r:.1f}" for r in (ratio.high, ratio.low))
                    print(f"{what}: {ratio}, {1 / ratio.median:.1f} [{low}–{high}] times faster")
            except Exception as error:  # a peer's faults are its own
                print(f"SKIPPED {peer.__name__}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
