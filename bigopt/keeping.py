"""What a run keeps while it runs, made from what it knows: manifest, checkpoints, audit chain."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigopt.backends.ledger import Ledger
from bigopt.bundle import listed
from bigopt.checkpoint import FORMAT, Checkpoint, Checkpoints
from bigopt.core import codec
from bigopt.data.source import Dataset
from bigopt.facts import Facts
from bigopt.rundir import machine
from bigopt.strategies.base import Machine

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


def chained(before: str, state: Any) -> str:
    """Return the hash of a state and of all states before it (``run.audit``)."""
    digest = hashlib.sha256(before.encode())
    for part in codec.dumps(state):
        digest.update(part)
    return digest.hexdigest()
