"""Text to sparse features: words hashed into bins, without a vocabulary.

A text is lowered and cut into words of at least two letters or digits (and n-grams of them, joined by a blank). A word
of hash h goes to bin abs(h) mod bins with the sign of h, so that words that meet in a bin cancel on average; a row is
then divided by its Euclidean length. With the same settings the numbers are scikit-learn's HashingVectorizer's
(MurmurHash3, 32 bits, seed 0), in float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.csr import CSR

Array = npt.NDArray[Any]
Norm = Literal["l2", "none"]

BINS: Final = 1 << 18
MAX_BINS: Final = (1 << 31) - 1
_WORD: Final = re.compile(r"\b\w\w+\b")
_MASK: Final = 0xFFFFFFFF


@wire
@dataclass(frozen=True)
class Words:
    """How a text becomes features.

    Parameters
    ----------
    bins : int
        Features.
    ngrams : int
        Longest run of words that is a feature of its own.
    signed : bool
        Whether a word counts with the sign of its hash.
    norm : {"l2", "none"}
        What a row is divided by: its Euclidean length, or nothing (counts).
    """

    bins: int = BINS
    ngrams: int = 1
    signed: bool = True
    norm: Norm = "l2"

    def __post_init__(self) -> None:
        whole = type(self.bins) is int and type(self.ngrams) is int
        if not whole or not 1 <= self.bins <= MAX_BINS or not 1 <= self.ngrams <= 5:
            raise ValueError(f"words: {self.bins!r} bins, n-grams of {self.ngrams!r}")
        if type(self.signed) is not bool or self.norm not in ("l2", "none"):
            raise ValueError(f"words: signed {self.signed!r}, norm {self.norm!r}")


def tokens(text: str, ngrams: int) -> Iterator[str]:
    """Yield the words of a text and their n-grams."""
    found = _WORD.findall(text.lower())
    yield from found
    for size in range(2, ngrams + 1):
        yield from (" ".join(found[k : k + size]) for k in range(len(found) - size + 1))


def murmur(data: bytes) -> int:
    """Return MurmurHash3 (x86, 32 bits, seed 0) as a signed integer.

    Austin Appleby's public-domain algorithm.
    """
    h, tail = 0, len(data) & ~3
    for at in range(0, tail, 4):
        h ^= _scrambled(int.from_bytes(data[at : at + 4], "little"))
        h = ((h << 13 | h >> 19) * 5 + 0xE6546B64) & _MASK
    if tail < len(data):
        h ^= _scrambled(int.from_bytes(data[tail:], "little"))
    h ^= len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B & _MASK
    h = (h ^ h >> 13) * 0xC2B2AE35 & _MASK
    h ^= h >> 16
    return h - (1 << 32) if h >> 31 else h


def _scrambled(k: int) -> int:
    k = k * 0xCC9E2D51 & _MASK
    return (k << 15 | k >> 17) * 0x1B873593 & _MASK


def hashed(texts: Sequence[str], words: Words) -> CSR:
    """Return a row a text, float32; what cancels within a bin is left out.

    Parameters
    ----------
    texts : sequence of str
    words : Words
    """
    known: dict[str, int] = {}
    rows: list[int] = []
    hashes: list[int] = []
    for row, text in enumerate(texts):
        for word in tokens(text, words.ngrams):
            h = known.get(word)
            if h is None:
                h = known[word] = murmur(word.encode("utf-8", "surrogatepass"))
            rows.append(row)
            hashes.append(h)
    h_all = np.array(hashes, dtype=np.int64)
    cells = np.array(rows, dtype=np.int64) * words.bins + np.abs(h_all) % words.bins
    cells, inverse = np.unique(cells, return_inverse=True)
    signs = np.where(h_all >= 0, 1.0, -1.0) if words.signed else np.ones(len(h_all))
    counts = np.bincount(inverse.reshape(-1), weights=signs, minlength=len(cells))
    cells, counts = cells[counts != 0], counts[counts != 0]
    row_of, indices = np.divmod(cells, words.bins)
    if words.norm == "l2":
        length = np.sqrt(np.bincount(row_of, weights=counts * counts, minlength=len(texts)))
        counts = counts / length[row_of]
    indptr = np.searchsorted(row_of, np.arange(len(texts) + 1)).astype(np.int64)
    return CSR(counts.astype(np.float32), indices.astype(np.int32), indptr, words.bins)
