"""Plain data in, plain data out: how frozen values cross a socket or reach the disk without pickle.

A value made of registered dataclasses and NamedTuples, tuples, lists, dicts with string keys, numbers, strings, None and
NumPy arrays becomes a JSON tree and a list of arrays; nothing else is accepted, and only registered types are built
again. Checkpoints and models (`save`, `load`) and the messages between driver and workers (`dumps`, `loads`) use it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import CheckpointError

C = TypeVar("C", bound=type)
Array = npt.NDArray[Any]

_TYPES: dict[str, type] = {}
_TREE: Final = "tree"
_KINDS: Final = "biufcSU"


def wire(cls: C) -> C:
    """Register a dataclass or NamedTuple as a type that may travel (class decorator)."""
    if _TYPES.setdefault(cls.__name__, cls) is not cls and _TYPES[cls.__name__].__module__ != cls.__module__:
        raise TypeError(f"two wire types are called {cls.__name__}")
    _TYPES[cls.__name__] = cls
    return cls


def _fields(cls: type) -> tuple[str, ...]:
    if dataclasses.is_dataclass(cls):
        return tuple(f.name for f in dataclasses.fields(cls) if f.init)
    return tuple(cls._fields)  # type: ignore[attr-defined]


def pack(value: Any) -> tuple[Any, list[Array]]:
    """Split a value into a JSON tree and its arrays.

    Raises
    ------
    TypeError
        For a type that is not registered.
    """
    arrays: list[Array] = []

    def walk(v: Any) -> Any:
        if v is None or isinstance(v, (bool, int, float, str)) and type(v).__module__ == "builtins":
            return v
        if isinstance(v, np.ndarray):
            if v.dtype.kind not in _KINDS:
                raise TypeError(f"arrays of dtype {v.dtype} do not travel")
            arrays.append(v)
            return {"@": len(arrays) - 1}
        if isinstance(v, np.generic):
            return walk(v.item())
        name = type(v).__name__
        if _TYPES.get(name) is type(v):
            return {"$": name, "f": {k: walk(getattr(v, k)) for k in _fields(type(v))}}
        if isinstance(v, tuple):
            return {"t": [walk(x) for x in v]}
        if isinstance(v, list):
            return [walk(x) for x in v]
        if isinstance(v, dict) and all(isinstance(k, str) for k in v):
            return {"d": {k: walk(x) for k, x in v.items()}}
        raise TypeError(f"a value of type {type(v).__qualname__} does not travel")

    return walk(value), arrays


def unpack(tree: Any, arrays: list[Array]) -> Any:
    """Build the value again; the inverse of `pack`.

    Raises
    ------
    ValueError
        For a tree that `pack` cannot have made, or an unregistered type.
    """

    def walk(v: Any) -> Any:
        if isinstance(v, list):
            return [walk(x) for x in v]
        if not isinstance(v, dict):
            return v
        try:
            if "@" in v:
                return arrays[v["@"]]
            if "t" in v:
                return tuple(walk(x) for x in v["t"])
            if "d" in v:
                return {k: walk(x) for k, x in v["d"].items()}
            return _TYPES[v["$"]](**{k: walk(x) for k, x in v["f"].items()})
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"not a bigopt value: {type(error).__name__}: {error}") from error

    return walk(tree)


def dumps(value: Any) -> list[bytes | memoryview]:
    """Return a message: one header and one buffer an array (no copy of contiguous arrays)."""
    tree, arrays = pack(value)
    arrays = [np.ascontiguousarray(a).reshape(a.shape) for a in arrays]
    header = {"v": tree, "a": [[a.dtype.str, list(a.shape)] for a in arrays]}
    return [json.dumps(header).encode(), *(memoryview(a.reshape(-1).view(np.uint8)) for a in arrays)]


def loads(parts: list[bytes]) -> Any:
    """Read a message made by `dumps`; arrays are read-only views of the parts where the buffer allows no writing."""
    header = json.loads(parts[0])
    arrays = [
        np.frombuffer(part, dtype=np.dtype(dtype)).reshape(shape)
        for part, (dtype, shape) in zip(parts[1:], header["a"], strict=True)
    ]
    return unpack(header["v"], arrays)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is either the old one or the new one: tmp, fsync, rename, fsync of the directory."""
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, value: Any) -> None:
    """Write a value as one npz file (every member carries a CRC-32), atomically.

    Raises
    ------
    CheckpointError
        Where the disk refuses.
    """
    tree, arrays = pack(value)
    members: dict[str, Any] = {f"a{i}": a for i, a in enumerate(arrays)}
    members[_TREE] = np.frombuffer(json.dumps(tree).encode(), dtype=np.uint8)
    try:
        with atomic_file(path) as handle:
            np.savez(handle, **members)
    except OSError as error:
        raise CheckpointError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def load(path: Path, *, limit: int = 1 << 40) -> Any:
    """Read what `save` wrote.

    Parameters
    ----------
    path : Path
    limit : int
        Most bytes that may be decoded; a larger file is refused before anything is allocated.

    Raises
    ------
    CheckpointError
        Where the file is missing, torn, altered, too large or not one of ours.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            names = [i.filename for i in infos]
            allowed = all(n == f"{_TREE}.npy" or (n[0] == "a" and n[1:-4].isdigit() and n.endswith(".npy")) for n in names)
            if len(set(names)) != len(names) or not allowed:
                raise CheckpointError("members that bigopt does not write", where=str(path))
            if sum(i.file_size for i in infos) > limit or any(i.compress_type for i in infos):
                raise CheckpointError(f"larger than {limit} bytes, or compressed", where=str(path))
            parts = {i.filename[:-4]: _member(archive, i) for i in infos}
        tree = json.loads(parts.pop(_TREE).tobytes())
        return unpack(tree, [parts[f"a{k}"] for k in range(len(parts))])
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError("no such file", where=str(path)) from error
    except (OSError, ValueError, KeyError, EOFError, RecursionError, NotImplementedError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"damaged or not written by bigopt: {error}", where=str(path)) from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    data = archive.read(info)
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    if array.dtype.kind not in _KINDS:
        raise ValueError(f"member {info.filename} has dtype {array.dtype}")
    return array
