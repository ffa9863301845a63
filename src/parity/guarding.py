"""Global settings around somebody's code: what it changed, said once, and put back."""

from __future__ import annotations

import mmap
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

# a layer that forks returns twice; the copy leaves a mark here and ends (see ``copied``)
_MARK = mmap.mmap(-1, 1)
_forks = 0
COPY_EXIT = 97
PATIENCE = 0.3  # seconds that a forked copy is given to leave its mark


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_count_fork)


def forks() -> int:
    """Return how often this process has been forked."""
    return _forks


def end_copy(pid: int) -> None:
    """End this process, at once, where somebody's code has made it a copy of process ``pid``."""
    if os.getpid() != pid:
        _MARK[0] = 1
        os._exit(COPY_EXIT)


def copied() -> bool:
    """Whether a forked copy returned from somebody's code; waits a moment for its mark."""
    until = time.monotonic() + PATIENCE
    while not _MARK[0] and time.monotonic() < until:
        time.sleep(0.005)
    found = bool(_MARK[0])
    _MARK[0] = 0
    return found


def _torch_settings() -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    found = {
        "torch.set_default_dtype": (torch.get_default_dtype(), torch.set_default_dtype),
        "torch.set_num_threads": (torch.get_num_threads(), torch.set_num_threads),
        "torch.set_grad_enabled": (torch.is_grad_enabled(), torch.set_grad_enabled),
        "torch.autograd.set_detect_anomaly": (
            torch.is_anomaly_enabled(),
            torch.autograd.set_detect_anomaly,
        ),
        "torch.use_deterministic_algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.use_deterministic_algorithms,
        ),
        "torch.set_float32_matmul_precision": (
            torch.get_float32_matmul_precision(),
            torch.set_float32_matmul_precision,
        ),
    }
    mkldnn = torch.backends.mkldnn

    def enable(value: bool) -> None:
        mkldnn.enabled = value

    found["torch.backends.mkldnn.enabled"] = (mkldnn.enabled, enable)
    return found


def _environment(value: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(value)


def _patch(owner: Any, name: str) -> tuple[Any, Callable[[Any], Any]]:
    return getattr(owner, name), lambda value: setattr(owner, name, value)


def _settings() -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Return setting → (its value, what sets it)."""
    found: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "np.seterr": (np.geterr(), lambda value: np.seterr(**value)),
        "np.set_printoptions": (
            {k: v for k, v in np.get_printoptions().items() if k != "override_repr"},
            lambda value: np.set_printoptions(**value),
        ),
        "sys.setrecursionlimit": (sys.getrecursionlimit(), sys.setrecursionlimit),
        "os.chdir": (os.getcwd(), os.chdir),
        "sys.stdout": _patch(sys, "stdout"),
        "sys.stderr": _patch(sys, "stderr"),
        "warnings.warn": _patch(warnings, "warn"),
        "warnings.showwarning": _patch(warnings, "showwarning"),
        "builtins.print": _patch(sys.modules["builtins"], "print"),
    }
    # the functions that students patch to "fix" a course's data type or its noise
    found |= {f"np.{n}": _patch(np, n) for n in ("array", "asarray", "zeros", "dot", "exp", "sum")}
    return found | _torch_settings()


def _random_states() -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Return global random generator → (its state, what sets it)."""
    found: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "random": (random.getstate(), random.setstate),
    }
    state = np.random.get_state()
    if isinstance(state, tuple):  # a bit generator of the user's own has no legacy state
        found["np.random"] = (_comparable(state), lambda v: np.random.set_state(_numpy_state(v)))
    torch = sys.modules.get("torch")
    if torch is not None:
        generator = torch.default_generator
        found["torch"] = (
            bytes(generator.get_state().numpy()),
            lambda value: generator.set_state(
                torch.frombuffer(bytearray(value), dtype=torch.uint8)
            ),
        )
    return found


def _seed_all(seed: int) -> None:
    np.random.seed(seed)
    random.seed(seed)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.manual_seed(seed)


def _comparable(state: Any) -> tuple[Any, ...]:
    name, keys, *rest = state
    return (name, keys.tobytes(), *rest)


def _numpy_state(state: tuple[Any, ...]) -> tuple[Any, ...]:
    name, keys, *rest = state
    return (name, np.frombuffer(keys, dtype=np.uint32), *rest)


UNUSUAL = 2_718_281_828


class Watch:
    """Global settings as they were; :meth:`restore` says what was changed and puts it back."""

    def __init__(self) -> None:
        self._settings = _settings()
        self._random = _random_states()
        # a state that no layer seeds by chance: one already at seed 0 would hide a seed(0)
        _seed_all(UNUSUAL)
        self._marked = _random_states()
        self._environment = dict(os.environ)
        self._forks = _forks
        _MARK[0] = 0

    def restore(self) -> list[str]:
        """Put settings and environment back; return the names of those that were changed."""
        # set_num_threads and the like are asked anew: a layer may import torch itself
        now = _settings()
        changed = []
        for name, (value, put) in self._settings.items():
            other = now[name][0]
            if other is not value and other != value:
                changed.append(name)
                put(value)
        if dict(os.environ) != self._environment:
            _environment(self._environment)
        return changed

    def drawn(self) -> list[str]:
        """Return the global random generators whose state has moved."""
        now = _random_states()
        return [name for name, (state, _) in self._marked.items() if now[name][0] != state]

    def restore_random(self) -> None:
        """Put the global random generators back."""
        for state, put in self._random.values():
            put(state)

    def forked(self) -> str | None:
        """Return ``copies`` where somebody's code forked and came back twice, else ``starts``."""
        if _forks == self._forks:
            return None
        return "copies" if copied() else "starts"


def seeds(run: Callable[[], Any], names: list[str]) -> list[str]:
    """Return which of the random generators ``names`` are seeded by ``run``, not only read.

    ``run`` is called from two different states: what is left equal by both was seeded.
    """
    left: list[dict[str, Any]] = []
    for start in (1, 2):
        _seed_all(start)
        try:
            run()
        except Exception:
            return []
        left.append({name: state for name, (state, _) in _random_states().items()})
    return [name for name in names if left[0][name] == left[1][name]]
