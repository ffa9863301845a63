"""What every pytest run here needs: where parity is, one thread a worker, repeatable draws."""

import gc
import importlib.util
import os
import signal
import sys
from collections import defaultdict
from pathlib import Path

import pytest

SRC = str(Path(__file__).parent / "src")

# Workers of pytest-xdist share the cores; each with a BLAS pool of its own would fight the others.
# Read when NumPy and torch load, so it is set before anything here imports them.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


def _installed():
    spec = importlib.util.find_spec("parity")
    return spec is not None and spec.origin is not None  # a bare folder of that name has no origin


if not _installed():
    sys.path.insert(0, SRC)
    # Tests start Python again (the command line, isolation): children must find the checkout too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))

# An installed parity is there already, through its entry point: that has the same name, so pytest
# takes it once. Needed in a bare checkout, and where PYTHONPATH alone leads to parity.
pytest_plugins = ["parity.plugin"]

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # The same examples in every run, so that a red run can be repeated; HYPOTHESIS_PROFILE=explore
    # draws new ones. No deadline: a busy machine is not a fault.
    settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
    settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture
def ctrl_c():
    """SIGINT is heeded: a run that a script put into the background ignores it, children too."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Let an idle worker take over what waits at another: the long tests stand side by side."""
    option = config.option
    if getattr(option, "numprocesses", None) and option.dist == "no":
        option.dist = "worksteal"


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Mark the rows that ``one_in`` leaves to ``-m slow``: a row asked for by name is the first."""
    rows = defaultdict(list)
    for item in items:
        if item.get_closest_marker("one_in"):
            rows[item.nodeid.partition("[")[0]].append(item)
    for met in rows.values():
        met.sort(key=lambda item: [*item.callspec.indices.values()])  # in whatever order they run
        for place, item in enumerate(met):
            if place % item.get_closest_marker("one_in").args[0]:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """Leave the collected tests out of garbage collection: looking through them takes a tenth."""
    gc.collect()
    gc.freeze()
