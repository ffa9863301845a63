"""Python in a process of its own, as the tests that kill, interrupt and starve one need it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def python(*words, cwd=ROOT, stderr=subprocess.PIPE, **options):
    """Start Python with these words, at the head of a process group, with our import path."""
    path = os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        stderr=stderr,
        text=True,
        start_new_session=True,
        **options,
    )
