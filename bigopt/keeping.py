"""What a run leaves behind, made from what it knows: manifest, model, audit chain, picture."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from bigopt.bundle import Bundle, listed
from bigopt.core import codec
from bigopt.data.source import Dataset
from bigopt.facts import Facts
from bigopt.problem import Problem
from bigopt.rundir import machine

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


def in_a_line(record: dict[str, Any]) -> str:
    """Say a record of metrics.jsonl in a line, for those who watch an engine."""
    return "round {round}, step {step}, epoch {epoch:.3g}, loss {loss:.6g}".format_map(record)


def picture(run: Path) -> str:
    """Draw the learning curve where matplotlib is installed; return what to say about it."""
    try:
        from bigopt.studies.curves import learning_curve
    except ImportError:
        return "no picture: matplotlib is not installed (pip install 'bigopt[plots]')"
    return f"picture: {learning_curve(run)}"
