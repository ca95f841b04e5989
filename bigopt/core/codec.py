"""Plain data in, plain data out: how frozen values cross a socket or reach the disk without pickle.

A value made of registered dataclasses and NamedTuples, tuples, lists, dicts with string keys, numbers, strings, None
and NumPy arrays becomes a JSON tree and a list of arrays; nothing else is accepted, and only registered types are built
again. Checkpoints and models (`save`, `load`) and the messages between driver and workers (`dumps`, `loads`) use it.

What is read is not trusted: a file or message that this module cannot have written is refused before anything of the
size it claims is allocated. Python floats keep their bits (JSON writes the shortest text that reads back equal); NumPy
scalars become Python numbers of the same value.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import re
import secrets
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import BigoptError, CheckpointError

C = TypeVar("C", bound=type)
Array = npt.NDArray[Any]

_TYPES: dict[str, type] = {}
_TREE: Final = "tree"
_KINDS: Final = "biufcSU"
_MEMBER: Final = re.compile(r"(tree|a(0|[1-9][0-9]*))\.npy", re.ASCII)


def wire(cls: C) -> C:
    """Register a dataclass or NamedTuple as a type that may travel (class decorator)."""
    if _TYPES.setdefault(cls.__name__, cls) is not cls and _TYPES[cls.__name__].__module__ != cls.__module__:
        raise TypeError(f"two wire types are called {cls.__name__}")
    _TYPES[cls.__name__] = cls
    return cls


def _declared(cls: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(cls):
        return tuple(f.name for f in dataclasses.fields(cls) if f.init)
    return tuple(cls._fields)


_fields: Final[Callable[[Any], tuple[str, ...]]] = functools.cache(_declared)


def pack(value: Any) -> tuple[Any, list[Array]]:
    """Split a value into a JSON tree and its arrays.

    Raises
    ------
    TypeError
        For a type that is not registered (a subclass of a registered or built-in type is another type).
    """
    arrays: list[Array] = []
    return _packed(value, arrays), arrays


def _packed(v: Any, arrays: list[Array]) -> Any:
    """Return the tree of a value and append its arrays (no closure: one that calls itself would keep them alive)."""
    kind = type(v)
    if v is None or kind in (bool, int, float, str):
        return v
    if kind in (np.ndarray, np.memmap):  # a masked array or a matrix would come back as something else
        if v.dtype.kind not in _KINDS:
            raise TypeError(f"arrays of dtype {v.dtype} do not travel")
        arrays.append(v)
        return {"@": len(arrays) - 1}
    if isinstance(v, np.generic) and v.dtype.kind in "biufU" and not isinstance(v.item(), np.generic):
        return v.item()
    if _TYPES.get(kind.__name__) is kind:
        return {"$": kind.__name__, "f": {k: _packed(getattr(v, k), arrays) for k in _fields(kind)}}
    if kind is tuple:
        return {"t": [_packed(x, arrays) for x in v]}
    if kind is list:
        return [_packed(x, arrays) for x in v]
    if kind is dict and all(type(k) is str for k in v):
        return {"d": {k: _packed(x, arrays) for k, x in v.items()}}
    raise TypeError(f"a value of type {kind.__qualname__} does not travel")


def modules(value: Any) -> tuple[str, ...]:
    """Return the modules that define the registered types in a value: to be imported where it is to be read."""
    names: set[str] = set()

    def walk(v: Any) -> None:
        if isinstance(v, dict):
            if "$" in v:
                names.add(_TYPES[v["$"]].__module__)
            for x in v.values():
                walk(x)
        elif isinstance(v, list):
            for x in v:
                walk(x)

    walk(pack(value)[0])
    return tuple(sorted(names))


def unpack(tree: Any, arrays: list[Array]) -> Any:
    """Build the value again; the inverse of `pack`.

    Raises
    ------
    ValueError
        For a tree that `pack` cannot have made, or an unregistered type.
    """

    if isinstance(tree, list):
        return [unpack(x, arrays) for x in tree]
    if not isinstance(tree, dict):
        return tree
    try:
        if "@" in tree:
            if not 0 <= tree["@"] < len(arrays):
                raise IndexError(f"array {tree['@']} of {len(arrays)}")
            return arrays[tree["@"]]
        if "t" in tree:
            return tuple(unpack(x, arrays) for x in tree["t"])
        if "d" in tree:
            return {k: unpack(x, arrays) for k, x in tree["d"].items()}
        return _TYPES[tree["$"]](**{k: unpack(x, arrays) for k, x in tree["f"].items()})
    except (LookupError, TypeError, AttributeError, ArithmeticError, BigoptError) as error:
        raise ValueError(f"not a bigopt value: {type(error).__name__}: {error}") from error


def copied(value: Any) -> Any:
    """Return a value with arrays of its own."""
    tree, arrays = pack(value)
    return unpack(tree, [array.copy() for array in arrays])


def dumps(value: Any) -> list[bytes | memoryview]:
    """Return a message: one header and one buffer an array (no copy of contiguous arrays)."""
    tree, arrays = pack(value)
    arrays = [np.ascontiguousarray(a).reshape(a.shape) for a in arrays]
    header = {"v": tree, "a": [[a.dtype.str, list(a.shape)] for a in arrays]}
    return [json.dumps(header).encode(), *(a.reshape(-1).view(np.uint8).data for a in arrays)]


def loads(parts: Sequence[Any]) -> Any:
    """Read a message made by `dumps`; arrays are read-only views of the parts where the buffer allows no writing.

    Raises
    ------
    ValueError
        For parts that `dumps` cannot have made.
    """
    try:
        header = json.loads(parts[0])
        arrays = [
            np.frombuffer(part, dtype=_plain(np.dtype(dtype))).reshape(tuple(shape))
            for part, (dtype, shape) in zip(parts[1:], header["a"], strict=True)
        ]
        tree = header["v"]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"not a bigopt message: {type(error).__name__}: {error}") from error
    return unpack(tree, arrays)


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind not in _KINDS:
        raise ValueError(f"arrays of dtype {dtype} do not travel")
    return dtype


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is either the old one or the new one: tmp, fsync, rename, fsync of the directory.

    The temporary file is ``.NAME.RANDOM.tmp`` beside it; the mode is the user's umask's.
    """
    name = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
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
        with path.open("rb") as handle, zipfile.ZipFile(handle) as archive:
            infos = archive.infolist()
            names = {i.filename for i in infos}
            if len(names) != len(infos) or not all(_MEMBER.fullmatch(n) for n in names):
                raise CheckpointError("members that bigopt does not write", where=str(path))
            claimed, size = sum(i.file_size for i in infos), os.fstat(handle.fileno()).st_size
            if claimed > min(limit, size) or any(i.compress_type for i in infos):
                reason = f"claims {claimed} bytes of arrays in a file of {size} (limit {limit}), or is compressed"
                raise CheckpointError(reason, where=str(path))
            parts = {i.filename.removesuffix(".npy"): _member(archive, i) for i in infos}
        tree = json.loads(parts.pop(_TREE).tobytes())
        return unpack(tree, [parts[f"a{k}"] for k in range(len(parts))])
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    except Exception as error:  # whatever the zip, npy and JSON readers make of foreign bytes
        raise CheckpointError(f"damaged or not written by bigopt: {error}", where=str(path)) from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    """Read one npy member; its header may not claim more bytes than follow it."""
    data = archive.read(info)
    stream = io.BytesIO(data)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = read_header[np.lib.format.read_magic(stream)](stream)
    start = stream.tell()
    if math.prod(shape) * _plain(dtype).itemsize != len(data) - start:
        raise ValueError(f"{info.filename} has {len(data) - start} bytes for shape {shape} of {dtype}")
    flat = np.frombuffer(data, dtype=dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C").copy(order="K")
