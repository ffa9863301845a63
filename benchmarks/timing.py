"""Two functions timed in turns: ratios with their spread, on machines that are never quiet."""

import resource
import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, process_time

import numpy as np
import torch
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Ratio:
    """NumPy's time over torch's: the median over rounds, and the quartiles."""

    median: float
    low: float
    high: float
    mine: float
    theirs: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}–{self.high:.2f}]"

    def to_dict(self) -> dict:
        """Return plain data."""
        return dict(vars(self))


@contextmanager
def threads(count: int):
    """Give NumPy's BLAS and torch the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def clock():
    """Return the clock to time with: the processor's with one thread, else the wall's.

    What others on the machine do stands still on the processor's clock, which adds up threads.
    """
    return process_time if torch.get_num_threads() == 1 else perf_counter


def once(function, repeats: int) -> float:
    """Return the seconds of the best of ``repeats`` calls: others on the machine only add."""
    best, now = float("inf"), clock()
    for _ in range(repeats):
        start = now()
        function()
        best = min(best, now() - start)
    return best


def repeats_for(function, least: float = 2e-3) -> int:
    """Return how many calls make a round of at least ``least`` seconds."""
    function()
    return max(2, int(least / max(once(function, 2), 1e-9)))


def interleaved(mine, theirs, rounds: int = 15) -> Ratio:
    """Time both in turns, the order changing, and return the ratio of each round's times."""
    n, m = repeats_for(mine), repeats_for(theirs)
    own, other = [], []
    for turn in range(rounds):
        if turn % 2:
            own.append(once(mine, n))
            other.append(once(theirs, m))
        else:
            other.append(once(theirs, m))
            own.append(once(mine, n))
    ratios = np.array(own) / np.array(other)
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return Ratio(
        float(median),
        float(low),
        float(high),
        float(np.median(own)),
        float(np.median(other)),
        rounds,
    )


def peak_bytes(function) -> int:
    """Return the largest memory NumPy held at once during a call, above what it held before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def resident_bytes() -> int:
    """Return the process's largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def geometric_mean(values) -> float:
    """Return the geometric mean of ratios."""
    return float(np.exp(np.mean(np.log(list(values)))))
