"""Predictions on disk: one line an input row, in row order, as CSV or Parquet; complete or not there at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import ConfError, DataError

Array = npt.NDArray[Any]


class PredictionWriter:
    """Writes columns of predictions in pieces (context manager).

    Parameters
    ----------
    out : Path
        ``*.csv`` or ``*.parquet``.
    force : bool
        Replace an existing file.

    Raises
    ------
    ConfError
        Another suffix, or a file that exists.
    DataError
        Where the disk refuses.
    """

    def __init__(self, out: Path, *, force: bool) -> None:
        if out.suffix not in (".csv", ".parquet"):
            raise ConfError(f"predictions are written as .csv or .parquet, not '{out.suffix}'", where=str(out))
        if out.exists() and not force:
            raise ConfError("the file exists", where=str(out), hint="--force replaces it")
        if not out.parent.is_dir():
            raise ConfError("no such directory", where=str(out.parent))
        self._out = out
        self._tmp = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        self._writer: Any = None
        self._file: Any = None
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def append(self, columns: dict[str, Array], bad: npt.NDArray[np.bool_] | None = None) -> None:
        """Write rows; cells of `bad` rows are empty (null).

        Parameters
        ----------
        columns : dict
            Name to values of shape (k,): numbers, booleans or text.
        bad : ndarray of bool, shape (k,), or None
        """
        count = len(next(iter(columns.values())))
        columns = {"row": np.arange(self.rows, self.rows + count), **columns}
        try:
            if self._out.suffix == ".csv":
                self._csv(columns, bad)
            else:
                self._parquet(columns, bad)
        except OSError as error:
            raise DataError(f"cannot write: {error.strerror}", where=str(self._out)) from error
        self.rows += count

    def _csv(self, columns: dict[str, Array], bad: npt.NDArray[np.bool_] | None) -> None:
        if self._writer is None:
            self._file = open(self._tmp, "w", newline="", encoding="utf-8")  # noqa: SIM115  closed by __exit__
            self._writer = csv.writer(self._file)
            self._writer.writerow(columns)
        lines: Sequence[Sequence[Any]] = list(zip(*(v.tolist() for v in columns.values()), strict=True))
        if bad is not None:
            lines = [(r[0], *[""] * (len(r) - 1)) if b else r for r, b in zip(lines, bad.tolist(), strict=True)]
        self._writer.writerows(lines)

    def _parquet(self, columns: dict[str, Array], bad: npt.NDArray[np.bool_] | None) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({k: pa.array(v, mask=None if k == "row" else bad) for k, v in columns.items()})
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._tmp, table.schema, write_page_checksum=True)
        self._writer.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in (self._writer if self._out.suffix == ".parquet" else None, self._file):
            if handle is not None:
                handle.close()
        if kind is not None or self._writer is None:
            self._tmp.unlink(missing_ok=True)
            return
        with open(self._tmp, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(self._tmp, self._out)
