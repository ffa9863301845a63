"""Fail unless the one wheel in a folder ships parity, its licence and its entry points alone."""

import sys
import zipfile
from pathlib import Path


def problems(wheel):
    """What is wrong with a wheel's contents, one sentence each."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    for name in names:
        if name.split("/")[0] not in {"parity", info}:
            yield f"{name} does not belong in the wheel, which ships parity alone"
    for needed in ("parity/__init__.py", "parity/py.typed", f"{info}/licenses/LICENSE"):
        if needed not in names:
            yield f"{needed} is missing"
    for line in ("parity = parity.cli:main", "parity.plugin = parity.plugin"):
        if line not in entry_points:
            yield f"the entry point {line!r} is missing"


def main(folder):
    """Check the wheel in `folder`; the exit status."""
    wheels = sorted(Path(folder).glob("*.whl"))
    if len(wheels) != 1:
        print(f"{folder} holds {len(wheels)} wheels; one is expected")
        return 1
    found = [f"{wheels[0].name}: {problem}" for problem in problems(wheels[0])]
    print("\n".join(found) or f"{wheels[0].name}: parity alone, complete")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
