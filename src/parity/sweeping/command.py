"""``parity sweep``: its options, its progress, what it prints at the end."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from parity.findings import UsageError
from parity.options import nearest
from parity.sweeping.grouping import BAD, grouped, shrink_all
from parity.sweeping.plan import (
    DEFAULT_SPACE,
    Plan,
    draw_case,
    read_id,
    run_case,
    settled,
)
from parity.sweeping.results import RESULTS, SUMMARY, Results, read, write_json
from parity.sweeping.running import BACKENDS, CHUNK, RETRIES, Chunk, Pool, chunks

MATCHES, DIFFERS, INTERRUPTED = 0, 1, 130
FIRST = 1000  # cases after which memory is looked at for the first time
SHOWN = 12  # groups that are printed
MOST = 10_000  # workers, or cases a task
MEBI = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``parity sweep``."""
    parser.usage = "parity sweep [MINE THEIRS] --output DIR [options]"
    parser.add_argument(
        "pair", nargs="*", metavar="FILE_OR_MODULE:NAME", help="a layer's class and torch's class"
    )
    texts = {
        "--cases": ("N", "how many cases; without end where it is left out"),
        "--output": ("DIR", "where the results go, line by line"),
        "--seed": ("N", "another seed draws other cases (0)"),
        "--case": ("ID", "run one case again, as in conv2d:12345"),
        "--space": ("MODULE:NAME", "a mapping of name → parity.sweeping.spaces.Layer"),
        "--backend": ("NAME", f"{', '.join(BACKENDS)} (loky: processes on this machine)"),
        "--address": ("ADDRESS", "of a Dask scheduler or Ray cluster"),
        "--workers": ("N", "how many workers (all cores)"),
        "--timeout": ("SECONDS", "a case may take (20)"),
        "--memory": ("MIB", "a case may take (2048)"),
        "--chunk": ("N", f"cases a task; more for more than a hundred workers ({CHUNK})"),
        "--probe-every": ("N", "every how many cases is probed as well (32)"),
    }
    for name, (metavar, text) in texts.items():
        parser.add_argument(name, metavar=metavar, help=text)
    parser.add_argument("--layer", action="append", metavar="NAME", help="only this; repeatable")
    parser.add_argument("--resume", action="store_true", help="go on where a sweep has stopped")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``parity sweep`` with ``argv``; return its exit status."""
    from parity.cli import main as whole

    return whole(["sweep", *(sys.argv[1:] if argv is None else argv)])


def run(args: argparse.Namespace) -> int:
    """Run the sweep that ``args`` ask for: 0 no failure, 1 some, 130 interrupted.

    Raises UsageError for what cannot be run.
    """
    plan = _plan(args)
    if args.case is not None:
        return _again(plan, args.case)
    if not args.output:
        raise UsageError("give a folder for the results: --output DIR")
    total = None if args.cases is None else _whole("--cases", args.cases, 1)
    backend = args.backend or "loky"
    if backend not in BACKENDS:
        raise UsageError(
            f"unknown backend {backend!r}{nearest(backend, BACKENDS)}; there are: "
            f"{', '.join(BACKENDS)}"
        )
    workers = os.cpu_count() or 1
    if args.workers is not None:
        workers = _whole("--workers", args.workers, 1, MOST)
    sweep = Sweep(plan, Path(args.output), total, args.resume)
    sweep.chunk = CHUNK if args.chunk is None else _whole("--chunk", args.chunk, 1, MOST)
    return sweep.run(backend, workers, args.address)


def _plan(args: argparse.Namespace) -> Plan:
    if len(args.pair) not in (0, 2):
        raise UsageError(
            "a sweep takes no names or two, MINE THEIRS, as in my_layers.py:MyConv torch.nn:Conv2d"
        )
    if args.pair and args.space:
        raise UsageError("--space and MINE THEIRS exclude each other; give one of them")
    mine, theirs = args.pair or (None, None)
    plan = Plan(
        space=_absolute(args.space or (None if args.pair else DEFAULT_SPACE)),
        mine=_absolute(mine),
        theirs=theirs,
        layers=tuple(args.layer or ()),
        seed=_whole("--seed", args.seed or "0", 0),
        full=_whole("--probe-every", args.probe_every or "32", 1),
        timeout=_positive("--timeout", args.timeout or "20"),
        memory=_positive("--memory", args.memory or "2048"),
    )
    return settled(plan)


def _absolute(target: str | None) -> str | None:
    """Workers may run in another folder than this process."""
    if target is None:
        return None
    place, colon, name = target.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if colon and place.endswith(".py") else target


def _whole(name: str, text: str, least: int, most: int = 10**15) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 17 and least <= int(text) <= most):
        reach = f"from {least} to {most}" if most < 10**15 else f"from {least} on"
        raise UsageError(f"{name} is {text!r}; it must be a whole number {reach}")
    return int(text)


def _positive(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise UsageError(f"{name} is {text!r}; it must be a positive number")
    return value


def _again(plan: Plan, text: str) -> int:
    """Run one case again in a process of its own, and print its whole report."""
    from dataclasses import replace

    from parity.isolation import as_json, report_of
    from parity.options import Options
    from parity.processes import answers

    layer, number = read_id(plan, text)
    draw = draw_case(plan, layer, number)
    draw = replace(draw, full=True)
    tasks = [lambda: {"report": run_case(plan, layer, draw).to_dict()}]
    (answer,) = answers(tasks, plan.timeout, plan.memory)
    report = report_of(answer, draw.name, Options(memory=plan.memory))
    print(f"{draw.name}: {as_json(draw.drawn.config())}, {draw.mode}, {draw.threads} threads")
    print(report)
    return MATCHES if report.passed else DIFFERS


class Sweep:
    """One run of a sweep: from its pool of workers into its folder."""

    def __init__(self, plan: Plan, output: Path, total: int | None, resume: bool) -> None:
        self.plan = plan
        self.output = output
        self.total = total
        self.resume = resume
        self.chunk = CHUNK
        self.started = time.monotonic()
        self.new = 0
        self.seconds = 0.0
        self.memory: dict[str, float] = {}
        self.rounds = 0

    def run(self, backend: str, workers: int, address: str | None) -> int:
        """Run to the end, or until Ctrl-C; print the summary and return the exit status."""
        meter = _meter()  # what is lacking is said before a folder is made
        pool = Pool(backend, workers, address)
        stopped = False
        try:
            with Results(self.output, self.plan, self.resume) as results:
                try:
                    self._all(results, pool, meter)
                except KeyboardInterrupt:
                    stopped = True
        finally:
            pool.close()
        status = self._summary(backend, workers, shrink=not stopped)
        if stopped:
            print(f"interrupted; --resume --output {self.output} continues")
        return INTERRUPTED if stopped else status

    def _all(self, results: Results, pool: Pool, meter: Any) -> None:
        """Run what is not done; where a worker dies, run what it had not sent back again."""
        stalled = 0
        options = {"unit": "case", "smoothing": 0.05}
        # no bar where nobody looks at it: a log file, a CI job
        options |= {"total": self.total, "initial": results.done.count, "disable": None}
        with meter(**options) as bar:
            while True:
                before = results.done.count
                try:
                    tasks = chunks(self._pending(results), self.chunk)
                    for chunk in pool.run(self.plan, tasks):
                        bar.update(self._keep(results, chunk))
                    return
                except Exception as error:
                    if not pool.lost(error):
                        raise
                    self.rounds += 1
                    stalled = 0 if results.done.count > before else stalled + 1
                    if stalled >= RETRIES:
                        raise UsageError(
                            f"workers died {RETRIES} times without a result ({error}); "
                            f"{self.output} keeps what is done, --resume continues"
                        ) from error

    def _pending(self, results: Results) -> Iterator[int]:
        every = count() if self.total is None else iter(range(self.total))
        return (index for index in every if index not in results.done)

    def _keep(self, results: Results, chunk: Chunk) -> int:
        from parity.processes import resident

        new = results.add(chunk.lines)
        self.new += new
        self.seconds += chunk.seconds
        held = resident(os.getpid()) / MEBI
        if self.new >= FIRST and "driver_first" not in self.memory:
            self.memory |= {"driver_first": held, "worker_first": chunk.resident}
        self.memory |= {
            "driver_last": held,
            "worker_last": max(chunk.resident, self.memory.get("worker_last", 0.0)),
        }
        return new

    def _summary(self, backend: str, workers: int, shrink: bool) -> int:
        elapsed = time.monotonic() - self.started
        counts, groups = grouped(read(self.output / RESULTS))
        if shrink:
            shrink_all(self.plan, groups)
        facts: dict[str, Any] = {
            "plan": self.plan.identity(),
            "cases": sum(counts.values()),
            "verdicts": counts,
            "groups": [group.to_dict() for group in groups],
            "run": {
                "backend": backend,
                "workers": workers,
                "cases": self.new,
                "seconds": round(elapsed, 3),
                "cpu_ms_per_case": round(1e3 * self.seconds / self.new, 3) if self.new else None,
                "memory_mib": {n: round(v, 1) for n, v in self.memory.items()},
                "workers_replaced": self.rounds,
            },
        }
        write_json(self.output / SUMMARY, facts)
        print(text_of(facts, self.plan))
        return DIFFERS if any(group.verdict in BAD for group in groups) else MATCHES


def _meter() -> Any:
    """Return the class of progress bars. Raises UsageError where there is none."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise UsageError("a sweep needs tqdm: pip install 'torch-parity[sweep]'") from error
    return tqdm


def text_of(facts: dict[str, Any], plan: Plan) -> str:
    """Return the summary as text: how many, how fast, and each bug once."""
    this = facts["run"]
    rate = this["cases"] / this["seconds"] if this["seconds"] else 0.0
    verdicts = ", ".join(f"{n} {name}" for name, n in sorted(facts["verdicts"].items()))
    lines = [
        f"{facts['cases']} cases of {len(plan.layers)} layers: {verdicts}",
        f"{this['cases']} in this run: {rate:.1f} a second with {this['workers']} workers"
        + (f", {this['cpu_ms_per_case']} ms of CPU each" if this["cpu_ms_per_case"] else ""),
    ]
    where = f"{plan.mine} {plan.theirs} " if plan.mine else ""
    if plan.space and plan.space != DEFAULT_SPACE:
        where = f"--space {plan.space} "
    for group in facts["groups"][:SHOWN]:
        lines += [
            f"{group['layer']} · {group['verdict']} · {group['cause']} · {group['count']} cases "
            f"({', '.join(group['quantities'])})",
            f"  {group['text']}",
        ]
        if group["smallest"]:
            small = group["smallest"]
            options = "".join(f", {n}={v}" for n, v in small["options"].items())
            args = ", ".join(map(str, small["args"]))
            inputs = ", ".join(small["inputs"])
            lines.append(f"  smallest: ({args}{options}) on {inputs}")
        lines.append(f"  again: parity sweep {where}--case {group['example']} --seed {plan.seed}")
    if len(facts["groups"]) > SHOWN:
        lines.append(f"… and {len(facts['groups']) - SHOWN} more groups, in {SUMMARY}")
    return "\n".join(lines)
