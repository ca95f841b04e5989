"""Which Dask: a cluster of our own on this machine, or one of the user's.

A cluster of bigopt's own is a LocalCluster of single-thread processes on loopback. A cluster of the user's is named by
``backend.address``: ``tcp://host:port``, ``tls://host:port`` or a scheduler file. Its workers connect back to the
address from which the driver reaches the scheduler.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from typing import Any

from bigopt.core.errors import ClusterError, ConfError

_HUNG_SECONDS = 20.0  # a worker of our own cluster that is silent for so long is restarted
_LOOK_SECONDS = 5.0
_CLOSE_SECONDS = 15.0
_QUIET = {  # Dask looks at its processes a hundred times a second: a twentieth of a core each, taken from the rounds
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",  # three of them in the driver, 7 ms each time
    "distributed.admin.system-monitor.disk": False,
    "distributed.client.scheduler-info-interval": "10s",
    "distributed.worker.profile.interval": "1s",
    "distributed.worker.profile.cycle": "10s",
}


_BEATS = 4
"""Of so many heartbeats (two a second in a small cluster) a worker of our own sends one."""


def dask_setup(worker: Any) -> None:
    """Hook of a worker of our own that starts.

    Ctrl-C reaches it too, but what to do then is the driver's decision. A heartbeat takes 3 ms of the cores, and holds
    up the round that it falls into.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    heartbeat = worker.periodic_callbacks["heartbeat"]
    beats, beat = itertools.count(), heartbeat.callback
    heartbeat.callback = lambda: None if next(beats) % _BEATS else beat()


def own_cluster(workers: int, stack: contextlib.ExitStack) -> Any:
    """Start single-thread worker processes on this machine and return a client."""
    import dask
    from distributed import Client, LocalCluster

    if importlib.util.find_spec("bokeh") is not None:
        from bigopt.backends.dask_dashboard import register

        register()
    folder = tempfile.mkdtemp(prefix="bigopt-dask-")
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    try:
        ours = {"distributed.scheduler.worker-ttl": f"{_HUNG_SECONDS:g}s", "temporary-directory": folder, **_QUIET}
        with dask.config.set(ours):
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
                scheduler_sync_interval=10,
            )
    except Exception as error:  # whatever Dask meets while it starts processes
        raise ClusterError(
            f"cannot start Dask workers on this machine: {error}",
            where="backend.name",
            hint="a script that trains on Dask needs: if __name__ == '__main__':",
        ) from error
    stack.callback(_close, cluster)
    _forgive_pauses(cluster.scheduler.periodic_callbacks["worker-ttl"])
    client = Client(cluster, set_as_default=False, direct_to_workers=True)
    stack.callback(_close, client)
    return client


def _forgive_pauses(look: Any) -> None:
    """Let the scheduler not look for silent workers when it has been silent itself.

    A laptop that slept, or processes that were stopped, go on all at once: the scheduler would restart every worker
    before it has read their first words.
    """
    silent, last = look.callback, time.time()

    def callback() -> Any:
        nonlocal last
        since, last = time.time() - last, time.time()
        return None if since > 2 * _LOOK_SECONDS else silent()

    look.callback, look.callback_time = callback, 1e3 * _LOOK_SECONDS


def _close(part: Any) -> None:
    """Close a cluster or a client of ours; what does not answer in time ends with this process."""
    with contextlib.suppress(Exception):
        part.close(timeout=_CLOSE_SECONDS)


def given_cluster(address: str, timeout: float, stack: contextlib.ExitStack) -> tuple[Any, str | None]:
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


def check_slots(found: int, asked: int | None) -> int:
    """Return how many of the workers that were found are used."""
    if asked is not None and asked < 1:
        raise ConfError(f"{asked} workers", where="backend.workers", hint="at least 1")
    return found if asked is None else min(found, asked)
