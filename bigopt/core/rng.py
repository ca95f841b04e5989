"""Counter-based random streams: any draw can be made again anywhere, from integers alone.

A stream is Philox keyed by ``(seed, purpose)`` with the counter ``(epoch, step, partition)``. Only raw 64-bit words are
taken from NumPy (whose bit generators are stable over versions, the methods of ``Generator`` are not); permutations,
uniforms and normals are derived here.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

_MASK: Final = (1 << 64) - 1


def _tag(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stream(seed: int, purpose: str, *, epoch: int = 0, step: int = 0, partition: int = 0) -> np.random.Philox:
    """Return the stream of one purpose at one place of the run.

    Parameters
    ----------
    seed : int
        The run's seed.
    purpose : str
        What is drawn ("init", "rows", "order", ...); other purposes give independent streams.
    epoch, step, partition : int
        Place in the run; step is 0 for what is drawn once an epoch.
    """
    key = np.array([seed & _MASK, _tag(purpose)], dtype=np.uint64)
    counter = np.array([0, epoch, step, partition], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)


def words(source: np.random.Philox, n: int) -> npt.NDArray[np.uint64]:
    """Return the next `n` raw 64-bit words of a stream."""
    return np.asarray(source.random_raw(n), dtype=np.uint64).reshape(n)


def permutation(source: np.random.Philox, n: int) -> npt.NDArray[np.int64]:
    """Return a uniform permutation of ``0..n-1``: the stable order of n random words."""
    return np.argsort(words(source, n), kind="stable").astype(np.int64, copy=False)


def uniform(source: np.random.Philox, n: int) -> npt.NDArray[np.float64]:
    """Return `n` uniforms in [0, 1) with 53 bits."""
    return (words(source, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(source: np.random.Philox, n: int) -> npt.NDArray[np.float64]:
    """Return `n` standard normals (Box-Muller)."""
    half = (n + 1) // 2
    radius = np.sqrt(-2.0 * np.log1p(-uniform(source, half)))
    angle = 2.0 * np.pi * uniform(source, half)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]


def hash_rows(seed: int, purpose: str, start: int, rows: int) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each of the global rows ``start..start+rows-1``.

    A keyed hash (splitmix64) of the global row number: it does not depend on how the data is partitioned.

    Returns
    -------
    ndarray, shape (rows,), float64
    """
    key = np.uint64((seed ^ _tag(purpose)) & _MASK)
    with np.errstate(over="ignore"):
        z = np.arange(start, start + rows, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
