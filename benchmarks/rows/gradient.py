"""Full-batch logistic gradient, rows in memory, one thread a core: one pass over memory, or not."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import data
from benchmarks.rows.common import LEARNING_RATE, SIDES, descent, linear_table, ratio
from benchmarks.spec import Figure, Row, Scale, Side
from benchmarks.statistics import Bar

STEPS = 10


def sides(scale: Scale) -> Mapping[str, Side]:
    """A step of a run, PyTorch's, scikit-learn's iteration, one read of X."""
    folder = str(data.arrays(linear_table(scale), scale.work))
    referee = {"kind": "logistic", "folder": folder}
    peer = {"folder": folder, "learning_rate": LEARNING_RATE, "steps": STEPS}
    return {
        "bigopt": Side(
            f"{SIDES}.ours:Steps", {"keys": descent(), "steps": STEPS, "memory": folder, "referee": referee}
        ),
        "torch": Side(f"{SIDES}.torch_cpu:FullBatch", peer),
        "sklearn": Side(f"{SIDES}.sklearn_cpu:Marginal", {"folder": folder, "few": 2, "many": 6}),
        "memory read": Side(f"{SIDES}.limits:MemoryRead", {"folder": folder}),
        "error": Side(f"{SIDES}.ours:GradientError", {"folder": folder}, once=True),
    }


ROW = Row(
    "gradient",
    "full-batch logistic gradient, 2M x 100 float32 in memory, local",
    sides,
    (
        Figure("of the memory read rate", ratio("memory read", "bigopt"), Bar("at least", 0.65)),
        Figure("faster than PyTorch", ratio("torch", "bigopt"), Bar("at least", 1.5)),
        Figure("faster than an iteration of scikit-learn's lbfgs", ratio("sklearn", "bigopt"), Bar("at least", 4)),
        Figure("error of the float32 gradient", lambda r: r["error"]["error"], Bar("at most", 1e-6), ""),
        Figure("a step", lambda r: 1e3 * r["bigopt"]["seconds"], None, "ms"),
        Figure("memory read rate", lambda r: r["memory read"]["gb_per_s"], None, "GB/s"),
    ),
    same_loss=((("bigopt", "torch"), 1e-5),),
    seconds=60,
)
