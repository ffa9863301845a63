"""Options of the benchmarks, and the table that a run ends with."""

import json
from pathlib import Path

import pytest

from benchmarks.compare import read
from benchmarks.timing import geometric_mean
from parity.reporting import contribute

ROWS = pytest.StashKey[list]()
BASELINE = Path(__file__).with_name("baseline.json")


def pytest_addoption(parser):
    """Add what a benchmark run may be asked for."""
    group = parser.getgroup("speed")
    group.addoption("--speed-threads", type=int, default=1, help="threads of either side")
    group.addoption("--speed-rounds", type=int, default=15, help="rounds, NumPy and torch in turn")
    group.addoption("--speed-output", metavar="FILE", help="write the ratios as JSON")


def pytest_configure(config):
    """Keep the rows of this run."""
    config.stash[ROWS] = []


@pytest.fixture
def rows(request, baseline):
    """The ratios gathered so far: (group, name, what, Ratio); new ones go into the report too."""
    rows = request.config.stash[ROWS]
    before = len(rows)
    yield rows
    threads = request.config.getoption("--speed-threads")
    for group, name, what, ratio in rows[before:]:
        if what == "both" and group != "harness":
            contribute("speed", entry(name, threads, ratio, baseline))


@pytest.fixture(scope="session")
def baseline():
    """The stored run as (threads, {(name, what): row}); without rows where none is stored."""
    return read(BASELINE) if BASELINE.exists() else (0, {})


def entry(name, threads, ratio, baseline):
    """Return a row of the report: the ratio with its spread, and the baseline's if it has one."""
    found = {
        "name": name,
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "threads": threads,
        "mine_ms": 1e3 * ratio.mine,
        "torch_ms": 1e3 * ratio.theirs,
    }
    count, stored = baseline
    if count == threads and (name, "both") in stored:
        found["baseline"] = stored[name, "both"]["median"]
    return found


def pytest_terminal_summary(terminalreporter, config):
    """Print a line a case, and the geometric mean of each group."""
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("NumPy time / torch time, median [quartiles]")
    for _, name, what, ratio in rows:
        terminalreporter.line(f"{name:48} {what:8} {ratio}")
    means = summary(rows)
    for group, mean in means.items():
        terminalreporter.line(f"geometric mean, {group}: {mean:.2f}")
    target = config.getoption("--speed-output")
    if target:
        data = {
            "threads": config.getoption("--speed-threads"),
            "means": means,
            "rows": [
                {"group": g, "name": n, "what": w, **ratio.to_dict()} for g, n, w, ratio in rows
            ],
        }
        Path(target).write_text(json.dumps(data, indent=1) + "\n")


def summary(rows):
    """Return group → geometric mean of its forward+backward ratios."""
    groups = dict.fromkeys(group for group, *_ in rows)
    return {
        group: geometric_mean(
            ratio.median for g, _, what, ratio in rows if g == group and what == "both"
        )
        for group in groups
        if any(g == group and what == "both" for g, _, what, _ in rows)
    }
