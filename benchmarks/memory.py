"""Peak memory of a large convolution's forward+backward, NumPy's beside torch's.

    python -m benchmarks.memory

Each side runs in a process of its own, since a process's peak never falls.
"""

import subprocess
import sys
import tracemalloc

import numpy as np

from benchmarks.timing import resident_bytes

SHAPE, CHANNELS = (16, 64, 56, 56), 64


def own():
    """Return (peak of the resident size, peak that tracemalloc saw) above the inputs, in bytes."""
    import impl

    rng = np.random.default_rng(0)
    x = rng.standard_normal(SHAPE, np.float32)
    g = rng.standard_normal(SHAPE, np.float32)
    layer = impl.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    before = resident_bytes()
    y = layer.forward(x)  # held, as torch's graph holds its own
    layer.backward(g)
    resident = resident_bytes() - before
    del y
    tracemalloc.start()  # after: it slows the passes down, and takes memory itself
    y = layer.forward(x)
    layer.backward(g)
    del y
    return resident, tracemalloc.get_traced_memory()[1]


def other():
    """Return (peak of the resident size above the inputs, 0), in bytes."""
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal(SHAPE, np.float32)).requires_grad_(True)
    g = torch.from_numpy(rng.standard_normal(SHAPE, np.float32))
    layer = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    small = torch.zeros(1, CHANNELS, 8, 8, requires_grad=True)
    layer(small).sum().backward()  # loads the kernels, whose code is no working memory
    before = resident_bytes()
    y = layer(x)
    y.backward(g)
    return resident_bytes() - before, 0


def main():
    """Print both sides and their ratio."""
    if len(sys.argv) > 1:
        print(*{"own": own, "other": other}[sys.argv[1]]())
        return
    found = {}
    for side in ("own", "other"):
        command = [sys.executable, "-m", "benchmarks.memory", side]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[side] = [int(number) for number in lines.split()]
    mega = 1 << 20
    print(f"NumPy: {found['own'][0] / mega:.0f} MiB resident, {found['own'][1] / mega:.0f} traced")
    print(f"torch: {found['other'][0] / mega:.0f} MiB resident")
    print(f"ratio: {found['own'][0] / found['other'][0]:.2f}")


if __name__ == "__main__":
    main()
