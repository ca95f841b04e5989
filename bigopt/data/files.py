"""The files of a dataset: list them, read a range of bytes of one, wherever they lie.

A dataset is a folder (or one file) on a local disk or behind an fsspec URL; object stores without an fsspec driver of
their own are reached through obstore's. Formats see only this small interface, so that checksums and byte counts are
taken in one place, and messages never show credentials.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import ConfError, DataError

Bytes = npt.NDArray[np.uint8]

OBSTORE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https"})


class Files(Protocol):
    """The files under one URI; keys are paths below it with ``/``, ``""`` is the URI itself."""

    @property
    def remote(self) -> bool:
        """Whether reading mostly waits, so that several requests should be under way."""
        ...

    @property
    def uri(self) -> str:
        """The URI without credentials, for messages."""
        ...

    def listing(self, *, deep: bool = True) -> dict[str, int]:
        """Return key and bytes of every file, sorted (``deep=False``: the top level only, folders as ``name/``)."""
        ...

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return bytes [start, stop) of a file; FileNotFoundError where there is none."""
        ...

    def bring(self, key: str, take: Callable[[int], Bytes]) -> Bytes:
        """Return a whole file, in memory that `take(size)` gives where that saves a copy; else as `read`."""
        ...

    def soon(self, key: str) -> None:
        """Say that a file will be read soon."""
        ...

    def local(self, key: str) -> str | None:
        """Return the path of a file on this machine; None where it is elsewhere."""
        ...

    def size(self, key: str) -> int:
        """Return the bytes of a file."""
        ...

    def is_folder(self) -> bool:
        """Whether the URI is a folder; FileNotFoundError where nothing is there."""
        ...

    def open(self, key: str) -> io.BufferedIOBase:
        """Return a seekable reader of a file."""
        ...


@dataclass(frozen=True)
class LocalFiles:
    """Files below a local path."""

    root: Path

    @property
    def remote(self) -> bool:
        return False

    @property
    def uri(self) -> str:
        return str(self.root)

    def _path(self, key: str) -> Path:
        return self.root / key if key else self.root

    def listing(self, *, deep: bool = True) -> dict[str, int]:
        found: dict[str, int] = {}
        folders = [""]
        while folders:
            prefix = folders.pop()
            with os.scandir(self._path(prefix)) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if not entry.is_dir():
                        found[name] = entry.stat().st_size
                    elif deep:
                        folders.append(name + "/")
                    else:
                        found[name + "/"] = 0
        return dict(sorted(found.items()))

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        with open(self._path(key), "rb") as handle:
            if start:
                handle.seek(start)
            return handle.read(-1 if stop is None else max(0, stop - start))

    def bring(self, key: str, take: Callable[[int], Bytes]) -> Bytes:
        handle = os.open(f"{self.root}/{key}", os.O_RDONLY)
        try:
            data, at = take(os.fstat(handle).st_size), 0
            while at < len(data) and (count := os.readv(handle, [data[at:].data])):
                at += count
            return data if at == len(data) else data[:at]
        finally:
            os.close(handle)

    def local(self, key: str) -> str | None:
        return f"{self.root}/{key}" if key else str(self.root)

    def soon(self, key: str) -> None:
        with contextlib.suppress(OSError, AttributeError):  # not every system has it; who reads says what is wrong
            handle = os.open(f"{self.root}/{key}", os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(handle)

    def size(self, key: str) -> int:
        return self._path(key).stat().st_size

    def is_folder(self) -> bool:
        if not self.root.exists():
            raise FileNotFoundError(str(self.root))
        return self.root.is_dir()

    def open(self, key: str) -> io.BufferedIOBase:
        return open(self._path(key), "rb")


@dataclass(frozen=True)
class RemoteFiles:
    """Files below a path of an fsspec filesystem."""

    fs: Any = field(repr=False)
    root: str
    uri: str

    @property
    def remote(self) -> bool:
        return True

    def _path(self, key: str) -> str:
        return f"{self.root.rstrip('/')}/{key}" if key else self.root

    def listing(self, *, deep: bool = True) -> dict[str, int]:
        self.fs.invalidate_cache()
        prefix = self.root.strip("/") + "/"
        found: dict[str, int] = {}
        details = self.fs.find(self.root, detail=True).items() if deep else (
            (entry["name"], entry) for entry in self.fs.ls(self.root, detail=True)
        )  # fmt: skip
        for path, entry in details:
            key = str(path).strip("/").removeprefix(prefix)
            folder = entry.get("type") == "directory"
            if key:
                found[key + "/" if folder else key] = int(entry.get("size") or 0)
        return dict(sorted(found.items()))

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        path = self._path(key)
        if stop is not None and stop <= start:
            return b""
        if stop is None and start:
            stop = self.size(key)
        return bytes(self.fs.cat_file(path) if stop is None else self.fs.cat_file(path, start=start, end=stop))

    def bring(self, key: str, take: Callable[[int], Bytes]) -> Bytes:
        return np.frombuffer(self.read(key), dtype=np.uint8)

    def soon(self, key: str) -> None:
        pass

    def local(self, key: str) -> str | None:
        return None

    def size(self, key: str) -> int:
        return int(self.fs.size(self._path(key)))

    def is_folder(self) -> bool:
        if self.fs.isdir(self.root):
            return True
        if not self.fs.exists(self.root):
            raise FileNotFoundError(self.uri)
        return False

    def open(self, key: str) -> io.BufferedIOBase:
        return io.BufferedReader(RangeReader(self, key), 1 << 20)


class RangeReader(io.RawIOBase):
    """A seekable reader that fetches each read as one range."""

    def __init__(self, files: Files, key: str) -> None:
        self._files, self._key = files, key
        self._size, self._at = files.size(key), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._files.read(self._key, self._at, min(self._size, self._at + len(view)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class Counted(io.RawIOBase):
    """A reader that counts what is read from it."""

    def __init__(self, handle: io.BufferedIOBase) -> None:
        self._handle, self._count = handle, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    def read(self, size: int = -1) -> bytes:
        data = self._handle.read(size)
        self._count += len(data)
        return data

    def close(self) -> None:
        self._handle.close()
        super().close()

    def taken(self) -> int:
        """Return the bytes read since the last call."""
        taken, self._count = self._count, 0
        return taken


class Segment(io.RawIOBase):
    """A file of which only one range of bytes is here (a row group), served without a copy."""

    def __init__(self, size: int, start: int, data: bytes) -> None:
        self._size, self._start, self._data, self._at = size, start, memoryview(data), 0
        self._count = len(data)

    def taken(self) -> int:
        """Return the bytes fetched since the last call."""
        taken, self._count = self._count, 0
        return taken

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> Any:
        begin = self._at - self._start
        if size < 0 or begin < 0 or begin + size > len(self._data):
            raise OSError(f"bytes {self._at} to {self._at + size} are outside the row group")
        self._at += size
        return self._data[begin : begin + size]


def shown(uri: str) -> str:
    """Return a URI without user, password and query, for messages."""
    return re.sub(r"[?].*$", "", re.sub(r"//[^/@]*@", "//", uri)) if "://" in uri else uri


def local_path(uri: str) -> Path | None:
    """Return the path of a plain path or ``file://`` URL, None for any other URL."""
    if uri.startswith("file://"):
        return Path(uri.removeprefix("file://").removeprefix("localhost"))
    return None if "://" in uri else Path(uri).expanduser()


def filesystem(uri: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL and the path in it.

    Raises
    ------
    ConfError
        Where fsspec or the protocol's driver is missing, or refuses the options.
    """
    protocol = uri.split("://", 1)[0]
    hint = "pip install 'bigopt[remote]'"
    try:
        core = importlib.import_module("fsspec.core")
    except ImportError as error:
        raise ConfError(f"'{shown(uri)}' needs fsspec", where="data.uri", hint=hint) from error
    try:
        fs, path = core.url_to_fs(uri, **options)
        return fs, str(path)
    except ImportError as error:
        if protocol not in OBSTORE:
            raise ConfError(f"'{shown(uri)}': {error}", where="data.uri", hint=hint) from error
    except (ValueError, TypeError) as error:
        raise ConfError(f"'{shown(uri)}': {error}", where="data.uri", hint="see data.storage_options") from error
    try:
        store = importlib.import_module("obstore.fsspec").FsspecStore(protocol, **options)
        return store, uri if protocol in ("http", "https") else uri.split("://", 1)[1]
    except (ImportError, ValueError, TypeError) as error:
        raise ConfError(f"'{shown(uri)}': {error}", where="data.uri", hint=hint) from error


def open_files(uri: str, options: Mapping[str, Any]) -> Files:
    """Return the files below a local path or URL (see `filesystem`)."""
    path = local_path(uri)
    if path is not None:
        return LocalFiles(path)
    fs, root = filesystem(uri, options)
    return RemoteFiles(fs, root, shown(uri).rstrip("/"))


def read_file(files: Files, key: str, *, limit: int, start: int = 0, stop: int | None = None) -> bytes:
    """Return (part of) a file of at most `limit` bytes.

    Raises
    ------
    DataError
        Where it is missing, cannot be read or is larger, checked before anything is read.
    """
    where = place(files, key)
    try:
        size = files.size(key) if stop is None else stop
        if size - start > limit:
            raise DataError(f"{size - start} bytes, at most {limit} are read", where=where)
        return files.read(key, start, stop)
    except FileNotFoundError as error:
        raise DataError("no such file", where=where) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=where) from error


def place(files: Files, key: str) -> str:
    """Return the full name of a file, for messages."""
    return f"{files.uri}/{key}" if key else files.uri
