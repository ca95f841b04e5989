"""Write a dataset: whole chunks, checksums, a manifest, one atomic rename (being filled in)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from bigopt.data.source import Array


class DatasetWriter:
    """Context manager: ``append`` blocks of rows, commit on a clean exit, nothing left behind on an error."""

    def __init__(
        self,
        path: str,
        *,
        format: Literal["zarr", "parquet"],
        columns: Sequence[str],
        target: Sequence[str] = (),
        weight: str | None = None,
        dtype: str = "float64",
        target_dtype: str | None = None,
        kinds: Mapping[str, str] | None = None,
        classes: Sequence[Any] | None = None,
        partition_rows: int | Sequence[int] | None = None,
        layout: Literal["columns", "list"] = "columns",
        recipe: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        force: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        raise NotImplementedError

    def append(self, X: Array, y: Array | None = None, weight: Array | None = None) -> None:
        """Add rows: X (k, d), y (k,) or (k, q), weight (k,)."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError
