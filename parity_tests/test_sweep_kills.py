"""Sweeps on processes and clusters, killed in mid-run: nothing is lost, nothing is repeated."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from parity_tests.processes import python

pytestmark = pytest.mark.slow  # workers, clusters, kills

FAST = ["--layer", "linear", "--layer", "relu", "--layer", "mseloss", "--layer", "maxpool2d"]
TOTAL = 480
WORDS = ["--cases", TOTAL, "--workers", 2, "--probe-every", 1000, "--chunk", 12, *FAST]
LATE = 180  # seconds that a cluster of two workers may take to begin, or to end


def command(*words):
    return python(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture
def start():
    """Starts processes, and ends what is left of them."""
    started = []
    yield lambda *words: started.append(process := command(*words)) or process
    for process in reversed(started):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture
def sweep(start):
    """Starts a sweep of the same cases into a folder."""
    return lambda folder, *words: start("-m", "parity", "sweep", "--output", folder, *words)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The lines that two loky workers write where nobody disturbs them, sorted."""
    folder = tmp_path_factory.mktemp("kills") / "alone"
    process = command("-m", "parity", "sweep", "--output", folder, *WORDS)
    text, _ = process.communicate(timeout=LATE)
    assert process.returncode == 0, text
    assert len(lines(folder)) == TOTAL
    return sorted(lines(folder))


def lines(folder):
    return (folder / "results.jsonl").read_text().splitlines()


def ids(folder):
    return Counter(json.loads(line)["id"] for line in lines(folder))


def written(folder):
    path = folder / "results.jsonl"
    return path.stat().st_size if path.exists() else 0


def family(pid):
    """Return process → (its parent, its command line) for all that ``pid`` has started."""
    every = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            every[int(place.name)] = parent, (place / "cmdline").read_bytes().decode()
    own = {pid}
    while new := {p for p, (parent, _) in every.items() if parent in own} - own:
        own |= new
    return {p: every[p] for p in own if p in every}


def workers(pid, word):
    """Return the processes below ``pid`` that ``word`` names, their forks left out."""
    named = {p: parent for p, (parent, line) in family(pid).items() if word in line and p != pid}
    return [p for p, parent in named.items() if parent not in named]


def wait_for(look, seconds=LATE):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(0.01)
    raise AssertionError("it never came")


def ends_well(process):
    text, _ = process.communicate(timeout=LATE)
    assert process.returncode == 0, text
    assert "Traceback" not in text, text
    return text


def kill_one(process, folder, find):
    """Kill a worker once there are results and more are to come; return how many there were."""
    wait_for(lambda: written(folder) or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    os.kill(find()[0], signal.SIGKILL)
    done = len(lines(folder))
    assert 0 < done < TOTAL, "too late to prove anything"
    return done


# ---- processes of this machine ---------------------------------------------------------------


def test_killed_workers_and_drivers_lose_and_repeat_nothing(alone, tmp_path, sweep):
    folder = tmp_path / "out"
    first = sweep(folder, *WORDS)
    kill_one(first, folder, lambda: workers(first.pid, "loky"))
    so_far = written(folder)
    wait_for(lambda: first.poll() is not None or written(folder) > so_far)
    first.kill()
    first.communicate(timeout=60)
    done = len(lines(folder))
    ends_well(sweep(folder, "--resume", *WORDS))
    assert sorted(lines(folder)) == alone
    assert json.loads((folder / "summary.json").read_text())["run"]["cases"] <= TOTAL - done + 1


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_keeps_what_is_done(tmp_path, sweep):
    folder = tmp_path / "out"
    process = sweep(folder, "--workers", 1, "--layer", "relu")  # without end
    wait_for(lambda: written(folder))
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert "--resume" in text
    numbers = [int(r.partition(":")[2]) for r in ids(folder)]
    assert numbers == list(range(len(numbers)))


# ---- clusters --------------------------------------------------------------------------------


@pytest.fixture
def dask(start, tmp_path):
    """A scheduler and two workers as processes of their own; yields (address, workers)."""
    pytest.importorskip("distributed", reason="pip install dask distributed")
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", file, "--no-dashboard"]
    start("-m", "distributed.cli.dask_scheduler", "--port", 0, "--host", "127.0.0.1", *common)
    wait_for(file.exists)
    address = json.loads(wait_for(file.read_text))["address"]
    assert address.startswith("tcp://")
    own = ["--nthreads", 1, "--nworkers", 1, "--no-dashboard", "--local-directory", tmp_path]
    return address, [start("-m", "distributed.cli.dask_worker", address, *own) for _ in range(2)]


def test_dask_over_tcp_gives_the_same_lines(alone, tmp_path, sweep, dask):
    folder = tmp_path / "out"
    address, _ = dask
    ends_well(sweep(folder, *WORDS, "--backend", "dask", "--address", address))
    assert sorted(lines(folder)) == alone


def test_a_killed_dask_worker_loses_and_repeats_nothing(alone, tmp_path, sweep, dask):
    folder = tmp_path / "out"
    address, (one, _) = dask
    process = sweep(folder, *WORDS, "--backend", "dask", "--address", address)

    def group():
        one.poll()
        return sorted(workers(one.pid, "multiprocessing")) or [one.pid]

    kill_one(process, folder, group)
    ends_well(process)
    assert sorted(lines(folder)) == alone


@pytest.fixture
def ray():
    """Skips, and says so, where Ray is not installed."""
    pytest.importorskip("ray", reason="pip install ray")
    return "--backend", "ray"


def test_ray_gives_the_same_lines(alone, tmp_path, sweep, ray):
    folder = tmp_path / "out"
    ends_well(sweep(folder, *WORDS, *ray))
    assert sorted(lines(folder)) == alone


def test_a_killed_ray_worker_loses_and_repeats_nothing(alone, tmp_path, sweep, ray):
    folder = tmp_path / "out"
    process = sweep(folder, *WORDS, *ray)
    kill_one(process, folder, lambda: workers(process.pid, "PoolActor"))
    ends_well(process)
    assert json.loads((folder / "summary.json").read_text())["run"]["workers_replaced"]
    assert sorted(lines(folder)) == alone


@pytest.mark.parametrize(
    ("backend", "package", "address", "says"),
    [
        ("dask", "distributed", "tcp://127.0.0.1:1", "no Dask scheduler answers at tcp://"),
        ("ray", "ray", "127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1: "),
    ],
)
def test_a_cluster_that_does_not_answer(tmp_path, sweep, backend, package, address, says):
    pytest.importorskip(package, reason=f"pip install {package}")
    process = sweep(tmp_path / "out", *WORDS, "--backend", backend, "--address", address)
    said, _ = process.communicate(timeout=LATE)
    assert process.returncode == 2, said
    assert says in said
    assert "Traceback" not in said
