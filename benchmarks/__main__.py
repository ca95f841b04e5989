"""Command line: ``python -m benchmarks [ROW ...] [--quick]``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks import report
from benchmarks.harness import RowResult, run_row
from benchmarks.player import ROOT
from benchmarks.rows import NAMES, rows
from benchmarks.spec import Scale

SECONDS: Final = 1500.0
QUICK_SECONDS: Final = 240.0
"""What all rows together are to take; each has its part as a budget, and what those before it left of theirs."""
DEFAULT_OUT: Final = ROOT / "build" / "benchmarks"


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run bigopt and its peers side by side and write a table of ratios, JSON and pictures.",
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which rows (all): {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, 3 rounds, by default of fewer rows")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that the suite runs")
    parser.add_argument("--anyway", action="store_true", help="count runs on busy cores too, and say so")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the results (%(default)s)")
    parser.add_argument("--work", type=Path, help="folder of the generated data (OUT/data)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run the rows; return 0, or 1 where a row failed."""
    options = arguments(argv)
    try:
        chosen = rows(options.rows)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        for row in chosen:
            print(f"{row.name:<16} {row.title}")
        return 0
    out = options.out.resolve()
    work = (options.work or out / "data").resolve()
    logs = out / "logs"
    for folder in (out, work, logs):
        folder.mkdir(parents=True, exist_ok=True)
    every = [row for row in rows([]) if row.quick or not options.quick]
    if options.quick and not options.rows:
        chosen = every
    whole = QUICK_SECONDS if options.quick or options.tiny else SECONDS
    share = whole / sum(row.seconds for row in every)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the sides are ended on the way out
    begin = time.monotonic()
    results: list[RowResult] = []
    failed, spare = False, 0.0  # what rows left of their budgets
    about = report.about() | {"quick": options.quick or options.tiny, "busy rounds counted": options.anyway}
    for row in chosen:
        try:
            scale = Scale(options.quick, options.tiny, work, share * row.seconds + max(0.0, spare))
            results.append(run_row(row, scale, logs, os.getpid(), anyway=options.anyway, say=say))
            spare += share * row.seconds - results[-1].seconds
        except Exception as error:  # the other rows still tell something
            failed = True
            say(f"  {row.name} failed: {type(error).__name__}: {error}")
            results.append(RowResult(row.name, row.title, notes=[f"failed: {type(error).__name__}: {error}"]))
        report.write(results, out, about)
    print(report.terminal(results))
    print(f"\n{time.monotonic() - begin:.0f} s; {', '.join(str(p) for p in report.write(results, out, about))}")
    return int(failed)


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
