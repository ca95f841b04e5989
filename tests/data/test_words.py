"""Words of a text as sparse features: scikit-learn's HashingVectorizer is the oracle, and the recipe travels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigopt.core.csr import CSR, stacked
from bigopt.core.errors import ConfError, DataError
from bigopt.data.apply import raw_batches
from bigopt.data.columns import Names, Run
from bigopt.data.ingest import ingest_files
from bigopt.data.manifest import NAME, parse_manifest
from bigopt.data.open import open_dataset
from bigopt.data.recipe import recipe_from_json
from bigopt.data.recipe_spec import make_spec
from bigopt.data.sparse import checked
from bigopt.data.words import Words, hashed, murmur, tokens

text = pytest.importorskip("sklearn.feature_extraction.text")

TEXTS = [
    "an entity that has physical existence", "A dog; a DOG, the dog's dogs", "", "x y z",
    "naïve Straße 中文字 hello_world 42",
    "of or relating to; of", "\ttabs\nand new lines  ", "word " * 50,
]  # fmt: skip


def test_hashes_are_scikit_learns() -> None:
    utils = pytest.importorskip("sklearn.utils")
    for word in ("", "a", "ab", "abc", "abcd", "abcde", "naïve", "中文", "x" * 1000, *(f"w{k}" for k in range(500))):
        assert murmur(word.encode()) == utils.murmurhash3_32(word.encode(), seed=0)


@pytest.mark.parametrize("bins", [7, 1000, 1 << 18, (1 << 31) - 1])
@pytest.mark.parametrize("ngrams", [1, 3])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("norm", ["l2", "none"])
def test_rows_are_scikit_learns(bins: int, ngrams: int, signed: bool, norm: Any) -> None:
    theirs = text.HashingVectorizer(
        n_features=bins, ngram_range=(1, ngrams), alternate_sign=signed, norm=None if norm == "none" else norm
    ).transform(TEXTS)
    theirs.eliminate_zeros()
    theirs.sort_indices()
    ours = checked(hashed(TEXTS, Words(bins, ngrams, signed, norm)), str)
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours.indptr, theirs.indptr)
    np.testing.assert_array_equal(ours.indices, theirs.indices)
    np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-6)
    assert ours.dtype == np.float32


def test_ngrams() -> None:
    assert list(tokens("Of the dog", 2)) == ["of", "the", "dog", "of the", "the dog"]
    assert len(hashed([], Words())) == 0
    assert hashed(["", "a b"], Words()).indptr.tolist() == [0, 0, 0]


def raw(path: Path, rows: int = 300, seed: int = 0) -> str:
    """A CSV with text, a category, a number and a target."""
    rng = np.random.default_rng(seed)
    vocabulary = [f"word{k}" for k in range(60)]
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["gloss", "part", "size", "noun"])
        for k in range(rows):
            words = " ".join(rng.choice(vocabulary, int(rng.integers(1, 9))))
            writer.writerow([f"{words}, and more", "nvar"[k % 4], k % 5 - 2, "yes" if rng.random() < 0.5 else "no"])
    return str(path)


def spec(source: str, **more: Any) -> Any:
    encode = {"gloss": {"words": {"bins": 512, "ngrams": 2}}, "part": "onehot"}
    return make_spec(source, target="noun", encode=more.pop("encode", encode), **more)


@pytest.mark.parametrize("form", ["zarr", "parquet"])
def test_text_becomes_a_sparse_dataset(tmp_path: Path, form: str) -> None:
    source = raw(tmp_path / "d.csv")
    result = ingest_files(spec(source), str(tmp_path / f"d.{form}"), partition_rows=70)
    dataset = open_dataset(str(tmp_path / f"d.{form}"))
    with open(source, newline="") as handle:
        rows = list(csv.DictReader(handle))
    vectorizer = text.HashingVectorizer(n_features=512, ngram_range=(1, 2))
    expected = np.zeros((300, 517), dtype=np.float32)
    expected[:, :512] = vectorizer.transform([row["gloss"] for row in rows]).toarray()
    for k, row in enumerate(rows):
        expected[k, 512 + "anrv".index(row["part"])] = 1
        expected[k, 516] = float(row["size"])
    got = stacked([piece.X for p in dataset.partitions for piece in dataset.source.pieces(p)])
    np.testing.assert_allclose(got.dense(), expected, rtol=1e-6)
    assert dataset.columns == Names((Run("gloss#", 512), "part=a", "part=n", "part=r", "part=v", "size"))
    assert result.columns == ("gloss#0 to gloss#511", "part=a", "part=n", "part=r", "part=v", "size")
    assert dataset.target_kind == "text"
    json.dumps(result.to_dict())
    manifest = parse_manifest((tmp_path / f"d.{form}" / NAME).read_bytes(), "here")
    kinds = [(c.name, c.run, c.kind) for c in manifest.columns]
    assert kinds[:2] + kinds[-1:] == [("gloss#", 512, "number"), ("part=a", 0, "category"), ("size", 0, "number")]


def test_the_recipe_travels(tmp_path: Path) -> None:
    ingest_files(spec(raw(tmp_path / "d.csv")), str(tmp_path / "d.zarr"))
    dataset = open_dataset(str(tmp_path / "d.zarr"))
    assert dataset.manifest is not None
    recipe = dataset.manifest.recipe
    assert recipe is not None
    assert recipe_from_json(json.loads(json.dumps(recipe))).sparse
    batches = raw_batches(recipe, str(tmp_path / "d.csv"), predict=False, columns=dataset.columns)
    assert batches is not None
    again = list(batches)
    stored = stacked([piece.X for p in dataset.partitions for piece in dataset.source.pieces(p)])
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(stacked([r.X for r in again]), part), getattr(stored, part))
    some = raw_batches(recipe, str(tmp_path / "d.csv"), predict=True, columns=("size", "gloss#3", "part=n"))
    assert some is not None
    X = stacked([r.X for r in some])
    np.testing.assert_array_equal(X.dense(), stored.dense()[:, [516, 3, 513]])
    with pytest.raises(DataError, match="does not make 'gloss#512'"):
        raw_batches(recipe, str(tmp_path / "d.csv"), predict=True, columns=("gloss#512",))


def test_nulls_and_unknown_categories(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("gloss,part,noun\none two,a,yes\n,b,no\nthree four,a,yes\n")
    with pytest.raises(DataError, match="null in column 'gloss'"):
        ingest_files(spec(str(path), encode={"gloss": "words", "part": "onehot"}), str(tmp_path / "a.zarr"))
    filled = spec(str(path), encode={"gloss": "words", "part": "onehot"}, nulls={"gloss": "nothing here"})
    ingest_files(filled, str(tmp_path / "b.zarr"))
    dropped = spec(str(path), encode={"gloss": {"words": 64}, "part": {"onehot": ["a", "b"]}}, nulls={"gloss": "drop"})
    assert ingest_files(dropped, str(tmp_path / "c.zarr")).rows == 2
    recipe = open_dataset(str(tmp_path / "c.zarr")).manifest.recipe  # type: ignore[union-attr]
    assert recipe is not None
    batches = raw_batches(recipe, str(path), predict=True)
    assert batches is not None
    (rows,) = batches
    assert rows.bad.tolist() == [False, True, False]
    assert isinstance(rows.X, CSR)
    assert np.diff(rows.X.indptr).tolist() == [3, 0, 3]
    path.write_text("gloss,part,noun\none two,zz,yes\n")
    with pytest.raises(DataError, match="'zz' in column 'part'"):
        list(raw_batches(recipe, str(path), predict=True) or ())
    (rows,) = raw_batches(recipe, str(path), predict=True, unknown="zero") or ()
    assert np.diff(rows.X.indptr).tolist() == [2]


@pytest.mark.parametrize(
    ("encode", "found"),
    [
        ({"gloss": {"words": {"bin": 5}}}, "unknown key 'bin'"),
        ({"gloss": {"words": 0}}, "0 bins"),
        ({"gloss": {"words": {"ngrams": 9}}}, "n-grams of 9"),
        ({"gloss": {"words": {"norm": "l1"}}}, "norm 'l1'"),
        ({"gloss": {"words": "many"}}, "'many' bins"),
        ({"gloss": "word"}, "unknown encoding 'word'"),
        ({"gloss": "words", "size": "words"}, "'size' is integer, words are found in text"),
    ],
)
def test_wrong_confs_are_refused(tmp_path: Path, encode: dict[str, Any], found: str) -> None:
    source = raw(tmp_path / "d.csv")
    with pytest.raises(ConfError, match=found):
        ingest_files(spec(source, encode={"part": "onehot", **encode}), str(tmp_path / "d.zarr"))
