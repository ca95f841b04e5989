"""CSR rows against SciPy's: slices, gathers, masks, stacking, and the trip over the wire."""

import numpy as np
import pytest

from bigopt.core import codec
from bigopt.core.csr import CSR, stacked

sparse = pytest.importorskip("scipy.sparse")


def both(rows=13, columns=7, seed=0):
    matrix = sparse.random_array((rows, columns), density=0.3, rng=np.random.default_rng(seed), format="csr")
    matrix.sort_indices()
    return matrix, CSR(matrix.data, matrix.indices, matrix.indptr.astype(np.int64), columns)


@pytest.mark.parametrize("rows", [slice(2, 9), slice(0, 0), slice(5, None), slice(9, 2), slice(None, 99)])
def test_a_slice_is_scipys_and_shares_memory(rows):
    matrix, mine = both()
    assert (mine[rows].dense() == matrix.toarray()[rows]).all()
    assert mine[rows].indptr[0] == 0
    assert not len(mine[rows].data) or np.shares_memory(mine[rows].data, mine.data)


def test_gathers_and_masks():
    matrix, mine = both()
    for rows in (np.array([3, 3, 0, 12]), np.array([], dtype=np.int64), np.arange(13) % 3 == 1):
        assert (mine[rows].dense() == matrix.toarray()[rows]).all()


def test_a_slice_with_a_step_is_refused():
    with pytest.raises(IndexError, match="step 1"):
        both()[1][::2]


def test_stacking_undoes_cutting():
    matrix, mine = both()
    again = stacked([mine[:4], mine[4:4], mine[4:]])
    assert (again.dense() == matrix.toarray()).all()
    assert again.indptr.dtype == np.int64


def test_it_travels():
    _, mine = both()
    back = codec.loads(codec.dumps(mine))
    assert isinstance(back, CSR)
    assert (back.dense() == mine.dense()).all()
