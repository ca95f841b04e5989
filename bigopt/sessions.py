"""Which engine runs the Map: the table of backends, each imported only where it is asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bigopt.backends.base import Session
from bigopt.backends.local import LocalSession

if TYPE_CHECKING:
    from bigopt.config import Conf


def under_spark() -> bool:
    """Return whether this process was started by spark-submit."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def open_session(conf: Conf, name: str, run: str) -> Session:
    """Open the backend of a run.

    Parameters
    ----------
    conf : Conf
    name : str
        local, dask or spark: ``backend.name`` resolved.
    run : str
        What engines call the run.

    Raises
    ------
    ConfError
        Where the engine is not installed.
    ClusterError
        Where no worker is there in time.
    """
    if name == "dask":
        from bigopt.backends.dask import open_session as open_dask

        return open_dask(conf.backend, memory=conf.data.memory, bits=conf.run.bits, run=run)
    if name == "spark":
        from bigopt.backends.spark import open_session as open_spark

        return open_spark(conf.backend, memory=conf.data.memory, bits=conf.run.bits, run=run)
    workers = conf.backend.workers or os.cpu_count() or 1
    return LocalSession(workers, conf.data.memory, joins=conf.strategy.name != "backup")
