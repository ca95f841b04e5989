"""Dask: places one resident worker on each Dask worker, watches over them, and shows the run on Dask's dashboard.

Dask does here what it is good at: it starts processes (or knows those of a cluster), puts one long task on each of them
and tells who has died. The vectors go through the channel (`bigopt.backends.channel`), not through Dask's tasks, which
would cost more than a round. One thread supervises: a worker that Dask has lost gives its orders back as lost, one that
comes back (nannies restart theirs) or joins gets a resident again, and a resident that cannot run ends the run with the
reason.

A cluster of bigopt's own is a LocalCluster of single-thread processes on loopback. A cluster of the user's is named by
``backend.address``: ``tcp://host:port``, ``tls://host:port`` or a scheduler file. Its workers connect back to the
address from which the driver reaches the scheduler; what they prove is a random key that came with their task.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bigopt.backends import dask_report
from bigopt.backends.base import one_blas_thread
from bigopt.backends.channel import Address, Hub, Unreachable, check_slots, serve
from bigopt.backends.dask_tasks import DaskTaskSession
from bigopt.core.errors import BigoptError, ClusterError, ConfError
from bigopt.work import Arrival, Order

if TYPE_CHECKING:
    from bigopt.config.table import BackendConf

_TICK = 0.25
_OTHERS_SECONDS = 10.0  # patience with further workers of a cluster that others use too
_HUNG_SECONDS = "20s"  # a worker of our own cluster that is silent for so long is restarted
_TRIES = 3
_CLOSE_SECONDS = 15.0


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


def dask_setup(worker: Any) -> None:  # noqa: ARG001
    """Hook of a worker of our own that starts: Ctrl-C reaches it too, but what to do then is the driver's decision."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def open_session(backend: BackendConf, *, memory: int, bits: str, run: str) -> DaskSession | DaskTaskSession:
    """Start or join a Dask cluster and put residents on its workers; where they cannot connect back, use tasks.

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
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_blas_thread())
        if backend.address is None:
            slots = backend.workers or os.cpu_count() or 1
            client, link = _own_cluster(slots, stack), None
        else:
            client, link = _given_cluster(backend.address, backend.timeout, stack)
            slots = 1
        most = slots if backend.address is None else backend.workers

        def tasks(*notes: str) -> DaskTaskSession:
            return DaskTaskSession(client, most, memory=memory, bits=bits, run=run, notes=notes, stack=stack.pop_all())

        if backend.channel == "off":
            return tasks()
        session = DaskSession(client, Hub(slots, timeout=backend.timeout, host=link, bits=bits), most, memory, run)
        try:
            session.begin(own=backend.address is None)
        except Unreachable as error:
            session.close()
            if not client.scheduler_info(n_workers=-1)["workers"]:
                raise
            return tasks(f"warning: {error.message}; every round runs as tasks of Dask, which takes longer")
        except BaseException:
            session.close()
            raise
        session.take(stack.pop_all())
    return session


def _own_cluster(workers: int, stack: contextlib.ExitStack) -> Any:
    """Start single-thread worker processes on this machine and return a client."""
    import dask
    from distributed import Client, LocalCluster

    if importlib.util.find_spec("bokeh") is not None:
        from bigopt.backends.dask_dashboard import register

        register()
    folder = tempfile.mkdtemp(prefix="bigopt-dask-")
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    try:
        with dask.config.set({"distributed.scheduler.worker-ttl": _HUNG_SECONDS, "temporary-directory": folder}):
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=None,  # data.memory is the bound
                preload=[__name__],
                local_directory=folder,
                silence_logs="ERROR",
            )
    except Exception as error:  # whatever Dask meets while it starts processes
        raise ClusterError(
            f"cannot start Dask workers on this machine: {error}",
            where="backend.name",
            hint="a script that trains on Dask needs: if __name__ == '__main__':",
        ) from error
    stack.callback(_close, cluster)
    client = Client(cluster, set_as_default=False)
    stack.callback(_close, client)
    return client


def _close(part: Any) -> None:
    """Close a cluster or a client of ours; what does not answer in time ends with this process."""
    with contextlib.suppress(Exception):
        part.close(timeout=_CLOSE_SECONDS)


def _given_cluster(address: str, timeout: float, stack: contextlib.ExitStack) -> tuple[Any, str | None]:
    """Connect to a running scheduler; return a client and this machine's address as the cluster sees it."""
    from distributed import Client
    from distributed.comm import get_address_host

    end = time.monotonic() + timeout
    if "://" not in address and (os.sep in address or address.endswith(".json") or os.path.exists(address)):
        address = _scheduler_file(address, end)
    try:
        client = Client(address, timeout=max(1.0, end - time.monotonic()), set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address} within {timeout:g} seconds: {error}",
            where="backend.address",
            hint="is it running, is the address right, and for tls:// are the certificates in Dask's configuration?",
        ) from error
    stack.callback(_close, client)
    return client, get_address_host(client.scheduler_comm.comm.local_address)


def _scheduler_file(path: str, end: float) -> str:
    """Wait until a scheduler has written its file, and return the address in it."""
    reason = "no such file"
    while True:
        try:
            with open(path, encoding="utf-8") as handle:
                return str(json.load(handle)["address"])
        except FileNotFoundError:
            reason = "no such file"
        except (OSError, ValueError, LookupError, TypeError) as error:  # perhaps half written
            reason = f"not a scheduler file ({type(error).__name__})"
        if time.monotonic() > end:
            raise ClusterError(
                f"scheduler file '{path}': {reason}",
                where="backend.address",
                hint="start one with: dask scheduler --scheduler-file FILE",
            )
        time.sleep(0.1)


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
    """

    def __init__(self, client: Any, hub: Hub, most: int | None, memory: int, run: str) -> None:
        self._client = client
        self._hub = hub
        self._most = most
        self._memory = memory
        self._run = run
        self._stack = contextlib.ExitStack()
        self._placed: dict[str, Any] = {}
        self._failures: dict[str, int] = {}
        self._count = 0
        self._notes: list[str] = []
        self._reporter = dask_report.Reporter(run, lambda topic, event: client.log_event(topic, event))
        self._ending = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="bigopt-dask", daemon=True)

    @property
    def slots(self) -> int:
        """Workers in use; grows where workers join a given cluster."""
        return self._hub.slots

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
        """Keep the record for the dashboard page; the supervisor sends it, at most four times a second."""
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
            self._ending.wait(_TICK)

    def _look(self, addresses: list[str]) -> None:
        """Drop residents whose worker is gone, place residents where workers are free."""
        for name, future in list(self._placed.items()):
            if name not in addresses:
                self._hub.drop(name)
                del self._placed[name]
                future.cancel(force=True)
            elif future.status == "error":
                del self._placed[name]
                self._failed(name, future)
            elif future.done():  # ended, cancelled or forgotten by a scheduler that was restarted
                del self._placed[name]
        self._hub.grow(check_slots(len(addresses), self._most))
        for name in addresses:
            if len(self._placed) >= self._hub.slots:
                break
            if name not in self._placed:
                self._placed[name] = self._place(name)

    def _place(self, name: str) -> Any:
        self._count += 1
        return self._client.submit(
            reside,
            Ticket(self._hub.addresses, self._hub.key, self._memory, name),
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
