"""CSV read strictly and in blocks: plain, gzipped, or the one table in a zip file.

Python's own csv module splits the fields, so that NumPy is all it needs and every message has its line. A block ends at
`BLOCK_ROWS` rows or about a megabyte of text, whichever comes first; no line may be longer than 16 MB.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Final, cast

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import BigoptError, DataError
from bigopt.data.expression_values import EXACT, Column
from bigopt.data.files import Files, place
from bigopt.data.rawread import BLOCK_ROWS, NULLS, RawKind, Table, Unfit

_BLOCK_TEXT: Final = 1 << 20
_LONGEST_LINE: Final = 16 << 20
_CHUNK: Final = 1 << 18
_STEP: Final = 256
_BOOLEANS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_BITS: Final = {**_BOOLEANS, "1": True, "0": False}


@dataclass(frozen=True)
class CsvFile:
    """One CSV file.

    Parameters
    ----------
    files : Files
    key : str
        Which of the files; its suffix says how it is packed.
    """

    files: Files
    key: str

    @property
    def uri(self) -> str:
        """Full name, for messages."""
        return place(self.files, self.key)

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """None: every column stands for itself."""
        return {}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the header.

        Raises
        ------
        DataError
            For an empty file, or a name that is empty or stands twice.
        """
        with _messages(self.uri), self._text() as handle:
            lines = itertools.chain.from_iterable(_Text(handle, self.uri))
            try:
                header = next(csv.reader(lines, strict=True, delimiter=self._delimiter), None)
            except csv.Error as error:
                raise DataError(f"malformed CSV: {error}", where=f"{self.uri}, line 1") from error
        if not header:
            raise DataError("no header line", where=self.uri)
        for column, name in enumerate(header, 1):
            if not name.strip():
                raise DataError(f"field {column} of the header is empty", where=f"{self.uri}, line 1")
            if header.index(name) != column - 1:
                raise DataError(f"two columns are called '{name}'", where=f"{self.uri}, line 1")
        return tuple(header)

    @property
    def _delimiter(self) -> str:
        return "\t" if ".tsv" in self.uri.lower() else ","

    @contextlib.contextmanager
    def _text(self) -> Iterator[IO[str]]:
        with contextlib.ExitStack() as stack:
            try:
                raw = stack.enter_context(self.files.open(self.key))
            except FileNotFoundError as error:
                raise DataError("no such file", where=self.uri) from error
            binary: Any = raw
            if self.uri.lower().endswith(".gz"):
                binary = stack.enter_context(gzip.open(raw))
            elif self.uri.lower().endswith(".zip"):
                archive = stack.enter_context(zipfile.ZipFile(raw))
                inside = [i for i in archive.infolist() if not i.is_dir() and not i.filename.startswith("__MACOSX/")]
                if len(inside) != 1:
                    raise DataError(
                        f"holds {len(inside)} files, not one table", where=self.uri, hint="unpack it and name the file"
                    )
                if not inside[0].filename.lower().endswith((".csv", ".tsv", ".txt")):
                    raise DataError(f"holds '{inside[0].filename}', no CSV", where=self.uri)
                binary = stack.enter_context(archive.open(inside[0]))
            yield io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")

    def dtypes(self, names: Sequence[str]) -> dict[str, str]:
        """Guess dtype names from the first block: int64, float64, bool, text (all null: float64)."""
        fields, _ = next(self._blocks(names), ([()] * len(names), None))
        return {name: _dtype(_guess(texts)) for name, texts in zip(names, fields)}

    def tables(self, kinds: Mapping[str, RawKind]) -> Iterator[Table]:
        """Yield all rows of some columns."""
        for fields, lines in self._blocks(tuple(kinds)):
            table = Table({}, lines, self.uri, "line")
            for (name, kind), texts in zip(kinds.items(), fields):
                table.columns[name] = _convert(texts, kind, name, table)
            yield table

    def _blocks(self, names: Sequence[str]) -> Iterator[tuple[list[tuple[str, ...]], npt.NDArray[np.int64]]]:
        """Yield the fields of some columns and the line numbers, block by block."""
        places = [self.names.index(name) for name in names]
        with _messages(self.uri), self._text() as handle:
            text = _Text(handle, self.uri)
            reader = csv.reader(itertools.chain.from_iterable(text), strict=True, delimiter=self._delimiter)
            next(reader)
            records: list[list[str]] = []
            first = line = reader.line_num + 1
            while True:
                before = len(records)
                try:
                    records.extend(itertools.islice(reader, _STEP))  # keeps what came before an error
                except csv.Error as error:
                    where = f"{self.uri}, line {first + sum(map(_height, records))}"
                    raise DataError(f"malformed CSV from here on: {error}", where=where) from error
                some = len(records) > before
                line = reader.line_num + 1
                if some and len(records) < BLOCK_ROWS and text.taken < _BLOCK_TEXT:
                    continue
                blank = 0  # lines at the end, which only the end of the file makes harmless
                while blank < len(records) and not records[-1 - blank]:
                    blank += 1
                if blank < len(records):
                    yield self._checked(records[: len(records) - blank], first, line - blank, places)
                elif blank >= BLOCK_ROWS:
                    raise _uneven([], len(self.names), f"{self.uri}, line {first}")
                if not some:
                    return
                records, first, text.taken = records[len(records) - blank :], line - blank, 0

    def _checked(
        self, records: list[list[str]], first: int, stop: int, places: list[int]
    ) -> tuple[list[tuple[str, ...]], npt.NDArray[np.int64]]:
        """Return the chosen fields and the line of each record; all records must be as wide as the header."""
        width = len(self.names)
        if stop - first == len(records):
            lines = np.arange(first, stop)
        else:  # quoted fields with line breaks
            lines = first + np.cumsum([0, *map(_height, records[:-1])])
        if set(map(len, records)) != {width}:
            row = next(i for i, record in enumerate(records) if len(record) != width)
            raise _uneven(records[row], width, f"{self.uri}, line {lines[row]}")
        columns = list(zip(*records))
        return [columns[place] for place in places], lines


def _height(record: list[str]) -> int:
    """Return the lines that a record takes: quoted fields may hold line breaks."""
    return 1 + sum(field.count("\n") for field in record)


def _uneven(record: list[str], width: int, where: str) -> DataError:
    if not record:
        return DataError("a blank line between rows", where=where)
    hint = "is a field with a comma unquoted?" if len(record) > width else "is the line cut off?"
    return DataError(f"{len(record)} fields, the header has {width}", where=where, hint=hint)


class _Text:
    """The lines of a text file in lists of about `_CHUNK` characters, counting the characters handed out."""

    def __init__(self, handle: IO[str], uri: str) -> None:
        self._handle, self._uri, self._line = handle, uri, 0
        self.taken = 0

    def __iter__(self) -> Iterator[list[str]]:
        rest = ""
        while True:
            try:
                chunk = self._handle.read(_CHUNK)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"not UTF-8 text ({error.reason})",
                    where=f"{self._uri}, after line {self._line}",
                    hint="convert it first",
                ) from error
            if not chunk and not rest:
                return
            lines = io.StringIO(rest + chunk, newline="\n").readlines()
            rest = lines.pop() if chunk and not lines[-1].endswith("\n") else ""
            if len(rest) > _LONGEST_LINE:
                where = f"{self._uri}, line {self._line + len(lines) + 1}"
                raise DataError(f"longer than {_LONGEST_LINE} characters", where=where)
            self.taken += len(chunk)
            self._line += len(lines)
            yield lines


@contextlib.contextmanager
def _messages(uri: str) -> Iterator[None]:
    """Turn what a damaged archive or disk raises into one line."""
    try:
        yield
    except (BigoptError, GeneratorExit):
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"damaged or not readable: {error}", where=uri) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=uri) from error


def _dtype(kind: RawKind) -> str:
    return {"integer": "int64", "number": "float64", "boolean": "bool", "text": "text"}[kind]


def _integer(text: str) -> int:
    """Read an integer, also one that was written as a whole float (5.0), as tools do where a column has nulls."""
    try:
        value = int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer() or abs(number) > EXACT:
            raise
        value = int(number)
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(text)
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool:
    if text not in _BITS:
        raise ValueError(text)
    return _BITS[text]


def _plain(text: str) -> bool:
    """Python also reads 1_000 and digits of other scripts as numbers; a CSV does not."""
    return text.isascii() and "_" not in text


def _fits(text: str, kind: RawKind) -> bool:
    if kind == "text":
        return True
    try:
        cast(Callable[[str], object], {"integer": _integer, "number": _number, "boolean": _boolean}[kind])(text)
    except ValueError:
        return False
    return _plain(text)


def _guess(texts: Sequence[str]) -> RawKind:
    """Return the narrowest kind of the fields that are no null; 0 and 1 are integers."""
    present = [text for text in texts if text not in NULLS]
    if present and all(text in _BOOLEANS for text in present):
        return "boolean"
    if not all(_fits(text, "number") for text in present):
        return "text"
    return "integer" if present and all(_fits(text, "integer") for text in present) else "number"


def _convert(texts: Sequence[str], kind: RawKind, name: str, table: Table) -> Column:
    if kind == "text":
        null = None if NULLS.isdisjoint(texts) else np.array([text in NULLS for text in texts])
        values = np.empty(len(texts), dtype=object)
        values[:] = texts
        if null is not None:
            values[null] = ""
        return Column(values, null)
    parsed = _parsed(texts, kind)
    if parsed is not None:
        return Column(parsed)
    null = np.array([text in NULLS for text in texts])
    given = ["0" if gone else text for text, gone in zip(texts, null.tolist())]
    parsed = _parsed(given, kind)
    if parsed is not None:
        return Column(parsed, null)
    row = next(i for i, text in enumerate(given) if not _fits(text, kind))
    text = given[row].strip()
    wider: RawKind = "number" if kind == "integer" and not text.isdigit() and _fits(text, "number") else "text"
    needed = {"integer": "an integer", "number": "a number", "boolean": "true or false"}[kind]
    raise Unfit(
        f"'{given[row][:60]}' in column '{name}' is not {needed}",
        where=table.place(row),
        hint=f"declare its type in ingest.columns ({{{name}: {'float64' if wider == 'number' else 'text'}}}), "
        "or correct the file",
        column=name,
        wider=wider,
    )


def _parsed(texts: Sequence[str], kind: RawKind) -> npt.NDArray[Any] | None:
    """Return the values of fields, or None where any of them is not of the kind."""
    try:
        if kind == "boolean":
            return np.array([_BITS[text] for text in texts], dtype=bool)
        if not _plain("".join(texts)):
            return None
        if kind == "integer":
            try:
                return np.array(list(map(int, texts)), dtype=np.int64)
            except ValueError:
                return np.array(list(map(_integer, texts)), dtype=np.int64)
        values = np.array(list(map(float, texts)), dtype=np.float64)
    except (ValueError, KeyError, OverflowError):
        return None
    return values if np.isfinite(values).all() else None
