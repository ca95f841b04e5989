"""What the end of a run leaves behind: the model, its metrics on all rows, result.json, the picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bigopt import bundle
from bigopt.backends.ledger import Ledger
from bigopt.bundle import Bundle
from bigopt.core.errors import DivergedError
from bigopt.data.source import Dataset
from bigopt.loop import Loop
from bigopt.problem import Problem
from bigopt.rundir import RunDir
from bigopt.strategies.base import Delayed


def finish(run: RunDir, problem: Problem, loop: Loop, data: Dataset, ledger: Ledger) -> dict[str, Any]:
    """Evaluate the final parameters and save the model.

    Returns
    -------
    dict
        The success object of ``bigopt train --json``.

    Raises
    ------
    DivergedError
        Where the final loss is not finite.
    """
    checks, params, steps = loop.checks, loop.params(), loop.machine.steps
    if checks.best_params is not None:
        params = checks.best_params
    metrics = checks.metrics(problem.view, params)
    loss = metrics["loss"] + problem.penalty.value(params, problem.model.layout)
    if not np.isfinite(loss):
        raise DivergedError(f"the final loss is {loss}", where=f"step {steps}", hint="a smaller schedule.learning_rate")
    found: dict[str, Any] = {}
    if problem.validation is not None:
        metrics = checks.metrics(problem.validation, params)
        found = {"validation_loss": metrics["loss"]}
    elif problem.unbalanced is not problem.view:
        metrics = checks.metrics(problem.unbalanced, params)
    bundle.save(run, bundle_of(problem, params, data))
    result = {
        "status": "completed",
        "run": str(run.path),
        "steps": steps,
        "rounds": ledger.rounds,
        "epochs": loop.machine.epochs,
        "loss": loss,
        "metrics": {k: v for k, v in metrics.items() if k != "loss"},
        "params_sha256": bundle.params_sha256(params),
        "seconds": loop.stopper.seconds,
    }
    if loop.audit:
        result["audit_sha256"] = loop.audit
    if loop.anchor is not None:
        result["halvings"] = loop.anchor.rewind.halvings
    late = delays(run.path, loop.machine.snapshot())
    idle = {"idle_by_worker": loop.recorder.idleness.shares()}
    run.write_json("result.json", {**result, **found, "ledger": vars(ledger), **late, **idle})
    return result


def bundle_of(problem: Problem, params: npt.NDArray[Any], data: Dataset) -> Bundle:
    """Return the model as evaluate and predict take it."""
    return Bundle(
        model=problem.model,
        params=params,
        dtype=problem.view.dtype,
        columns=data.columns,
        target=data.target,
        scaling=problem.view.scaling,
        targets=problem.targets,
        recipe=None if data.manifest is None else data.manifest.recipe,
        penalty=problem.penalty,
    )


def delays(run: Path, state: Any = None) -> dict[str, Any]:
    """Summarise the delays of a run: what its last state holds, or updates.csv of an asynchronous one.

    Returns
    -------
    dict
        Staleness (mean, max, histogram) and updates by worker, or tau; empty where nothing of it is kept.
    """
    if isinstance(state, Delayed):
        return dict(state.delays)
    path = run / "updates.csv"
    if not path.exists():
        return {}
    lines = [line.split(",") for line in path.read_text(encoding="ascii").splitlines()[1:]]
    counts = Counter(number - int(version) for number, (_, version, _) in enumerate(lines))
    workers = Counter(int(worker) for _, _, worker in lines)
    return {
        "staleness": {
            "mean": sum(k * n for k, n in counts.items()) / max(1, len(lines)),
            "max": max(counts, default=0),
            "histogram": {str(k): counts[k] for k in sorted(counts)},
        },
        "updates_by_worker": {str(k): workers[k] for k in sorted(workers)},
    }


def picture(run: Path) -> str:
    """Draw the learning curve where matplotlib is installed; return what to say about it."""
    try:
        from bigopt.studies.curves import learning_curve
    except ImportError:
        return "no picture: matplotlib is not installed (pip install 'bigopt[plots]')"
    try:
        with np.errstate(over="ignore"):
            return f"picture: {learning_curve(run)}"
    except OverflowError:
        return "no picture: the losses are beyond the scale of a picture"
