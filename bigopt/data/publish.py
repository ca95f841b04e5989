"""A folder that appears at once: written beside its place, renamed when everything is on disk.

Locally the data is written to ``.name.xxxxxxxx.tmp`` next to the target, every file and folder is synced, and one
rename makes it the dataset: whole or not there. A URL is written to a local folder first and uploaded; there is no
rename, so a ``_temporary`` marker keeps readers away until the last file is there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigopt.core.errors import ConfError
from bigopt.data.files import filesystem, local_path, shown
from bigopt.data.manifest import NAME


class Publication:
    """One dataset on its way to its place.

    Parameters
    ----------
    uri : str
        Local path or fsspec URL of the dataset's folder.
    options : mapping
        For fsspec.
    force : bool
        Replace a dataset that is there (and nothing but a dataset).
    """

    def __init__(self, uri: str, options: Mapping[str, Any], force: bool) -> None:
        self._uri, self._options, self._force = uri, options, force
        self._local = local_path(uri)
        self._folder: Path | None = None

    def begin(self) -> Path:
        """Return the local folder to write into.

        Raises
        ------
        ConfError
            Where something is there already and may not be replaced.
        """
        self._refuse()
        if self._local is None:
            self._folder = Path(tempfile.mkdtemp(prefix="bigopt-"))
            return self._folder
        final = self._local.absolute()
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            folder = final.parent / f".{final.name}.{secrets.token_hex(4)}.tmp"
            folder.mkdir()
        except OSError as error:
            raise ConfError(f"'{self._local}' cannot be written: {error.strerror or error}") from error
        self._folder = folder
        return folder

    def commit(self) -> None:
        """Make what was written the dataset."""
        assert self._folder is not None
        self._refuse()
        if self._local is None:
            _upload(self._folder, self._uri, self._options)
            return
        for path in [*self._folder.rglob("*"), self._folder]:
            _fsync(path)
        final, old = self._local.absolute(), None
        if final.exists():
            old = final.parent / f".{final.name}.{secrets.token_hex(4)}.old"
            os.rename(final, old)
        os.rename(self._folder, final)
        _fsync(final.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def end(self) -> None:
        """Remove what was not committed."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _refuse(self) -> None:
        names = self._names()
        if names is None:
            return
        if not self._force:
            raise ConfError(f"'{shown(self._uri)}' is there already", hint="--force replaces it")
        if names and not any(n in (NAME, "zarr.json", "_temporary") or n.endswith(".parquet") for n in names):
            hint = "--force replaces datasets only: remove it"
            raise ConfError(f"'{shown(self._uri)}' is no dataset", hint=hint)

    def _names(self) -> list[str] | None:
        """Return the names in the dataset's place; None where nothing is there."""
        if self._local is None:
            fs, root = filesystem(self._uri, self._options)
            if not fs.exists(root):
                return None
            return [str(path).rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(root, detail=False)]
        if self._local.is_dir():
            return [path.name for path in self._local.iterdir()]
        return ["a file"] if os.path.lexists(self._local) else None


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _upload(folder: Path, url: str, options: Mapping[str, Any]) -> None:
    fs, root = filesystem(url, options)
    root = root.rstrip("/")
    if fs.exists(root):
        fs.rm(root, recursive=True)
    with contextlib.suppress(FileExistsError, NotImplementedError):
        fs.makedirs(root, exist_ok=True)
    fs.pipe_file(f"{root}/_temporary", b"being written\n")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    for path in [*files, folder / NAME]:
        target = f"{root}/{path.relative_to(folder).as_posix()}"
        with contextlib.suppress(FileExistsError, NotImplementedError):
            fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        fs.put_file(str(path), target)
    fs.rm(f"{root}/_temporary")
