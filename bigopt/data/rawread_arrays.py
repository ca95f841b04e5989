"""NPZ and NPY as raw tables: members are streamed out of the (compressed) file, never loaded whole.

A one-dimensional array is a column of its name. ``X`` of shape (n, ...) is the columns x0, x1, ... by position, or
those that a member ``columns`` names; any other array with more dimensions is its name with a number. Arrays of Python
objects are pickles and are refused.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from bigopt.core.errors import BigoptError, DataError
from bigopt.data.expression_values import Array, Column
from bigopt.data.files import Files, place
from bigopt.data.rawread import RawKind, Table, Unfit, block_rows, interchangeable, kind_of

_NAMES: Final = "columns"
_MOST_NAMES: Final = 64 << 20


@dataclass(frozen=True)
class _Header:
    """Shape and dtype of a member."""

    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def width(self) -> int:
        return math.prod(self.shape[1:])


@dataclass(frozen=True)
class ArraysFile:
    """One NPZ or NPY file.

    Parameters
    ----------
    files : Files
    key : str
    """

    files: Files
    key: str

    @property
    def uri(self) -> str:
        """Full name, for messages."""
        return place(self.files, self.key)

    @cached_property
    def _headers(self) -> dict[str, _Header]:
        with _messages(self.uri), self.files.open(self.key) as raw:
            if not zipfile.is_zipfile(raw):
                raw.seek(0)
                header = _header(raw, "", self.uri)
                _whole(header, self.files.size(self.key), self.uri)
                return {"X": header}
            with zipfile.ZipFile(raw) as archive:
                found = {}
                for info in archive.infolist():
                    name = info.filename.removesuffix(".npy")
                    where = f"{self.uri}, array '{name}'"
                    with archive.open(info) as member:
                        found[name] = _header(member, info.filename, where)
                    _whole(found[name], info.file_size, where)
                return found

    @cached_property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Columns of each array."""
        groups = {}
        for name, header in self._headers.items():
            if name == _NAMES and header.dtype.kind == "U":
                continue
            if not header.shape:
                raise DataError("a single value, not one a row", where=f"{self.uri}, array '{name}'")
            if name == "X":
                groups[name] = self._feature_names(header)
            elif len(header.shape) == 1:
                groups[name] = (name,)
            else:
                groups[name] = tuple(f"{name}{j}" for j in range(header.width))
        return groups

    def _feature_names(self, header: _Header) -> tuple[str, ...]:
        given = self._headers.get(_NAMES)
        if given is None or given.dtype.kind != "U":
            return tuple(f"x{j}" for j in range(header.width))
        if given.shape != (header.width,) or given.dtype.itemsize * header.width > _MOST_NAMES:
            raise DataError(f"shape {given.shape} for {header.width} features", where=f"{self.uri}, array '{_NAMES}'")
        with _messages(self.uri):
            (block,) = self._blocks([_NAMES], max(1, header.width))
        return tuple(str(name) for name in block[0])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All columns."""
        names = tuple(name for group in self.groups.values() for name in group)
        for name in names:
            if len(set(names)) != len(names) and names.count(name) > 1:
                raise DataError(f"two columns are called '{name}'", where=self.uri)
        return names

    def dtypes(self, names: Sequence[str]) -> dict[str, str]:
        """Return NumPy dtype names (``text`` for text)."""
        found = {}
        for group, columns in self.groups.items():
            dtype = self._headers[group].dtype
            if dtype.kind not in "biufUS" or dtype.name in ("float128", "longdouble"):
                raise DataError(f"dtype {dtype} cannot be used", where=f"{self.uri}, array '{group}'")
            found.update(dict.fromkeys(columns, "text" if dtype.kind in "US" else dtype.name))
        return {name: found[name] for name in names}

    def tables(self, kinds: Mapping[str, RawKind]) -> Iterator[Table]:
        """Yield all rows of some columns."""
        place_of = {name: (group, j) for group, names in self.groups.items() for j, name in enumerate(names)}
        used = list(dict.fromkeys(place_of[name][0] for name in kinds))
        stored = self.dtypes(tuple(kinds))
        for name, kind in kinds.items():
            if not interchangeable(kind, kind_of(stored[name])):
                raise Unfit(f"column '{name}' is {stored[name]}, not {kind}", where=self.uri, column=name)
        lengths = {group: self._headers[group].shape[0] for group in used}
        if len(set(lengths.values())) > 1:
            raise DataError(f"arrays of different lengths: {lengths}", where=self.uri)
        start = 0
        with _messages(self.uri):
            step = block_rows(sum(self._headers[g].width * max(8, self._headers[g].dtype.itemsize) for g in used))
            for block in self._blocks(used, step):
                arrays = dict(zip(used, block))
                rows = len(block[0])
                table = Table({}, np.arange(start, start + rows), self.uri, "row")
                for name in kinds:
                    group, j = place_of[name]
                    table.columns[name] = _column(arrays[group].reshape(rows, -1)[:, j])
                yield table
                start += rows

    def _blocks(self, members: Sequence[str], step: int) -> Iterator[list[Array]]:
        """Yield the arrays' rows side by side, `step` rows at a time."""
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(self.files.open(self.key))
            headers = [self._headers[name] for name in members]
            handles: list[Any] = [raw]
            if headers[0].member:
                archive = stack.enter_context(zipfile.ZipFile(raw))
                handles = [stack.enter_context(archive.open(header.member)) for header in headers]
            for header, handle in zip(headers, handles):
                _header(handle, header.member, self.uri)
            rows = headers[0].shape[0]
            for start in range(0, rows, step):
                count = min(step, rows - start)
                yield [_read(handle, header, count, self.uri) for header, handle in zip(headers, handles)]


def _whole(header: _Header, size: int, where: str) -> None:
    """Refuse a header that promises more than the file holds, before anything is made of its shape."""
    if math.prod(header.shape) * header.dtype.itemsize > size or min(header.shape, default=1) < 1:
        raise DataError(f"shape {header.shape} of {header.dtype}, in {size} bytes: empty or cut off", where=where)


def _read(handle: Any, header: _Header, count: int, uri: str) -> Array:
    wanted = count * header.width * header.dtype.itemsize
    data = bytearray()
    while len(data) < wanted:
        part = handle.read(wanted - len(data))
        if not part:
            raise DataError(f"array '{header.member or 'X'}' is cut off", where=uri)
        data += part
    array: Array = np.frombuffer(data, dtype=header.dtype).reshape(count, *header.shape[1:])
    return array.astype(header.dtype.newbyteorder("="), copy=False)


def _header(handle: Any, member: str, where: str) -> _Header:
    read: dict[tuple[int, int], Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(handle)
    if version not in read:
        raise DataError(f"npy format {version} is not read", where=where)
    shape, fortran, dtype = read[version](handle)
    if dtype.kind == "O":
        raise DataError("an array of Python objects (a pickle) is refused", where=where)
    if fortran and len(shape) > 1 and min(shape) > 1:
        raise DataError("stored in Fortran order", where=where, hint="save np.ascontiguousarray(array)")
    return _Header(member, tuple(shape), dtype)


def _column(values: Array) -> Column:
    if values.dtype.kind in "US":
        text = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
        return Column(text.astype(object))
    if values.dtype.kind == "b":
        return Column(values)
    if values.dtype.kind == "f":
        wide = values.astype(np.float64)
        null = np.isnan(wide)
        return Column(np.where(null, 0.0, wide), null) if null.any() else Column(wide)
    return Column(values.astype(np.uint64 if values.dtype == np.uint64 else np.int64))


@contextlib.contextmanager
def _messages(uri: str) -> Iterator[None]:
    try:
        yield
    except (BigoptError, GeneratorExit):
        raise
    except FileNotFoundError as error:
        raise DataError("no such file", where=uri) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"damaged or no NumPy file: {error}", where=uri) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=uri) from error
