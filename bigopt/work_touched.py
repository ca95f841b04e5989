"""In how many rows each column is not zero: what a lazy penalty has to know before the first row.

A row's step shrinks the entries that it touches only. An entry that n_j of n rows touch shrinks by n/n_j as much each
time, so that over an epoch every entry shrinks as if all rows had touched it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.csr import CSR
from bigopt.core.sums import added
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.view import DataView

Array = npt.NDArray[Any]


@wire
class Touched(NamedTuple):
    """In how many rows each column is not zero, shape (d,), int64."""

    rows: Array

    def merge(self, other: Touched) -> Touched:
        """Add the rows of other partitions."""
        return Touched(added(self.rows, other.rows))


@wire
@dataclass(frozen=True)
class CountTouched:
    """Counts the rows that touch each column, which the lazy penalty needs; needs no inputs."""

    view: DataView

    def prepare(self, inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Need nothing."""
        return inputs

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Touched:
        """Return the counts of a whole partition of sparse rows."""
        with meter.block(self.view, int(unit[0])) as entry:
            X = entry.block.X
            assert isinstance(X, CSR)
            return Touched(np.bincount(X.indices, minlength=X.columns))
