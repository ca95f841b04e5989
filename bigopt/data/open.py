"""Open a dataset whatever it is stored as: Zarr group, Parquet file or directory, NPZ or NPY (being filled in)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bigopt.data.source import BadRows, Dataset


def open_dataset(
    uri: str,
    *,
    target: str | Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    weight: str | None = None,
    on_bad_rows: BadRows = "error",
    storage_options: Mapping[str, Any] | None = None,
    need_target: bool = True,
) -> Dataset:
    """Open a dataset."""
    raise NotImplementedError
