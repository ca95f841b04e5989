"""svmlight text trained on directly: scikit-learn's reader is the oracle, and no wrong line passes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigopt.core import codec
from bigopt.core.csr import CSR, stacked
from bigopt.core.errors import ConfError, DataError
from bigopt.data.columns import x_names
from bigopt.data.open import open_dataset
from bigopt.data.source import Dataset
from bigopt.data.svmparse import parse, survey
from bigopt.data.svmstore import PIECE_BYTES, SvmSource
from bigopt.data.view import DataView, Split

sp = pytest.importorskip("scipy.sparse")
datasets = pytest.importorskip("sklearn.datasets")


def matrix(rows: int = 500, columns: int = 3000, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    X = sp.random_array((rows, columns), density=0.01, format="csr", rng=rng)
    X.sort_indices()
    return sp.csr_matrix(X)


def dump(path: Path, X: Any, y: Any, **more: Any) -> Path:
    datasets.dump_svmlight_file(X, y, str(path), **more)
    return path


def rows_of(dataset: Dataset) -> tuple[CSR, Any]:
    source = codec.loads([bytes(part) for part in codec.dumps(dataset.source)])
    assert source == dataset.source
    assert source.identity() == dataset.source.fingerprint  # type: ignore[attr-defined]
    pieces = []
    for partition in dataset.partitions:
        here = list(source.pieces(partition))
        assert sum(len(piece.X) for piece in here) == partition.rows
        assert sum(len(piece.X.data) for piece in here) <= source.nonzeros(partition)
        pieces += here
    labels = None if pieces[0].y is None else np.concatenate([piece.y for piece in pieces])
    return stacked([piece.X for piece in pieces]), labels


@pytest.mark.parametrize("zero_based", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 500])
def test_rows_are_scikit_learns(tmp_path: Path, zero_based: bool, rows: int) -> None:
    X, y = matrix(rows), np.random.default_rng(1).normal(size=rows)
    path = dump(tmp_path / "d.svm", X, y, zero_based=zero_based)
    theirs, labels = datasets.load_svmlight_file(str(path), zero_based="auto")
    dataset = open_dataset(str(path))
    got, ours = rows_of(dataset)
    np.testing.assert_array_equal(ours, labels)
    np.testing.assert_array_equal(got.data, theirs.data)
    np.testing.assert_array_equal(got.indptr, theirs.indptr)
    np.testing.assert_array_equal(got.indices, theirs.indices)
    assert dataset.columns == x_names(theirs.shape[1])
    assert len(dataset.partitions) == min(rows, 8) or rows > 8
    assert (dataset.target, dataset.target_kind, dataset.nonzeros) == (("y",), "number", X.nnz)


def test_a_file_of_many_pieces_is_cut_by_bytes(tmp_path: Path) -> None:
    X, y = matrix(6000), np.arange(6000) % 3
    path = dump(tmp_path / "d.libsvm", X, y, zero_based=False)
    assert path.stat().st_size > 3 * PIECE_BYTES
    dataset = open_dataset(str(path))
    got, labels = rows_of(dataset)
    np.testing.assert_allclose(got.data, X.data, rtol=1e-15)  # scikit-learn writes 16 digits
    np.testing.assert_array_equal(got.indices, X.indices)
    np.testing.assert_array_equal(labels, y)
    assert labels.dtype == np.int64
    assert dataset.target_kind == "integer"
    assert len(dataset.partitions) >= 8
    assert sum(p.rows for p in dataset.partitions) == 6000
    nonzeros = [dataset.source.nonzeros(p) for p in dataset.partitions]
    assert max(nonzeros) < 1.5 * X.nnz / len(nonzeros)
    for row in (0, 777, 5999):
        at = next(p for p in dataset.partitions if p.start <= row < p.stop)
        assert dataset.source.place(at, row - at.start) == f"{path}, line {row + 1}"


ODD = b"""# a header
+1 1:0.5 2:-1e-3\t7:3 # with a comment 9:9
\t
-1 qid:12 3:1.5
  +1   5:2   8:1e400
0
-1 1:.5 2:5. 3:+7\r
# the end
+1 2:nan 9:1"""


def test_comments_qid_blanks_and_odd_numbers() -> None:
    found = parse(ODD, "f", 1)
    assert found.labels.tolist() == [1, -1, 1, 0, -1, 1]
    assert (found.line + 1).tolist() == [2, 4, 5, 6, 7, 9]
    assert found.indptr.tolist() == [0, 3, 4, 6, 6, 9, 11]
    assert found.indices.tolist() == [1, 2, 7, 3, 5, 8, 1, 2, 3, 2, 9]
    np.testing.assert_array_equal(found.values, [0.5, -1e-3, 3, 1.5, 2, np.inf, 0.5, 5, 7, np.nan, 1])
    seen = survey(ODD, "f", 1)
    assert (seen.least, seen.most, seen.whole, seen.lines) == (1, 9, True, 9)
    assert seen.indptr.tolist() == found.indptr.tolist()
    assert seen.line.tolist() == found.line.tolist()
    assert [ODD[k : k + 2] for k in seen.at] == [b"+1", b"-1", b"+1", b"0\n", b"-1", b"+1"]
    assert not survey(b"1.0 1:2\n", "f", 1).whole
    assert len(parse(b"\n# nothing\n \n", "f", 1).labels) == 0


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("1 3:4 2:5", "column 2 after column 3"),
        ("1 3:4 3:5", "column 3 after column 3"),
        ("1 3:4:5", "no svmlight line: '1 3:4:5'"),
        ("1 3: 4", "no svmlight line"),
        ("1 3 :4", "no svmlight line"),
        ("1 :4", "no svmlight line"),
        ("1 3:", "no svmlight line"),
        (":4", "no svmlight line"),
        ("1 3", "no svmlight line: '1 3'"),
        ("1 3 4", "no svmlight line"),
        ("1:2 3:4", "no svmlight line"),
        ("3:4", "no svmlight line"),
        ("1,2 3:4", "several labels '1,2'"),
        ("yes 3:4", "the label 'yes' is no number"),
        ("1 a:4", "the index 'a' is no column"),
        ("1 -3:4", "the index '-3' is no column"),
        ("1 1e3:4", "the index '1e3' is no column"),
        ("1 2.5:4", "the index '2.5' is no column"),
        ("1 99999999999999999:4", "the index '99999999999999999' is no column"),
        ("1 3:x", "the value 'x' of column 3 is no number"),
        ("1 3:1_0", "the value '1_0' of column 3 is no number"),
        ("1 3:0x1", "the value '0x1' of column 3 is no number"),
        ("1 3:1,5", "the value '1,5' of column 3 is no number"),
        ("a,b,c", "several labels|the label"),
        ("1 3:4 \x00", "no svmlight line|no number"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, found: str) -> None:
    text = "1 1:2 2:3\n# a comment\n-1 4:5\n" * 20
    path = tmp_path / "d.svm"
    path.write_text(f"{text}{line}\n{text}")
    with pytest.raises(DataError, match=found) as caught:
        rows_of(open_dataset(str(path)))
    assert caught.value.where == f"{path}, line 61"


def test_random_damage_is_refused_or_reads_as_scikit_learn_does(tmp_path: Path) -> None:
    good = dump(tmp_path / "d.svm", matrix(20, 50), np.arange(20), zero_based=True).read_bytes()
    rng = np.random.default_rng(2)
    for _ in range(300):
        data = bytearray(good)
        for at in rng.integers(0, len(data), 2):
            data[at] = rng.choice(np.frombuffer(b" \n:#-+.e19xq\t", dtype=np.uint8))
        try:
            got = parse(bytes(data), "f", 1)
        except DataError as error:
            assert "line" in error.where  # noqa: PT017
            continue
        theirs, labels = datasets.load_svmlight_file(io.BytesIO(bytes(data)), zero_based=True)
        np.testing.assert_array_equal(got.labels, labels)
        np.testing.assert_array_equal(got.values, theirs.data)
        np.testing.assert_array_equal(got.indices, theirs.indices)


def test_where_columns_count_from(tmp_path: Path) -> None:
    path = tmp_path / "d.svm"

    def opened(text: str, **more: Any) -> tuple[int, int, str]:
        path.write_text(text)
        dataset = open_dataset(str(path), **more)
        assert isinstance(dataset.source, SvmSource)
        return dataset.source.base, len(dataset.columns), dataset.warnings[0]

    assert opened("1 1:1 5:1\n")[:2] == (1, 5)
    assert "from 1 (no index 0 occurs)" in opened("1 1:1 5:1\n")[2]
    assert opened("1 1:1 5:1\n2 0:1\n")[:2] == (0, 6)
    assert opened("# Column indices are zero-based\n1 1:1 5:1\n")[:2] == (0, 6)
    assert opened("# Column indices are one-based\n1 1:1 5:1\n")[:2] == (1, 5)
    assert opened("1 1:1 5:1\n", index_base=0)[:2] == (0, 6)
    assert opened("1 1:1 5:1\n", features=x_names(9))[:2] == (1, 9)  # what the file leaves out is zero
    assert opened("1 1:1 5:1\n", features=("x7", "x0"))[:2] == (1, 2)
    assert opened("1 1:1 5:1\n", features=x_names(3))[:2] == (1, 3)
    with pytest.raises(DataError, match="index 0 in a file whose columns count from 1"):
        opened("1 0:1\n", index_base=1)
    for text, found in (("1\n2\n", "no row has a column"), ("# nothing\n", "no rows"), ("", "no rows")):
        with pytest.raises(DataError, match=found):
            opened(text)


def test_some_columns_of_a_file(tmp_path: Path) -> None:
    X = matrix()
    path = dump(tmp_path / "d.svm", X, np.zeros(500), zero_based=True)
    got, _ = rows_of(open_dataset(str(path), features=("x7", "x3", "x2999", "x4000")))
    np.testing.assert_allclose(got.dense()[:, :3], X.toarray()[:, [7, 3, 2999]], rtol=1e-15)
    assert not got.dense()[:, 3].any()
    with pytest.raises(ConfError, match="no column 'label'"):
        open_dataset(str(path), target="label")
    with pytest.raises(ConfError, match="'x3' is a feature"):
        open_dataset(str(path), target="x3")
    assert open_dataset(str(path), need_target=False).target == ("y",)


def test_files_are_known_by_name_or_by_their_lines(tmp_path: Path) -> None:
    for name in ("d.txt", "d.data", "d"):
        (tmp_path / name).write_text("# c\n\n+1 1:2 4:5\n")
        assert open_dataset(str(tmp_path / name)).columns == x_names(4)
    (tmp_path / "d.svm").write_text("what is this\n")
    with pytest.raises(DataError, match="no svmlight line"):
        open_dataset(str(tmp_path / "d.svm"))
    (tmp_path / "d.log").write_text("12:30 it began\n")
    with pytest.raises(DataError, match="unknown format"):
        open_dataset(str(tmp_path / "d.log"))
    (tmp_path / "d.svm.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ConfError, match="ingest first"):
        open_dataset(str(tmp_path / "d.svm.gz"))


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = dump(tmp_path / "d.svm", matrix(), np.zeros(500), zero_based=True)
    dataset = open_dataset(str(path))
    text = path.read_bytes()
    path.write_bytes(text.replace(b"\n", b"  ", 1))
    assert dataset.source.identity() != dataset.source.fingerprint  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="changed since it was opened|no svmlight line|after column"):
        rows_of_raw(dataset)
    path.write_bytes(text[: len(text) // 2])
    with pytest.raises(DataError, match="truncated while it was read|changed|no svmlight line"):
        rows_of_raw(dataset)


def rows_of_raw(dataset: Dataset) -> None:
    for partition in dataset.partitions:
        list(dataset.source.pieces(partition))


def test_a_view_names_the_line_of_a_value_that_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "d.svm"
    path.write_text("1 1:1\n" * 50 + "\n-1 2:1 3:inf\n" + "1 1:1\n" * 50)
    dataset = open_dataset(str(path))
    bounds = np.array([0, *(p.stop for p in dataset.partitions)])
    view = DataView(dataset.source, bounds, "float32", split=Split(0, 0.5, False))
    other = DataView(dataset.source, bounds, "float32", split=Split(0, 0.5, True))
    with pytest.raises(DataError, match="column 'x2' is inf") as caught:
        [v.load(m) for v in (view, other) for m in range(view.partitions)]
    assert caught.value.where == f"{path}, line 52"


def test_data_index_base_reaches_the_file(tmp_path: Path) -> None:
    from bigopt.config import load_conf
    from bigopt.facts import open_data

    path = tmp_path / "d.svm"
    path.write_text("1 1:1 5:1\n-1 2:1\n")
    for keys, columns in (((), 5), (("data.index_base=0",), 6), (("data.index_base=1",), 5)):
        data = open_data(load_conf([], [f"data.uri={path}", "data.target=y", *keys]))
        assert len(data.train.columns) == columns
    with pytest.raises(ConfError, match="index_base"):
        load_conf([], ["data.index_base=2"])
