"""Sparse or dense is an encoding of the same bits: any mix of encodings along a tree, against dense addition."""

import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigopt.core import codec, vectors
from bigopt.core.csr import CSR
from bigopt.core.sums import Sums, merge, whole
from bigopt.core.tree import fold, height
from bigopt.core.vectors import Narrow, SparseVector, added, dense, encoded, packed

ROWS = 9
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-320, 1e16, 0.1, -0.1, np.inf])


@st.composite
def leaves(draw):
    """Dense vectors and an encoding of each: a sparse one leaves out some of its +0.0 rows."""
    width = draw(st.integers(1, 3))
    found = []
    for _ in range(draw(st.integers(1, 7))):
        flat = np.array(draw(st.lists(VALUES, min_size=ROWS * width, max_size=ROWS * width)))
        table = flat.reshape(ROWS, width)
        absent = np.array(draw(st.lists(st.booleans(), min_size=ROWS, max_size=ROWS)))
        if draw(st.booleans()):
            table[absent] = 0.0
            positions = np.flatnonzero(~absent).astype(np.int32)
            found.append((flat, SparseVector(positions, table[positions], flat.size)))
        elif draw(st.booleans()):
            short = flat.astype(np.float32)
            found.append((short.astype(np.float64), Narrow(short, "float64")))
        else:
            found.append((flat, flat))
    return found


def bits(flat):
    return np.ascontiguousarray(flat).view(np.int64).tolist()


def copied(vector):
    if isinstance(vector, Narrow):
        return Narrow(vector.values.copy(), vector.dtype)
    return SparseVector(vector.positions, vector.values.copy(), vector.size) if isinstance(vector, tuple) else +vector


@pytest.mark.parametrize("crowded", [0.5, 16])  # merging positions, and by way of dense vectors
@given(found=leaves())
def test_any_mix_of_encodings_adds_to_the_same_bits(crowded, found):
    n, width = len(found), found[0][0].size // ROWS
    with np.errstate(invalid="ignore"), mock.patch.object(vectors, "_CROWDED", crowded):
        expected = fold([flat.copy() for flat, _ in found], n, np.add)[(height(n), 0)]
        got = fold([copied(vector) for _, vector in found], n, added)[(height(n), 0)]
        sent = fold([copied(vector) for _, vector in found], n, lambda a, b: packed(added(a, b), width))[(height(n), 0)]
    assert bits(dense(got)) == bits(expected)
    assert bits(dense(sent)) == bits(expected)


@given(leaves())
def test_a_vector_given_to_the_right_is_not_changed_and_a_read_only_left_one_neither(found):
    kept = [copied(vector) for _, vector in found]
    with np.errstate(invalid="ignore"):
        for left, right in itertools.pairwise(kept):
            before = bits(dense(left)), bits(dense(right))
            fixed = left.copy() if isinstance(left, np.ndarray) else left
            if isinstance(fixed, np.ndarray):
                fixed.flags.writeable = False
            added(fixed, right)
            assert (bits(dense(fixed)), bits(dense(right))) == before


@pytest.mark.parametrize(("rows", "width", "kind"), [(13, 1, SparseVector), (14, 1, np.ndarray), (17, 3, SparseVector)])
def test_what_travels_is_the_shorter_encoding(rows, width, kind):
    flat = np.zeros(20 * width)
    flat[: rows * width] = 1.0
    vector = packed(flat, width)
    assert type(vector) is kind  # 4 bytes a position and 8 a value, against 8 a value of 20 rows
    assert dense(vector).tolist() == flat.tolist()
    assert packed(vector, width) is vector


def test_a_negative_zero_travels():
    flat = np.zeros(40)
    flat[[3, 8]] = -0.0, 1.0
    vector = packed(flat, 2)
    assert vector.positions.tolist() == [1, 4]
    assert bits(dense(vector)) == bits(flat)


def test_what_is_added_is_sparse_up_to_a_sixteenth():
    for rows, kind in ((5, SparseVector), (6, np.ndarray)):
        vector = encoded(np.arange(rows), np.ones((rows, 2)), 160)
        assert type(vector) is kind
        assert dense(vector).sum() == 2 * rows


def test_a_root_is_dense_and_every_node_travels():
    part = Sums(SparseVector(np.array([1, 5], dtype=np.int32), np.ones((2, 2)), 140), 1.0, 2.0, 3)
    other = Sums(SparseVector(np.array([5, 7], dtype=np.int32), np.full((2, 2), 2.0), 140), 1.0, 2.0, 3)
    arrived = codec.loads([bytes(piece) for piece in codec.dumps(merge(part, other))])
    assert isinstance(arrived.grad, SparseVector)
    assert arrived.grad.positions.tolist() == [1, 5, 7]
    root = whole(arrived)
    assert (root.loss, root.weight, root.rows) == (2.0, 4.0, 6)
    assert root.grad.reshape(70, 2)[[1, 5, 7]].tolist() == [[1, 1], [3, 3], [2, 2]]
    assert root.grad.sum() == 12
    assert root.grad.flags.writeable


@pytest.mark.parametrize("columns", [9, 50, 40_000])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_own_columns_hold_the_same_rows(columns, dtype):
    rng = np.random.default_rng(columns)
    full = np.where(rng.random((30, columns)) < 3.0 / columns, rng.normal(size=(30, columns)), 0.0)
    full[4] = 0.0
    at = np.nonzero(full)
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(full, axis=1))])
    X = CSR(full[at], at[1].astype(dtype), indptr, columns)
    own, rows = X.own()
    assert own.tolist() == sorted(set(at[1].tolist()))
    assert (rows.dense() == full[:, own]).all()
    assert rows.indices.dtype == np.int32
    assert X.own()[1] is rows
    assert X[:] is X


def test_rows_without_values_have_one_own_column():
    X = CSR(np.empty(0), np.empty(0, dtype=np.int32), np.zeros(4, dtype=np.int64), 7)
    own, rows = X.own()
    assert own.tolist() == [0]
    assert rows.shape == (3, 1)
