"""Gradient compression: a vector goes out as a few of its entries, as signs or as bytes, and what is lost is kept.

A **compressor** encodes a flat vector u of p entries as a small named tuple, a **code**, and decodes it to a vector of
p entries. Both are pure functions: random choices come from streams keyed by (seed, index, version), which both sides
know, so that they need not travel and a step that is repeated gives the same bits.

| name | code | bytes (values of v bytes) | decoded |
|---|---|---|---|
| `top_k` | positions and values of the k largest entries | k (4 + v) | these, 0 elsewhere |
| `random_k` | values at k random positions | k v | these, 0 elsewhere |
| `sign` | a bit an entry, a scale a block | p/8 | +- mean abs(u) of the block |
| `int8` | a byte an entry, a scale for each 512 | p (1 + 4/512) | s q, q rounded up or down at random |

**Error feedback** (Stich et al. 2018; Karimireddy et al. 2019): what a step did not send is added to the next gradient,
::

    u = g + e;   c = encode(u);   e = u - decode(c)

so that nothing is lost, only late. It needs a *contraction*, ||u - decode(encode(u))||^2 <= (1 - delta) ||u||^2 with
delta > 0 (in expectation): delta = k/p for `top_k` and `random_k`, ||u||_1^2 / (p ||u||_2^2) for `sign`. Hence
`random_k` sends its entries as they are with error feedback, and p/k times as large without it, where unbiasedness is
what convergence rests on (scaled, it is no contraction for k < p/2: the residual would grow). `int8` is both.

Values travel in the dtype of the vector, so that what was sent leaves nothing behind: u = decode(c) + e exactly for
`top_k` and unscaled `random_k`, and to rounding for the others. An entry that is not finite is not hidden: `top_k`
takes it for the largest, and it makes the scale of its block or chunk not finite either.

D. Alistarh et al. (2017), "QSGD"; S. Stich, J.-B. Cordonnier, M. Jaggi (2018), "Sparsified SGD with memory";
S. P. Karimireddy et al. (2019), "Error feedback fixes signSGD"; blocks: S. Zheng, Z. Huang, J. Kwok (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bigopt.core import rng
from bigopt.core.codec import wire
from bigopt.core.names import lookup

Array = npt.NDArray[Any]

CHUNK: Final = 512
"""Entries that share a scale of `int8`."""


class Compressor(Protocol):
    """Encodes vectors of one length; frozen and pure."""

    def encode(self, u: Array, index: int, version: int) -> Any:
        """Return the code of `u`, shape (p,).

        Parameters
        ----------
        u : ndarray, shape (p,), float32 or float64
        index, version : int
            Whose vector it is, and the how manieth: the key of random choices.
        """
        ...

    def decode(self, code: Any, index: int, version: int) -> Array:
        """Return the vector that a code stands for, shape (p,), in the dtype of what was encoded."""
        ...


@wire
class Entries(NamedTuple):
    """Some entries of a vector.

    Parameters
    ----------
    positions : ndarray, shape (k,), int32 or int64
        Ascending.
    values : ndarray, shape (k,)
    """

    positions: Array
    values: Array


@wire
class Drawn(NamedTuple):
    """Entries at positions that both sides draw: values of shape (k,), in the order of the positions."""

    values: Array


@wire
class Signs(NamedTuple):
    """Signs of all entries.

    Parameters
    ----------
    bits : ndarray, shape (ceil(p / 8),), uint8
        1 for u >= 0, packed.
    scales : ndarray, shape (blocks,)
        Mean absolute value of each block.
    """

    bits: npt.NDArray[np.uint8]
    scales: Array


@wire
class Bytes(NamedTuple):
    """A small integer for each entry.

    Parameters
    ----------
    values : ndarray, shape (p,), int8
    scales : ndarray, shape (ceil(p / 512),), float32
    dtype : str
        Of the vector.
    """

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    dtype: str


def code_bytes(code: Any) -> int:
    """Return the bytes of a code's arrays."""
    return sum(part.nbytes for part in code if isinstance(part, np.ndarray))


def kept_entries(fraction: float, size: int) -> int:
    """Return k = ceil(fraction p), at least 1."""
    return min(size, max(1, math.ceil(fraction * size - 1e-9)))


@wire
@dataclass(frozen=True)
class TopK:
    """The k entries of the largest absolute value; of equal ones those that come first.

    Parameters
    ----------
    size : int
        p.
    fraction : float
        k/p, 0 < fraction <= 1.
    """

    size: int
    fraction: float

    def encode(self, u: Array, index: int, version: int) -> Entries:
        """Return positions and values."""
        k, integers = kept_entries(self.fraction, self.size), np.int32 if self.size < 1 << 31 else np.int64
        size = np.abs(u)
        size[np.isnan(size)] = np.inf
        edge = np.partition(size, self.size - k)[self.size - k]  # the value is a function of u, the order is not
        chosen = size > edge
        chosen[np.flatnonzero(size == edge)[: k - np.count_nonzero(chosen)]] = True
        positions = np.flatnonzero(chosen)
        return Entries(positions.astype(integers), u[positions])

    def decode(self, code: Entries, index: int, version: int) -> Array:
        """Return the entries among zeros."""
        flat = np.zeros(self.size, dtype=code.values.dtype)
        flat[code.positions] = code.values
        return flat


@wire
@dataclass(frozen=True)
class RandomK:
    """k entries at positions drawn anew for each vector, all subsets alike.

    Parameters
    ----------
    size : int
        p.
    fraction : float
        k/p, 0 < fraction <= 1.
    seed : int
    scaled : bool
        Whether decoded values are p/k times as large: then their expectation is the vector.
    """

    size: int
    fraction: float
    seed: int
    scaled: bool

    def positions(self, index: int, version: int) -> npt.NDArray[np.int64]:
        """Return the positions, ascending."""
        k = kept_entries(self.fraction, self.size)
        source = rng.stream(self.seed, "random_k", step=version, partition=index)
        if 4 * k > self.size:
            return np.sort(rng.permutation(source, self.size)[:k])
        found = np.zeros(0, dtype=np.int64)
        while len(found) < k:  # the first k distinct ones of a stream of uniform draws
            more = (rng.uniform(source, k + k // 4 + 8) * self.size).astype(np.int64)
            found = np.concatenate([found, more])
            found = found[np.sort(np.unique(found, return_index=True)[1])]
        return np.sort(found[:k])

    def encode(self, u: Array, index: int, version: int) -> Drawn:
        """Return the values as they are."""
        return Drawn(u[self.positions(index, version)])

    def decode(self, code: Drawn, index: int, version: int) -> Array:
        """Return the entries among zeros."""
        flat = np.zeros(self.size, dtype=code.values.dtype)
        values = code.values
        flat[self.positions(index, version)] = values * (self.size / len(values)) if self.scaled else values
        return flat


@wire
@dataclass(frozen=True)
class Sign:
    """Signs, with the mean absolute value of each block of parameters as its scale.

    Parameters
    ----------
    bounds : tuple of int
        Start of each block, and p: those of the model's layers, whose gradients differ in size.
    """

    bounds: tuple[int, ...]

    def encode(self, u: Array, index: int, version: int) -> Signs:
        """Return bits and scales."""
        scales = np.array([np.abs(part).mean() for part in self._blocks(u)], dtype=u.dtype)
        return Signs(np.packbits(u >= 0), scales)

    def decode(self, code: Signs, index: int, version: int) -> Array:
        """Return +scale or -scale everywhere."""
        positive = np.unpackbits(code.bits, count=self.bounds[-1]).view(np.bool_)
        flat = np.empty(self.bounds[-1], dtype=code.scales.dtype)
        for scale, part, up in zip(code.scales, self._blocks(flat), self._blocks(positive), strict=True):
            np.copyto(part, -scale)
            np.copyto(part, scale, where=up)
        return flat

    def _blocks(self, flat: Array) -> list[Array]:
        return [flat[a:b] for a, b in zip(self.bounds[:-1], self.bounds[1:], strict=True) if b > a]


@wire
@dataclass(frozen=True)
class Int8:
    """Multiples of s = max abs(u) / 127 of each chunk; up or down at random, so that the expectation is the vector.

    Parameters
    ----------
    size : int
        p.
    seed : int
    """

    size: int
    seed: int

    def encode(self, u: Array, index: int, version: int) -> Bytes:
        """Return bytes and scales."""
        chunks = self._chunks(u.astype(np.float64, copy=False))
        exact = np.abs(chunks).max(axis=1) / 127.0
        scales = exact.astype(np.float32)
        scales = np.where(scales < exact, np.nextafter(scales, np.float32(np.inf)), scales)  # so that abs(q) <= 127
        q = chunks / np.where(scales == 0.0, 1.0, scales)[:, None]
        source = rng.stream(self.seed, "int8", step=version, partition=index)
        halves = rng.words(source, -(-q.size // 2)).astype("<u8", copy=False).view("<u4")[: q.size]
        q += halves.reshape(q.shape) * 2.0**-32
        np.floor(q, out=q)
        with np.errstate(invalid="ignore"):  # the scale says that it is not finite
            return Bytes(q.reshape(-1)[: self.size].astype(np.int8), scales, u.dtype.str)

    def decode(self, code: Bytes, index: int, version: int) -> Array:
        """Return s q."""
        chunks = self._chunks(code.values).astype(np.dtype(code.dtype))
        chunks *= code.scales[:, None]
        return chunks.reshape(-1)[: self.size]

    def _chunks(self, flat: Array) -> Array:
        short = -self.size % CHUNK
        padded = np.concatenate([flat, np.zeros(short, dtype=flat.dtype)]) if short else flat
        return padded.reshape(-1, CHUNK)


def _top_k(bounds: tuple[int, ...], fraction: float, seed: int, feedback: bool) -> Compressor:  # noqa: ARG001
    return TopK(bounds[-1], fraction)


def _random_k(bounds: tuple[int, ...], fraction: float, seed: int, feedback: bool) -> Compressor:
    return RandomK(bounds[-1], fraction, seed, scaled=not feedback)


def _sign(bounds: tuple[int, ...], fraction: float, seed: int, feedback: bool) -> Compressor:  # noqa: ARG001
    return Sign(bounds)


def _int8(bounds: tuple[int, ...], fraction: float, seed: int, feedback: bool) -> Compressor:  # noqa: ARG001
    return Int8(bounds[-1], seed)


COMPRESSORS: Final[Mapping[str, Callable[[tuple[int, ...], float, int, bool], Compressor]]] = MappingProxyType(
    {"top_k": _top_k, "random_k": _random_k, "sign": _sign, "int8": _int8}
)
"""Names of ``strategy.compression.name``."""


def compressor(name: str, bounds: tuple[int, ...], *, fraction: float, seed: int, feedback: bool) -> Compressor:
    """Return the compressor of a name.

    Parameters
    ----------
    name : str
    bounds : tuple of int
        Start of each block of parameters, and p.
    fraction : float
        k/p of `top_k` and `random_k`.
    seed : int
        The run's.
    feedback : bool
        Whether what is lost is added to the next gradient.
    """
    make = lookup(COMPRESSORS, name, family="compression", where="strategy.compression.name")
    return make(bounds, fraction, seed, feedback)
