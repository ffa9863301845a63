"""``parity check FILE_OR_MODULE:NAME TORCH:NAME``: a check without a test file."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from parity.cli import show
from parity.findings import UsageError
from parity.literals import arguments, name_map, one_input, seeds, words
from parity.loading import FORM, Recipe, build, find

LISTS = {
    "--args": "constructor arguments of both sides: 3 8 kernel_size=3",
    "--mine-args": "arguments of the hand-written side alone",
    "--torch-args": "arguments of the torch side alone",
    "--weights": "names that differ: mine=theirs, W=weight:1,0, U=weight_hh_l0:blocks,1,0,2",
    "--dtypes": "precisions: float64 float32",
    "--modes": "modes: train eval",
    "--rungs": "rungs: exact float64 float32 probes promises",
    "--expects-zero": "quantities that are zero on purpose, such as grad_bias; all for every one",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``parity check``."""
    parser.usage = "parity check MINE THEIRS --input SHAPE [options]"
    parser.description = (
        f"Compare a hand-written layer with its torch counterpart; MINE and THEIRS: {FORM}."
    )
    for name, text in LISTS.items():
        parser.add_argument(name, action="append", metavar="VALUE", default=None, help=text)
    parser.add_argument(
        "--input",
        action="append",
        metavar="SHAPE",
        help="2,3,8,8 or 'labels(8, classes=10)' or data.npy; once for each input",
    )
    parser.add_argument("--seed", metavar="N", help="the first seed (0)")
    parser.add_argument("--seeds", metavar="N", help="how many seeds, or a list: 0,3,7")
    for name, text in (
        ("--device", "for a torch module under test"),
        ("--timeout", "seconds the check may take; in a process of its own"),
        ("--memory", "MiB the check may take; in a process of its own"),
        ("--bundle", "where to save a failure, for `parity replay`"),
    ):
        parser.add_argument(name, metavar=name[2:].upper(), help=text)
    for name, text in (
        ("--strict", "rougher than torch, undecided and not covered fail too"),
        ("--isolate", "run in a process of its own"),
        ("--no-diagnose", "do not look for causes"),
        ("--script", "print a failure as a script of NumPy and torch alone"),
        ("--json", "print JSON"),
    ):
        parser.add_argument(name, action="store_true", help=text)


def run(args: argparse.Namespace) -> int:
    """Run the check; return 0 for a match, 1 for none, 2 where torch refuses the inputs."""
    mine, theirs = recipes(args.names, args)
    if not args.input:
        raise UsageError("no input is given; give a shape for each input, as in --input 8,4")
    inputs = tuple(one_input(text) for text in args.input)
    options = options_of(args)
    from parity.checking import check
    from parity.options import make_options
    from parity.reproducing import remember, save_bundle, script

    chosen = make_options(options)
    # what a user's module prints belongs on the other stream: the report has this one to itself
    with contextlib.redirect_stdout(sys.stderr):
        for recipe in (mine, theirs):
            find(recipe.target)  # a name that is wrong is said before anything is made
        seed_everything(chosen.all_seeds[0])
        made = build(mine, "mine"), build(theirs, "torch")
        report = check(*made, *inputs, **options)
    remember(report, *made, inputs, options, recipes=(mine, theirs))
    text = None
    try:
        text = script(report) if args.script and not report.passed else None
    finally:  # where no script can be written, the report still says what was found
        status = show(report, args.json, text)
    if args.bundle and not report.passed:
        place = save_bundle(report, args.bundle)
        print(f"saved: parity replay {place} --mine {mine.target}", file=sys.stderr)
    return status


def recipes(names: list[str], args: argparse.Namespace) -> tuple[Recipe, Recipe]:
    """Return the recipes of both sides.

    Raises UsageError where there are not two names, or where arguments cannot be read.
    """
    if len(names) != 2:
        given = ", ".join(map(repr, names)) or "nothing"
        raise UsageError(f"two names are needed, the hand-written and the torch one; got {given}")
    made = []
    for name, own in zip(names, (args.mine_args, args.torch_args), strict=True):
        first, shared = arguments(args.args or [])
        more, extra = arguments(own or [])
        made.append(Recipe(name, first + more, {**shared, **extra}))
    return made[0], made[1]


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of :func:`parity.check` as typed.

    Raises UsageError for a number that is none, or an unreadable name map.
    """
    found: dict[str, Any] = {}
    if args.seed is not None:
        found["seed"] = number("--seed", args.seed, int)
    if args.seeds is not None:
        found["seeds"] = seeds(args.seeds)
    for name in ("dtypes", "modes", "rungs"):
        if getattr(args, name):
            found[name] = words(getattr(args, name))
    for name in ("timeout", "memory"):
        if getattr(args, name) is not None:
            found[name] = number(f"--{name}", getattr(args, name), float)
            found["isolate"] = True
    if args.device is not None:
        found["device"] = args.device
    if args.weights:
        found["weights"] = name_map(args.weights)
    if args.expects_zero:
        named = words(args.expects_zero)
        found["expects_zero"] = True if named == ["all"] else named
    for name in ("strict", "isolate"):
        if getattr(args, name):
            found[name] = True
    if args.no_diagnose:
        found["diagnose"] = False
    return found


def number(option: str, text: str, kind: type) -> Any:
    """Return ``text`` as a number.

    Raises UsageError naming the option.
    """
    try:
        return kind(text)
    except ValueError as error:
        what = "an integer" if kind is int else "a number"
        raise UsageError(f"{option} got {text!r}; it must be {what}") from error


def seed_everything(seed: int) -> None:
    """Seed what constructors draw their first weights from, so that a check can be repeated."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
