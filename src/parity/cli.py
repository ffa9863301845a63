"""The command line: ``parity check``, ``doctor``, ``replay``, ``report merge``, ``sweep``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from parity.findings import Report, UsageError
from parity.interrupts import LINE, at_once, finish

MATCHES, DIFFERS, CANNOT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Command:
    """One subcommand: the module that has ``add_arguments(parser)`` and ``run(args) -> status``."""

    module: str
    help: str
    names: int = 0  # how many FILE_OR_MODULE:NAME the command is given
    example: str = ""
    environment: tuple[tuple[str, str], ...] = ()  # set, where it is not, before torch loads
    needs: tuple[str, ...] = ("torch", "parity.checking")


COMMANDS = {
    "check": Command(
        "parity.checking_command",
        "compare a layer with its torch counterpart",
        2,
        "parity check my_layers.py:MyConv torch.nn:Conv2d --args 3 8 kernel_size=3 --input 2,3,8,8",
    ),
    "doctor": Command("parity.doctor", "versions and settings that would distort a comparison"),
    "replay": Command("parity.replaying", "run a failure that `check --bundle` saved"),
    "report": Command("parity.reporting_command", "merge the reports of several runs", needs=()),
    "sweep": Command(
        "parity.sweeping",
        "random cases, without end or up to a number",
        # threads that wait for work by spinning would take the cores of the other workers
        needs=("torch", "parity.checking", "parity.diagnosis", "joblib", "tqdm"),
        environment=(("OMP_WAIT_POLICY", "PASSIVE"),),
    ),
}


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are one clear line, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError in place of leaving the program."""
        raise UsageError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 where both sides match, 1 where not, 2 where it cannot run."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    own = argv is None  # else somebody else's process, a test's for one
    status = _guarded(tokens, own)
    finish(own)
    return status


def _guarded(tokens: list[str], own: bool) -> int:
    try:
        return _run(tokens, own)
    except UsageError as error:
        return _complain(str(error), tokens)
    except KeyboardInterrupt:
        print(LINE, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `parity check … | head`: nobody is listening any more
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CANNOT
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", tokens)
    except SystemExit as leaving:  # --help and --version, of argparse
        return leaving.code if isinstance(leaving.code, int) else CANNOT
    except Exception as error:
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        return _complain(f"the harness failed: {text}; --traceback shows where", tokens)


def _complain(text: str, tokens: list[str]) -> int:
    if "--traceback" in tokens:
        traceback.print_exc()
    print(f"parity: {text}", file=sys.stderr)
    return CANNOT


def _run(tokens: list[str], own: bool) -> int:
    with at_once(own):
        command, parsed = _asked(tokens)
        for variable, value in command.environment:
            os.environ.setdefault(variable, value)
        for name in command.needs:
            with contextlib.suppress(Exception):  # who needs it will say so
                importlib.import_module(name)
    return int(importlib.import_module(command.module).run(parsed))


def _asked(tokens: list[str]) -> tuple[Command, argparse.Namespace]:
    from parity.options import nearest

    parser = _parser()
    name = next((token for token in tokens if not token.startswith("-")), None)
    if name is None:
        if not tokens:
            parser.print_help()
            raise SystemExit(CANNOT)
        parser.parse_args(tokens)  # --help and --version leave here
        raise UsageError("no command is given; see parity --help")
    known = _available()
    if name not in known:
        if name in COMMANDS:
            raise UsageError(f"`parity {name}` is not part of this installation")
        close = nearest(name, known)
        raise UsageError(f"unknown command {name!r}{close or ';'} commands: {', '.join(known)}")
    before, after = tokens[: tokens.index(name)], tokens[tokens.index(name) + 1 :]
    module = importlib.import_module(COMMANDS[name].module)
    sub = Parser(
        prog=f"parity {name}",
        description=COMMANDS[name].help,
        epilog=COMMANDS[name].example or None,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(sub)
    sub.add_argument("--traceback", action="store_true", help="show where a refusal comes from")
    return COMMANDS[name], _parsed(sub, before + after, COMMANDS[name].names)


def _parsed(parser: Parser, tokens: list[str], names: int) -> argparse.Namespace:
    """Parse in any order: options before or after names, lists of any length, negative numbers."""
    known = parser._option_string_actions
    options = [token.partition("=")[0] for token in tokens if token.startswith("--")]
    for option in options:
        if option != "--" and option not in known:
            from parity.options import nearest

            shown = ", ".join(sorted(n for n in known if n.startswith("--")))
            close = nearest(option, known)
            raise UsageError(f"unknown option {option!r}{close or ';'} options: {shown}")
    if not names:
        return parser.parse_args(tokens)
    from parity.literals import split

    flags = frozenset(name for name, action in known.items() if action.nargs == 0)
    lists = frozenset(name for name, action in known.items() if action.metavar == "VALUE")
    targets, written = split(tokens, flags, lists, names)
    if {"--help", "-h"} & set(written):
        parser.parse_args(["--help"])
    parsed = parser.parse_args(written)
    parsed.names = targets
    return parsed


def _available() -> list[str]:
    return [name for name, command in COMMANDS.items() if importlib.util.find_spec(command.module)]


def _parser() -> Parser:
    lines = [f"  {name:8} {COMMANDS[name].help}" for name in _available()]
    parser = Parser(
        prog="parity",
        usage="parity COMMAND …",
        description="Proves a hand-written layer equal to PyTorch's, or says what is wrong with it."
        "\n\ncommands:\n" + "\n".join(lines),
        epilog=COMMANDS["check"].example
        + "\n\nexit status: 0 match, 1 not, 2 could not run. "
        + "`parity COMMAND --help` lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from parity import __version__

    parser.add_argument("--version", action="version", version=f"torch-parity {__version__}")
    return parser


def show(report: Report, as_json: bool, script: str | None = None) -> int:
    """Print a report, as text or as JSON, and the script of a failure; return the exit status."""
    if as_json:
        data = report.to_dict() | ({} if script is None else {"script": script})
        print(json.dumps(data, ensure_ascii=False, allow_nan=False))
    else:
        print(_printable(str(report)))
        if script is not None:
            print(_printable(script), end="")
    causes = {f.cause.name for f in report.findings if f.cause}
    if "reference_refused" in causes:
        return CANNOT  # torch itself does not take these inputs: nothing was compared
    return MATCHES if report.passed else DIFFERS


def _printable(text: str) -> str:
    """A terminal that knows no × still gets its report."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
