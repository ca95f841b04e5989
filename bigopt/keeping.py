"""What a run leaves behind, made from what it knows: manifest, checkpoints, model, audit chain, picture."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bigopt.backends.ledger import Ledger
from bigopt.bundle import Bundle, listed
from bigopt.checkpoint import FORMAT, Checkpoint, Checkpoints
from bigopt.core import codec
from bigopt.data.source import Dataset
from bigopt.facts import Facts
from bigopt.problem import Problem
from bigopt.rundir import machine
from bigopt.strategies.base import Delayed, Machine

if TYPE_CHECKING:
    from bigopt.config import Conf


def manifest(conf: Conf, conf_hash: str, fingerprint: dict[str, str], data: Dataset, facts: Facts) -> dict[str, Any]:
    """Return the run's manifest.json: versions, machine, command, data and what they decided."""
    return {
        **machine(),
        "fingerprint": fingerprint,
        "data": {
            "uri": conf.data.uri,
            "identity": facts.identity,
            "rows": data.rows,
            "training_rows": int(facts.train.counts.sum()),
            "validation_rows": 0 if facts.validation is None else int(facts.validation.counts.sum()),
            "skipped_rows": int(facts.train.skipped.sum()),
            "partitions": len(data.partitions),
            "columns": listed(data.columns),
            "target": data.target,
            "classes": facts.classes,
        },
        "conf": conf_hash,
    }


@dataclass(frozen=True)
class Keeper:
    """Saves checkpoints with what all those of a run have in common.

    Parameters
    ----------
    checkpoints : Checkpoints
    conf, data : str
        Digest of the conf, identity of the dataset.
    fingerprint : dict
    length : int or None
        Steps planned at the first start.
    ledger : Ledger
    """

    checkpoints: Checkpoints
    conf: str
    data: str
    fingerprint: dict[str, str]
    length: int | None
    ledger: Ledger

    def save(self, machine: Machine, *, back: bool = False, **counters: Any) -> Path:
        """Write a checkpoint of the machine.

        Parameters
        ----------
        machine : Machine
        back : bool
            Whether the run went back to this state: later checkpoints are dropped.
        counters
            The other fields of `Checkpoint`.
        """
        checkpoint = Checkpoint(
            format=FORMAT,
            conf=self.conf,
            data=self.data,
            fingerprint=self.fingerprint,
            state=machine.snapshot(),
            steps=machine.steps,
            rounds=self.ledger.rounds,
            epochs=machine.epochs,
            length=self.length,
            **counters,
        )
        return self.checkpoints.go_back(checkpoint) if back else self.checkpoints.save(checkpoint)


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


def chained(before: str, state: Any) -> str:
    """Return the hash of a state and of all states before it (``run.audit``)."""
    digest = hashlib.sha256(before.encode())
    for part in codec.dumps(state):
        digest.update(part)
    return digest.hexdigest()


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
