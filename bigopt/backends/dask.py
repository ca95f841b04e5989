"""Dask: places one resident worker on each Dask worker, watches over them, and shows the run on Dask's dashboard.

Dask does here what it is good at: it starts processes (or knows those of a cluster), puts one long task on each of them
and tells who has died. The vectors go through the channel (`bigopt.backends.channel`), not through Dask's tasks, which
would cost more than a round. One thread supervises: a worker that Dask has lost gives its orders back as lost, one that
comes back (nannies restart theirs) or joins gets a resident again, and a resident that cannot run ends the run with the
reason.

Workers connect back to the driver and prove a random key that came with their task. Where they cannot, or
``backend.channel`` is off, the residents are actors of Dask and their calls carry the same messages
(`bigopt.backends.dask_actors`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bigopt.backends import dask_report
from bigopt.backends.base import one_blas_thread
from bigopt.backends.channel import Address, Hub, Unreachable, serve
from bigopt.backends.dask_actors import ActorWire, ResidentActor
from bigopt.backends.dask_cluster import check_slots, given_cluster, own_cluster
from bigopt.core.buffers import Casts
from bigopt.core.errors import BigoptError, ClusterError, ConfError
from bigopt.work import Arrival, Order

if TYPE_CHECKING:
    from bigopt.config.table import BackendConf

_TICK = 0.25
_CALM_TICKS = 4  # between two questions to the scheduler while every worker is there: each costs milliseconds of a core
_OTHERS_SECONDS = 10.0  # patience with further workers of a cluster that others use too
_TRIES = 3


@dataclass(frozen=True)
class Ticket:
    """What a resident needs to know; Dask logs the arguments of tasks that fail, so the key is not in its repr."""

    addresses: tuple[Address, ...]
    key: bytes = field(repr=False)
    memory: int
    name: str


def reside(ticket: Ticket) -> None:
    """Be a resident worker until the driver ends: the body of the long Dask task."""
    serve(ticket.addresses, ticket.key, ticket.memory, ticket.name)


def open_session(backend: BackendConf, *, memory: int, bits: str, run: str) -> DaskSession:
    """Start or join a Dask cluster and put residents on its workers; where they cannot connect back, actors.

    Parameters
    ----------
    backend : BackendConf
        ``address`` None for a cluster of our own with ``workers`` processes; else the most workers to use.
    memory : int
        Bytes of decoded rows a worker process.
    bits : {"strict", "any"}
        Whether workers that compute other bits are refused.
    run : str
        Name of the run, on the dashboard and in keys.

    Raises
    ------
    ConfError
        Where Dask is not installed.
    ClusterError
        Where there is no scheduler or no worker within ``backend.timeout`` seconds, or a worker is refused.
    """
    if importlib.util.find_spec("distributed") is None:
        raise ConfError("Dask is not installed", where="backend.name", hint="pip install 'bigopt[dask]'")
    own = backend.address is None
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_blas_thread())
        slots = (backend.workers or os.cpu_count() or 1) if own else 1
        if backend.address is None:
            client, link = own_cluster(slots, stack), None
        else:
            client, link = given_cluster(backend.address, backend.timeout, stack)
        most = slots if own else backend.workers

        def start(actors: bool, *notes: str) -> DaskSession:
            hub = Hub(slots, timeout=backend.timeout, host=None if actors else link, bits=bits)
            session = DaskSession(client, hub, most, memory, run, actors=actors, notes=notes)
            try:
                session.begin(own=own)
            except BaseException:
                session.close()
                raise
            return session

        if backend.channel == "off":
            session = start(actors=True)
        else:
            try:
                session = start(actors=False)
            except Unreachable as error:
                if not client.scheduler_info(n_workers=-1)["workers"]:
                    raise
                text = f"warning: {error.message}; calls of Dask actors carry every round, which takes longer"
                session = start(True, text)
        session.take(stack.pop_all())
    return session


class DaskSession:
    """Resident workers on a Dask cluster (see `bigopt.backends.base.Session`); made by `open_session`.

    Parameters
    ----------
    client : distributed.Client
    hub : Hub
    most : int or None
        Most workers to use; None for all.
    memory : int
    run : str
    actors : bool
        Whether calls of actors carry the messages, instead of connections.
    notes : tuple of str
        Why there is no channel.
    """

    def __init__(
        self,
        client: Any,
        hub: Hub,
        most: int | None,
        memory: int,
        run: str,
        *,
        actors: bool = False,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._client = client
        self._hub = hub
        self._most = most
        self._memory = memory
        self._run = run
        self._stack = contextlib.ExitStack()
        self._actors = actors
        self._placed: dict[str, Any] = {}
        self._wires: dict[str, ActorWire] = {}
        self._failures: dict[str, int] = {}
        self._count = 0
        self._notes = list(notes)
        self._reporter = dask_report.Reporter(run, lambda topic, event: client.log_event(topic, event))
        self._ending = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="bigopt-dask", daemon=True)

    @property
    def slots(self) -> int:
        """Workers in use; grows where workers join a given cluster."""
        return self._hub.slots

    @property
    def casts(self) -> Casts:
        """Where params in the dtype of the blocks may be left (`Hub`)."""
        return self._hub.casts

    @property
    def notes(self) -> tuple[str, ...]:
        """Addresses of the dashboard, and warnings about workers."""
        return (*self._notes, *(f"warning: {text}" for text in self._hub.warnings))

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers connected now, by slot."""
        return tuple(link.hello.pid for link in self._hub.links)

    def take(self, stack: contextlib.ExitStack) -> None:
        """Take over what is to be closed after the residents."""
        self._stack = stack

    def begin(self, *, own: bool) -> None:
        """Place residents and wait for them; `own` for a cluster that nobody else uses."""
        self._supervisor.start()
        self._hub.wait_for_workers(1)
        wanted = self._hub.slots if own else check_slots(len(self._addresses()), self._most)
        self._hub.wait_for_workers(wanted, None if own else _OTHERS_SECONDS)
        self._notes += self._dashboard(own)

    def _dashboard(self, own: bool) -> list[str]:
        link = str(self._client.dashboard_link or "")
        if not link:
            return []
        if own and importlib.util.find_spec("bokeh") is None:
            return [f"Dask dashboard: {link} is empty, it needs Bokeh (pip install 'bigopt[dask]')"]
        lines = [f"Dask dashboard: {link}"]
        if own or self._client.get_events(dask_report.PAGE_TOPIC):
            lines.append(f"this run live: {link.removesuffix('status')}bigopt")
        else:
            lines.append(
                "for a page about the run on that dashboard, start the scheduler with: "
                "dask scheduler --preload bigopt.backends.dask_dashboard"
            )
        return lines

    def submit(self, order: Order) -> None:
        """Send an order to its slot, or to another one where that is gone."""
        self._hub.submit(order)

    def wait(self) -> Arrival:
        """Return the next arrival."""
        return self._hub.wait()

    def report(self, text: str, record: dict[str, Any]) -> None:
        """Keep the record for the dashboard page; the supervisor sends it, about once a second."""
        self._reporter.add(text, record)

    def close(self) -> None:
        """End residents, client and our own cluster; safe to call twice."""
        self._ending.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self._reporter.publish(self._hub.activity(), last=True)
        self._hub.close()
        placed, self._placed = self._placed, {}
        with contextlib.suppress(Exception):
            if placed:
                self._client.cancel(list(placed.values()), force=True)
        placed.clear()
        self._stack.close()

    def _addresses(self) -> list[str]:
        workers = self._client.sync(self._client.scheduler.ncores, callback_timeout=10)
        return sorted(workers)

    def _supervise(self) -> None:
        silent_since: float | None = None
        while not self._ending.is_set():
            try:
                self._look(self._addresses())
                self._reporter.publish(self._hub.activity())
                silent_since = None
            except BigoptError as error:
                self._hub.fail(error)
                return
            except Exception as error:  # the scheduler does not answer; workers may go on without it
                silent_since = silent_since or time.monotonic()
                if self._client.status == "closed" and not self._hub.links:
                    self._hub.fail(ClusterError(f"the Dask scheduler is gone: {error}", where="backend.address"))
                    return
            for _ in range(_CALM_TICKS):
                if self._ending.wait(_TICK) or len(self._hub.links) < self._hub.slots:
                    break

    def _look(self, addresses: list[str]) -> None:
        """Drop residents whose worker is gone, place residents where workers are free."""
        for name, future in list(self._placed.items()):
            if name not in addresses:
                self._give_up(name)
                future.cancel(force=True)
            elif future.status == "error":
                self._give_up(name)
                self._failed(name, future)
            elif future.done() and not self._lives(name, future):
                self._give_up(name)  # ended, cancelled or forgotten by a scheduler that was restarted
        self._hub.grow(check_slots(len(addresses), self._most))
        for name in addresses:
            if len(self._placed) >= self._hub.slots:
                break
            if name not in self._placed:
                self._placed[name] = self._place(name)

    def _lives(self, name: str, future: Any) -> bool:
        """Whether a task that is done has left an actor that answers; a new one is handed to the hub."""
        if not self._actors or future.status != "finished":
            return False
        if name not in self._wires:
            with self._client.as_current():  # an actor looks for its client there
                self._wires[name] = ActorWire(future.result(timeout=10), self._client.loop)
            self._hub.adopt(self._wires[name])
        return not self._wires[name].ended

    def _give_up(self, name: str) -> None:
        del self._placed[name]
        if name in self._wires:
            self._wires.pop(name).hang_up()
        self._hub.drop(name)

    def _place(self, name: str) -> Any:
        self._count += 1
        ticket = Ticket(self._hub.addresses, self._hub.key, self._memory, name)
        body = (ResidentActor, self._memory, name) if self._actors else (reside, ticket)
        return self._client.submit(
            *body,
            actor=self._actors,
            key=f"bigopt-resident-{self._run}-{self._count}",
            workers=[name],
            allow_other_workers=False,
            pure=False,
            retries=0,
            priority=10,
        )

    def _failed(self, name: str, future: Any) -> None:
        """Judge why a resident's task failed: a dead worker comes again, what every try would meet ends the run."""
        from distributed import KilledWorker

        error = future.exception(timeout=10)
        if isinstance(error, KilledWorker):
            return
        self._failures[name] = self._failures.get(name, 0) + 1
        passing = isinstance(error, OSError | EOFError)
        if passing and self._failures[name] < _TRIES:
            return
        kind = Unreachable if passing else ClusterError
        raise kind(
            f"Dask worker {name} cannot work for bigopt: {type(error).__name__}: {error}",
            where=name,
            hint=f"it must reach the driver at {self._hub.where}"
            if passing
            else "install the same bigopt and packages for the workers as for the driver",
        )
