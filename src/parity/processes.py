"""Child processes with limits of time and memory: each task's answer, or how the child ended."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, NoReturn

MEBI = 2**20
LOOK = 0.02  # seconds between two looks at a child's memory
SLACK = 256 * MEBI  # address space for thread stacks and arenas, on top of what is allowed
LONGEST = 64 * MEBI  # of an answer
WARN_AT = 0.9  # of the time limit: where the child writes down what it is doing


@dataclass(frozen=True)
class Fault:
    """How a child ended without an answer: a stable name, one sentence, where it was."""

    name: str
    sentence: str
    trace: str = ""


def answers(
    tasks: Sequence[Callable[[], Any]], timeout: float | None = None, memory: float | None = None
) -> Iterator[Any]:
    """Yield the answer of each task in order (plain data), or a :class:`Fault`.

    A child works through the tasks until one fails it; that one is run again, first in a fresh
    child, so that what a task leaves behind cannot decide about another. ``timeout`` is in seconds
    a task, ``memory`` in MiB beyond what this process holds.
    """
    done = 0
    while done < len(tasks):
        child = _Child(tasks, done, timeout, memory)
        alone = True
        try:
            while done < len(tasks):
                answer = child.next()
                if isinstance(answer, Fault) and not alone:
                    break
                done, alone = done + 1, False
                yield answer
                if isinstance(answer, Fault):
                    break
        finally:
            child.end()


class _Child:
    """A fork that works through tasks from number ``first`` on and sends each answer back."""

    def __init__(
        self,
        tasks: Sequence[Callable[[], Any]],
        first: int,
        timeout: float | None,
        memory: float | None,
    ) -> None:
        self.timeout = timeout
        # without a limit, RSS may still not take more than half of the machine
        self.memory = _half() if memory is None else memory * MEBI
        self.trace: IO[bytes] = tempfile.TemporaryFile()
        reader, writer = os.pipe()
        self.before = resident(os.getpid())
        parent = os.getpid()
        try:
            self.pid = _fork()
        except BaseException:
            os.close(reader)
            os.close(writer)
            self.trace.close()
            raise
        if self.pid == 0:
            _live(tasks, first, writer, self.trace, parent, timeout, memory)
        os.close(writer)
        os.set_blocking(reader, False)
        self.reader = reader
        self.received = bytearray()
        self.status: os.waitid_result | None = None

    def next(self) -> Any:
        """Return the next answer, or the Fault that the child met."""
        until = None if self.timeout is None else time.monotonic() + self.timeout
        while True:
            frame = self._frame()
            if frame is not None:
                return frame
            if self.status is not None:
                return self._ended()
            left = LOOK if until is None else min(LOOK, until - time.monotonic())
            if left <= 0:
                return self._late()
            ready, _, _ = select.select([self.reader], [], [], left)
            if ready:
                self._read()
                continue
            if resident(self.pid) > self.before + self.memory:
                limit = f"{self.memory / MEBI:.0f} MiB"
                return Fault("out_of_memory", f"took more than {limit} of memory", self._where())
            self._look()

    def _look(self) -> None:
        with contextlib.suppress(ChildProcessError):
            # the child stays unreaped: its number names its group until the group is killed
            self.status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def _read(self) -> None:
        try:
            data = os.read(self.reader, MEBI)
        except BlockingIOError:
            return
        if data:
            self.received += data
        else:  # the other end is closed: it has ended, or is about to
            self._look()
            if self.status is None:
                time.sleep(LOOK / 10)

    def _frame(self) -> Any:
        if len(self.received) < 8:
            return None
        size = int.from_bytes(self.received[:8], "big")
        if size > LONGEST:
            return Fault("exited", "wrote into the channel that its answer goes through")
        if len(self.received) < 8 + size:
            return None
        data = bytes(self.received[8 : 8 + size])
        del self.received[: 8 + size]
        try:
            answer = json.loads(data)
        except ValueError:
            return Fault("exited", "wrote into the channel that its answer goes through")
        if isinstance(answer, dict) and "fault" in answer:
            return Fault(*map(str, answer["fault"]))
        return answer["answer"]

    def _ended(self) -> Fault:
        with contextlib.suppress(BlockingIOError):
            self._read()
        frame = self._frame()
        if frame is not None:
            return frame
        status = self.status
        assert status is not None
        where = self._where()
        if status.si_code == os.CLD_EXITED:
            return Fault("exited", f"left the process with exit status {status.si_status}", where)
        name = signal.Signals(status.si_status).name
        if status.si_status == signal.SIGKILL:
            return Fault("out_of_memory", f"was killed ({name}), most likely for memory", where)
        if self._lines()[:1] and self._lines()[0].startswith("Timeout"):
            # it writes its stack down while it runs on, which may go wrong
            return self._late()
        return Fault("crashed", f"crashed the process ({name})", where)

    def _late(self) -> Fault:
        return Fault("timed_out", f"was still running after {self.timeout:g} s", self._where())

    def _where(self) -> str:
        """Return the last lines of the stack that the child wrote down on its way out."""
        return "\n".join([line for line in self._lines() if line.startswith("  File")][:6])

    def _lines(self) -> list[str]:
        self.trace.seek(0)
        return self.trace.read(MEBI).decode("utf-8", "replace").splitlines()

    def end(self) -> None:
        """Kill the child with all that it has started, and forget it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # it may not have its own group yet
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.reader)
        self.trace.close()


def _fork() -> int:
    """Fork; a Ctrl-C in the midst of it is kept until it is done.

    What the handler raises inside of a function that runs at a fork (logging has some) would be
    printed and forgotten.
    """
    kept: list[Any] = []
    main = threading.current_thread() is threading.main_thread()
    usual = signal.signal(signal.SIGINT, lambda *given: kept.append(given)) if main else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fork beside threads: see parity.isolation
            pid = os.fork()
    finally:
        if main:
            signal.signal(signal.SIGINT, signal.SIG_DFL if usual is None else usual)
    if kept and pid and callable(usual):
        try:
            usual(*kept[0])
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    return pid


def _half() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def _statm(pid: int) -> tuple[int, int, int]:
    """Return (address space, resident, resident and shared with files) in bytes."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            page = os.sysconf("SC_PAGE_SIZE")
            size, held, shared = (int(n) * page for n in file.read().split()[:3])
    except (OSError, ValueError):
        return 0, 0, 0  # ended, or a system without /proc: the address space alone is limited
    return size, held, shared


def resident(pid: int) -> int:
    """Return the memory that a process holds for itself, libraries left out, in bytes.

    A fork starts with its parent's, while libraries come to it page by page.
    """
    _, held, shared = _statm(pid)
    return held - shared


def _live(
    tasks: Sequence[Callable[[], Any]],
    first: int,
    writer: int,
    trace: IO[bytes],
    parent: int,
    timeout: float | None,
    memory: float | None,
) -> NoReturn:
    """Be the child: never returns, whatever happens."""
    status = 1
    try:
        pid = os.getpid()
        _settle(trace, parent, memory)
        for task in tasks[first:]:
            if timeout is not None:
                faulthandler.dump_traceback_later(timeout * WARN_AT, file=trace)
            answer = _answer(task)
            if os.getpid() != pid:  # a copy that the task made of this process
                break
            faulthandler.cancel_dump_traceback_later()
            data = json.dumps(answer).encode()
            _send(writer, len(data).to_bytes(8, "big") + data)
            del answer, data
        status = 0
    finally:
        os._exit(status)


def _answer(task: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"answer": task()}
    except BaseException as error:
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        lines = "".join(traceback.format_exception(error, limit=-6))
        return {"fault": ["raised", text, lines]}


def _settle(trace: IO[bytes], parent: int, memory: float | None) -> None:
    """Leave the parent's terminal, threads and files alone, and take on the limits."""
    import resource

    os.setsid()  # Ctrl-C goes to the parent, which ends this whole group
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # what is printed from C as well
        os.dup2(nowhere, descriptor)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    faulthandler.enable(file=trace)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None:
        room = _statm(os.getpid())[0] + int(memory * MEBI) + SLACK
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (room, hard))
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)  # a pool of OpenMP threads does not survive a fork
    gc.freeze()  # else the collector would copy every page of the parent


def _die_with(parent: int) -> None:
    """Ask Linux to end this process with the one that made it, however that one ends."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _send(writer: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(writer, view) :]
