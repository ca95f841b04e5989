"""With a manifest no damage passes: flipped bits, truncations, missing and foreign files, lying metadata."""

from __future__ import annotations

import itertools
import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from bigopt.core.errors import BigoptError, DataError, SecurityError
from bigopt.data.manifest import NAME, parse_manifest
from bigopt.data.open import open_dataset

from .helpers import files_of, rows_of, table, travelled, write

FORMS = ["zarr", "parquet", "list"]
FLIPS = 200


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small dataset a form: 60 rows in partitions of 20."""
    root = tmp_path_factory.mktemp("damage")
    X, y, weight = table(rows=60, columns=3)
    for form in FORMS:
        write(root / form, form, X, y, weight, partition_rows=20)
    return {form: root / form for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_every_flipped_bit_is_noticed(datasets: dict[str, Path], form: str) -> None:
    path = datasets[form]
    good = rows_of(open_dataset(str(path)))[:3]
    files = files_of(path)
    sizes = np.array([f.stat().st_size for f in files])
    rng = np.random.default_rng(3)
    noticed = 0
    for _ in range(FLIPS):
        file = files[int(rng.choice(len(files), p=sizes / sizes.sum()))]
        data = bytearray(file.read_bytes())
        at = int(rng.integers(len(data) * 8))
        data[at // 8] ^= 1 << (at % 8)
        original = file.read_bytes()
        file.write_bytes(bytes(data))
        try:
            got = rows_of(open_dataset(str(path)))[:3]
        except (DataError, SecurityError) as error:
            noticed += path.name in str(error)
        else:
            raise AssertionError(f"bit {at} of {file.name} was not noticed: {got is not None}")
        finally:
            file.write_bytes(original)
    assert noticed == FLIPS
    again = rows_of(open_dataset(str(path)))[:3]
    for a, b in zip(good, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncation_names_the_file(datasets: dict[str, Path], form: str, share: float, tmp_path: Path) -> None:
    shutil.copytree(datasets[form], tmp_path / "d")
    for file in files_of(datasets[form]):
        victim = tmp_path / "d" / file.relative_to(datasets[form])
        data = victim.read_bytes()
        victim.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError) as caught:
            rows_of(open_dataset(str(tmp_path / "d")))
        assert victim.name in str(caught.value)
        victim.write_bytes(data)


def test_all_missing_chunks_are_listed(datasets: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(datasets["zarr"], tmp_path / "d")
    gone = ["X/c/0/0", "X/c/2/0", "weight/c/1"]
    for key in gone:
        (tmp_path / "d" / key).unlink()
    with pytest.raises(DataError, match=r"3 of \d+ files") as caught:
        open_dataset(str(tmp_path / "d"))
    assert all(key in str(caught.value) for key in gone)
    shutil.copytree(datasets["parquet"], tmp_path / "p")
    (tmp_path / "p" / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match="part-00000"):
        open_dataset(str(tmp_path / "p"))


@pytest.mark.parametrize("form", FORMS)
def test_damage_after_opening_is_noticed_by_the_worker(datasets: dict[str, Path], form: str, tmp_path: Path) -> None:
    shutil.copytree(datasets[form], tmp_path / "d")
    dataset = open_dataset(str(tmp_path / "d"))
    name = "X/c/1/0" if form == "zarr" else "part-00000.parquet"
    victim = tmp_path / "d" / name
    if form == "zarr":
        victim.unlink()
        expected = "missing, the manifest names it"
    else:
        data = bytearray(victim.read_bytes())
        data[len(data) // 3] ^= 4
        victim.write_bytes(bytes(data))
        expected = "altered: CRC-32"
    source = travelled(dataset)
    with pytest.raises(DataError, match=expected) as caught:
        [list(source.pieces(partition)) for partition in dataset.partitions]
    assert name in str(caught.value)


def test_a_sound_chunk_in_the_place_of_another_is_noticed(datasets: dict[str, Path], tmp_path: Path) -> None:
    """A chunk ends with its own checksum, so that the checksum of the whole file says nothing."""
    shutil.copytree(datasets["zarr"], tmp_path / "d")
    chunks = [tmp_path / "d" / "X" / "c" / str(k) / "0" for k in range(3)]
    assert len({google_crc32c.value(chunk.read_bytes()) for chunk in chunks}) == 1
    sizes = [chunk.stat().st_size for chunk in chunks]
    same = [(a, b) for a, b in itertools.combinations(range(3), 2) if sizes[a] == sizes[b]]
    assert same, sizes
    first, second = (chunks[k].read_bytes() for k in same[0])
    chunks[same[0][0]].write_bytes(second)
    assert first != second
    with pytest.raises(DataError, match="altered: CRC-32C"):
        rows_of(open_dataset(str(tmp_path / "d")))


@pytest.mark.parametrize("form", FORMS)
def test_manifests_of_version_1_are_read_and_still_notice_damage(
    datasets: dict[str, Path], form: str, tmp_path: Path
) -> None:
    path = tmp_path / "d"
    shutil.copytree(datasets[form], path)
    manifest = parse_manifest((path / NAME).read_bytes(), "here")
    chunks = []
    for chunk in manifest.chunks:
        data = (path / chunk.key).read_bytes()[chunk.start : chunk.start + chunk.bytes]
        chunks.append(chunk._replace(digest=f"{zlib.crc32(data):08x}"))
    old = replace(manifest, chunks=tuple(chunks), version=1)
    (path / NAME).write_bytes(old.to_json())
    assert json.loads(old.to_json())["bigopt_manifest"] == 1
    for a, b in zip(rows_of(open_dataset(str(datasets[form])))[:3], rows_of(open_dataset(str(path)))[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    victim = path / next(chunk.key for chunk in manifest.chunks if chunk.rows)
    data = bytearray(victim.read_bytes())
    data[len(data) // 3] ^= 4
    victim.write_bytes(bytes(data))
    with pytest.raises(DataError, match="altered: CRC-32 "):
        rows_of(open_dataset(str(path)))


@pytest.mark.parametrize("form", FORMS)
def test_another_dataset_in_its_place_is_noticed(datasets: dict[str, Path], form: str, tmp_path: Path) -> None:
    shutil.copytree(datasets[form], tmp_path / "d")
    dataset = open_dataset(str(tmp_path / "d"))
    X, y, weight = table(rows=60, columns=3, seed=9)
    write(tmp_path / "d", form, X, y, weight, partition_rows=20, force=True)
    source = travelled(dataset)
    assert source.identity() != dataset.source.fingerprint
    with pytest.raises(DataError):
        list(source.pieces(dataset.partitions[0]))


def test_extra_parquet_file_is_refused(datasets: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(datasets["parquet"], tmp_path / "d")
    shutil.copy(tmp_path / "d" / "part-00000.parquet", tmp_path / "d" / "part-00001.parquet")
    with pytest.raises(DataError, match=r"does not name: 'part-00001\.parquet'"):
        open_dataset(str(tmp_path / "d"))


def _mutants(tree: dict[str, Any]) -> list[tuple[str, Any]]:
    chunk = tree["chunks"][0]
    values: list[Any] = [None, -1, 1.5, "x", [], {}, True, 1 << 70, [[]], [None], [["a", 1, 1, 1, "zz"]], {"a": {}}]
    return [(key, value) for key in tree for value in values] + [
        ("chunks", [[*chunk[:4], "0000000g"]]),
        ("chunks", [chunk[:4]]),
        ("columns", [["a", "float32", "number", [1, 2, 3]]]),
        ("columns", [["a", "float32", "number", ["x", 0, 0, 0]]]),
        ("partitions", [10, 10]),
        ("unknown", 1),
    ]


def test_manifests_that_lie_raise_typed_errors_only(datasets: dict[str, Path]) -> None:
    data = (datasets["zarr"] / NAME).read_bytes()
    tree = json.loads(data)
    same = 0
    passed = []
    for key, value in _mutants(tree):
        mutant = json.dumps({**tree, key: value}).encode()
        if key in tree and tree[key] == value and type(tree[key]) is type(value):
            same += 1
            continue
        try:
            parse_manifest(mutant, "here")
            passed.append((key, value))
        except DataError:
            continue
    assert passed == []
    assert same < 10
    for raw in (b"", b"[" * 100_000, b"\xff\xfe", b'{"rows": NaN}', b"9" * 10_000, b"null", b"{}"):
        with pytest.raises(DataError):
            parse_manifest(raw, "here")


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "a/../../b", "a\\b"])
def test_manifest_paths_cannot_leave_the_dataset(datasets: dict[str, Path], key: str) -> None:
    tree = json.loads((datasets["zarr"] / NAME).read_bytes())
    tree["chunks"][0][0] = key
    with pytest.raises(SecurityError, match="outside the dataset"):
        parse_manifest(json.dumps(tree).encode(), "here")


def test_manifest_bytes_fuzzed(datasets: dict[str, Path]) -> None:
    data = (datasets["parquet"] / NAME).read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(400):
        mutant = bytearray(data)
        for at in rng.integers(0, len(data), size=int(rng.integers(1, 4))):
            mutant[at] = int(rng.integers(256))
        mutant = mutant[: int(rng.integers(len(data) // 2, len(data) + 1))]
        if bytes(mutant) == data:
            continue
        with pytest.raises(BigoptError):
            parse_manifest(bytes(mutant), "here")
