"""A standalone Spark on this machine: a master, and workers of one core that join and die when a test says so."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

SECONDS = 90.0


def environment() -> dict[str, str]:
    """The environment without anything that tells Spark what bigopt should tell it."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("SPARK", "PYSPARK"))}


class Standalone:
    """A master and its workers, each on a loopback address of its own; use it as a context manager.

    Parameters
    ----------
    folder : Path
        For logs and what executors leave.
    workers : int
        How many there are at first.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            port, self._page = first.getsockname()[1], second.getsockname()[1]
        self.address = f"spark://127.0.0.1:{port}"
        self._start("master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", str(self._page))
        for _ in range(workers):
            self.join()

    def __enter__(self) -> Standalone:
        try:
            self.wait(len(self._started) - 1)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *why: object) -> None:
        self.close()

    def _start(self, name: str, *options: str) -> None:
        from pyspark.find_spark_home import _find_spark_home

        command = [f"{_find_spark_home()}/bin/spark-class", f"org.apache.spark.deploy.{name}", *options]
        with (self._folder / f"log{len(self._started)}").open("wb") as log:
            where = environment() | {"SPARK_LOCAL_IP": "127.0.0.1"}
            self._started.append(subprocess.Popen(command, stdout=log, stderr=log, env=where))

    def join(self) -> None:
        """Start a worker."""
        host = f"127.0.0.{len(self._started) + 1}"
        options = ["--host", host, "-c", "1", "-m", "1G", "-d", str(self._folder), "--webui-port", "0"]
        self._start("worker.Worker", *options, self.address)

    def wait(self, workers: int) -> None:
        """Wait until the master has so many workers."""
        end = time.monotonic() + SECONDS
        while self._alive() != workers:
            assert time.monotonic() < end, f"there are {self._alive()} workers, not {workers}"
            time.sleep(0.3)

    def _alive(self) -> int:
        page = f"http://127.0.0.1:{self._page}/json/"
        with contextlib.suppress(OSError), urllib.request.urlopen(page, timeout=5) as answer:
            return int(json.load(answer)["aliveworkers"])
        return 0

    def close(self) -> None:
        """End all of it."""
        for process in self._started:
            process.send_signal(signal.SIGTERM)
        for process in self._started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
