"""Ctrl-C in a program of its own: it ends at once while modules load, and is ignored at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

STATUS = 130
LINE = "parity: interrupted"


def leave(*given: Any) -> NoReturn:
    """End this process: nothing is open yet that could be left half-written."""
    with contextlib.suppress(OSError):
        os.write(2, f"{LINE}\n".encode())
    os._exit(STATUS)


@contextlib.contextmanager
def at_once(own: bool = True) -> Iterator[None]:
    """Let Ctrl-C end the process where it is ``own``.

    What is being imported may turn the exception into another one, or swallow it.
    """
    usual = signal.getsignal(signal.SIGINT)
    if not own or not _mine(usual):
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def finish(own: bool = True) -> None:
    """Ignore Ctrl-C from here on: the status is known, Python is about to end."""
    if own and _mine(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _mine(handler: Any) -> bool:
    """Whether nobody else has chosen what Ctrl-C does; shells ignore it for jobs in the back."""
    main = threading.current_thread() is threading.main_thread()
    return main and handler is signal.default_int_handler
