"""Rows made up on the spot: for tests and benchmarks, where each worker makes the rows it is asked for.

Row i is a function of the seed and of its global number i, so a dataset can be cut into any partitions, made again
anywhere, and be larger than any disk. Rows are drawn in fixed blocks by counter-based streams (`bigopt.core.rng`):

    x_i ~ N(0, I_d),  w ~ N(0, I_d / d),  v_i = x_i . w + noise e_i,  y_i = v_i (values) or [v_i > 0] (labels 0, 1)

Needs NumPy alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from bigopt.core import rng
from bigopt.core.codec import wire
from bigopt.data.columns import x_names
from bigopt.data.source import (
    Array,
    Dataset,
    Partition,
    Rows,
    chosen_partition_rows,
    partition_sizes,
    partitions_of,
)

_BLOCK = 1024


@wire
@dataclass(frozen=True)
class SyntheticSource:
    """A linear problem with Gaussian rows.

    Parameters
    ----------
    seed : int
    features : int
        d.
    task : {"regression", "classification"}
    noise : float
        Standard deviation of what the features do not explain.
    dtype : str
        float32 or float64.
    """

    seed: int
    features: int
    task: Literal["regression", "classification"] = "regression"
    noise: float = 0.1
    dtype: str = "float32"

    @property
    def columns(self) -> Sequence[str]:
        """``x0, x1, ...``."""
        return x_names(self.features)

    @property
    def stored(self) -> str:
        """The dtype of X."""
        return self.dtype

    @property
    def sparse(self) -> bool:
        """Never: rows are arrays."""
        return False

    def nonzeros(self, partition: Partition) -> int:
        """Return rows x d."""
        return partition.rows * len(self.columns)

    @cached_property
    def weights(self) -> Array:
        """The true w, shape (d,), float64."""
        drawn: Array = rng.normal(rng.stream(self.seed, "synthetic weights"), self.features)
        weights: Array = drawn * self.features**-0.5
        return weights

    def _block(self, number: int) -> tuple[Array, Array]:
        """Rows ``[number, number + 1) * 1024``: always whole, so that no bit depends on where a partition is cut."""
        words = rng.stream(self.seed, "synthetic rows", partition=number)
        drawn = rng.normal(words, _BLOCK * (self.features + 1)).reshape(_BLOCK, self.features + 1)
        X = np.ascontiguousarray(drawn[:, 1:])
        y = X @ self.weights + self.noise * drawn[:, 0]
        return X.astype(self.dtype), (y > 0).astype(np.int64) if self.task == "classification" else y

    def pieces(self, partition: Partition) -> Iterator[Rows]:
        """Yield the partition's rows, one block of 1024 global rows at a time."""
        for number in range(partition.start // _BLOCK, -(-partition.stop // _BLOCK)):
            X, y = self._block(number)
            low, high = max(0, partition.start - number * _BLOCK), min(_BLOCK, partition.stop - number * _BLOCK)
            yield Rows(X[low:high], y[low:high], None)

    def place(self, partition: Partition, row: int) -> str:
        """Say which row it is."""
        return f"synthetic row {partition.start + row}"

    def identity(self) -> str:
        """Return the SHA-256 of what decides the rows."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def synthetic(source: SyntheticSource, rows: int, *, partition_rows: int | Sequence[int] | None = None) -> Dataset:
    """Return a dataset of the first `rows` rows.

    Parameters
    ----------
    source : SyntheticSource
    rows : int
    partition_rows : int or sequence of int, optional
        Rows of each partition, or the sizes of all; chosen where None.
    """
    row_bytes = source.features * np.dtype(source.dtype).itemsize + 8
    sizes = partition_sizes(rows, partition_rows or chosen_partition_rows(rows, row_bytes))
    labels = source.task == "classification"
    return Dataset(
        source,
        partitions_of(sizes),
        target=("y",),
        classes=(0, 1) if labels else None,
        target_kind="integer" if labels else "number",
        row_bytes=row_bytes,
        piece_bytes=_BLOCK * row_bytes,
    )
