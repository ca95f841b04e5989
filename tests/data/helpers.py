"""Datasets for the tests of bigopt.data, and the rows they must give back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bigopt.core import codec
from bigopt.data.source import Dataset
from bigopt.data.writer import DatasetWriter

SIZES = (300, 17, 0, 512, 41, 233, 150, 7)


def table(rows: int = 1260, columns: int = 5, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return incompressible float32 X, float64 y and weight."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, columns)).astype(np.float32)
    return X, X @ np.arange(1.0, columns + 1), rng.random(rows) + 0.5


def write(path: Path, form: str, X: Any, y: Any, weight: Any = None, step: int = 100, **more: Any) -> Dataset | None:
    """Write a dataset; `form` is zarr, parquet or list (Parquet with a list column)."""
    options: dict[str, Any] = {
        "format": "zarr" if form == "zarr" else "parquet",
        "layout": "list" if form == "list" else "columns",
        "columns": [f"c{j}" for j in range(X.shape[1])],
        "target": ["t"] if y is not None else [],
        "weight": None if weight is None else "w",
        "dtype": X.dtype.name,
        **more,
    }
    with DatasetWriter(str(path), **options) as writer:
        for a in range(0, len(X), step):
            cut = slice(a, a + step)
            writer.append(X[cut], None if y is None else y[cut], None if weight is None else weight[cut])
    return None


def travelled(dataset: Dataset) -> Any:
    """Return the source as a worker receives it."""
    return codec.loads([bytes(part) for part in codec.dumps(dataset.source)])


def rows_of(dataset: Dataset) -> tuple[Any, Any, Any, Any, int]:
    """Read everything through a source that has travelled; also check each piece and each partition's rows."""
    source = travelled(dataset)
    assert source == dataset.source
    pieces, read = [], 0
    for partition in dataset.partitions:
        here = list(source.pieces(partition))
        assert sum(len(piece.X) for piece in here) == partition.rows
        assert all(piece.X.dtype.name == dataset.stored and piece.X.dtype.isnative for piece in here)
        assert all(piece.X.nbytes <= max(dataset.piece_bytes, 1) for piece in here)
        read += sum(piece.bytes_read for piece in here)
        pieces += here

    def joined(values: list[Any]) -> Any:
        return None if values[0] is None else np.concatenate(values)

    return (*(joined([piece[k] for piece in pieces]) for k in (0, 1, 2, 4)), read)


def files_of(path: Path) -> list[Path]:
    """Return all files of a dataset, sorted."""
    return sorted(p for p in path.rglob("*") if p.is_file())
