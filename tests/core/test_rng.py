"""Random streams against Philox4x64-10 and splitmix64 written out in integers, and against chance."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigopt.core import rng

MASK = (1 << 64) - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 after Salmon et al. (2011), one block of four words."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 1 << 64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 1 << 64)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


def tag(purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def splitmix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_reference_is_random123s() -> None:
    # known answers of the Random123 distribution for philox4x64-10
    assert philox([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]
    assert philox([MASK] * 4, [MASK] * 2) == [
        0x87B092C3013FE90B,
        0x438C3C67BE8D0224,
        0x9CC7D7C69CD777B6,
        0xA09CAEBF594F0BA0,
    ]


@pytest.mark.parametrize(
    ("seed", "purpose", "epoch", "step", "partition"),
    [(0, "init", 0, 0, 0), (7, "rows", 3, 11, 2), (-1, "rows", 0, 0, 0), (1 << 63, "order", 1 << 40, 5, 12345)],
)
def test_words_are_philox_of_seed_purpose_and_place(
    seed: int, purpose: str, epoch: int, step: int, partition: int
) -> None:
    got = rng.words(rng.stream(seed, purpose, epoch=epoch, step=step, partition=partition), 9).tolist()
    blocks = [philox([i, epoch, step, partition], [seed & MASK, tag(purpose)]) for i in (1, 2, 3)]
    assert got == [word for block in blocks for word in block][:9]


def test_pinned_words() -> None:
    # literal words, so that reference and code cannot drift together
    assert rng.words(rng.stream(0, "init"), 2).tolist() == [2091059804803640827, 16150754846993320599]
    assert rng.permutation(rng.stream(42, "rows", epoch=1, partition=3), 8).tolist() == [5, 7, 1, 2, 6, 4, 3, 0]


def test_a_stream_goes_on_where_it_stopped() -> None:
    source = rng.stream(5, "rows")
    parts = np.concatenate([rng.words(source, n) for n in (0, 1, 6, 3)])
    assert parts.tolist() == rng.words(rng.stream(5, "rows"), 10).tolist()


def test_other_purposes_and_places_are_independent() -> None:
    places = [
        rng.stream(1, "init"),
        rng.stream(1, "rows"),
        rng.stream(2, "init"),
        rng.stream(1, "init", epoch=1),
        rng.stream(1, "init", step=1),
        rng.stream(1, "init", partition=1),
    ]
    draws = np.array([rng.uniform(s, 20_000) for s in places])
    correlation = np.corrcoef(draws)
    off_diagonal = correlation[~np.eye(len(places), dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(20_000)
    assert len({row.tobytes() for row in draws}) == len(places)


def test_uniform_has_53_bits_of_the_word() -> None:
    words = rng.words(rng.stream(3, "u"), 1000)
    got = rng.uniform(rng.stream(3, "u"), 1000)
    assert got.tolist() == [(int(w) >> 11) / 2**53 for w in words]
    assert got.min() >= 0.0
    assert got.max() < 1.0


def test_permutations_are_uniform() -> None:
    # 4! outcomes, 24,000 draws: chi-square with 23 degrees of freedom exceeds 49.7 once in a thousand seeds
    source = rng.stream(2024, "uniformity")
    seen = Counter(tuple(rng.permutation(source, 4).tolist()) for _ in range(24_000))
    assert set(seen) == set(permutations(range(4)))
    assert sum((count - 1000) ** 2 / 1000 for count in seen.values()) < 49.7


@given(st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_a_permutation_is_one(seed: int, n: int) -> None:
    got = rng.permutation(rng.stream(seed, "rows"), n)
    assert got.dtype == np.int64
    assert sorted(got.tolist()) == list(range(n))


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_normals_are_box_muller_of_the_uniforms(n: int) -> None:
    source = rng.stream(9, "n")
    half = (n + 1) // 2
    u, v = rng.uniform(source, half), rng.uniform(source, half)
    pairs = [np.sqrt(-2 * np.log(1 - u)) * f(2 * np.pi * v) for f in (np.cos, np.sin)]
    np.testing.assert_allclose(rng.normal(rng.stream(9, "n"), n), np.concatenate(pairs)[:n], rtol=1e-12, atol=1e-15)


def test_normals_have_the_moments_of_a_normal() -> None:
    x = rng.normal(rng.stream(11, "moments"), 200_000)
    errors = [x.mean(), x.var() - 1, (x**3).mean(), (x**4).mean() - 3]
    spreads = np.sqrt(np.array([1, 2, 15, 96]) / x.size)
    assert np.all(np.abs(errors) < 4 * spreads)


def test_hash_rows_is_splitmix_of_the_global_row() -> None:
    for seed in (0, 3, -5):
        key = (seed ^ tag("validation")) & MASK
        expected = [(splitmix((i * 0x9E3779B97F4A7C15 + key) & MASK) >> 11) / 2**53 for i in range(5, 25)]
        assert rng.hash_rows(seed, "validation", 5, 20).tolist() == expected


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 2**40))
def test_hash_rows_is_stable_under_repartitioning(sizes: list[int], start: int) -> None:
    whole = rng.hash_rows(1, "validation", start, sum(sizes))
    starts = start + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    parts = [rng.hash_rows(1, "validation", int(a), k) for a, k in zip(starts, sizes, strict=True)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_hash_rows_takes_a_fair_share() -> None:
    x = rng.hash_rows(0, "validation", 0, 100_000)
    counts = np.histogram(x, bins=50, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 85.4  # chi-square, 49 degrees of freedom: one in a thousand
    other = rng.hash_rows(0, "rows", 0, 100_000)
    assert abs(np.corrcoef(x, other)[0, 1]) < 5 / np.sqrt(100_000)
