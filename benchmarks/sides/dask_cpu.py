"""Dask: the loop that a user writes with dask.delayed, the price of an empty task, and dask-ml's lbfgs."""

from __future__ import annotations

import itertools
import statistics
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

    Rows are read by the workers, persisted, and stay there. On the same cluster, in between: a round of tasks that do
    nothing, one a worker (``empty``).
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
        """Return seconds of one step, and of an empty round of tasks."""
        import dask

        begin = time.perf_counter()
        for _ in range(self._steps):
            parts = [dask.delayed(gradient)(block, self._w) for block in self._blocks]
            total = dask.delayed(add)(parts).compute()
            self._w = (self._w - self._eta / self._rows * total).astype(np.float32)
        return {"seconds": (time.perf_counter() - begin) / self._steps, "empty": self._empty()}

    def _empty(self, repeats: int = 20) -> float:
        begin = time.perf_counter()
        for _ in range(repeats):
            futures = [self._client.submit(nothing, i, pure=False) for i in range(len(cores()))]
            self._client.gather(futures)
            del futures
        return (time.perf_counter() - begin) / repeats

    def check(self) -> dict[str, float]:
        """Return the loss reached."""
        X, y = data.mapped(self._folder)
        return {"loss": evaluate.logistic(X, y, self._w[:-1], float(self._w[-1]))}


class DaskML(_Cluster):
    """Seconds of one more iteration of dask-ml's lbfgs on persisted arrays: those of one evaluation.

    An iteration takes one evaluation, more where its line search wants more; the median of a fit's evaluations, told by
    a clock around the function that SciPy's lbfgs is given, leaves out the fit's preparation and counts one of them.
    """

    def __init__(self, folder: str, iterations: int, partitions: int = 8) -> None:
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
        self._iterations = iterations

    def _fit(self, iterations: int) -> dict[str, float]:
        from dask_glm import algorithms
        from dask_ml.linear_model import LogisticRegression

        took: list[float] = []
        minimize = algorithms.fmin_l_bfgs_b

        def timed(evaluate: Any, *values: Any, **named: Any) -> Any:
            def evaluation(*at: Any) -> Any:
                begin = time.perf_counter()
                found = evaluate(*at)
                took.append(time.perf_counter() - begin)
                return found

            return minimize(evaluation, *values, **named)

        begin = time.perf_counter()
        algorithms.fmin_l_bfgs_b = timed
        try:
            LogisticRegression(solver="lbfgs", C=1e12, max_iter=iterations).fit(self._X, self._y)
        finally:
            algorithms.fmin_l_bfgs_b = minimize
        fit = time.perf_counter() - begin
        return {"seconds": statistics.median(took), "fit": fit, "evaluations": len(took)}

    def short(self) -> dict[str, float]:
        """Do the same with one iteration."""
        return self._fit(1)

    def run(self) -> dict[str, float]:
        """Return seconds of an iteration, and of the fit."""
        return self._fit(self._iterations)
