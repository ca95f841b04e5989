"""Spark local[cores]: the price of an empty job, the loop that a user writes on RDDs, and MLlib.

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
_WARM_PART: Final = 0.1
"""Of the rows of the logistic tables: enough for the JVM to compile what a fit runs."""
_EVALUATION: Final = "RDDLossFunction"
"""What Spark names the jobs after that evaluate a loss: the place in MLlib that asks for them."""


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


def empty_job(repeats: int = 10) -> float:
    """Return seconds of a job of one Python task a core that does nothing, in the SparkContext of this process."""
    from pyspark import SparkContext

    rdd = SparkContext.getOrCreate().parallelize(range(len(cores())), len(cores()))
    begin = time.perf_counter()
    for _ in range(repeats):
        rdd.map(nothing).collect()
    return (time.perf_counter() - begin) / repeats


class ByHand(_Spark):
    """Seconds of a step of gradient descent: broadcast, map over cached blocks, treeReduce.

    The first step, that of the warm-up, fills the cache.
    """

    def __init__(self, folder: str, learning_rate: float, steps: int, partitions: int = 8) -> None:
        super().__init__("6g")
        self._folder, self._eta, self._steps = folder, learning_rate, steps
        self._rows, d = np.load(Path(folder) / "X.npy", mmap_mode="r").shape
        bounds = np.linspace(0, self._rows, partitions + 1).astype(int).tolist()
        cuts = list(itertools.pairwise(bounds))
        self._blocks = self._sc.parallelize(cuts, partitions).map(lambda cut: load_block(folder, *cut)).cache()
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
        X, y = data.mapped(self._folder)
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
    """MLlib's LogisticRegression on a cached table: a whole fit, and what one more iteration of it takes.

    A fit is one job for its means and variances, one for each evaluation of loss and gradient, and more for its
    summary. Spark keeps the times of its jobs: from the end of the first evaluation to the end of the last one there
    are iterations and nothing else, so that their time needs no second fit and has none of its noise.

    Parameters
    ----------
    path, heap
    folder : str
        The same rows as arrays, for the referee.
    iterations : int
    """

    def __init__(self, path: str, folder: str, heap: str, iterations: int) -> None:
        super().__init__(path, heap)
        self._iterations, self._referee = iterations, evaluate.Referee("logistic", folder)
        self._model: Any = None
        self._load()

    def _fit(self, iterations: int, table: Any) -> dict[str, float]:
        from pyspark.ml.classification import LogisticRegression

        estimator = LogisticRegression(maxIter=iterations, tol=0.0, regParam=0.0, standardization=False)
        before, begin = self._jobs(), time.perf_counter()
        self._model = estimator.fit(table)
        fit = time.perf_counter() - begin
        ends = sorted(end for job, (name, end) in self._jobs().items() if job not in before and _EVALUATION in name)
        steps = self._model.summary.totalIterations
        return {"seconds": (ends[-1] - ends[0]) / max(1, steps), "fit": fit, "steps": steps, "jobs": len(ends)}

    def _jobs(self) -> dict[int, tuple[str, float]]:
        """Return name and end, in seconds, of every job that has ended."""
        spark = self._sc._jsc.sc()
        spark.listenerBus().waitUntilEmpty()
        jobs, found = spark.statusStore().jobsList(None), {}
        for i in range(jobs.size()):
            job = jobs.apply(i)
            if job.completionTime().isDefined():
                found[job.jobId()] = (job.name(), job.completionTime().get().getTime() / 1e3)
        return found

    def short(self) -> dict[str, float]:
        """Do the same with a few iterations on a part of the rows: all is compiled then."""
        return self._fit(_WARM_ITERATIONS, self._table.sample(_WARM_PART, seed=0))

    def run(self) -> dict[str, float]:
        """Return seconds of an iteration (``seconds``) and of the fit (``fit``)."""
        return self._fit(self._iterations, self._table)

    def check(self) -> dict[str, float]:
        """Return the loss of the last fit."""
        return {"loss": self._referee.loss(flat(self._model))}


class FromParquet(_MLlib):
    """Seconds from Parquet to MLlib's final loss by its own stopping rule (read, assemble, cache, fit)."""

    def __init__(self, path: str, folder: str, heap: str, max_iter: int = 100) -> None:
        super().__init__(path, heap)
        self._referee, self._max_iter = evaluate.Referee("logistic", folder), max_iter
        self._model: Any = None

    def short(self) -> dict[str, float]:
        """Do the same, with few iterations on a part of the rows: all is compiled then."""
        return self._race(_WARM_ITERATIONS, _WARM_PART)

    def run(self) -> dict[str, float]:
        """Return seconds of the whole way."""
        return self._race(self._max_iter)

    def _race(self, iterations: int, part: float = 1.0) -> dict[str, float]:
        from pyspark.ml.classification import LogisticRegression

        loading = self._load()
        table = self._table if part == 1.0 else self._table.sample(part, seed=0)
        begin = time.perf_counter()
        self._model = LogisticRegression(maxIter=iterations).fit(table)
        fitting = time.perf_counter() - begin
        steps = self._model.summary.totalIterations
        return {"seconds": loading + fitting, "load": loading, "fit": fitting, "iterations": steps}

    def judge(self) -> dict[str, float]:
        """Return the loss it ends with."""
        return {"loss": self._referee.loss(flat(self._model))}


class Ridge(_MLlib):
    """Seconds from Parquet to MLlib's LinearRegression with an L2 penalty, and its loss."""

    def __init__(self, path: str, folder: str, heap: str, l2: float) -> None:
        super().__init__(path, heap)
        self._l2, self._referee = l2, evaluate.Referee("squared", folder, l2)
        self._model: Any = None

    def run(self) -> dict[str, float]:
        """Return seconds of the whole way."""
        from pyspark.ml.regression import LinearRegression

        loading = self._load()
        begin = time.perf_counter()
        self._model = LinearRegression(regParam=self._l2, standardization=False).fit(self._table)
        fitting = time.perf_counter() - begin
        return {"seconds": loading + fitting, "load": loading, "fit": fitting}

    def judge(self) -> dict[str, float]:
        """Return its loss."""
        return {"loss": self._referee.loss(flat(self._model))}


def flat(model: Any) -> list[float]:
    """Return the parameters of a linear model of MLlib in bigopt's order."""
    return [*model.coefficients.toArray(), float(model.intercept)]


class Perceptron(_MLlib):
    """Seconds of a fit of MultilayerPerceptronClassifier on a cached table, and the loss it ends with.

    Spark keeps the weights of a layer (out, in) by columns, which is (in, out) by rows: bigopt's order.
    """

    def __init__(self, path: str, folder: str, heap: str, widths: list[int], iterations: int) -> None:
        super().__init__(path, heap)
        self._widths, self._iterations = widths, iterations
        self._referee = evaluate.Referee("network", folder, activation="sigmoid", widths=widths)
        self._model: Any = None
        self._load()

    def short(self) -> dict[str, float]:
        """Do the same with a few iterations: all is compiled then."""
        return self._fit(_WARM_ITERATIONS)

    def run(self) -> dict[str, float]:
        """Return seconds of a fit."""
        return self._fit(self._iterations)

    def _fit(self, iterations: int) -> dict[str, float]:
        from pyspark.ml.classification import MultilayerPerceptronClassifier

        estimator = MultilayerPerceptronClassifier(layers=self._widths, maxIter=iterations, seed=0, tol=0.0)
        begin = time.perf_counter()
        self._model = estimator.fit(self._table)
        return {"seconds": time.perf_counter() - begin}

    def judge(self) -> dict[str, float]:
        """Return the loss it ends with."""
        return {"loss": self._referee.loss(self._model.weights.toArray())}
