"""``parity report merge A B -o DIR``: the reports of several runs as one."""

from __future__ import annotations

import argparse

from parity.findings import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``parity report``."""
    parser.usage = "parity report merge FOLDER FOLDER … -o DIR"
    parser.add_argument("action", choices=["merge"], help="what to do with the reports")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a report's folder or JSON")
    parser.add_argument("-o", "--output", metavar="DIR", help="the folder to write")


def run(args: argparse.Namespace) -> int:
    """Merge the reports; return 0.

    Raises UsageError where one cannot be read, or where no folder to write is named.
    """
    from parity.reporting import write_merged

    if not args.output:
        raise UsageError("no folder to write is named; add -o DIR")
    record, names = write_merged(args.folders, args.output)
    count = len(record.runs)
    print(f"{count} run{'s' if count != 1 else ''} merged into {args.output}: {', '.join(names)}")
    return 0
