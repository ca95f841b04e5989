"""To scikit-learn's final loss, rows in memory: whichever of its solvers stops first, against a whole training.

Compiled kernels are asked for: left to itself a run of 15 steps is too short for compiling to pay, on a machine where
it was never done; here the warm-up has done it, and both sides have their libraries loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import data
from benchmarks.data import Table
from benchmarks.rows.common import SIDES, descent, ratio
from benchmarks.spec import Figure, Row, Scale, Side
from benchmarks.statistics import Bar

L2 = 1e-6


def sides(scale: Scale) -> Mapping[str, Side]:
    """lbfgs, saga and SGD of scikit-learn; L-BFGS of bigopt."""
    table = Table("linear", scale.pick(500_000, 100_000, 10_000), 100)
    folder = str(data.arrays(table, scale.work))
    keys = [k for k in descent(optimizer__name="lbfgs") if not k.startswith("schedule.")]
    ours = {
        "keys": [*keys, f"model.l2={L2}", "model.standardize=false", "run.kernels=compiled"],
        "steps": 15,
        "memory": folder,
        "referee": {"kind": "logistic", "folder": folder, "l2": L2},
    }
    solvers = {
        solver: Side(f"{SIDES}.sklearn_cpu:Fit", {"folder": folder, "solver": solver, "l2": L2}, group="scikit-learn")
        for solver in ("lbfgs", "saga", "sgd")
    }
    return {**solvers, "bigopt": Side(f"{SIDES}.racing:Race", ours, follows="scikit-learn")}


ROW = Row(
    "race_sklearn",
    "time to scikit-learn's final loss, in memory",
    sides,
    (
        Figure("faster than scikit-learn", ratio("scikit-learn", "bigopt"), Bar("at least", 1.5)),
        Figure("ours, from the call", lambda r: r["bigopt"]["seconds"], None, "s"),
        Figure("ours, until the first step", lambda r: r["bigopt"]["first_step"], None, "s"),
        Figure("ours, steps", lambda r: r["bigopt"]["steps"], None, ""),
        Figure("scikit-learn", lambda r: r["scikit-learn"]["seconds"], None, "s"),
    ),
    seconds=40,
)
