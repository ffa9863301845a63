"""The cases of a sweep on many workers: chunks out, lines back, dead workers replaced."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from parity.findings import UsageError
from parity.sweeping.plan import Plan, fault_record, layers_of, record

CHUNK = 48  # cases a task: one fork and one message for all of them
IDLE = 20  # seconds after which a loky worker without work leaves: its sweep may be gone
RETRIES = 5  # rounds without a single result before a sweep gives up
BACKENDS = ("loky", "dask", "ray")


@dataclass(frozen=True)
class Chunk:
    """What a worker sends back: (index, line) of each case, its memory and its time."""

    lines: tuple[tuple[int, str], ...]
    resident: float
    seconds: float


def run_chunk(plan: Plan, indices: Sequence[int], driver: int | None) -> Chunk:
    """Run some cases, in a process of their own, and return their lines.

    ``driver`` is the process that waits for them, where it is on this machine: a worker whose
    driver is gone stops.
    """
    from parity.isolation import as_json
    from parity.processes import Fault, answers

    _warm(plan)
    cases = [plan.case(index) for index in indices]
    tasks = [partial(record, plan, layer, number) for layer, number in cases]
    before = _seconds()
    lines = []
    for index, (layer, number), answer in zip(
        indices, cases, answers(tasks, plan.timeout, plan.memory), strict=True
    ):
        if driver is not None and driver not in (os.getppid(), os.getpid()):
            os._exit(1)
        if isinstance(answer, Fault):
            answer = fault_record(plan, layer, number, answer.name, answer.sentence)
        lines.append((index, as_json(answer)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Chunk(tuple(lines), peak, _seconds() - before)


def _seconds() -> float:
    """CPU seconds of this process and of the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@lru_cache(maxsize=1)
def _warm(plan: Plan) -> None:
    """Import what a case needs before the first fork, on one thread: forks inherit it."""
    import torch

    torch.set_num_threads(1)
    space = layers_of(plan)
    for kind in dict.fromkeys(type(space[name]) for name in plan.layers):
        kind.warm()


def chunks(indices: Iterator[int], size: int = CHUNK) -> Iterator[list[int]]:
    """Cut a stream of cases into tasks."""
    chunk = []
    for index in indices:
        chunk.append(index)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _answers(address: str) -> None:
    """Raise UsageError where nothing listens at host:port; Ray itself tries that for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto", or another form of Ray's
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"no Ray cluster answers at {address}: {error}") from error


class Pool:
    """Workers of one backend: loky's processes, or a Dask or Ray cluster, through joblib."""

    def __init__(self, backend: str, workers: int, address: str | None = None) -> None:
        """Connect. Raises UsageError where the backend or its package is not there."""
        self.backend = backend
        self.workers = workers
        self._stack = contextlib.ExitStack()
        try:
            import joblib
        except ImportError as error:
            raise UsageError("a sweep needs joblib: pip install 'torch-parity[sweep]'") from error
        self.joblib = joblib
        getattr(self, f"_{backend}")(address)

    def _loky(self, address: str | None) -> None:
        if address is not None:
            raise UsageError("--address is for --backend dask or ray; loky runs on this machine")

    def _dask(self, address: str | None) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise UsageError("--backend dask needs: pip install dask distributed") from error
        try:
            client = Client(address, timeout=20) if address else Client(n_workers=self.workers)
        except (OSError, ValueError) as error:
            raise UsageError(f"no Dask scheduler answers at {address}: {error}") from error
        self._stack.enter_context(client)

    def _ray(self, address: str | None) -> None:
        try:
            import ray
            from ray.util.joblib import register_ray
        except ImportError as error:
            raise UsageError("--backend ray needs: pip install ray") from error
        if address:
            _answers(address)
        register_ray()
        options: dict[str, Any] = {} if address else {"num_cpus": self.workers}
        try:
            ray.init(address=address, log_to_driver=False, **options)
        except Exception as error:  # Ray raises its own, a timeout, or what its start has met
            text = " ".join(str(error).split())
            what = f"no Ray cluster answers at {address}" if address else "Ray does not start here"
            raise UsageError(f"{what}: {text}; --resume continues what there is") from error
        self._stack.callback(ray.shutdown)

    def run(self, plan: Plan, tasks: Iterator[list[int]]) -> Iterator[Chunk]:
        """Yield what the workers send, in the order in which it comes."""
        driver = os.getpid() if self.backend == "loky" else None
        call = self.joblib.delayed(run_chunk)
        jobs = (call(plan, task, driver) for task in tasks)
        options = {"idle_worker_timeout": IDLE} if self.backend == "loky" else {}
        number = self.workers if self.backend != "dask" else -1
        with self.joblib.parallel_config(backend=self.backend, n_jobs=number, **options):
            if self.backend == "ray":  # its pool answers a list at a time
                yield from self._waves(jobs, 4 * self.workers)
                return
            parallel = self.joblib.Parallel(
                return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs"
            )
            with contextlib.closing(parallel(jobs)) as found:
                yield from found

    def _waves(self, jobs: Iterator[Any], size: int) -> Iterator[Chunk]:
        from itertools import islice

        with self.joblib.Parallel(batch_size=1) as parallel:  # or each wave starts its own actors
            while wave := list(islice(jobs, size)):
                yield from parallel(wave)

    def lost(self, error: BaseException) -> bool:
        """Whether ``error`` says that a worker died, rather than that something is wrong."""
        names = {c.__name__ for c in type(error).__mro__}
        return bool(
            names
            & {
                "TerminatedWorkerError",
                "BrokenProcessPool",
                "BrokenExecutor",
                "KilledWorker",
                "RayActorError",
                "ActorDiedError",
                "WorkerCrashedError",
            }
        )

    def close(self) -> None:
        """Let the cluster go."""
        self._stack.close()
