"""Rows that wait to be written: dense or sparse features with labels and weights, cast, cut and joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bigopt.core.csr import CSR, stacked
from bigopt.core.errors import DataError
from bigopt.data.files import shown
from bigopt.data.source import NUMERIC, Array

Part = tuple[Any, Array | None, Array | None]
"""X (an array or CSR), y and weight of some rows."""


def cast(values: Array, dtype: np.dtype[Any], what: str, path: str) -> Array:
    """Convert to the stored dtype; refuse what it cannot hold (rounding of floats is allowed)."""
    if values.dtype == dtype:
        return values
    if values.dtype.name not in NUMERIC or (dtype.kind in "biu" and values.dtype.kind == "f"):
        raise DataError(f"{what} of dtype {values.dtype} where {dtype} is stored", where=shown(path))
    if dtype.kind in "iu" and values.size:
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise DataError(f"{what} holds values beyond {dtype}", where=shown(path), hint="a wider dtype")
    if dtype.kind == "b" and values.dtype.kind != "b":
        raise DataError(f"{what} of dtype {values.dtype} where booleans are stored", where=shown(path))
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def plain(label: Any) -> Any:
    """Return a label as a Python value."""
    return label.item() if isinstance(label, np.generic) else label


def part(block: Part, rows: slice) -> Part:
    """Return some rows."""
    X, y, weight = block
    return X[rows], None if y is None else y[rows], None if weight is None else weight[rows]


def copied(X: Array | CSR) -> Array | CSR:
    """Return rows that do not change with the caller's arrays."""
    return CSR(X.data.copy(), X.indices.copy(), X.indptr.copy(), X.columns) if isinstance(X, CSR) else X.copy()


def joined(parts: Sequence[Any]) -> Any:
    """Return consecutive arrays or CSR rows as one; None where there are none."""
    present = [part for part in parts if part is not None]
    if not present or len(present) == 1:
        return present[0] if present else None
    return stacked(present) if isinstance(present[0], CSR) else np.concatenate(present)
