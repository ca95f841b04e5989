"""Resident workers in Spark tasks.

Each slot is a job of one task that ends with the session: a Spark that gives up a job (``local[k]`` never retries a
task) then takes down no other slot and no other slot's decoded blocks. A *keeper* thread a slot starts its job again
whenever it ends early; what was lost with it comes back through the `Hub` and is ordered again by the ledger. Keepers
give up after a few failures in a row without a single answer to any order. Where executors join a cluster, it gets as
many slots more, up to ``backend.workers``.

A resident job says little to people who watch Spark's pages, so a *reporter* posts, every few seconds, a job without
tasks whose description is the state of the run. It takes no slot, but tens of milliseconds of a core.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from bigopt.backends.channel import Address, Hub, Unreachable, serve
from bigopt.backends.spark.context import Started, at_once, capacity, first_line, start
from bigopt.backends.spark.jobs import SparkJobSession
from bigopt.core.buffers import Casts
from bigopt.core.errors import ClusterError
from bigopt.work import Arrival, Order

if TYPE_CHECKING:
    from bigopt.config import BackendConf

FAILURES: Final = 5
"""Ends of one slot's job, in a row and without an answer from any slot, after which the cluster is lost."""
_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_REPORT_SECONDS: Final = 5.0, 60.0
"""Between two posts to Spark's pages, at first and at most: each takes about 0.1 s of the JVM's CPU time."""
_LOOK_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 2.0
_SHOWN_SLOTS: Final = 8


def open_session(backend: BackendConf, *, memory: int, bits: str, run: str) -> ResidentSparkSession | SparkJobSession:
    """Start resident workers in a classic Spark; where they cannot connect back, make a job of each round.

    Parameters
    ----------
    backend : BackendConf
        ``address`` (master), ``workers`` (slots; with a master of the user's own the most to use), ``timeout``.
    memory : int
        Bytes for decoded rows in each Python worker.
    bits : str
        ``run.bits``.
    run : str
        What Spark's pages call the run.

    Raises
    ------
    ConfError
        No PySpark, no Java, Spark Connect, or a master that is none.
    ClusterError
        No worker within ``timeout`` seconds, or workers that compute other bits.
    """
    started = start(backend.address, backend.workers, run)
    with contextlib.ExitStack() as stack:
        if started.owned:
            stack.callback(started.sc.stop)
        slots = capacity(started, backend.workers, backend.timeout)
        session: ResidentSparkSession | SparkJobSession
        jobs = functools.partial(SparkJobSession, started, slots, memory=memory, bits=bits, run=run)
        session = jobs() if backend.channel == "off" else _residents(started, slots, backend, memory, bits, run, jobs)
        stack.pop_all()
    if backend.workers and slots < backend.workers:
        session.note(f"backend.workers={backend.workers}, but {started.sc.master} runs {slots} tasks at a time")
    return session


def _residents(
    started: Started,
    slots: int,
    backend: BackendConf,
    memory: int,
    bits: str,
    run: str,
    jobs: Callable[..., SparkJobSession],
) -> ResidentSparkSession | SparkJobSession:
    """Wait for residents; give `jobs` a notice where none can connect."""
    session = ResidentSparkSession(
        started, slots, memory=memory, bits=bits, run=run, timeout=backend.timeout, most=backend.workers
    )
    try:
        session.wait_for_workers()
    except Unreachable as error:
        session.end()
        return jobs(notes=(f"warning: {error.message}; every round runs as a job of Spark, which takes longer",))
    except BaseException:
        session.end()
        raise
    return session


class ResidentSparkSession:
    """A session of residents in a SparkContext; see `open_session`.

    Parameters
    ----------
    started : Started
        The context; stopped by `close` where it was made for this session.
    slots : int
        Tasks to keep running at first.
    memory : int
        Bytes for decoded rows in each Python worker.
    bits : str
        ``run.bits``.
    run : str
        What Spark's pages call the run.
    timeout : float
        Seconds without any worker after which the cluster is lost.
    most : int or None
        Most tasks to keep running where executors join; None for all there is room for.
    """

    def __init__(
        self,
        started: Started,
        slots: int,
        *,
        memory: int,
        bits: str,
        run: str,
        timeout: float,
        most: int | None = None,
    ) -> None:
        from pyspark import InheritableThread

        self.notes: tuple[str, ...] = started.notes
        self._started = started
        self._sc = started.sc
        self._name = f"bigopt {run}"
        self._closing = threading.Event()
        self._answers = 0
        listen, tell = (None, None) if started.one_machine else _driver_address(self._sc)
        self._hub = Hub(slots, timeout=timeout, host=listen, bits=bits)
        addresses = self._hub.addresses
        if tell is not None:
            addresses = (*addresses[:-1], (tell, int(addresses[-1][1])))
        self._resident = functools.partial(_reside, addresses, self._hub.key, memory, os.getcwd())
        self._text = ""
        self._news = threading.Event()
        self._keepers: list[threading.Thread] = []
        self._others = [InheritableThread(target=self._post_reports, name="bigopt-spark-reporter", daemon=True)]
        if not (started.one_machine or started.by_demand):
            self._others += [InheritableThread(target=self._look, args=(most,), name="bigopt-spark-look", daemon=True)]
        self._keep_slots()
        for thread in self._others:
            thread.start()

    @property
    def slots(self) -> int:
        """Tasks to keep running; grows where executors join."""
        return self._hub.slots

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers connected now, by slot."""
        return tuple(link.hello.pid for link in self._hub.links)

    def wait_for_workers(self) -> None:
        """Wait for all residents, or for ``timeout`` seconds and at least one."""
        found = self._hub.wait_for_workers(self.slots)
        if found < self.slots:
            self.notes += (f"{found} of {self.slots} workers are there; the others may join later",)
        self.notes += tuple(self._hub.warnings)

    @property
    def casts(self) -> Casts:
        """Where params in the dtype of the blocks may be left (`Hub`)."""
        return self._hub.casts

    def submit(self, order: Order) -> None:
        """Send an order to its slot's resident, or to another where that is gone."""
        self._hub.submit(order)

    def wait(self) -> Arrival:
        """Return the next arrival; `ClusterError` where no resident is left and none can be started."""
        arrival = self._hub.wait()
        if not arrival.lost:
            self._answers += 1
        return arrival

    def report(self, text: str, record: dict[str, Any]) -> None:
        """Describe the run as a job on Spark's pages: what `text` says, and which partitions each slot has."""
        where = _whereabouts(self._hub.activity())
        self._text = f"{self._name}: {text}{', ' + where if where else ''}"
        self._news.set()

    def note(self, text: str) -> None:
        """Add a note."""
        self.notes += (text,)

    def close(self) -> None:
        """Stop the residents, cancel what is left of their jobs, and stop a context of our own."""
        if not self._closing.is_set():
            self.end()
            if self._started.owned:
                with contextlib.suppress(Exception):  # a JVM that is gone has nothing left to stop
                    self._sc.stop()

    def end(self) -> None:
        """Stop the residents and cancel what is left of their jobs."""
        self._closing.set()
        self._news.set()
        self._hub.close()
        for thread in self._others:
            thread.join(_CLOSE_SECONDS)
        for keeper in self._keepers:
            keeper.join(_CLOSE_SECONDS / len(self._keepers))
        with contextlib.suppress(Exception):  # a JVM that is gone has nothing left to cancel
            if any(keeper.is_alive() for keeper in self._keepers):
                self._sc.cancelJobGroup(self._name)
                for keeper in self._keepers:
                    keeper.join(_CLOSE_SECONDS)

    def _keep_slots(self) -> None:
        """Start a keeper for each slot that has none."""
        from pyspark import InheritableThread

        for slot in range(len(self._keepers), self.slots):
            name = f"bigopt-spark-keeper-{slot}"
            self._keepers.append(InheritableThread(target=self._keep, args=(slot,), name=name, daemon=True))
            self._keepers[-1].start()

    def _look(self, most: int | None) -> None:
        """Look for executors that join."""
        with contextlib.suppress(Exception):  # a JVM that is gone: the keepers tell
            while not self._closing.wait(_LOOK_SECONDS):
                found = at_once(self._sc)
                self._hub.grow(min(found, most or found))
                self._keep_slots()

    def _keep(self, slot: int) -> None:
        """Run the slot's job, and again whenever it ends before the session does."""
        failures, answers = 0, -1
        while not self._closing.is_set():
            reason = self._run_job(slot)
            if self._closing.is_set():
                return
            failures = 1 if self._answers != answers else failures + 1
            answers = self._answers
            gone = not self._started.alive
            if gone or failures >= FAILURES:
                text = "Spark is gone" if gone else f"slot {slot}'s worker ended {failures} times without any result"
                kind = ClusterError if gone or self._hub.met else Unreachable
                self._hub.fail(kind(f"{text}: {reason}", where="spark", hint="resume goes on from the last checkpoint"))
                return
            self._closing.wait(min(_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE))

    def _run_job(self, slot: int) -> str:
        """Run the slot's job to its end; return why it ended."""
        try:
            text = f"{self._name}: resident worker of slot {slot} ({self.slots} slots)"
            self._sc.setJobGroup(self._name, text, interruptOnCancel=True)
            self._sc.runJob(self._sc.parallelize([slot], 1), self._resident)
        except Exception as error:  # whatever Py4J, PySpark or a socket to the JVM raises
            return first_line(error)
        return "its task ended by itself"

    def _post_reports(self) -> None:
        posted = ""
        seconds, most = _REPORT_SECONDS
        with contextlib.suppress(Exception):  # a JVM that is gone: the keepers tell
            nothing = self._sc.emptyRDD()._jrdd
            while not self._closing.is_set():
                self._news.wait()
                self._news.clear()
                if self._text != posted:
                    posted = self._text
                    self._post(nothing, posted)
                self._closing.wait(seconds)
                seconds = min(most, 1.5 * seconds)
            if self._text != posted:
                self._post(nothing, self._text)

    def _post(self, nothing: Any, text: str) -> None:
        """Count an RDD without partitions: Spark lists the job and runs nothing."""
        self._sc.setJobGroup(f"{self._name} progress", text)
        nothing.count()


def _reside(addresses: tuple[Address, ...], key: bytes, memory: int, folder: str, slots: Iterable[int]) -> list[int]:
    """Be the resident worker of one slot: what a Spark task runs.

    Executors run in folders of their own; in the driver's, where it is there, relative paths mean what they mean to it.
    Its input is read to the end: Spark gives the process, with all it has imported, to a later task only then.
    """
    (slot,) = slots
    with contextlib.ExitStack() as stack:
        if os.path.isdir(folder):
            stack.enter_context(contextlib.chdir(folder))
        serve(addresses, key, memory, f"Spark slot {slot}", _given_card())
    return []


def _given_card() -> int | None:
    """Return the GPU that Spark gave the task (``spark.task.resource.gpu.amount``), by its address; None for none."""
    from pyspark import TaskContext

    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context else None
    return int(gpu.addresses[0]) if gpu and gpu.addresses else None


def _driver_address(sc: Any) -> tuple[str, str]:
    """Where to listen, and where executors of other machines reach this driver."""
    conf = sc.getConf()
    host = conf.get("spark.driver.host")
    return conf.get("spark.driver.bindAddress", host), host


def _whereabouts(activity: list[dict[str, Any]]) -> str:
    """Return ``partitions 0..3 on slot 0, 4..6 on slot 1`` of what the slots do or did last."""
    known = [a for a in activity if a["first"] is not None]
    parts = [f"{a['first']}..{a['last']} on slot {a['slot']}" for a in known[:_SHOWN_SLOTS]]
    more = f" and {len(known) - _SHOWN_SLOTS} more slots" if len(known) > _SHOWN_SLOTS else ""
    return f"partitions {', '.join(parts)}{more}" if parts else ""
