"""The source of the loop that gathers rows: ``out[r] = X[order[start + r]]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def signature(dtype: str) -> tuple[str, ...]:
    """Return the types of X, order, start and out."""
    return f"{dtype}[:,::1]", "int64[::1]", "intp", f"{dtype}[:,::1]"


def make_gather(_dtype: str) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(X, order, start, out)``; all entries of `order` are rows of X.

    Parameters
    ----------
    _dtype : str
        Of X and out; the signature says it.
    """

    def gather(X: Any, order: Any, start: Any, out: Any) -> None:
        for r in range(out.shape[0]):
            row = order[start + r]
            for k in range(X.shape[1]):
                out[r, k] = X[row, k]

    return gather, frozenset()
