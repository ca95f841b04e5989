"""A driver of its own for tests of the Spark backend: rounds of probes on a master, told as JSON on stdout.

``python spark_job.py MASTER FOLDER [KEY=VALUE ...]``: the works leave their notes in FOLDER; keys are fields of `Plan`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bigopt.backends.base import Session
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.testing import Probe
from bigopt.data.plan import ALL, Ints
from bigopt.data.source import Dataset
from bigopt.data.synthetic import SyntheticSource, synthetic
from bigopt.data.view import DataView

SIZES = (50, 400, 30, 170, 640, 90, 300)
"""Seven unequal partitions."""


@dataclass(frozen=True)
class Plan:
    """What to do: rounds, length, the partition that kills its worker once, and what to wait for at the end."""

    rounds: int = 3
    length: int = 1000
    workers: int = 0
    kill: int = -1
    seconds: float = 0.0
    executor: bool = False
    hold: bool = False
    timeout: float = 60.0


def problem(dtype: str = "float64") -> tuple[Dataset, DataView]:
    """Return the dataset and its view."""
    data = synthetic(SyntheticSource(3, 8, dtype=dtype), sum(SIZES), partition_rows=SIZES)
    return data, DataView(data.source, np.cumsum([0, *SIZES]), dtype)


def whole_units() -> Ints:
    """Return one unit a partition."""
    return np.array([[i, ALL, 0, size] for i, size in enumerate(SIZES)], dtype=np.int64)


def homes(slots: int) -> Ints:
    """Deal the units to slots in order."""
    return np.arange(len(SIZES), dtype=np.int64) * slots // len(SIZES)


def run_rounds(
    session: Session, work: Any, rounds: int, length: int = 1000, each: Callable[[int], None] | None = None
) -> tuple[str, Ledger, list[int]]:
    """Run rounds that depend on each other; return the hash of all results, the ledger and bytes read a round."""
    ledger = Ledger()
    maker = Rounds(ledger, retries=3)
    vector = np.linspace(0.1, 1.0, length)
    digest, read = hashlib.sha256(), []
    for number in range(rounds):
        if each is not None:
            each(number)
        before = ledger.bytes_read
        sums = maker.run(session, work, (vector,), whole_units(), homes, where=f"step {number + 1}")
        vector = sums.grad / np.abs(sums.grad).max()
        digest.update(sums.grad.tobytes() + np.float64(sums.loss).tobytes())
        read.append(ledger.bytes_read - before)
    return digest.hexdigest(), ledger, read


def left_over(patience: float = 10.0) -> list[str]:
    """Return the descendants of this process that are neither the idle JVM nor dead, after some time to end."""
    import psutil

    end = time.monotonic() + patience
    while True:
        alive = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE and "java" not in process.name():
                    alive.append(" ".join(process.cmdline()))
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.1)


def main(master: str, folder: str, *keys: str) -> None:
    """Open a session, run the plan, tell what happened."""
    import psutil

    from bigopt.backends import spark
    from bigopt.config import BackendConf

    types = {"rounds": int, "length": int, "workers": int, "kill": int, "seconds": float, "timeout": float}
    pairs = [key.split("=") for key in keys]
    plan = Plan(**{name: types.get(name, lambda v: v == "true")(value) for name, value in pairs})
    handler = signal.getsignal(signal.SIGINT)
    backend = BackendConf(name="spark", address=master, workers=plan.workers or None, timeout=plan.timeout)
    begin = time.monotonic()
    session = spark.open_session(backend, memory=10**8, bits="strict", run="job")
    told: dict[str, Any] = {"opened": time.monotonic() - begin, "slots": session.slots, "notes": session.notes}
    try:
        work = Probe(problem()[1], seconds=plan.seconds, log=os.path.relpath(folder), kill=plan.kill)

        def each(number: int) -> None:
            if plan.executor and number == 1:
                pid = session._hub.links[0].hello.pid
                java = next(p for p in psutil.Process(pid).parents() if "CoarseGrained" in " ".join(p.cmdline()))
                java.send_signal(signal.SIGKILL)

        told["hash"], ledger, _ = run_rounds(session, work, plan.rounds, plan.length, each)
        told |= {"ledger": asdict(ledger), "handler_kept": signal.getsignal(signal.SIGINT) is handler}
        told["workers"] = [link.hello.pid for link in session._hub.links]
        told["family"] = [p.pid for p in psutil.Process().children(recursive=True)]
        if plan.hold:
            print(json.dumps(told), flush=True)
            time.sleep(600)
    finally:
        session.close()
    told["left"] = left_over()
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
