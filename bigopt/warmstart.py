"""Where params begin: an initialisation rule, a vector in a file, or the model of another run.

A model that saw other data saw them prepared otherwise (other means and deviations). Its first layer is taken back to
the original features and prepared anew, so that it predicts what it predicted before; its optimizer state is not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bigopt import bundle
from bigopt.bundle import Bundle
from bigopt.core import codec
from bigopt.core.errors import CheckpointError, ConfError
from bigopt.data.view import Preparation
from bigopt.models.base import Model
from bigopt.models.init import INITS

Array = npt.NDArray[Any]
_WHERE = "model.init"


def initial_params(
    init: str, model: Model, seed: int, *, columns: Sequence[str], preparation: Preparation | None
) -> npt.NDArray[np.float64]:
    """Return the first params, shape (p,).

    Parameters
    ----------
    init : str
        A rule, a ``.npy`` file with a vector of length p, or a run directory.
    model : Model
    seed : int
    columns : tuple of str
        Features, in X's order.
    preparation : Scaling, Whitening or None
        Of the features now.

    Raises
    ------
    ConfError
        A vector or a model that does not fit.
    CheckpointError
        A file that cannot be read.
    """
    if init in INITS:
        return model.init(init, seed)
    path = Path(init)
    if path.is_dir():
        return _from_run(bundle.load(path), model, columns, preparation)
    params = _vector(path)
    if params.shape != (model.layout.size,):
        raise ConfError(f"{path} holds {params.shape}, the model has {model.layout.size} parameters", where=_WHERE)
    if not np.isfinite(params).all():
        raise ConfError(f"{path} holds values that are not finite", where=_WHERE)
    return params.astype(np.float64)


def _vector(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        message = f"cannot read a vector: {error}"
        raise CheckpointError(message, where=str(path), hint="a .npy file of floats") from error
    if values.dtype.kind not in "iuf":
        raise CheckpointError("no array of numbers", where=str(path), hint="a .npy file of floats")
    return values


def _from_run(old: Bundle, model: Model, columns: Sequence[str], now: Preparation | None) -> Array:
    if old.columns != columns:
        differ = next((a for a, b in zip(old.columns, columns, strict=False) if a != b), "their number")
        raise ConfError(f"the model of {_WHERE} has other features ({differ})", where=_WHERE)
    if old.model.layout != model.layout:
        raise ConfError(f"the model of {_WHERE} has other layers", where=_WHERE, hint="compare bigopt describe of both")
    params = np.array(old.params, dtype=np.float64)
    if _same(old.scaling, now):
        return params
    named = model.layout.views(params)
    first, *_ = (block for block in model.layout.blocks)
    weight, shift = named[first.name], named.get(first.name.replace("weight", "intercept"))
    if weight.ndim != 2 or shift is None or getattr(model, "shortcut", False):
        raise ConfError(
            "the features are prepared otherwise than in that run, and this first layer cannot be carried over",
            where=_WHERE,
            hint="model.standardize=false in both, or a plain first layer with intercepts",
        )
    w, b = (weight, shift) if old.scaling is None else old.scaling.undo(weight, shift)
    w, b = (w, b) if now is None else now.redo(w, b)
    weight[...], shift[...] = w, b
    return params


def _same(a: Preparation | None, b: Preparation | None) -> bool:
    left, right = codec.pack(a), codec.pack(b)
    same = len(left[1]) == len(right[1]) and all(np.array_equal(x, y) for x, y in zip(left[1], right[1], strict=True))
    return left[0] == right[0] and same
