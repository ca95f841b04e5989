"""What every pipeline is: one verb of the command line, on the interpreter or the engine that started it.

spark-submit merges a job's stderr into its stdout, where it would bury the one object of ``--json`` under the progress;
so a job takes back the stderr that spark-submit itself has.
"""

import os
import sys
from typing import NoReturn


def run(verb: str) -> NoReturn:
    """Run a verb with this process's arguments and exit with its code."""
    part_stderr()
    from bigopt.cli import main

    main([verb, *sys.argv[1:]])


def part_stderr() -> None:
    """Part stderr from stdout under spark-submit, where it can be: on Linux, unless it is a socket."""
    if "PYSPARK_GATEWAY_PORT" not in os.environ or not os.path.sameopenfile(1, 2):
        return
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY
    try:
        stderr = os.open(f"/proc/{os.getppid()}/fd/2", flags)
    except OSError:
        if "--json" not in sys.argv:
            return
        stderr = os.open(os.devnull, flags)
    os.dup2(stderr, 2)
    os.close(stderr)
