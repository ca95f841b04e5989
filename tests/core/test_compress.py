"""Codes of vectors: what is kept, how far off the rest is, and that nothing gets lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigopt.core import codec
from bigopt.core.compress import (
    CHUNK,
    COMPRESSORS,
    Int8,
    RandomK,
    Sign,
    TopK,
    code_bytes,
    compressor,
    kept_entries,
)
from bigopt.core.errors import ConfError

sizes = st.integers(1, 1500)
seeds = st.integers(0, 2**32)
dtypes = st.sampled_from(["float32", "float64"])
fractions = st.floats(0.001, 1.0)


def vector(size: int, seed: int, dtype: str = "float64", *, ties: bool = False) -> np.ndarray:
    """Entries over several orders of magnitude; with ties: few different ones, zeros of both signs among them."""
    rng = np.random.default_rng(seed)
    if ties:
        return rng.choice([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0], size=size).astype(dtype)
    return (rng.normal(size=size) * np.exp(rng.normal(size=size) * 2)).astype(dtype)


def bounds(size: int) -> tuple[int, ...]:
    return (0, size // 3, size // 3, size)


def norm(u: np.ndarray) -> float:
    return float(np.linalg.norm(u.astype(np.float64)))


@pytest.mark.parametrize("name", list(COMPRESSORS))
@given(size=sizes, seed=seeds, dtype=dtypes, fraction=fractions, ties=st.booleans())
@settings(max_examples=25, deadline=None)
def test_what_is_not_sent_is_kept(name: str, size: int, seed: int, dtype: str, fraction: float, ties: bool) -> None:
    """e = u - decode(c): u = decode(c) + e, exactly where values are sent as they are; the code travels."""
    u = vector(size, seed, dtype, ties=ties)
    code = compressor(name, bounds(size), fraction=fraction, seed=5, feedback=True)
    before = u.copy()
    sent = codec.loads(codec.dumps(code.encode(u, 3, 9)))
    assert u.tobytes() == before.tobytes()
    back = code.decode(sent, 3, 9)
    assert (back.shape, back.dtype) == (u.shape, u.dtype)
    again = code.decode(code.encode(u.copy(), 3, 9), 3, 9)
    assert again.tobytes() == back.tobytes()
    e = u - back
    if name in ("top_k", "random_k"):
        assert (back + e == u).all()
        assert (e[back != 0] == 0).all()
    else:
        assert np.abs(back + e - u).max() <= 2 * np.finfo(dtype).eps * np.abs(u).max()


@given(size=sizes, seed=seeds, fraction=fractions, ties=st.booleans())
@settings(max_examples=20, deadline=None)
def test_top_k_holds_the_largest_and_of_equal_ones_the_first(size: int, seed: int, fraction: float, ties: bool) -> None:
    u = vector(size, seed, ties=ties)
    sent = TopK(size, fraction).encode(u, 0, 0)
    k = kept_entries(fraction, size)
    expected = np.sort(np.lexsort((np.arange(size), -np.abs(u)))[:k])
    assert sent.positions.tolist() == expected.tolist()
    assert sent.values.tobytes() == u[expected].tobytes()
    lost = norm(u - TopK(size, fraction).decode(sent, 0, 0)) ** 2
    assert lost <= (1 - k / size) * norm(u) ** 2 * (1 + 1e-12)


def test_k_is_the_fraction_rounded_up() -> None:
    assert [kept_entries(0.01, p) for p in (1, 100, 101, 101770)] == [1, 1, 2, 1018]
    assert [kept_entries(f, 10) for f in (1e-9, 0.3, 0.7, 1.0)] == [1, 3, 7, 10]


@given(size=sizes, fraction=fractions, seed=seeds, index=st.integers(0, 40), version=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_random_positions_are_distinct_and_known_to_both_sides(
    size: int, fraction: float, seed: int, index: int, version: int
) -> None:
    code = RandomK(size, fraction, seed, scaled=False)
    drawn = code.positions(index, version)
    assert len(drawn) == kept_entries(fraction, size)
    assert (np.diff(drawn) > 0).all()
    assert (drawn[0] >= 0, drawn[-1] < size) == (True, True)
    assert code.positions(index, version).tolist() == drawn.tolist()


def test_random_positions_are_uniform_and_change_with_the_key() -> None:
    for fraction in (0.1, 0.5):  # both ways of drawing
        code, draws = RandomK(40, fraction, 3, scaled=False), 800
        counts = np.zeros(40)
        for version in range(draws):
            counts[code.positions(1, version)] += 1
        sigma = np.sqrt(draws * fraction * (1 - fraction))
        assert np.abs(counts - draws * fraction).max() < 4.5 * sigma
    other = [RandomK(1000, 0.02, 3, scaled=False).positions(*key).tolist() for key in ((0, 0), (1, 0), (0, 1))]
    assert len({str(positions) for positions in other}) == 3
    assert RandomK(1000, 0.02, 4, scaled=False).positions(0, 0).tolist() != other[0]


@pytest.mark.parametrize("code", [RandomK(60, 0.2, 7, scaled=True), Int8(60, 7)], ids=["random_k", "int8"])
def test_the_mean_of_what_is_decoded_is_the_vector(code: RandomK | Int8) -> None:
    u, draws = vector(60, 2), 800
    found = np.array([code.decode(code.encode(u, 0, version), 0, version) for version in range(draws)])
    error = np.abs(found.mean(axis=0) - u)
    assert (error <= 5 * found.std(axis=0) / np.sqrt(draws) + 1e-6 * np.abs(u).max()).all()  # the largest hardly varies
    assert found.std(axis=0).max() > 0


def test_unscaled_random_k_loses_what_it_does_not_send() -> None:
    u, code = vector(50, 1), RandomK(50, 0.2, 7, scaled=False)
    lost = np.mean([norm(u - code.decode(code.encode(u, 0, v), 0, v)) ** 2 for v in range(800)])
    assert lost == pytest.approx(0.8 * norm(u) ** 2, rel=0.1)


@given(size=sizes, seed=seeds, dtype=dtypes)
@settings(max_examples=15, deadline=None)
def test_int8_is_off_by_less_than_a_step(size: int, seed: int, dtype: str) -> None:
    u, code = vector(size, seed, dtype), Int8(size, 3)
    sent = code.encode(u, 0, 0)
    back = code.decode(sent, 0, 0)
    for lo in range(0, size, CHUNK):
        part = slice(lo, lo + CHUNK)
        step = np.abs(u[part]).max() / 127
        assert np.abs(back[part] - u[part]).max() <= step * (1 + 1e-6)
    assert sent.values.dtype == np.int8
    assert sent.values.min() >= -127
    assert not code.decode(code.encode(np.zeros(size), 0, 0), 0, 0).any()


def test_int8_whole_numbers_of_steps_are_exact() -> None:
    u = np.arange(-127.0, 128.0)
    assert (Int8(255, 1).decode(Int8(255, 1).encode(u, 0, 0), 0, 0) == u).all()


@given(size=st.integers(3, 1500), seed=seeds, dtype=dtypes)
@settings(max_examples=15, deadline=None)
def test_signs_have_the_mean_size_of_their_block(size: int, seed: int, dtype: str) -> None:
    u, code = vector(size, seed, dtype), Sign(bounds(size))
    back = code.decode(code.encode(u, 0, 0), 0, 0)
    lost, cut = 0.0, size // 3
    for part in (slice(0, cut), slice(cut, size)):
        if len(u[part]):
            mean = np.abs(u[part].astype(np.float64)).mean()
            assert np.allclose(back[part], np.where(u[part] >= 0, mean, -mean), rtol=1e-5)
            lost += norm(u[part]) ** 2 - len(u[part]) * mean**2  # the contraction of Karimireddy et al.
    assert norm(u.astype(np.float64) - back) ** 2 == pytest.approx(lost, rel=1e-4, abs=1e-5 * norm(u) ** 2)


@pytest.mark.parametrize("name", ["top_k", "random_k", "sign", "int8"])
def test_error_feedback_delivers_everything_in_time(name: str) -> None:
    """A constant gradient: what was sent so far, over the steps, tends to it; the residual stays bounded."""
    g, steps = np.random.default_rng(4).normal(size=200), 1000
    code = compressor(name, (0, 200), fraction=0.05, seed=1, feedback=True)
    e, sent = np.zeros(200), np.zeros(200)
    for step in range(steps):
        u = g + e
        back = code.decode(code.encode(u, 0, step), 0, step)
        sent, e = sent + back, u - back
    assert np.abs(sent + e - steps * g).max() < 1e-9 * steps
    assert norm(sent / steps - g) < 0.1 * norm(g)
    lonely = compressor(name, (0, 200), fraction=0.05, seed=1, feedback=False)
    alone = sum(lonely.decode(lonely.encode(g, 0, step), 0, step) for step in range(steps)) / steps
    assert name in ("random_k", "int8") or norm(alone - g) > 0.3 * norm(g)  # the biased ones never get there


@pytest.mark.parametrize(("dtype", "least"), [("float32", (49.9, 99, 31, 3.9)), ("float64", (66, 99, 63, 7.9))])
def test_bytes_of_a_code(dtype: str, least: tuple[float, ...]) -> None:
    """784-128-10: the proof's model."""
    layout, u = (0, 100352, 100480, 101760, 101770), vector(101770, 1, dtype)
    for (name, _), bar in zip(COMPRESSORS.items(), least, strict=True):
        code = compressor(name, layout, fraction=0.01, seed=1, feedback=True)
        assert u.nbytes / code_bytes(code.encode(u, 0, 0)) > bar, name


@pytest.mark.parametrize("name", ["top_k", "sign", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_entry_that_is_not_finite_is_not_hidden(name: str, bad: float) -> None:
    u = vector(1000, 2)
    u[700] = bad
    code = compressor(name, (0, 1000), fraction=0.01, seed=1, feedback=True)
    with np.errstate(invalid="ignore", over="ignore"):  # as every order is computed
        assert not np.isfinite(code.decode(code.encode(u, 0, 0), 0, 0)).all()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfError, match="unknown compression 'topk'"):
        compressor("topk", (0, 3), fraction=0.1, seed=0, feedback=True)
