"""Everything that docs/speed.md tells, measured unattended on a quiet machine.

    python -m benchmarks.report              # ten minutes; --runs 1 for a third of it

Runs the suite with one thread and with two, writes benchmarks/baseline.json, the tables and the
figures between the marks in docs/speed.md, and the picture of growth.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import compare
from benchmarks.timing import geometric_mean

ROOT = Path(__file__).parent.parent
PAGE, BASELINE = ROOT / "docs/speed.md", ROOT / "benchmarks/baseline.json"
MARKS = "<!-- measured: python -m benchmarks.report -->", "<!-- end of what was measured -->"
TARGETS = {  # geometric means, one thread and two
    "workload": (0.35, 0.35),
    "dense": (1.2, 1.2),
    "medium": (1.0, 1.0),
    "large": (1.3, 1.3),
    "elementwise": (1.5, 3.5),
}
SUITE = "pytest benchmarks -q -p no:xdist -p no:randomly --benchmark-disable-gc".split()
ALONE = ("memory", "harness", "peers")


def command(*words):
    """Run a Python module from the root; return what it printed, whatever its exit status."""
    paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def suite(threads, run, folder):
    """Run the suite; return its file. Raises RuntimeError with the end of what it printed."""
    target = folder / f"{threads}-{run}.json"
    print(f"{threads} thread(s), run {run + 1}, load {os.getloadavg()[0]:.1f}", flush=True)
    status, text = command(*SUITE, "--speed-threads", str(threads), "--speed-output", str(target))
    if status:
        raise RuntimeError(f"the suite failed:\n{text[-3000:]}")
    return target


def columns(files):
    """Return threads → {(group, name): (median, low, high)} of forward+backward."""
    found = {}
    for threads, paths in files.items():
        groups = {
            (row["name"], row["what"]): row["group"]
            for row in json.loads(paths[0].read_text(encoding="utf-8"))["rows"]
        }
        _, rows = compare.combine(paths)
        found[threads] = {
            (groups[key], key[0]): row for key, row in rows.items() if key[1] == "both"
        }
    return found


def tables(found):
    """Return the table of geometric means and that of all rows, as Markdown lines."""
    counts = list(found)
    heads = " | ".join("one thread" if n == 1 else f"{n} threads" for n in counts)
    rule = "| --- | --- |" + " --- |" * len(counts)
    lines = ["Geometric means:", "", f"| sizes | target | {heads} |", rule]
    groups = dict.fromkeys(group for group, _ in found[counts[0]] if group != "harness")
    for group in groups:
        means = [
            geometric_mean(row["median"] for (g, _), row in found[n].items() if g == group)
            for n in counts
        ]
        one, two = TARGETS.get(group, ("none", "none"))
        target = str(one) if one == two else f"{one}; two threads {two}"
        lines.append(f"| {group} | {target} | {' | '.join(f'{m:.2f}' for m in means)} |")
    lines += ["", f"| sizes | subject | {heads} |", rule]
    for key in found[counts[0]]:
        cells = (found[n].get(key) for n in counts)
        shown = (
            "" if row is None else f"{row['median']:.2f} [{row['low']:.2f}–{row['high']:.2f}]"
            for row in cells
        )
        name = key[1].removeprefix(f"{key[0]}-")
        lines.append(f"| {key[0]} | {name} | {' | '.join(shown)} |")
    return lines


def write(lines):
    """Put the lines between the marks of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    middle = "\n".join(lines)
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{middle}\n\n{MARKS[1]}{after}", encoding="utf-8")


def main(arguments=None):
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=int, default=3, help="of the suite, for each thread count")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args(arguments)
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as name:
        files = {
            threads: [suite(threads, run, Path(name)) for run in range(options.runs)]
            for threads in options.threads
        }
        loads.append(os.getloadavg()[0])
        first = list(map(str, files[options.threads[0]]))
        with contextlib.redirect_stdout(io.StringIO()):
            compare.main([first[0], *first, "--write", str(BASELINE)])
        lines = tables(columns(files))
    runs = f"Medians of {options.runs} runs, quartiles that cover all of them"
    lines += ["", f"{runs if options.runs > 1 else 'One run'}, on"]
    lines[-1] += f" {os.cpu_count()} cores with a load of {np.min(loads):.1f} to {max(loads):.1f}."
    for module in ALONE:
        print(module, flush=True)
        lines += ["", f"`python -m benchmarks.{module}`:", "", "```text"]
        lines += [*command(f"benchmarks.{module}")[1].strip().splitlines(), "```"]
    write(lines)
    print("growth", flush=True)
    status, text = command("benchmarks.growth", "docs/pictures/growth.svg")
    print(text or f"written: {PAGE.relative_to(ROOT)}, {BASELINE.relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
