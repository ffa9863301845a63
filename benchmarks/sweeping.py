"""What a second sweep worker gains, beside what a second process gains on the same machine.

    python -m benchmarks.sweeping                 # six minutes on two quiet cores
    python -m benchmarks.sweeping --seconds 10 --rounds 1

Rates of one and two workers, and of one and two processes that only count, are taken in turns, each
over a window of seconds after all of them have started. Two cores are seldom two whole ones: what
plain Python gains is all that a sweep can gain.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
CHUNK = 12
WARM = 2 * CHUNK  # cases done by each worker before its rate is taken
LEAST = 0.5  # of a core: with less to gain, a round says nothing
COUNTING = """
import sys, time
end, turns = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end:
    sum(i * i % 7 for i in range(10_000))
    turns += 1
print(turns)
"""


def counting(processes, seconds):
    """Return how many turns a second the processes make together."""
    command = [sys.executable, "-c", COUNTING, str(seconds)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    return sum(int(process.communicate()[0]) for process in started) / seconds


@contextmanager
def sweep(workers, folder):
    """Run a sweep of the random cases without end into ``folder``; stop it afterwards."""
    paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    words = ["--workers", str(workers), "--chunk", str(CHUNK), "--seed", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "parity", "sweep", "--output", str(folder), *words],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()  # it ends its workers itself
        process.wait(60)


def cases(workers, seconds):
    """Return how many cases a second a sweep judges. Raises RuntimeError where it ends early."""
    with tempfile.TemporaryDirectory() as folder, sweep(workers, Path(folder) / "out") as process:
        results = Path(folder) / "out" / "results.jsonl"

        def done():
            if process.poll() is not None:
                raise RuntimeError(f"the sweep ended by itself, with status {process.returncode}")
            return results.read_bytes().count(b"\n") if results.exists() else 0

        while done() < WARM * workers:
            time.sleep(0.2)
        before, start = done(), time.monotonic()
        time.sleep(seconds)
        return (done() - before) / (time.monotonic() - start)


def main(arguments=None):
    """Print each round's rates, gains and share, and the median share."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeping", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=20, help="of each window")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    shares = []
    for _ in range(options.rounds):
        one, two, alone, both = (
            rate(count, options.seconds) for rate in (cases, counting) for count in (1, 2)
        )
        gain, possible = two / one - 1, both / alone - 1
        text = f"sweep {one:.1f} -> {two:.1f} cases/s (+{gain:.0%}), counting +{possible:.0%}"
        print(text, flush=True)
        if possible > LEAST:
            shares.append(gain / possible)
    if not shares:
        sys.exit("the second core was never free: nothing could be gained")
    print(
        f"a second worker gains {np.median(shares):.0%} of what a second process of pure Python "
        f"gains (median of {len(shares)} rounds, {min(shares):.0%} to {max(shares):.0%})"
    )


if __name__ == "__main__":
    main()
