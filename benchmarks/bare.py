"""What NumPy itself costs in a training step of A1 and A3: the bare calls, beside the layers.

    python -m benchmarks.bare

One function a net, shapes fixed, nothing checked, no options, no names, no gradient for the images:
not a library, but the floor under one. The layers' time over it is what those things cost.
"""

import numpy as np

from benchmarks.subjects import SUBJECTS, training_steps
from benchmarks.timing import interleaved, threads
from fixtures.weights import share

NETS = ("A1", "A3")  # A2 differs from A3 in its sizes alone
RATE = np.float32(1e-3)


def rows(array):
    """Return the sum of each row as a column."""
    return np.add.reduce(array, axis=1, keepdims=True)


def windows(x, kernel):
    """Return every window of x (N, 1, H, W) as a column, a function of no arguments."""
    n, _, size, _ = x.shape
    out = size - kernel + 1
    places = np.arange(x.size).reshape(n, size, size)
    index = np.empty((kernel, kernel, n, out, out), np.intp)
    for i, j in np.ndindex(kernel, kernel):
        index[i, j] = places[:, i : i + out, j : j + out]
    index = index.reshape(kernel * kernel, -1)
    return lambda: x.take(index)


def bare(layers, x, labels):
    """Return a step of the net by NumPy calls alone, which returns its loss."""
    params = {name: array.copy() for name, array in layers.params.items()}
    weight, bias, *normal, last, shift = params.values()
    kernel = weight.shape[-1]
    weight, columns = weight.reshape(len(weight), -1), windows(x, kernel)
    n, channels, size = len(x), len(weight), x.shape[2] - kernel + 1
    count, half, each = n * size * size, size // 2, np.arange(n)
    mean_of, quarter, share_of = np.ones(count, np.float32), np.float32(0.25), np.float32(1 / n)
    if normal:
        gamma, beta = normal
        running = [np.zeros(channels, np.float32), np.ones(channels, np.float32)]

    def step():
        seen = columns()
        y = weight @ seen
        y += bias[:, None]
        if normal:
            wide = y.astype(np.float64)
            mean = rows(wide) / count
            wide -= mean
            variance = rows(wide * wide) / count
            scale = 1 / np.sqrt(variance + 1e-5)
            gain = scale * gamma[:, None]
            y = (wide * gain + beta[:, None]).astype(np.float32)
            for k, batch in enumerate((mean[:, 0], variance[:, 0] * (count / (count - 1)))):
                running[k] = (0.9 * running[k] + 0.1 * batch).astype(np.float32)
        positive = y > 0
        y *= positive
        if normal:
            image = y.reshape(channels, n, half, 2, half, 2)
            lines = image[:, :, :, 0] + image[:, :, :, 1]
            y = (lines[..., 0] + lines[..., 1]) * quarter
        flat = y.reshape(channels, n, -1).swapaxes(0, 1).reshape(n, -1)
        scores = flat @ last.T
        scores += shift
        scores -= np.maximum.reduce(scores, axis=1, keepdims=True)
        picked = scores[each, labels]
        slope = np.exp(scores)
        total = rows(slope)
        loss = (np.add.reduce(np.log(total), axis=None) - np.add.reduce(picked)) * share_of
        slope *= share_of / total
        slope[each, labels] -= share_of
        grads = [slope.T @ flat, np.add.reduce(slope, axis=0)]
        back = (slope @ last).reshape(n, channels, -1).swapaxes(0, 1)
        if normal:
            spread = np.empty((channels, n, half, 2, half, 2), np.float32)
            spread[...] = (back * quarter).reshape(channels, n, half, 1, half, 1)
            back = spread
        grad = back.reshape(channels, count) * positive
        moved = [last, shift]
        if normal:
            upstream = grad.astype(np.float64)
            plain, along = rows(upstream), rows(wide * upstream) * scale
            upstream -= wide * (along * scale / count)
            upstream -= plain / count
            grad = (upstream * gain).astype(np.float32)
            moved += [gamma, beta]
            grads += [along[:, 0], plain[:, 0]]
        moved += [weight, bias]
        grads += [grad @ seen.T, grad @ mean_of]
        for param, slope in zip(moved, grads, strict=True):
            param -= RATE * slope
        return loss

    return step


def steps(subject):
    """Return the step of the bare calls, of the layers and of torch, each with weights alike."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(subject.shape).astype(np.float32)
    labels = rng.integers(0, subject.labels, len(x))
    mine, theirs = subject.mine(), subject.theirs()
    share(theirs, mine)
    return bare(mine, x, labels), *training_steps(mine, theirs, x, labels, lr=float(RATE))


def main():
    """Print NumPy's share of torch's time, bare and with the layers."""
    with threads(1):
        for name in NETS:
            floor, own, other = steps(next(s for s in SUBJECTS if s.name == f"workload-{name}"))
            for _ in range(20):
                losses = float(floor()), float(own()), float(other().detach())
                if not np.allclose(losses, losses[2], rtol=1e-4):
                    raise AssertionError(f"{name}: the three steps compute different things")
            plain, whole = interleaved(floor, other), interleaved(own, other)
            print(f"{name}: bare calls {plain}, layers {whole}")


if __name__ == "__main__":
    main()
