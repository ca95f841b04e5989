"""The contract of a backend: a `Session` takes orders and gives arrivals; it neither adds, nor retries, nor decides.

Every session has a number of **slots**, each of which runs one order at a time and keeps its decoded blocks. A slot
that dies gives back its orders as *lost* and is filled again by the session where its engine can; ordering the units
again is the ledger's business.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bigopt import __version__
from bigopt.core import compiled
from bigopt.core.buffers import Casts
from bigopt.core.errors import ClusterError
from bigopt.work import Arrival, Order


class Session(Protocol):
    """Workers that compute orders."""

    @property
    def slots(self) -> int:
        """Number of orders that can run at a time."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know: addresses, dashboards."""
        ...

    def submit(self, order: Order) -> None:
        """Send an order to its slot, or to another one where that is gone."""
        ...

    def wait(self) -> Arrival:
        """Return the next arrival.

        Raises
        ------
        ClusterError
            Where no worker is left and none comes within ``backend.timeout`` seconds.
        """
        ...

    def report(self, text: str, record: dict[str, Any]) -> None:
        """Show the run's state where people who watch this engine look."""
        ...

    def close(self) -> None:
        """Stop the workers and release what the session holds."""
        ...


@runtime_checkable
class Casting(Protocol):
    """A session whose workers take params in the dtype of their blocks, where the update has left them so."""

    @property
    def casts(self) -> Casts | None:
        """Where it may leave them; None for nowhere."""
        ...


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Pin BLAS to one thread in this process: slots must not oversubscribe, and its sums would change bits."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # a bare machine: the bits are then only as good as its environment
        yield
        return
    with threadpool_limits(1, "blas"):
        yield


def fingerprint(kernels: str = compiled.NUMPY) -> dict[str, str]:
    """Return what decides the bits of a block: package versions, SIMD features, BLAS and its core type, kernel set.

    Parameters
    ----------
    kernels : str
        ``numpy`` or ``compiled``. Workers do not know the set when they connect: work brings it, and is refused there
        (`bigopt.core.compiled.uses_compiled`).
    """
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    blas = "unknown"
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        pass
    else:
        blas = ", ".join(
            f"{lib['internal_api']} {lib.get('version')} {lib.get('architecture', '')}".strip()
            for lib in threadpool_info()
            if lib.get("user_api") == "blas" and "numpy" in str(lib.get("filepath"))
        )
    return {
        "bigopt": __version__,
        "numpy": np.__version__,
        "simd": " ".join(simd.get("baseline", []) + simd.get("found", [])),
        "blas": blas,
        "machine": platform.machine(),
        "kernels": compiled.identity(kernels),
    }


def check_fingerprint(mine: dict[str, str], other: dict[str, str], *, who: str, bits: str) -> str:
    """Compare two fingerprints.

    Returns
    -------
    str
        Empty where they agree, else a warning (``run.bits: any``).

    Raises
    ------
    ClusterError
        Where they differ and ``run.bits`` is ``strict``.
    """
    differ = [f"{k}: '{mine.get(k)}' here, '{other.get(k)}' there" for k in mine if mine.get(k) != other.get(k)]
    if not differ:
        return ""
    text = f"{who} computes other bits than the driver: {'; '.join(differ)}"
    if bits == "strict":
        raise ClusterError(text, where=who, hint="use the same machines and packages, or set run.bits=any")
    return text


def rss_bytes() -> int:
    """Return the anonymous and shared memory of this process in bytes (0 where the system does not say).

    Clean pages of mapped files are the system's to take back and are not counted.
    """
    try:
        with open("/proc/self/status", "rb") as handle:
            lines = [line for line in handle if line.startswith((b"RssAnon:", b"RssShmem:"))]
        return sum(int(line.split()[1]) for line in lines) * 1024
    except OSError:
        return 0


class Watched:
    """The memory of this process, looked at four times a second at most: asking the system costs a tenth of a round."""

    def __init__(self) -> None:
        self._bytes = 0
        self._due = 0.0

    def rss(self) -> int:
        """Return `rss_bytes` of at most a quarter of a second ago."""
        now = time.monotonic()
        if now >= self._due:
            self._bytes, self._due = rss_bytes(), now + 0.25
        return self._bytes
