"""What a run has left for a diagnosis: its checkpoints are recorded iterates, its staleness is the delay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Rounds
from bigopt.checkpoint import load
from bigopt.core.errors import CheckpointError, DataError
from bigopt.problem import Problem
from bigopt.setting import strategy_setting
from bigopt.strategies.table import strategy

if TYPE_CHECKING:
    from bigopt.config import Conf

Floats = npt.NDArray[np.float64]


class Recorded(NamedTuple):
    """The recorded iterates of a run.

    Parameters
    ----------
    params : tuple of ndarray, shape (p,)
        Of the checkpoints that are there, oldest first.
    steps : tuple of int
        Of each of them.
    staleness : int
        The largest of any step in metrics.jsonl.
    """

    params: tuple[Floats, ...]
    steps: tuple[int, ...]
    staleness: int


def recorded(run: Path, conf: Conf, problem: Problem, rounds: Rounds) -> Recorded:
    """Read a run directory; nothing in it is changed, so that the run may still go on.

    Parameters
    ----------
    run : Path
    conf : Conf
        Of the run.
    problem : Problem
    rounds : Rounds

    Raises
    ------
    CheckpointError
        No checkpoint.
    DataError
        Checkpoints that belong to other data.
    """
    from bigopt.config import fill

    if conf.schedule.learning_rate == "auto":  # whose number does not matter here
        conf = fill(conf, {"schedule.learning_rate": 1.0}, "auto")
    found: dict[int, Floats] = {}
    for path in sorted((run / "checkpoints").glob("step-*.npz")):
        try:
            saved = load(path)
        except CheckpointError:
            if path.exists():
                raise
            continue  # dropped meanwhile by the run, which goes on
        if saved.data != problem.facts.identity:
            raise DataError("the checkpoints belong to other data", where=str(path), hint="the data.uri of the run")
        machine = strategy(conf.strategy.name).machine(
            strategy_setting(problem, conf, rounds, saved.length), saved.state
        )
        if machine.params.shape != (problem.model.layout.size,):
            raise CheckpointError("the checkpoint belongs to another model", where=str(path))
        found[saved.steps] = np.array(machine.params, dtype=np.float64)
    if not found:
        raise CheckpointError("no checkpoint", where=str(run), hint="a run directory of bigopt train")
    return Recorded(tuple(found.values()), tuple(found), _staleness(run / "metrics.jsonl"))


def _staleness(path: Path) -> int:
    worst = 0
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):  # a run that goes on may be writing the last one
                    entry: dict[str, Any] = json.loads(line)
                    worst = max(worst, int(entry.get("staleness") or 0))
    return worst
