"""Two benchmark runs compared: which layers' NumPy/torch ratios grew beyond the measured spread.

    python -m benchmarks.compare benchmarks/baseline.json new.json [another.json …]

The files are what `pytest benchmarks --speed-output FILE` writes. Ratios are compared, never
seconds, so that a slow runner cancels. Ends with 1 where a layer has become slower, with 2 where
the files cannot be compared. A baseline is made on a quiet machine, from several runs:

    python -m benchmarks.compare a.json a.json b.json c.json --write benchmarks/baseline.json
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIGMAS = 4.0  # hundreds of rows are looked at: three would cry wolf in every other run
LEAST = 0.10  # growth below this is nobody's concern
ENOUGH = 8  # rows from which the rest says how far honest ratios move from run to run
NORMAL_QUARTILES = 1.349  # quartiles of a normal distribution lie this many σ apart
MEDIAN_ERROR = 1.2533  # σ of a median of n, in units of σ/√n
MAD_TO_SIGMA = 1.4826
FIELDS = ("median", "low", "high", "rounds")


class Unusable(ValueError):
    """Files that hold no benchmark run, or runs that cannot be compared."""


@dataclass(frozen=True)
class Change:
    """One row of both runs: its ratios, how far it moved, and how far noise explains."""

    name: str
    what: str
    before: float
    after: float
    growth: float  # log of after / before, less what all rows share
    noise: float  # one σ of it
    apart: bool  # the quartiles of the two runs do not overlap

    @property
    def limit(self):
        """The growth from which a row counts as slower."""
        return max(SIGMAS * self.noise, math.log1p(LEAST))

    @property
    def slower(self):
        """Whether the growth is more than noise."""
        return self.apart and self.growth > self.limit

    @property
    def faster(self):
        """Whether it shrank by more than noise."""
        return self.apart and -self.growth > self.limit


@dataclass(frozen=True)
class Comparison:
    """All rows, what moved them together, and which are in one run alone."""

    changes: tuple
    shift: float
    spread: float
    missing: tuple = ()
    new: tuple = ()

    @property
    def slower(self):
        """The rows that became slower, the worst first."""
        return sorted((c for c in self.changes if c.slower), key=lambda c: -c.growth)

    @property
    def faster(self):
        """The rows that became faster, the best first."""
        return sorted((c for c in self.changes if c.faster), key=lambda c: c.growth)


# --- reading ------------------------------------------------------------------------------------


def read(path):
    """Return (threads, {(name, what): row}) of one file; raise Unusable saying what is wrong."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        threads = data["threads"]
        rows = {
            (str(row["name"]), str(row["what"])): {name: float(row[name]) for name in FIELDS}
            for row in data["rows"]
        }
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(
            f"{path} is not what `pytest benchmarks --speed-output` writes: {error!r}"
        ) from error
    for (name, what), row in rows.items():
        if not all(math.isfinite(row[f]) and row[f] > 0 for f in FIELDS):
            raise Unusable(f"{path}: {name} ({what}) has a ratio that is no positive number")
    return threads, rows


def combine(paths):
    """Return one run of several: medians of medians, quartiles widened to cover all of them."""
    runs = [read(path) for path in paths]
    counts = sorted({str(threads) for threads, _ in runs})
    if len(counts) > 1:
        raise Unusable(f"runs with {' and '.join(counts)} threads are not comparable")
    rows = {}
    for key in dict.fromkeys(key for _, found in runs for key in found):
        mine = [found[key] for _, found in runs if key in found]
        rows[key] = {
            "median": float(np.median([row["median"] for row in mine])),
            "low": min(row["low"] for row in mine),
            "high": max(row["high"] for row in mine),
            "rounds": min(row["rounds"] for row in mine),
        }
    return runs[0][0], rows


# --- comparing ----------------------------------------------------------------------------------


def compare(before, after):
    """Compare two runs, each (threads, rows); raise Unusable where they share nothing."""
    if before[0] != after[0]:
        raise Unusable(f"one run used {before[0]} threads, the other {after[0]}")
    old, new = before[1], after[1]
    shared = [key for key in old if key in new]
    if not shared:
        raise Unusable("the two runs have no row in common")
    moved = np.array([math.log(new[key]["median"] / old[key]["median"]) for key in shared])
    # What all rows share is the machine's doing; the rest's own scatter is how far honest ratios
    # move from run to run, which rounds inside one run do not show.
    many = len(shared) >= ENOUGH
    shift = float(np.median(moved)) if many else 0.0
    spread = MAD_TO_SIGMA * float(np.median(np.abs(moved - shift))) if many else 0.0
    changes = tuple(
        Change(
            *key,
            old[key]["median"],
            new[key]["median"],
            float(move - shift),
            math.hypot(spread, _error(old[key]), _error(new[key])),
            _apart(old[key], new[key], shift),
        )
        for key, move in zip(shared, moved, strict=True)
    )
    return Comparison(
        changes,
        shift,
        spread,
        tuple(key for key in old if key not in new),
        tuple(key for key in new if key not in old),
    )


def _error(row):
    """One σ of the log of a row's median, from its quartiles."""
    sigma = math.log(max(row["high"], row["low"]) / row["low"]) / NORMAL_QUARTILES
    return MEDIAN_ERROR * sigma / math.sqrt(row["rounds"])


def _apart(old, new, shift):
    factor = math.exp(shift)
    return new["low"] > old["high"] * factor or new["high"] < old["low"] * factor


# --- saying -------------------------------------------------------------------------------------


def percent(growth):
    """Return a log growth as text: 0.262 is "+30 %"."""
    return f"{100 * math.expm1(growth):+.0f} %"


def sentence(comparison):
    """Return the line that a person asks for first."""
    rows = len(comparison.changes)
    if not comparison.slower:
        return f"No layer is slower: {rows} rows stay within the measured spread."
    names = dict.fromkeys(change.name for change in comparison.slower)
    return f"Slower beyond the measured spread: {', '.join(names)} ({rows} rows compared)."


def markdown(comparison):
    """Return the comparison for a job's summary."""
    lines = ["## Speed against the baseline", "", f"**{sentence(comparison)}**", ""]
    if comparison.slower or comparison.faster:
        lines += ["| layer | pass | before | now | change | noise explains |", "|" + " --- |" * 6]
    for change in (*comparison.slower, *comparison.faster):
        lines.append(
            f"| {change.name} | {change.what} | {change.before:.2f} | {change.after:.2f} "
            f"| {percent(change.growth)} | {percent(change.limit)} |"
        )
    lines += ["", f"All rows together moved by {percent(comparison.shift)}: the machine's doing"]
    lines[-1] += f", taken out; one row scatters by {percent(comparison.spread)} between runs."
    blind = sum(change.limit > math.log(1.3) for change in comparison.changes)
    if blind:
        lines += [f"In {blind} rows these runs are too noisy to see a growth of 30 %."]
    for words, keys in (("gone", comparison.missing), ("new", comparison.new)):
        if keys:
            lines += [f"Rows that are {words}: {', '.join(f'{n} ({w})' for n, w in keys[:20])}."]
    return "\n".join(lines) + "\n"


def warnings(comparison):
    """Yield a line that GitHub shows on the pull request, for each layer that became slower."""
    from parity.annotating import command

    for change in comparison.slower:
        yield command(
            "warning",
            f"{change.what}: NumPy/torch {change.before:.2f} before, {change.after:.2f} now "
            f"({percent(change.growth)}; noise explains {percent(change.limit)})",
            title=f"{change.name} is slower",
        )


def main(arguments=None):
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("baseline", help="the run to compare with")
    parser.add_argument("runs", nargs="+", help="one run, or several taken as one")
    parser.add_argument("--annotate", action="store_true", help="GitHub's warnings, on stderr")
    parser.add_argument("--write", metavar="FILE", help="write the runs, taken as one, as JSON")
    options = parser.parse_args(arguments)
    try:
        threads, rows = combine(options.runs)
        if options.write:
            data = {"threads": threads, "rows": []}
            data["rows"] = [{"name": n, "what": w, **row} for (n, w), row in rows.items()]
            Path(options.write).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        comparison = compare(read(options.baseline), (threads, rows))
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(comparison), end="")
    if options.annotate:
        for line in warnings(comparison):
            print(line, file=sys.stderr)
    return 1 if comparison.slower else 0


if __name__ == "__main__":
    sys.exit(main())
