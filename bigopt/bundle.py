"""The trained model as it is kept: everything that evaluate and predict need, without the run or its data.

``model/model.npz`` is the `Bundle` (exact); ``model/model.json`` says the same to people, with the coefficients of
linear models on the original scale of the features. Where there are more columns than people read, these are
``model/coefficients.npy``, shape (d, q), in the order of the columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bigopt.core import codec
from bigopt.core.codec import wire
from bigopt.core.errors import CheckpointError
from bigopt.data.columns import Names
from bigopt.data.view import Preparation, Targets
from bigopt.models.base import Model
from bigopt.models.linear import LinearModel
from bigopt.models.linear import coefficients as linear_coefficients
from bigopt.models.penalties import Penalty
from bigopt.rundir import RunDir

Array = npt.NDArray[Any]

_LISTED = 10_000
"""Columns up to which each is listed by name."""
_MANY = "coefficients.npy"


@wire
@dataclass(frozen=True, eq=False)
class Bundle:
    """A model with its parameters and the preparation of its features and targets.

    Parameters
    ----------
    model : Model
    params : ndarray, shape (p,)
    dtype : str
        Block dtype.
    columns : sequence of str
        Features, in X's order.
    target : tuple of str
    scaling : Scaling, Whitening or None
    targets : Targets
    recipe : object or None
        The ingest recipe of the training data, so that raw data can be scored too.
    penalty : Penalty
    """

    model: Model
    params: Array
    dtype: str
    columns: Sequence[str] | Names
    target: tuple[str, ...]
    scaling: Preparation | None
    targets: Targets
    recipe: Any
    penalty: Penalty


def save(run: RunDir, bundle: Bundle) -> None:
    """Write ``model/model.npz`` and ``model/model.json``."""
    (run.path / "model").mkdir(mode=0o700, exist_ok=True)
    codec.save(run.path / "model" / "model.npz", bundle)
    many = len(bundle.columns) > _LISTED
    blocks = [
        {"name": block.name, "shape": block.shape, "start": part.start, "penalized": block.penalized}
        for block, part in bundle.model.layout.slices()
    ]
    summary = {
        "model": type(bundle.model).__name__,
        "loss": bundle.model.loss.name,
        "target": bundle.target,
        "classes": bundle.targets.classes,
        "features": listed(bundle.columns),
        "parameters": bundle.model.layout.size,
        "layout": blocks,
        "params_sha256": params_sha256(bundle.params),
        "original_scale": coefficients(bundle, run.path / "model" / _MANY if many else None),
    }
    run.write_json("model/model.json", summary)


def params_sha256(params: Array) -> str:
    """Return the SHA-256 of the little-endian bytes of params in layout order."""
    data = np.ascontiguousarray(params, dtype=params.dtype.newbyteorder("<"))
    return hashlib.sha256(data.tobytes()).hexdigest()


def load(run: Path) -> Bundle:
    """Read the model of a run directory.

    Raises
    ------
    CheckpointError
        Where there is none or it is damaged.
    """
    path = run / "model" / "model.npz"
    value = codec.load(path)
    if not isinstance(value, Bundle) or value.params.shape != (value.model.layout.size,):
        raise CheckpointError("not a model of this version", where=str(path))
    return value


def listed(columns: Sequence[str]) -> Any:
    """Return columns as JSON shows them: all names, or their number with the first and the last."""
    if len(columns) <= _LISTED:
        return list(columns)
    return {"count": len(columns), "first": columns[0], "last": columns[-1]}


def coefficients(bundle: Bundle, file: Path | None = None) -> dict[str, Any] | None:
    """Return coefficients and intercepts on the original scale of the features; None where the model has hidden layers.

    With x' = (x - mean) / scale:  v = w.x' + b = (w/scale).x + (b - mean.(w/scale)).

    Parameters
    ----------
    bundle : Bundle
    file : Path or None
        Where the coefficients of too many columns to name are written, shape (d, q).

    Returns
    -------
    dict or None
        ``outputs`` names, ``coefficients`` {column: [one an output]} or the name of `file`, ``intercept`` [one an
        output].
    """
    if not isinstance(bundle.model, LinearModel):
        return None
    weight, shift = linear_coefficients(bundle.model, bundle.params)
    if bundle.scaling is not None:
        weight, shift = bundle.scaling.undo(weight, shift)
    classes = bundle.targets.classes
    outputs = list(bundle.target) if not classes else [str(c) for c in (classes[1:] if len(classes) == 2 else classes)]
    if len(outputs) != weight.shape[1]:
        outputs = [f"output {i}" for i in range(weight.shape[1])]
    table: Any
    if file is None:
        table = {column: row.tolist() for column, row in zip(bundle.columns, weight, strict=True)}
    else:
        with codec.atomic_file(file) as handle:
            np.save(handle, weight)
        table = file.name
    return {"outputs": outputs, "coefficients": table, "intercept": shift.tolist()}
