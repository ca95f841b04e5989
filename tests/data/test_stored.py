"""Rows that lie in files as they are used are added in one call: same bits, and what is wrong is said as before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from bigopt.core import compiled, extents
from bigopt.core.errors import DataError
from bigopt.data import meter, npyopen, npystore
from bigopt.data.cache import BlockCache
from bigopt.data.loading import Loader
from bigopt.data.npystore import NpySource
from bigopt.data.open import open_dataset
from bigopt.data.plan import whole
from bigopt.data.preparation import Scaling, Targets
from bigopt.data.streaming import Stream
from bigopt.data.view import DataView, Split
from bigopt.data.zarrstore import ZarrSource
from bigopt.models.fused import STEP, fused_fold, fused_stored
from bigopt.models.linear import LinearModel
from bigopt.models.losses import BinaryCrossEntropy, HuberLoss
from bigopt.work import GradientSum, execute

pytestmark = [
    pytest.mark.skipif(bool(compiled.missing()), reason=compiled.missing()),
    pytest.mark.skipif(extents.system() is None, reason="this system has other functions"),
]

ROWS, COLUMNS = 6_000, 11


def columns(dtype: str = "float32") -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, COLUMNS)).astype(dtype)
    return X, (X[:, 0] > 0).astype(np.int64), rng.random(ROWS)


def write(folder: Path, height: int, dtype: str = "float32", *, crc: bool = False, X: Any = None) -> Path:
    """Write a stranger's store without compression, its features in chunks of so many rows."""
    group = zarr.open_group(str(folder), mode="w")
    features, y, weight = columns(dtype)
    for name, values in (("X", features if X is None else X), ("y", y), ("weight", weight)):
        compressors = [Crc32cCodec()] if crc and name == "X" else None
        group.create_array(
            name, shape=values.shape, chunks=(height, *values.shape[1:]), dtype=values.dtype, compressors=compressors
        )[...] = values
    return folder


def view_of(path: Path, dtype: str = "float32", **more: Any) -> DataView:
    dataset = open_dataset(str(path), weight="weight")
    height = dataset.source.height if isinstance(dataset.source, ZarrSource) else 1
    cut = -(-ROWS // 2 // height) * height
    scaling = Scaling(np.linspace(-1, 1, COLUMNS), np.linspace(0.3, 2.1, COLUMNS))
    view = DataView(dataset.source, np.array([0, cut, ROWS]), dtype, scaling=scaling, targets=Targets("binary", (0, 1)))
    return replace(view, **more)


def sums(view: DataView, model: LinearModel, params: Any) -> list[Any]:
    """Return what both partitions add up to: from memory, by blocks of a stream, and by files in one call."""
    found = []
    view.labels(0)  # what a process reads only once is read now
    for index in range(view.partitions):
        block, labels = view.load(index), view.labels(index)
        from_memory = fused_fold(model, params, iter([block[:3]]), view.dtype)
        blocks = Stream(view, index, STEP, Loader(), labels, checked=False)
        in_blocks = fused_fold(model, params, (part[:3] for part in blocks), view.dtype)
        reader = Stream(view, index, STEP, Loader(), labels, checked=False)
        got = reader.read(lambda stored: fused_stored(model, params, stored))
        assert got is not None
        in_files, read = got
        assert read + labels.bytes_read == block.bytes_read
        found.append([(grad.tobytes(), *rest) for grad, *rest in (from_memory, in_blocks, in_files)])
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("height", "crc"), [(100, False), (128, True), (1301, True), (ROWS, False), (2 * ROWS, True)])
def test_the_bits_are_those_of_rows_in_memory(tmp_path: Path, height: int, crc: bool, dtype: str) -> None:
    view = view_of(write(tmp_path / "store", height, dtype, crc=crc), dtype)
    params = np.random.default_rng(3).normal(size=COLUMNS + 1).astype(dtype)
    bare = replace(view, scaling=None, source=replace(view.source, weights=None))
    for case, loss in ((view, BinaryCrossEntropy()), (bare, HuberLoss(0.3))):
        case = replace(case, bounds=np.array([0, ROWS])) if height >= ROWS else case
        for from_memory, in_blocks, in_files in sums(case, LinearModel(COLUMNS, 1, loss, True), params):
            assert from_memory == in_blocks == in_files


def test_pieces_smaller_than_a_chunk_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(write(tmp_path / "store", 1301, crc=True))
    params = np.random.default_rng(3).normal(size=COLUMNS + 1).astype(np.float32)
    model = LinearModel(COLUMNS, 1, BinaryCrossEntropy(), True)
    expected = sums(view, model, params)
    for size in (1, 3 * STEP * 4 * COLUMNS):
        monkeypatch.setattr(extents, "PIECE", size)
        assert sums(view, model, params) == expected


def test_what_has_to_be_decoded_lies_nowhere_as_it_is_used(tmp_path: Path) -> None:
    view = view_of(write(tmp_path / "store", 100))
    partition = view.partition(1)
    assert isinstance(view.source, ZarrSource)
    found = view.source.extents(partition, "float32")
    assert found is not None
    assert found.paths[0].endswith("store/X/c/30/0")
    assert (len(found.paths), found.height, found.rows, found.row_bytes) == (30, 100, 3000, 44)
    assert view.source.extents(partition, "float64") is None
    assert (
        view.source.extents(view_of(tmp_path / "store", bounds=np.array([0, 50, ROWS])).partition(1), "float32") is None
    )
    group = zarr.open_group(str(tmp_path / "zstd"), mode="w")
    across = zarr.open_group(str(tmp_path / "across"), mode="w")
    X, y, _ = columns()
    for target, chunks, packed in ((group, (100, COLUMNS), "auto"), (across, (100, 4), None)):
        target.create_array("X", shape=X.shape, chunks=chunks, dtype=X.dtype, compressors=packed)[...] = X
        target.create_array("y", shape=y.shape, chunks=(100,), dtype=y.dtype)[...] = y
    for name in ("zstd", "across"):
        source = open_dataset(str(tmp_path / name)).source
        assert isinstance(source, ZarrSource)
        assert source.extents(partition, "float32") is None
    checked = Stream(view, 0, STEP, Loader(), view.labels(0))
    assert checked.read(lambda stored: stored) is None  # whoever reads files himself looks at no value


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each partition that was gone through was read in one call."""
    seen: list[bool] = []
    read = meter.Parts.read

    def noted(self: meter.Parts, add: Callable[..., Any]) -> Any:
        found = read(self, add)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(meter.Parts, "read", noted)
    return seen


def run(view: DataView, budget: int, threads: int = 1) -> tuple[Any, ...]:
    work = GradientSum(
        LinearModel(COLUMNS, 1, BinaryCrossEntropy(), True), view, 0, "float64", 256, kernels=compiled.COMPILED
    )
    blocks, params = BlockCache(budget, threads), np.random.default_rng(3).normal(size=COLUMNS + 1)
    units = whole(np.arange(view.partitions), np.diff(view.bounds))
    nodes, stats = execute(blocks, work, (params,), view.partitions, 0, units)
    assert blocks.held <= budget
    (total,) = nodes.values()
    return total.grad.tobytes(), total.loss, total.weight, total.rows, stats.rows, stats.bytes_read


def test_an_order_reads_files_in_one_call(tmp_path: Path, counted: list[bool]) -> None:
    view = view_of(write(tmp_path / "store", 100))
    in_memory = run(view, 1 << 30)
    assert not counted
    assert run(view, view.decoded_bytes(0) - 1) == in_memory
    assert counted == [True, True]


def damage(folder: Path, how: str) -> None:
    chunk = folder / "X" / "c" / "35" / "0"
    data = chunk.read_bytes()
    if how == "missing":
        chunk.unlink()
    elif how == "folder":
        chunk.unlink()
        chunk.mkdir()
    else:
        chunk.write_bytes(
            {"short": data[:-1], "long": data + b"x", "empty": b""}.get(how, data[:99] + b"!" + data[100:])
        )


@pytest.mark.parametrize("crc", [False, True])
@pytest.mark.parametrize("how", ["short", "long", "empty", "folder", "altered"])
def test_what_is_wrong_is_said_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[bool], how: str, crc: bool
) -> None:
    view = view_of(write(tmp_path / "store", 100, crc=crc))
    run(view, view.decoded_bytes(0) - 1)
    damage(tmp_path / "store", how)
    if how == "altered" and not crc:
        assert run(view, view.decoded_bytes(0) - 1) == run(view, 1 << 30)  # nobody can know
        return
    with pytest.raises(DataError) as caught:
        run(view, view.decoded_bytes(0) - 1)
    assert counted[2:] == [True, False]
    monkeypatch.setattr(ZarrSource, "extents", lambda *_: None)
    with pytest.raises(DataError) as expected:
        run(view, view.decoded_bytes(0) - 1)
    assert str(caught.value) == str(expected.value)
    assert "X/c/35/0" in str(caught.value)


def test_a_chunk_that_is_not_there_holds_the_fill_value(tmp_path: Path, counted: list[bool]) -> None:
    X, _, _ = columns()
    X[3500:3600] = 0.0
    view = view_of(write(tmp_path / "store", 100, X=X))
    assert not (tmp_path / "store" / "X" / "c" / "35").exists()
    assert run(view, view.decoded_bytes(0) - 1) == run(view, 1 << 30)
    assert counted == [True, False]
    loader, tried = Loader(), list[Any]()
    for _ in range(2):
        reader = Stream(view, 1, STEP, loader, view.labels(1), checked=False)
        assert reader.read(tried.append) is None
    assert len(tried) == 1  # it will not be there the next time either


def test_a_value_that_is_not_finite_is_named(tmp_path: Path, counted: list[bool]) -> None:
    X, _, _ = columns()
    X[4321, 5] = np.nan
    view = view_of(write(tmp_path / "store", 100, X=X))
    with pytest.raises(DataError, match=r"X/c/43/0, row 21 \(global row 4321, .*column 'x5' is nan"):
        run(view, view.decoded_bytes(0) - 1)
    assert counted == [True, True]


def test_no_file_stays_open(tmp_path: Path) -> None:
    view = view_of(write(tmp_path / "store", 100, crc=True))
    run(view, view.decoded_bytes(0) - 1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for how in ("short", "altered"):
        shutil.rmtree(tmp_path / "store" / "X" / "c")
        write(tmp_path / "store", 100, crc=True)
        damage(tmp_path / "store", how)
        with pytest.raises(DataError):
            run(view, view.decoded_bytes(0) - 1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_system_is_told_what_comes_next(tmp_path: Path) -> None:
    view = view_of(write(tmp_path / "store", 100))
    params = np.random.default_rng(3).normal(size=COLUMNS + 1).astype(np.float32)
    model, loader = LinearModel(COLUMNS, 1, BinaryCrossEntropy(), True), Loader()
    found = []
    for waits in (False, True):
        loader.waits = waits
        reader = Stream(view, 1, STEP, loader, view.labels(1), checked=False)
        got = reader.read(lambda stored: (stored.waits, fused_stored(model, params, stored)))
        assert got is not None
        assert got[0] is waits
        assert got[1] is not None
        found.append((got[1][0][0].tobytes(), got[1][1]))
    assert found[0] == found[1]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (npystore, npyopen):
        monkeypatch.setattr(module, "PIECE_BYTES", 1 << 12)
    monkeypatch.setattr(extents, "PIECE", 1 << 13)


def write_numpy(folder: Path, form: str, dtype: str = "float32", X: Any = None) -> Path:
    features, y, weight = columns(dtype)
    features = features if X is None else X
    if form == "npy":
        for name, values in (("rows.npy", features), ("rows.y.npy", y), ("rows.weight.npy", weight)):
            np.save(folder / name, values)
        return folder / "rows.npy"
    save = np.savez if form == "npz" else np.savez_compressed
    save(folder / "rows.npz", X=features, y=y, weight=weight)
    return folder / "rows.npz"


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("stored", ["float32", "float64", "int16"])
@pytest.mark.parametrize("form", ["npy", "npz", "packed"])
def test_rows_of_numpy_files_are_read_to_their_place(tmp_path: Path, form: str, stored: str) -> None:
    X = (10 * columns()[0]).astype(stored)
    path = write_numpy(tmp_path, form, X=X)
    view = view_of(path, scaling=None)
    view = replace(view, bounds=np.array([0, 2500, 2503, ROWS]))
    assert view.fills(0, Loader()) is (form != "packed")
    split = replace(view, split=Split(3, 0.3, validation=False))
    for index in range(3):
        rows = slice(*view.bounds[index : index + 2])
        assert view.load(index).X.tobytes() == X[rows].astype(np.float32).tobytes()
        mask = Split(3, 0.3, validation=False).mask(view.partition(index))
        assert split.load(index).X.tobytes() == X[rows][mask].astype(np.float32).tobytes()
        if form != "packed":
            parts = [block.X.copy() for block in Stream(view, index, 64, Loader(2), view.labels(index))]
            assert np.concatenate(parts).tobytes() == view.load(index).X.tobytes()
    lies = view.source.extents(view.partition(1), "float32") if isinstance(view.source, NpySource) else None
    assert (lies is not None) is (stored == "float32" and form != "packed")


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("form", ["npy", "npz"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_files_give_the_same_bits_in_one_call(tmp_path: Path, counted: list[bool], form: str, dtype: str) -> None:
    view = view_of(write_numpy(tmp_path, form, dtype), dtype)
    params = np.random.default_rng(3).normal(size=COLUMNS + 1).astype(dtype)
    for from_memory, in_blocks, in_files in sums(view, LinearModel(COLUMNS, 1, HuberLoss(0.3), True), params):
        assert from_memory == in_blocks == in_files
    counted.clear()
    in_memory = run(view, 1 << 30)
    assert not counted
    assert run(view, view.decoded_bytes(0) - 1)[:-1] == in_memory[:-1]
    assert counted == [True, True]


@pytest.mark.usefixtures("small_pieces")
def test_what_is_wrong_with_a_numpy_file_is_said_as_before(tmp_path: Path, counted: list[bool]) -> None:
    X, _, _ = columns()
    X[4321, 5] = np.inf
    view = view_of(write_numpy(tmp_path, "npy", X=X))
    with pytest.raises(DataError, match=r"rows.npy, row 4321 \(partition 1\): column 'x5' is inf"):
        run(view, view.decoded_bytes(0) - 1)
    path = write_numpy(tmp_path, "npy")
    view = view_of(path)
    _ = view.key, view.labels(0)
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size - 1)
    counted.clear()
    with pytest.raises(DataError, match=r"rows.npy, array X: ends 1 bytes early \(truncated"):
        run(view, view.decoded_bytes(0) - 1)
    assert counted == [True, False]
