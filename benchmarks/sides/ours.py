"""bigopt, as a user runs it: `fit.train` with a conf, on rows in memory or in a store."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks import data, evaluate
from benchmarks.evaluate import Referee
from benchmarks.gate import GatedRun
from benchmarks.sides import Base
from benchmarks.sides.dask_cpu import start_cluster


def datasets(X: Any, y: Any) -> Any:
    """Return rows in this process as `Datasets`."""
    from bigopt.data.memory import from_arrays
    from bigopt.facts import Datasets

    return Datasets(from_arrays(X, y), None)


def in_memory(folder: str) -> Any:
    """Return generated rows as `Datasets`."""
    return datasets(*data.load(folder))


class Steps(Base):
    """Seconds of a step of a running training.

    Parameters
    ----------
    keys : list of str
        ``key=value`` of the conf, over those of every run here (no standardising).
    steps : int
        Steps of one run of this side.
    memory : str
        Folder of arrays to train on in memory; empty for ``data.uri``.
    referee : dict
        Arguments of the `Referee` of the loss.
    """

    def __init__(self, keys: list[str], steps: int, memory: str = "", referee: dict[str, Any] | None = None) -> None:
        self._steps, self._referee = steps, referee
        self._run = GatedRun(["model.standardize=false", *keys], in_memory(memory) if memory else None)

    def run(self) -> dict[str, float]:
        """Return seconds of one step."""
        return {"seconds": self._run.advance(self._steps) / self._steps, "start": self._run.seconds_to_start}

    def check(self) -> dict[str, Any]:
        """Return the loss of the parameters that are reached now."""
        return {} if self._referee is None else {"loss": Referee(**self._referee).loss(self._run.params)}

    def profile(self) -> dict[str, Any]:
        """Return where the threads of this process are during a run."""
        return self._run.profile(self._steps)

    def close(self) -> None:
        """End the run."""
        self._run.close()


class StepsAndEmptyJobs(Steps):
    """The same, one Spark job a round, and in between, in the same SparkContext, jobs that do nothing (``empty``).

    From the second run on, a step goes before the clock starts: Spark ends Python workers that were idle for a minute,
    while others had their turn, and new ones read their rows again.
    """

    _ran = False

    def run(self) -> dict[str, float]:
        """Return seconds of one step, and of one empty job."""
        from benchmarks.sides.spark_cpu import empty_job

        if self._ran:
            self._run.advance(1)
        self._ran = True
        sample = super().run()
        return {**sample, "empty": empty_job()}


class Epoch(Steps):
    """The same; the seconds are those of the whole run: an epoch of `steps` mini-batches."""

    def run(self) -> dict[str, float]:
        """Return seconds of an epoch."""
        seconds = self._run.advance(self._steps)
        return {"seconds": seconds, "step": seconds / self._steps, "start": self._run.seconds_to_start}


class EpochOnCluster(Epoch):
    """The same on a Dask cluster of the user's own: workers then connect by TCP, and vectors cross sockets."""

    def __init__(self, keys: list[str], steps: int, referee: dict[str, Any] | None = None) -> None:
        self._cluster = start_cluster()
        super().__init__([*keys, f"backend.address={self._cluster.scheduler_address}"], steps, referee=referee)

    def close(self) -> None:
        """End the run, then the cluster."""
        super().close()
        self._cluster.close(timeout=5)


class GradientError(Base):
    """How far the gradient sum that a run computes in float32 is from float64, at random parameters.

    The sum is made by a run's own Work on two slots, over the partitions and blocks of the plan, along the tree.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def run(self) -> dict[str, float]:
        """Return ``error``: the distance over the length of the float64 gradient."""
        from bigopt.backends.ledger import Ledger, Rounds
        from bigopt.config import load_conf
        from bigopt.core import arrays, compiled
        from bigopt.data.plan import homes, whole
        from bigopt.facts import profile
        from bigopt.problem import build
        from bigopt.sessions import open_session

        begin = time.perf_counter()
        conf = load_conf([], ["model.name=logistic", "model.standardize=false", "optimizer.name=gd", "data.memory=8GB"])
        rows = in_memory(self._folder)
        session = open_session(conf, "local", "error")
        try:
            rounds = Rounds(Ledger(), 0)
            problem = build(conf, rows, profile(conf, rows, session, rounds), arrays.resolve_device("cpu"))
            problem = replace(problem, kernels=compiled.NUMPY if compiled.missing() else compiled.COMPILED)
            params = np.random.default_rng(3).standard_normal(problem.model.layout.size) * 0.2
            params = params.astype(np.float32).astype(np.float64)  # what is judged is the sum, not the cast
            counts = problem.plan.counts
            units = whole(np.arange(problem.view.partitions), counts)
            sums = rounds.run(
                session, problem.gradient("float64"), (params,), units, lambda k: homes(counts, k)[units[:, 0]], "error"
            )
        finally:
            session.close()
        exact = evaluate.logistic_gradient(*data.mapped(self._folder), params[:-1], float(params[-1]))
        error = float(np.linalg.norm(sums.grad - exact) / np.linalg.norm(exact))
        return {"seconds": time.perf_counter() - begin, "error": error}
