"""Decoded blocks on a node-local disk, memory-mapped by all workers of the node.

Decoding a partition costs many times what reading decoded rows does, and a node's workers each decode what their budget
cannot keep. With ``data.scratch`` the first to need a block decodes it and leaves the arrays in a file; everybody else,
and every later round and run, maps that file: the pages are the system's, shared by the workers, taken back when memory
is short, and not counted against ``data.memory``.

A file is named by the digest of what its block holds (`DataView.key`: source, rows, dtype, preparation, targets) and
the partition, so that other data or another preparation is another file. It appears by a rename, whole or not at all.
Full passes are cyclic, where "least recently used" would throw out what is needed next: so within its size the scratch
keeps what came first, and makes room only at the cost of other datasets and preparations, the longest unused first.

    file = length of the header, header (JSON: kind, arrays), arrays at multiples of 64 bytes
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError
from bigopt.data.view import Block

Array = npt.NDArray[Any]

_ALIGN: Final = 64
_LENGTH: Final = struct.Struct("<Q")


class NodeScratch:
    """A folder of decoded blocks.

    Parameters
    ----------
    folder : Path
        On a local disk; made where it is not there, for its owner alone.
    size : int
        Bytes of all files in it.

    Raises
    ------
    ConfError
        A folder that cannot be made, or that other users can write to.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.stat()
        except OSError as error:
            raise ConfError(f"cannot be made: {error.strerror}", where=f"data.scratch {folder}") from error
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise ConfError(
                "other users can write to it",
                where=f"data.scratch {folder}",
                hint=f"chmod 700 {folder}, or another one",
            )

    def _path(self, key: str, index: int) -> Path:
        return self.folder / f"{key}-{index:08d}.block"

    def has(self, key: str, index: int) -> bool:
        """Return whether there is a file of a block."""
        return self._path(key, index).exists()

    def get(self, key: str, index: int) -> Block | None:
        """Return a mapped block (read-only arrays; nothing read from the store), or None where there is none.

        Parameters
        ----------
        key : str
            ``DataView.key``.
        index : int
            Partition number.
        """
        path = self._path(key, index)
        try:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            os.utime(path)
            return _block(mapped)
        except (OSError, ValueError, struct.error):  # none, or a torn one: it is decoded again
            return None

    def put(self, key: str, index: int, block: Block) -> Block:
        """Keep a block, where there is room for it, and return what to use in its place: mapped, or itself.

        Blocks with labels that are text are not kept: they are the raw ones of a profile.
        """
        parts = _parts(block)
        if parts is None:
            return block
        path = self._path(key, index)
        header = json.dumps(
            [[name, a.dtype.str, list(a.shape)] for name, a in parts] + [[block.skipped, _columns(block)]]
        )
        head = _LENGTH.pack(len(header)) + header.encode()
        size = _aligned(len(head)) + sum(_aligned(a.nbytes) for _, a in parts)
        with self._locked():
            if path.exists() or not self._room(key, size):
                return self.get(key, index) or block
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(head.ljust(_aligned(len(head)), b"\0"))
                    for _, a in parts:
                        file.write(a.reshape(-1).view(np.uint8).data)
                        file.write(b"\0" * (_aligned(a.nbytes) - a.nbytes))
                os.replace(temporary, path)
            except OSError:  # a full disk: the block stays in memory
                os.unlink(temporary)
                return block
        return self.get(key, index) or block

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one worker of the node at a time count and write."""
        with open(self.folder / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _room(self, key: str, size: int) -> bool:
        """Make room for a file of the view `key`, by files of others; return whether there is enough."""
        with os.scandir(self.folder) as entries:
            files = [(e.stat(), e) for e in entries if e.name.endswith(".block")]
        held = sum(status.st_size for status, _ in files)
        others = sorted((s.st_mtime, s.st_size, e.path) for s, e in files if not e.name.startswith(key))
        if held + size - sum(bytes_ for _, bytes_, _ in others) > self.size:
            return False
        for _, bytes_, path in others:
            if held + size <= self.size:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            held -= bytes_
        return True


def is_mapped(block: Block) -> bool:
    """Return whether a block lies in a scratch file: its pages are the system's."""
    array: Any = block.X.data if isinstance(block.X, CSR) else block.X
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, memoryview) and isinstance(array.obj, mmap.mmap)


def _parts(block: Block) -> list[tuple[str, Array]] | None:
    X: Any = block.X
    named = ([("data", X.data), ("indices", X.indices), ("indptr", X.indptr)] if isinstance(X, CSR) else [("X", X)]) + [
        (name, a) for name, a in (("y", block.y), ("weight", block.weight)) if a is not None
    ]
    if any(a.dtype.kind not in "fiub" for _, a in named):
        return None
    return [(name, np.ascontiguousarray(a)) for name, a in named]


def _columns(block: Block) -> int:
    return int(block.X.shape[1])


def _block(mapped: mmap.mmap) -> Block | None:
    """Return the block of a mapped file, or None where its length is not what its header says."""
    (length,) = _LENGTH.unpack_from(mapped)
    entries = json.loads(mapped[_LENGTH.size : _LENGTH.size + length])
    (skipped, columns), found, at = entries.pop(), dict[str, Array](), _aligned(_LENGTH.size + length)
    view = memoryview(mapped)
    for name, dtype, shape in entries:
        count = int(np.prod(shape))
        found[name] = np.frombuffer(view, dtype=dtype, count=count, offset=at).reshape(shape)
        at += _aligned(found[name].nbytes)
    if at != len(mapped):
        return None
    X: Any = found.get("X")
    if X is None:
        X = CSR(found["data"], found["indices"], found["indptr"], columns)
    return Block(X, found.get("y"), found.get("weight"), skipped, 0)


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
