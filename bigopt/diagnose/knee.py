"""Where a batch stops costing nothing: seconds of a Map-Reduce against its rows, on the machine at hand.

seconds = fixed + b x a row's. The fixed part is messages, a call to each unit, the gradient vectors; the knee is the b
at which the rows cost as much as that.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bigopt.data.lanes import choose_lanes
from bigopt.data.plan import Plan

if TYPE_CHECKING:
    from bigopt.diagnose.measure import Measure

_REPEATS: Final = 3
_MOST_ROWS: Final = 1 << 16


def measure_knee(measure: Measure) -> dict[str, Any]:
    """Time gradients of batches of 1, 4, 16, ... rows.

    Returns
    -------
    dict
        ``rows`` of the knee (None where even the largest batch costs no more than one row), and ``seconds``, one
        mapping a batch size. Times differ from run to run.
    """
    problem = measure.problem
    counts = problem.plan.counts
    work = problem.gradient("float64")
    params = np.zeros(problem.model.layout.size)
    sizes = [4**k for k in range(32) if 4**k <= min(_MOST_ROWS, measure.rows)]
    found = []
    for b in sizes:
        plan = Plan(counts, b, choose_lanes(b, int(np.count_nonzero(counts))), problem.plan.seed)
        seconds = []
        for _ in range(_REPEATS):
            units = plan.units(0, 0)
            begin = time.perf_counter()
            measure.rounds.run(
                measure.session,
                work,
                (params,),
                units,
                lambda k, plan=plan, units=units: plan.homes(units, k),  # type: ignore[misc]
                "diagnose: the time of a batch",
            )
            seconds.append(time.perf_counter() - begin)
        found.append({"batch": b, "seconds": min(seconds)})
    return {"rows": knee([f["batch"] for f in found], [f["seconds"] for f in found]), "seconds": found}


def knee(batches: list[int], seconds: list[float]) -> float | None:
    """Return fixed / (seconds a row) of the line through the cheapest batch and the largest one."""
    fixed = min(seconds)
    rise = seconds[-1] - fixed
    return None if rise <= 0.1 * fixed else fixed * (batches[-1] - batches[0]) / rise
