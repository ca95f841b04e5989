"""Which Spark: a context that runs already, the one that spark-submit asks for, or one of our own.

A context that the user made is taken as it is and never stopped. One that is made here keeps what spark-submit and
``spark-defaults.conf`` say, and fills in what is missing: quiet, Unix sockets between JVM and Python, bound to loopback
where the whole cluster is on this machine. Only classic Spark will do: Connect has no RDDs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import bigopt
from bigopt.core.errors import BigoptError, ClusterError, ConfError

DEFAULTS: Final = {
    "spark.python.unix.domain.socket.enabled": "true",  # halves the cost of a task
    "spark.python.worker.reuse": "true",
    "spark.speculation": "false",  # a copy of a resident worker has no slot to fill
    "spark.ui.showConsoleProgress": "false",  # residents never finish; the run has its own progress bar
    "spark.ui.killEnabled": "false",
}
LOOPBACK: Final = "127.0.0.1"
_LOCAL = re.compile(r"local(\[.*\])?")
_CLUSTER = re.compile(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,\s*\d+\s*\]")
_SETTLED: Final = 5.0


@dataclass(frozen=True, eq=False)
class Started:
    """A SparkContext to work in.

    Parameters
    ----------
    sc : SparkContext
    owned : bool
        Whether it was made here, and is stopped with the session.
    notes : tuple of str
        What gave way, where the UI is.
    """

    sc: Any
    owned: bool
    notes: tuple[str, ...]

    @property
    def one_machine(self) -> bool:
        """Whether all Python workers run on this machine by the master's definition."""
        return bool(_LOCAL.fullmatch(self.sc.master) or _CLUSTER.fullmatch(self.sc.master))

    @property
    def by_demand(self) -> bool:
        """Whether Spark allocates executors by the tasks that wait for one."""
        return bool(self.sc.getConf().get("spark.dynamicAllocation.enabled", "false") == "true")

    @property
    def alive(self) -> bool:
        """Whether the context and its JVM are there."""
        try:
            return not self.sc._jsc.sc().isStopped()
        except Exception:  # no JVM answers, or the context was taken down on this side
            return False


def start(address: str | None, workers: int | None, run: str) -> Started:
    """Get or create a classic SparkContext.

    Parameters
    ----------
    address : str or None
        Master: ``local[k]``, ``local-cluster[n,c,m]``, ``spark://host:port``, ...; None for spark-submit's, else one of
        our own on this machine.
    workers : int or None
        Slots of a master of our own; None for the cores.
    run : str
        Name of the run, for the application's name.

    Raises
    ------
    ConfError
        Where PySpark or Java is missing, the master is no classic one, or another context is active.
    ClusterError
        Where the master does not answer.
    """
    _refuse_connect(address)
    from pyspark import SparkContext

    active = SparkContext._active_spark_context
    if active is not None:
        if address is not None and address != active.master:
            raise ConfError(
                f"this process has a Spark context on {active.master} already, not on {address}",
                where="backend.address",
                hint="stop it, or leave backend.address out to work in it",
            )
        _refuse_resources(active)
        return Started(active, False, _ui_note(active))
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # spark-submit's JVM waits for this process to connect
    if not submitted:
        _find_java()
        _knock(address)
    master = address or f"local[{workers or os.cpu_count() or 1}]"
    with _environment(master, submitted), _own_interrupts():
        try:
            SparkContext._ensure_initialized()
            conf, notes = _conf(master, address, submitted, run)
            _knock(conf.get("spark.master"))
            sc = SparkContext.getOrCreate(conf)
        except BigoptError:
            raise
        except Exception as error:
            text = first_line(error)
            kind = ConfError if "master url" in text.lower() else ClusterError
            raise kind(
                f"Spark did not start: {text}",
                where="backend.address" if address else "backend.name",
                hint="Spark says more on stderr; it needs Java 17 or newer",
            ) from error
    try:
        _refuse_resources(sc)
    except ConfError:
        sc.stop()
        raise
    return Started(sc, True, (*notes, *_ui_note(sc)))


def capacity(started: Started, workers: int | None, timeout: float) -> int:
    """Wait for the executors and return the number of slots: tasks that can run at once, at most `workers`.

    Raises
    ------
    ClusterError
        Where no executor is there within `timeout` seconds.
    ConfError
        Where the cluster sizes itself by demand and nobody said how much to demand.
    """
    sc = started.sc
    if started.by_demand:
        if workers is None:
            raise ConfError(
                "Spark allocates executors by demand, so it cannot say how many workers there are",
                where="backend.workers",
                hint="set backend.workers",
            )
        return workers
    cluster = _CLUSTER.fullmatch(sc.master)
    expected = workers or (int(cluster[1]) * int(cluster[2]) if cluster else None)
    begin = since = time.monotonic()
    seen = 0
    while True:
        found, now = at_once(sc), time.monotonic()
        if found != seen:
            seen, since = found, now
        if found and (found >= (expected or found + 1) or _LOCAL.fullmatch(sc.master) or now - since > _SETTLED):
            return min(found, workers or found)
        if now - begin > timeout:
            if found:
                return min(found, workers or found)
            raise ClusterError(
                f"no executor of {sc.master} is free within {timeout:g} seconds",
                where="backend.timeout",
                hint="are its workers up, and not taken by another application?",
            )
        time.sleep(0.05)


def first_line(error: BaseException) -> str:
    """Return the one line of an engine's error that says why: the last of a Python traceback in it, else the first."""
    try:
        java = getattr(error, "java_exception", None)
        text = str(error) if java is None else str(java.getMessage() or java.toString())
    except Exception:  # the JVM is gone
        text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    python = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt): ", line) and "spark" not in line]
    return (python[-1] if python else lines[0] if lines else type(error).__name__)[:400]


def _refuse_connect(address: str | None) -> None:
    try:
        from pyspark.sql.utils import is_remote
    except ImportError as error:
        raise ConfError(
            "Spark is not installed", where="backend.name", hint="pip install 'bigopt[spark]', or backend.name=local"
        ) from error
    if is_remote() or (address or "").startswith("sc://"):
        raise ConfError(
            "this is Spark Connect, which has no RDDs; bigopt needs classic Spark",
            where="backend.address",
            hint="a classic master such as local[2] or spark://host:7077, or spark-submit --master",
        )


def _refuse_resources(sc: Any) -> None:
    """Refuse what makes a local master wait for ever: tasks that demand a resource which only clusters hand out."""
    asked = [k for k, v in sc.getConf().getAll() if re.fullmatch(r"spark\.task\.resource\..+\.amount", k) and v != "0"]
    if asked and _LOCAL.fullmatch(sc.master):
        raise ConfError(
            f"{asked[0]} is set, and tasks of {sc.master} would wait for it for ever",
            where="backend.address",
            hint="leave it out, or use a cluster whose workers offer the resource",
        )


def _find_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if shutil.which("java" if home is None else os.path.join(home, "bin", "java")) is None:
        raise ConfError(
            "Spark needs Java, and there is none" + (f" in JAVA_HOME={home}" if home else ""),
            where="backend.name",
            hint="install Java 17 or newer (Debian: apt install openjdk-17-jre-headless) or set JAVA_HOME",
        )


@contextlib.contextmanager
def _environment(master: str, submitted: bool) -> Iterator[None]:
    """Set, while Spark starts, what is missing in the environment that the JVM and the Python workers inherit."""
    from pyspark.find_spark_home import _find_spark_home

    wanted = {"PYSPARK_PYTHON": sys.executable, "SPARK_HOME": _find_spark_home()}
    if not submitted and _on_loopback(master):
        wanted["SPARK_LOCAL_IP"] = LOOPBACK
    added = {k: v for k, v in wanted.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Keep the handler of SIGINT: PySpark's own would cancel all jobs before the run can save its state."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _conf(master: str, address: str | None, submitted: bool, run: str) -> tuple[Any, tuple[str, ...]]:
    from pyspark import SparkConf

    conf = SparkConf()
    notes: tuple[str, ...] = ()
    if not submitted:
        conf.setMaster(master).setAppName(f"bigopt {run}").set("spark.ui.showConsoleProgress", "false")
    else:
        master = conf.get("spark.master") or master
        conf.setIfMissing("spark.master", master)
        if address not in (None, master):
            notes = (f"backend.address={address} gives way to spark-submit's master {master}",)
    for key, value in DEFAULTS.items():
        conf.setIfMissing(key, value)
    if not (Path(os.environ.get("SPARK_CONF_DIR", "")) / "log4j2.properties").is_file():
        conf.setIfMissing("spark.log.level", "ERROR")  # nobody configured Spark's log
    if _on_loopback(master):
        if "SPARK_LOCAL_IP" not in os.environ:
            conf.setIfMissing("spark.driver.bindAddress", LOOPBACK)
            conf.setIfMissing("spark.driver.host", LOOPBACK)
            if submitted and conf.get("spark.ui.enabled", "true") == "true":
                notes += (
                    "Spark's UI listens on all interfaces; SPARK_LOCAL_IP=127.0.0.1 before spark-submit closes it",
                )
        conf.setIfMissing("spark.executorEnv.PYTHONPATH", _python_path())
    return conf, notes


def _python_path() -> str:
    """Where Python workers of this machine find this bigopt, and what the driver's own path holds."""
    root = str(Path(bigopt.__file__).resolve().parent.parent)
    own = [] if root.endswith("-packages") else [root]
    return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])


def _hosts(master: str) -> list[tuple[str, int]]:
    """Host and port of each master of a ``spark://a:7077,b:7077`` address."""
    if not master.startswith("spark://"):
        return []
    pairs = [part.rpartition(":") for part in master.removeprefix("spark://").split(",")]
    return [(host.strip("[]"), int(port)) for host, _, port in pairs if host and port.isdigit()]


def _on_loopback(master: str) -> bool:
    if _LOCAL.fullmatch(master) or _CLUSTER.fullmatch(master):
        return True
    hosts = _hosts(master)
    return bool(hosts) and all(host in ("localhost", "::1") or host.startswith("127.") for host, _ in hosts)


def _knock(master: str | None, patience: float = 5.0) -> None:
    """Knock at a standalone master: Spark itself would try for a minute and then end without a reason."""
    hosts = _hosts(master or "")
    for host in hosts:
        with contextlib.suppress(OSError):
            socket.create_connection(host, timeout=patience).close()
            return
    if hosts:
        raise ClusterError(
            f"no Spark master answers at {master}", where="backend.address", hint="is it running, and is the port open?"
        )


def at_once(sc: Any) -> int:
    """Return how many tasks can run at the same time now (0 before the first executor is there)."""
    scala = sc._jsc.sc()
    try:
        return int(scala.maxNumConcurrentTasks(scala.resourceProfileManager().defaultResourceProfile()))
    except Exception:  # not a public call: another Spark may not have it
        return int(sc.defaultParallelism)


def _ui_note(sc: Any) -> tuple[str, ...]:
    url = sc.uiWebUrl
    return (f"Spark UI: {url}",) if url else ()
