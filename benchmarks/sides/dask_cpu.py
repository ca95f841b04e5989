"""Dask: the loop that a user writes with dask.delayed, dask-ml's lbfgs, and the price of an empty task."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data, evaluate
from benchmarks.machine import cores
from benchmarks.sides import Base


def load_block(folder: str, start: int, stop: int) -> tuple[Any, Any]:
    """Read rows where they are needed; what Dask keeps is memory of the worker's own."""
    X = np.load(Path(folder) / "X.npy", mmap_mode="r")[start:stop]
    y = np.load(Path(folder) / "y.npy", mmap_mode="r")[start:stop]
    return np.array(X), np.array(y)


def gradient(block: tuple[Any, Any], w: Any) -> Any:
    """Gradient sum of the logistic loss, intercept last."""
    X, y = block
    delta = 1.0 / (1.0 + np.exp(-(X @ w[:-1] + w[-1]))) - y
    return np.append(X.T @ delta.astype(X.dtype), delta.sum())


def add(parts: list[Any]) -> Any:
    """Sum of gradients."""
    return sum(parts[1:], parts[0])


def nothing(i: int) -> int:
    """Return the number."""
    return i


def start_cluster() -> Any:
    """Start a cluster of one process a core, of one thread each."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=len(cores()),
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=None,
        memory_limit=None,
        silence_logs="ERROR",
    )


class _Cluster(Base):
    def __init__(self) -> None:
        from distributed import Client

        self._cluster = start_cluster()
        self._client = Client(self._cluster)

    def close(self) -> None:
        """End the cluster."""
        self._client.close(timeout=5)
        self._cluster.close(timeout=5)


class ByHand(_Cluster):
    """Seconds of a step of gradient descent: a delayed gradient a partition, a delayed sum, the update on the driver.

    Rows are read by the workers, persisted, and stay there.
    """

    def __init__(self, folder: str, learning_rate: float, steps: int, partitions: int = 8) -> None:
        import dask
        from distributed import wait

        super().__init__()
        self._folder, self._eta, self._steps = folder, learning_rate, steps
        shape = np.load(Path(folder) / "X.npy", mmap_mode="r").shape
        self._rows = shape[0]
        bounds = np.linspace(0, shape[0], partitions + 1).astype(int).tolist()
        blocks = [dask.delayed(load_block)(folder, lo, hi) for lo, hi in itertools.pairwise(bounds)]
        self._blocks = self._client.persist(blocks)
        wait(self._blocks)
        self._w = np.zeros(shape[1] + 1, dtype=np.float32)

    def run(self) -> dict[str, float]:
        """Return seconds of one step."""
        import dask

        begin = time.perf_counter()
        for _ in range(self._steps):
            parts = [dask.delayed(gradient)(block, self._w) for block in self._blocks]
            total = dask.delayed(add)(parts).compute()
            self._w = (self._w - self._eta / self._rows * total).astype(np.float32)
        return {"seconds": (time.perf_counter() - begin) / self._steps}

    def check(self) -> dict[str, float]:
        """Return the loss reached."""
        X, y = data.load(self._folder)
        return {"loss": evaluate.logistic(X, y, self._w[:-1], float(self._w[-1]))}


class DaskML(_Cluster):
    """Seconds of one more iteration of dask-ml's lbfgs on persisted arrays: long fit minus short fit."""

    def __init__(self, folder: str, few: int, many: int, partitions: int = 8) -> None:
        import dask
        import dask.array as da
        import dask_ml.linear_model  # noqa: F401
        from distributed import wait

        super().__init__()
        n, d = np.load(Path(folder) / "X.npy", mmap_mode="r").shape
        bounds = np.linspace(0, n, partitions + 1).astype(int).tolist()
        X, y = [], []
        for lo, hi in itertools.pairwise(bounds):
            block = dask.delayed(load_block, nout=2)(folder, lo, hi)
            X.append(da.from_delayed(block[0], (hi - lo, d), np.float32))
            y.append(da.from_delayed(block[1], (hi - lo,), np.int64))
        self._X, self._y = da.concatenate(X).persist(), da.concatenate(y).persist()
        wait([self._X, self._y])
        self._few, self._many = few, many

    def _fit(self, iterations: int) -> float:
        from dask_ml.linear_model import LogisticRegression

        begin = time.perf_counter()
        LogisticRegression(solver="lbfgs", C=1e12, max_iter=iterations).fit(self._X, self._y)
        return time.perf_counter() - begin

    def short(self) -> dict[str, float]:
        """Return seconds of the short fit."""
        return {"seconds": self._fit(self._few)}

    def run(self) -> dict[str, float]:
        """Return seconds of an iteration."""
        short, long = self._fit(self._few), self._fit(self._many)
        return {"seconds": (long - short) / (self._many - self._few), "fit": long}


class EmptyTasks(_Cluster):
    """Seconds of a round of tasks that do nothing, one a worker."""

    def run(self) -> dict[str, float]:
        """Return seconds of one round."""
        begin, repeats = time.perf_counter(), 20
        for number in range(repeats):
            futures = [self._client.submit(nothing, i, pure=False) for i in range(len(cores()))]
            self._client.gather(futures)
            del futures, number
        return {"seconds": (time.perf_counter() - begin) / repeats}
