"""The manifest of a dataset (being filled in)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Manifest:
    """What bigopt knows about a dataset it wrote."""

    rows: int
