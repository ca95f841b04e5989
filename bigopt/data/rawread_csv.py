"""CSV read strictly and in blocks: plain, gzipped, or the one table in a zip file.

Python's own csv module splits the fields, so that NumPy is all it needs and every message has its line. A block ends at
`BLOCK_ROWS` rows or about a megabyte of text, whichever comes first; no line may be longer than 16 MB.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Final, cast

import numpy as np

from bigopt.core.errors import BigoptError, DataError
from bigopt.data.expression_values import Column
from bigopt.data.files import Files, place
from bigopt.data.rawread import BLOCK_ROWS, NULLS, RawKind, Table, Unfit

_BLOCK_TEXT: Final = 1 << 20
_LONGEST_LINE: Final = 16 << 20
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
            header = next(csv.reader(_Lines(handle, self.uri), strict=True, delimiter=self._delimiter), None)
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
        fields, _ = next(self._blocks(names), ([()] * len(names), []))
        return {name: _dtype(_guess(texts)) for name, texts in zip(names, fields)}

    def tables(self, kinds: Mapping[str, RawKind]) -> Iterator[Table]:
        """Yield all rows of some columns."""
        for fields, lines in self._blocks(tuple(kinds)):
            table = Table({}, np.array(lines, dtype=np.int64), self.uri, "line")
            for (name, kind), texts in zip(kinds.items(), fields):
                table.columns[name] = _convert(texts, kind, name, table)
            yield table

    def _blocks(self, names: Sequence[str]) -> Iterator[tuple[list[tuple[str, ...]], list[int]]]:
        """Yield the fields of some columns and the line numbers, block by block."""
        width, places = len(self.names), [self.names.index(name) for name in names]
        with _messages(self.uri), self._text() as handle:
            source = _Lines(handle, self.uri)
            reader = csv.reader(source, strict=True, delimiter=self._delimiter)
            next(reader)
            records: list[list[str]] = []
            lines: list[int] = []
            blank = 0
            line = reader.line_num + 1
            try:
                for record in reader:
                    if len(record) != width or blank:
                        if not record:
                            blank = blank or line
                            line = reader.line_num + 1
                            continue
                        raise self._uneven(record, width, line, blank)
                    records.append(record)
                    lines.append(line)
                    line = reader.line_num + 1
                    if len(records) == BLOCK_ROWS or source.taken >= _BLOCK_TEXT:
                        yield _chosen(records, places), lines
                        records, lines, source.taken = [], [], 0
            except csv.Error as error:
                raise DataError(f"malformed CSV: {error}", where=f"{self.uri}, line {line}") from error
            if records:
                yield _chosen(records, places), lines

    def _uneven(self, record: list[str], width: int, line: int, blank: int) -> DataError:
        if blank:
            return DataError("a blank line between rows", where=f"{self.uri}, line {blank}")
        hint = "is a field with a comma unquoted?" if len(record) > width else "is the line cut off?"
        return DataError(f"{len(record)} fields, the header has {width}", where=f"{self.uri}, line {line}", hint=hint)


class _Lines:
    """Lines of a text file, none longer than `_LONGEST_LINE`, counting the characters handed out."""

    def __init__(self, handle: IO[str], uri: str) -> None:
        self._handle, self._uri, self._line = handle, uri, 0
        self.taken = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            text = self._handle.readline(_LONGEST_LINE)
        except UnicodeDecodeError as error:
            raise DataError(
                f"not UTF-8 text ({error.reason})",
                where=f"{self._uri}, after line {self._line}",
                hint="convert it first",
            ) from error
        self._line += 1
        if len(text) >= _LONGEST_LINE:
            raise DataError(f"longer than {_LONGEST_LINE} characters", where=f"{self._uri}, line {self._line}")
        if not text:
            raise StopIteration
        self.taken += len(text)
        return text


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


def _chosen(records: list[list[str]], places: list[int]) -> list[tuple[str, ...]]:
    columns = list(zip(*records))
    return [columns[place] for place in places]


def _dtype(kind: RawKind) -> str:
    return {"integer": "int64", "number": "float64", "boolean": "bool", "text": "text"}[kind]


def _integer(text: str) -> int:
    value = int(text)
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
    for kind in cast(tuple[RawKind, ...], ("integer", "number")):
        if all(_fits(text, kind) for text in present):
            return "number" if not present else kind
    return "text"


def _convert(texts: Sequence[str], kind: RawKind, name: str, table: Table) -> Column:
    mask = [text in NULLS for text in texts]
    null = np.array(mask) if any(mask) else None
    if kind == "text":
        values = np.empty(len(texts), dtype=object)
        values[:] = texts if null is None else ["" if gone else text for text, gone in zip(texts, mask)]
        return Column(values, null)
    given = texts if null is None else ["0" if gone else text for text, gone in zip(texts, mask)]
    try:
        if not _plain("".join(given)):
            raise ValueError
        if kind == "boolean":
            return Column(np.array([_BITS[text] for text in given], dtype=bool), null)
        if kind == "integer":
            return Column(np.array(list(map(int, given)), dtype=np.int64), null)
        values = np.array(list(map(float, given)), dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError
        return Column(values, null)
    except (ValueError, KeyError, OverflowError) as error:
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
        ) from error
