"""``parity replay BUNDLE``: a saved failure, run on this machine."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from parity.findings import Report, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``parity replay``."""
    parser.usage = "parity replay BUNDLE [--mine FILE_OR_MODULE:NAME] [--theirs MODULE:NAME]"
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that `check --bundle` saved")
    parser.add_argument("--mine", metavar="NAME", help="the hand-written side, to run it")
    parser.add_argument(
        "--theirs", metavar="NAME", help="the torch side, where it is not torch.nn's"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Replay a bundle; return 0 where both sides match, 1 where not."""
    from parity.bundling import read
    from parity.bundling import run as replay
    from parity.bundling import show as judge
    from parity.cli import show
    from parity.loading import Recipe, build

    bundle = read(args.bundle)
    if not args.mine and not bundle.arrays["mine"]:
        raise UsageError(
            f"name the hand-written side with --mine FILE_OR_MODULE:NAME; it was "
            f"{bundle.data['mine'].get('target')} (a bundle never says itself what code to run)"
        )
    with contextlib.redirect_stdout(sys.stderr):
        mine: Any = None
        theirs: Any = None
        if args.mine:
            mine = build(Recipe(args.mine, *_arguments(bundle, "mine")), "mine")
        if args.theirs:
            theirs = build(Recipe(args.theirs, *_arguments(bundle, "theirs")), "torch")
        report = replay(bundle, mine, theirs) if args.mine else judge(bundle, theirs)
    if not args.json:
        print(comparison(bundle.data, report))
    return show(report, args.json)


def _arguments(bundle: Any, side: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    from parity.bundling import damaged, value

    data = bundle.data[side]
    args, config = data.get("args", []), data.get("config", {})
    for name, given, kind in (("args", args, list), ("config", config, dict)):
        if not isinstance(given, kind):
            text = f"the {name} of {side} are {given!r:.60}, no {kind.__name__}"
            raise damaged(bundle.path, text)
    return (
        tuple(value(bundle.path, side, text) for text in args),
        {str(name): value(bundle.path, side, text) for name, text in config.items()},
    )


def comparison(data: Any, report: Report) -> str:
    """Return one line: does the saved finding show here, and do the versions differ?"""
    saved = [
        (item.get("quantity"), item.get("verdict"))
        for item in data["findings"]
        if isinstance(item, dict)
    ]
    here = {(f.quantity, str(f.verdict)) for f in report.failures}
    found = sum(key in here for key in saved)
    text = f"{found} of {len(saved)} saved findings show here"
    other = [
        f"{name} {version} then, {report.versions.get(name)} now"
        for name, version in data["versions"].items()
        if report.versions.get(name) != version
    ]
    return text + ("; " + ", ".join(other) if other else "; same versions")
