"""Which legs of the torch matrix the free disk has room for; `--run` hands them to tox.

Legs go newest first, so that a full disk costs the oldest. What is left out is said on stderr, and
with `--strict` it is a failure.
"""

import argparse
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPARE_GB = 5  # uv unpacks into its cache first, and other programs write too


def plan(legs, free_gb):
    """Split legs, each a table of versions.toml, into (those that fit, those that do not)."""
    fit, left_out = [], []
    for leg in sorted(legs, key=lambda leg: release(leg["version"]), reverse=True):
        if leg["disk_gb"] + SPARE_GB <= free_gb:
            free_gb -= leg["disk_gb"]
            fit.append(leg)
        else:
            left_out.append(leg)
    return fit, left_out


def release(version):
    """'2.13.0+cpu' -> (2, 13, 0): torch's versions carry local and pre-release tails."""
    return tuple(int(part) for part in version.split("+")[0].split("."))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="run tox on the legs that fit")
    parser.add_argument("--strict", action="store_true", help="fail when a leg does not fit")
    options, rest = parser.parse_known_args(argv)
    legs = tomllib.loads((ROOT / ".ci" / "versions.toml").read_text(encoding="utf-8"))["torch"]
    # A leg that is there already needs no room.
    present = [leg for leg in legs if (ROOT / ".tox" / f"torch{leg['version']}").is_dir()]
    missing = [leg for leg in legs if leg not in present]
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    fit, left_out = plan(missing, free_gb)
    for leg in left_out:
        print(
            f"LEFT OUT: torch{leg['version']} needs about {leg['disk_gb']} GB beside "
            f"{SPARE_GB} GB of spare room; {free_gb:.0f} GB are free, "
            f"{sum(f['disk_gb'] for f in fit):.0f} GB of them taken by other legs",
            file=sys.stderr,
        )
    if left_out and options.strict:
        return 1
    chosen = ",".join(f"torch{leg['version']}" for leg in [*present, *fit])
    if not chosen:
        print("no leg of the matrix fits on this disk", file=sys.stderr)
        return 1
    print(chosen, flush=True)
    if not options.run:
        return 0
    command = [sys.executable, "-m", "tox", "run", "-e", chosen, *(["--", *rest] if rest else [])]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
