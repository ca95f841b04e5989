"""Spark local[cores]: MLlib, the loop that a user writes on RDDs, and the price of an empty job.

All of them, bigopt too, get Unix sockets between JVM and Python, no UI, and loopback. MLlib's JVM gets as much heap as
its cached table needs.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import data, evaluate
from benchmarks.machine import cores
from benchmarks.player import ROOT
from benchmarks.sides import Base
from benchmarks.sides.dask_cpu import gradient, load_block, nothing

_WARM_ITERATIONS: Final = 3


def context(heap: str = "1g") -> Any:
    """Start a SparkContext of this process."""
    from pyspark import SparkConf, SparkContext

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    conf = SparkConf().setMaster(f"local[{len(cores())}]").setAppName("benchmarks")
    for key, value in {
        "spark.driver.memory": heap,
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.python.unix.domain.socket.enabled": "true",
        "spark.executorEnv.PYTHONPATH": str(ROOT),
        "spark.sql.warehouse.dir": "/tmp/bigopt-bench-warehouse",
    }.items():
        conf.set(key, value)
    return SparkContext.getOrCreate(conf)


class _Spark(Base):
    def __init__(self, heap: str = "1g") -> None:
        self._sc = context(heap)

    def close(self) -> None:
        """End the context."""
        self._sc.stop()


class EmptyJob(_Spark):
    """Seconds of a job of one Python task a core that does nothing."""

    def run(self) -> dict[str, float]:
        """Return seconds of one job."""
        rdd = self._sc.parallelize(range(len(cores())), len(cores()))
        begin, repeats = time.perf_counter(), 10
        for _ in range(repeats):
            rdd.map(nothing).collect()
        return {"seconds": (time.perf_counter() - begin) / repeats}


class ByHand(_Spark):
    """Seconds of a step of gradient descent: broadcast, map over cached blocks, treeReduce."""

    def __init__(self, folder: str, learning_rate: float, steps: int, partitions: int = 8) -> None:
        super().__init__("6g")
        self._folder, self._eta, self._steps = folder, learning_rate, steps
        self._rows, d = np.load(Path(folder) / "X.npy", mmap_mode="r").shape
        bounds = np.linspace(0, self._rows, partitions + 1).astype(int).tolist()
        cuts = list(itertools.pairwise(bounds))
        self._blocks = self._sc.parallelize(cuts, partitions).map(lambda cut: load_block(folder, *cut)).cache()
        self._blocks.count()
        self._w = np.zeros(d + 1, dtype=np.float32)

    def run(self) -> dict[str, float]:
        """Return seconds of one step."""
        begin = time.perf_counter()
        for _ in range(self._steps):
            sent = self._sc.broadcast(self._w)
            total = self._blocks.map(lambda block, sent=sent: gradient(block, sent.value)).treeReduce(np.add)
            self._w = (self._w - self._eta / self._rows * total).astype(np.float32)
            sent.destroy()
        return {"seconds": (time.perf_counter() - begin) / self._steps}

    def check(self) -> dict[str, float]:
        """Return the loss reached."""
        X, y = data.load(self._folder)
        return {"loss": evaluate.logistic(X, y, self._w[:-1], float(self._w[-1]))}


class _MLlib(_Spark):
    """A table of Parquet, one column a feature, assembled and cached."""

    def __init__(self, path: str, heap: str) -> None:
        super().__init__(heap)
        from pyspark.sql import SparkSession

        self._session = SparkSession(self._sc)
        self._path = path
        self._table: Any = None

    def _load(self) -> float:
        """Read, assemble, cache; return the seconds until all rows are there."""
        from pyspark.ml.feature import VectorAssembler

        if self._table is not None:
            self._table.unpersist(blocking=True)
        begin = time.perf_counter()
        # the folder holds the manifest too
        files = sorted(str(p) for p in Path(self._path).glob("*.parquet"))
        rows = self._session.read.parquet(*files)
        features = [c for c in rows.columns if c != "y"]
        assembled = VectorAssembler(inputCols=features, outputCol="features").transform(rows)
        self._table = assembled.select("features", rows["y"].cast("double").alias("label")).cache()
        self._table.count()
        return time.perf_counter() - begin


class Load(_MLlib):
    """Seconds from Parquet to a cached table of vectors."""

    def run(self) -> dict[str, float]:
        """Return the seconds."""
        return {"seconds": self._load()}


class Logistic(_MLlib):
    """MLlib's LogisticRegression on a cached table: marginal iteration, and a whole fit.

    Parameters
    ----------
    path, heap
    folder : str
        The same rows as arrays, for the referee.
    few, many : int
        Iterations of the short and of the long fit.
    """

    def __init__(self, path: str, folder: str, heap: str, few: int, many: int) -> None:
        super().__init__(path, heap)
        self._few, self._many, self._folder = few, many, folder
        self._model: Any = None
        self._load()

    def _fit(self, iterations: int) -> tuple[float, int]:
        from pyspark.ml.classification import LogisticRegression

        estimator = LogisticRegression(maxIter=iterations, tol=0.0, regParam=0.0, standardization=False)
        begin = time.perf_counter()
        self._model = estimator.fit(self._table)
        return time.perf_counter() - begin, max(1, self._model.summary.totalIterations)

    def short(self) -> dict[str, float]:
        """Return seconds of the short fit."""
        return {"seconds": self._fit(self._few)[0]}

    def run(self) -> dict[str, float]:
        """Return seconds of an iteration (``seconds``) and of the long fit (``fit``)."""
        short, few = self._fit(self._few)
        long, many = self._fit(self._many)
        return {"seconds": (long - short) / max(1, many - few), "fit": long, "iterations": many}

    def check(self) -> dict[str, float]:
        """Return the loss of the last fit."""
        return {"loss": judge_logistic(self._model, self._folder)}


class FromParquet(_MLlib):
    """Seconds from Parquet to MLlib's final loss by its own stopping rule (read, assemble, cache, fit)."""

    def __init__(self, path: str, folder: str, heap: str, max_iter: int = 100) -> None:
        super().__init__(path, heap)
        self._folder, self._max_iter = folder, max_iter
        self._model: Any = None

    def short(self) -> dict[str, float]:
        """Do the same with a few iterations: all is compiled then."""
        return self._race(_WARM_ITERATIONS)

    def run(self) -> dict[str, float]:
        """Return seconds of the whole way, and the loss it ends with."""
        return self._race(self._max_iter)

    def _race(self, iterations: int) -> dict[str, float]:
        from pyspark.ml.classification import LogisticRegression

        loading = self._load()
        begin = time.perf_counter()
        self._model = LogisticRegression(maxIter=iterations).fit(self._table)
        fitting = time.perf_counter() - begin
        loss = judge_logistic(self._model, self._folder)
        steps = self._model.summary.totalIterations
        return {"seconds": loading + fitting, "load": loading, "fit": fitting, "loss": loss, "iterations": steps}


class Ridge(_MLlib):
    """Seconds from Parquet to MLlib's LinearRegression with an L2 penalty, and its loss."""

    def __init__(self, path: str, folder: str, heap: str, l2: float) -> None:
        super().__init__(path, heap)
        self._l2, self._referee = l2, evaluate.Referee("squared", folder, l2)

    def run(self) -> dict[str, float]:
        """Return seconds of the whole way."""
        from pyspark.ml.regression import LinearRegression

        loading = self._load()
        begin = time.perf_counter()
        model = LinearRegression(regParam=self._l2, standardization=False).fit(self._table)
        fitting = time.perf_counter() - begin
        loss = self._referee.loss([*model.coefficients.toArray(), float(model.intercept)])
        return {"seconds": loading + fitting, "load": loading, "fit": fitting, "loss": loss}


def judge_logistic(model: Any, folder: str) -> float:
    """Return the loss of an MLlib model over a folder's rows."""
    X, y = data.load(folder)
    return evaluate.logistic(X, y, np.asarray(model.coefficients.toArray()), float(model.intercept))


class Perceptron(_MLlib):
    """Seconds of a fit of MultilayerPerceptronClassifier on a cached table, and the loss it ends with."""

    def __init__(self, path: str, folder: str, heap: str, widths: list[int], iterations: int) -> None:
        super().__init__(path, heap)
        self._widths, self._iterations, self._folder = widths, iterations, folder
        self._load()

    def short(self) -> dict[str, float]:
        """Do the same with a few iterations: all is compiled then."""
        return self._fit(_WARM_ITERATIONS)

    def run(self) -> dict[str, float]:
        """Return seconds of a fit, and the loss it ends with."""
        return self._fit(self._iterations)

    def _fit(self, iterations: int) -> dict[str, float]:
        from pyspark.ml.classification import MultilayerPerceptronClassifier

        estimator = MultilayerPerceptronClassifier(layers=self._widths, maxIter=iterations, seed=0, tol=0.0)
        begin = time.perf_counter()
        model = estimator.fit(self._table)
        seconds = time.perf_counter() - begin
        X, y = data.load(self._folder)
        # Spark keeps (out, in) by columns, which is (in, out) by rows: bigopt's order
        layers = evaluate.layers_of(np.asarray(model.weights.toArray()), self._widths)
        return {"seconds": seconds, "loss": evaluate.network(X, y, layers, "sigmoid")}
