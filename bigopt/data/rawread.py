"""Raw files as a stream of tables: a few columns, a few thousand rows at a time, each row knowing where it stood.

A raw source is one file or several with the same columns: CSV (plain, .gz, .zip), Parquet, NPZ, NPY. `open_raw` looks
at names and types only; `RawSource.tables` then reads the asked columns in blocks of about a megabyte of text or eight
of numbers, so that a file of any size goes through a bounded amount of memory. A CSV has no types: a column is read as
the kind it is declared or was seen to be, and a value that does not fit is an error with file, line, column and value.

CSV is strict: UTF-8, a header of distinct names, comma (tab in .tsv), RFC 4180 quotes, as many fields as the header in
every line. A null is an empty field or one of `NULLS`.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import ConfError, DataError
from bigopt.core.names import nearest
from bigopt.data.expression_values import Column, Kind
from bigopt.data.files import Files, local_path, open_files, place, shown

RawKind = Literal["integer", "number", "boolean", "text"]
KINDS: Final[tuple[RawKind, ...]] = ("integer", "number", "boolean", "text")

NULLS: Final = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "NULL"})
"""Fields of a CSV that are nulls."""

BLOCK_ROWS: Final = 8192
"""Most rows of a table."""
BLOCK_BYTES: Final = 8 << 20
"""Most bytes of numbers of a table, about."""


class Table(NamedTuple):
    """Some columns of consecutive rows.

    Parameters
    ----------
    columns : dict of str to Column
    numbers : ndarray of int64, shape (k,)
        Line (CSV) or row from 0 (other formats) of each row in its file.
    file : str
        For messages.
    unit : str
        ``line`` or ``row``.
    """

    columns: dict[str, Column]
    numbers: npt.NDArray[np.int64]
    file: str
    unit: str

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.numbers)

    def take(self, keep: npt.NDArray[np.bool_]) -> Table:
        """Return the rows of a mask."""
        if keep.all():
            return self
        return Table({n: c.take(keep) for n, c in self.columns.items()}, self.numbers[keep], self.file, self.unit)

    def place(self, row: int) -> str:
        """Say where a row stands, for messages."""
        return f"{self.file}, {self.unit} {self.numbers[row]}"


class Unfit(DataError):
    """A value of a CSV column that is not of the column's kind; `wider` is a kind it fits."""

    def __init__(self, message: str, *, where: str = "", hint: str = "", column: str = "", wider: str = "") -> None:
        super().__init__(message, where=where, hint=hint)
        self.column, self.wider = column, wider


class RawFile(Protocol):
    """One opened raw file."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its columns, in order."""
        ...

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Columns that one array holds together, by the array's name."""
        ...

    def dtypes(self, names: Sequence[str]) -> dict[str, str]:
        """Return NumPy dtype names of columns (``text`` for text); a CSV guesses from its first rows.

        Raises
        ------
        DataError
            For a type that is neither a number, a boolean nor text.
        """
        ...

    def tables(self, kinds: Mapping[str, RawKind]) -> Iterator[Table]:
        """Yield all rows of some columns.

        Raises
        ------
        Unfit
            For a value that is not of its column's kind.
        DataError
            For a file that is damaged or malformed.
        """
        ...


@dataclass(frozen=True)
class RawSource:
    """Files with the same columns, read one after the other.

    Parameters
    ----------
    files : tuple of RawFile
    uris : tuple of str
        Their names, for messages.
    typed : bool
        Whether the format itself knows its types (all but CSV).
    """

    files: tuple[RawFile, ...]
    uris: tuple[str, ...]
    typed: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of the first file."""
        return self.files[0].names

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Columns that one array holds together, by the array's name."""
        return self.files[0].groups

    def require(self, names: Iterable[str], *, where: str = "", what: str = "column") -> None:
        """Raise `DataError` for columns that are not there."""
        known = set(self.names)
        for name in names:
            if name not in known:
                hint = nearest(name, self.names)
                if len(self.names) == 1 and ";" in self.names[0]:
                    hint = "fields are separated by commas, this header by semicolons"
                raise DataError(f"no {what} '{name}'{f' ({where})' if where else ''}", where=self.uris[0], hint=hint)

    def tables(self, kinds: Mapping[str, RawKind]) -> Iterator[Table]:
        """Yield all rows of some columns, file after file."""
        for file, uri in zip(self.files, self.uris):
            missing = [name for name in kinds if name not in file.names]
            if missing:
                raise DataError(
                    f"no column '{missing[0]}', which {self.uris[0]} has",
                    where=uri,
                    hint=nearest(missing[0], file.names),
                )
            yield from file.tables(kinds)


def kind_of(dtype: str) -> RawKind:
    """Return the kind of a declared or stored dtype name."""
    if dtype in ("text", "bool"):
        return "text" if dtype == "text" else "boolean"
    return "number" if dtype.startswith("float") else "integer"


def interchangeable(wanted: RawKind, stored: RawKind) -> bool:
    """Whether a stored column can be read as another kind: integers and floats both are numbers."""
    return expression_kind(wanted) == expression_kind(stored)


def expression_kind(kind: RawKind) -> Kind:
    """Return what an expression takes the kind for."""
    return "number" if kind in ("integer", "number") else "boolean" if kind == "boolean" else "text"


def block_rows(row_bytes: int) -> int:
    """Return the rows of a table for rows of so many bytes."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, row_bytes)))


def open_raw(source: str | Sequence[str], storage_options: Mapping[str, Any] | None = None) -> RawSource:
    """Open raw files.

    Parameters
    ----------
    source : str or sequence of str
        A path or URL, a pattern (``raw/*.csv``), a directory of files of one format, or several of these; in the order
        given, a pattern's and a directory's files sorted by name.
    storage_options : mapping, optional
        For URLs.

    Raises
    ------
    ConfError
        For a format that cannot be read.
    DataError
        Where nothing is there, a file is damaged, or formats are mixed.
    """
    sources = [source] if isinstance(source, str) else list(source)
    found = [item for one in sources for item in _resolve(one, dict(storage_options or {}))]
    if not found:
        raise DataError("no raw file", where=", ".join(shown(s) for s in sources) or "ingest.source")
    formats = [_format(place(files, key)) for files, key in found]
    for (files, key), form in zip(found, formats):
        if form[0] != formats[0][0]:
            raise DataError(f"a {form[0]} file beside {formats[0][0]} files", where=place(files, key))
    opened = tuple(form[1](files, key) for (files, key), form in zip(found, formats))
    return RawSource(opened, tuple(place(files, key) for files, key in found), formats[0][0] != "CSV")


def _resolve(source: str, options: dict[str, Any]) -> list[tuple[Files, str]]:
    path = local_path(source)
    if path is not None and not path.exists() and glob.has_magic(str(path)):
        names = sorted(glob.glob(str(path)))
        if not names:
            raise DataError("no file matches", where=source)
        return [(open_files(name, options), "") for name in names]
    files = open_files(source, options)
    try:
        if not files.is_folder():
            return [(files, "")]
        keys = [key for key in files.listing() if _known(key) and not PurePosixPath(key).name.startswith(("_", "."))]
    except FileNotFoundError as error:
        raise DataError("no such file or directory", where=files.uri, hint="see ingest.source") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=files.uri) from error
    if not keys:
        raise DataError(
            "a directory without raw files", where=files.uri, hint=f"files named *{', *'.join(_suffixes())}"
        )
    return [(files, key) for key in keys]


def _suffixes() -> tuple[str, ...]:
    return (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zip", ".zip", ".parquet", ".npz", ".npy")


def _known(key: str) -> bool:
    return key.lower().endswith(_suffixes())


def _format(name: str) -> tuple[str, Callable[[Files, str], RawFile]]:
    lower = name.lower()
    if lower.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz", ".zip")):
        from bigopt.data.rawread_csv import CsvFile

        return "CSV", CsvFile
    if lower.endswith(".parquet"):
        from bigopt.data.rawread_parquet import ParquetRaw

        return "Parquet", ParquetRaw
    if lower.endswith((".npz", ".npy")):
        from bigopt.data.rawread_arrays import ArraysFile

        return "NumPy", ArraysFile
    raise ConfError(
        f"'{shown(name)}' is no raw format bigopt reads", where="ingest.source", hint=f"one of {', '.join(_suffixes())}"
    )
