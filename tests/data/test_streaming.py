"""Rows that do not stay in memory are added as they are decoded: bits, budget, messages are those of whole blocks."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from bigopt.core import compiled
from bigopt.core.errors import DataError
from bigopt.data.cache import BlockCache
from bigopt.data.loading import Loader
from bigopt.data.meter import Meter
from bigopt.data.open import open_dataset
from bigopt.data.plan import whole
from bigopt.data.preparation import Scaling, Targets, Whitening
from bigopt.data.streaming import WINDOW, Stream, stream_bytes
from bigopt.data.view import DataView, Split
from bigopt.data.writer import DatasetWriter
from bigopt.models.fused import STEP
from bigopt.models.linear import LinearModel
from bigopt.models.losses import BinaryCrossEntropy, HuberLoss
from bigopt.work import GradientSum, execute

ROWS, COLUMNS = 12_000, 11


def columns() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    return X, (X[:, 0] > 0).astype(np.int64), rng.random(ROWS)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By bigopt in chunks of 1000 rows, by strangers in chunks of 128, 100 and 301; the last are cut by columns."""
    root = tmp_path_factory.mktemp("streams")
    X, y, weight = columns()
    with DatasetWriter(
        str(root / "ours"), format="zarr", columns=[f"x{k}" for k in range(COLUMNS)], target=["y"], weight="weight",
        dtype="float32", partition_rows=[4000, 5000, 3000],
    ) as writer:  # fmt: skip
        writer.append(X, y, weight)
    for rows, width in ((128, COLUMNS), (100, COLUMNS), (301, 4)):
        group = zarr.open_group(str(root / f"foreign{rows}"), mode="w")
        for name, values in (("X", X), ("y", y), ("weight", weight)):
            chunks = (rows, width) if name == "X" else (rows,)
            array = group.create_array(name, shape=values.shape, chunks=chunks, dtype=values.dtype)
            array[...] = values
    return {path.name: path for path in root.iterdir()}


def view_of(path: Path, dtype: str = "float32", **more: Any) -> DataView:
    dataset = open_dataset(str(path), weight="weight")
    bounds = np.array([0, *(p.stop for p in dataset.partitions)])
    scaling = Scaling(np.linspace(-1, 1, COLUMNS), np.linspace(0.5, 2, COLUMNS))
    return replace(DataView(dataset.source, bounds, dtype, scaling=scaling, targets=Targets("binary", (0, 1))), **more)


@pytest.mark.parametrize("name", ["ours", "foreign128", "foreign100", "foreign301"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_rows_are_those_of_the_block(stores: dict[str, Path], name: str, dtype: str) -> None:
    view = view_of(stores[name], dtype)
    for index, step, loader in ((0, 64, Loader(1)), (view.partitions - 1, 7, Loader(3)), (1, 1, Loader(2))):
        expected = view.load(index)
        parts = []
        for block in Stream(view, index, step, loader, view.labels(index)):
            parts.append([a.copy() for a in block[:3]] + [block.bytes_read])
            assert block.X.flags.c_contiguous
            del block
        assert all(len(part[0]) % step == 0 for part in parts[:-1])
        for k, whole_of_it in enumerate(expected[:3]):
            assert np.concatenate([part[k] for part in parts]).tobytes() == whole_of_it.tobytes()
        assert sum(part[3] for part in parts) == expected.bytes_read
        gc.collect()
        assert loader._decoding == 0
        held = stream_bytes(view, index, step, loader)
        assert held is not None
        assert loader.memory.spare <= held + (8 << 16) * WINDOW  # pieces are multiples of 64 KB


@pytest.mark.skipif(bool(compiled.missing()), reason=compiled.missing())
@pytest.mark.parametrize("name", ["foreign100", "foreign301"])
@pytest.mark.parametrize(("loss", "weighted"), [(BinaryCrossEntropy(), False), (HuberLoss(0.3), True)])
def test_gradients_have_the_bits_of_whole_blocks(stores: dict[str, Path], name: str, loss: Any, weighted: bool) -> None:
    view = view_of(stores[name])
    if not weighted:
        view = replace(view, source=replace(view.source, weights=None))
    model = LinearModel(COLUMNS, 1, loss, True)
    work = GradientSum(model, view, 0, "float64", 256, kernels=compiled.COMPILED)
    params = np.random.default_rng(3).normal(size=COLUMNS + 1)
    counts = np.diff(view.bounds)
    units = whole(np.arange(view.partitions), counts)
    largest = max(view.decoded_bytes(i) for i in range(view.partitions))
    sums, read = [], []
    for budget, threads in ((1 << 30, 1), (5 * largest // 2, 1), (3 * largest, 2)):
        blocks = BlockCache(budget, threads)
        for _ in range(2):
            nodes, stats = execute(blocks, work, (params,), view.partitions, 0, units)
            (total,) = nodes.values()
            sums.append((total.grad.tobytes(), total.loss, total.weight, total.rows, stats.rows))
            read.append(stats.bytes_read)
            assert blocks.held <= budget
    assert len(set(sums)) == 1
    assert sums[0][3:] == (ROWS, ROWS)
    assert read[:2] == [read[0], 0]  # all of it stays
    assert min(read[2:]) > 0  # some of it does not


def test_what_is_here_or_can_stay_is_no_stream(stores: dict[str, Path]) -> None:
    view = view_of(stores["foreign100"])
    room = stream_bytes(view, 1, STEP, Loader())
    assert room is not None
    blocks = BlockCache(view.decoded_bytes(0) + view.loading_bytes(0, Loader()) + room)
    for _ in range(2):
        with blocks.stream(view, 0, STEP) as parts:
            assert parts is None
        with blocks.block(view, 0):
            pass
        with blocks.stream(view, 1, STEP) as parts:
            assert parts is not None
            held = blocks.held
            assert sum(len(block.X) for block in parts) == view.partition(1).rows
        assert blocks.held < held
        assert (view.key, 0) in blocks._entries
    for other in (
        replace(view, split=Split(0, 0.5, False)),
        replace(view, skip_bad=True),
        replace(view, scaling=Whitening(np.zeros(COLUMNS), np.eye(COLUMNS))),
    ):
        with blocks.stream(other, 1, STEP) as parts:
            assert parts is None


def test_what_is_wrong_is_named_and_its_room_is_given_back(stores: dict[str, Path], tmp_path: Path) -> None:
    X, y, weight = columns()
    X[7777, 5] = np.nan
    group = zarr.open_group(str(tmp_path / "bad"), mode="w")
    for name, values in (("X", X), ("y", y), ("weight", weight)):
        chunks = (100, *values.shape[1:])
        group.create_array(name, shape=values.shape, chunks=chunks, dtype=values.dtype)[...] = values
    view = view_of(tmp_path / "bad")
    index = int(np.searchsorted(view.bounds, 7777, side="right")) - 1
    with pytest.raises(DataError) as expected:
        view.load(index)
    for threads in (1, 3):
        blocks = BlockCache(view.decoded_bytes(index) + 40_000, threads)
        with pytest.raises(DataError) as caught, blocks.stream(view, index, STEP) as parts:  # noqa: PT012
            assert parts is not None
            for _ in parts:
                pass
        assert str(caught.value) == str(expected.value)
        assert "column 'x5' is nan" in str(caught.value)
        assert "c/77/0, row 77 (global row 7777" in str(caught.value)
        assert blocks.held == 0
        assert blocks.loader._decoding == 0


def test_a_stream_that_is_left_is_closed(stores: dict[str, Path]) -> None:
    view = view_of(stores["foreign100"])
    blocks = BlockCache(view.decoded_bytes(0) + 20_000, 3)
    meter = Meter(blocks)
    with meter.stream(view, whole([0], np.diff(view.bounds))[0], STEP) as parts:
        assert parts is not None
        next(parts)
    assert blocks.held == 0
    assert blocks.loader._decoding == 0
    assert meter.rows == 0 or meter.rows % STEP == 0


def test_slots_share_a_budget_that_holds_one_stream_at_a_time(stores: dict[str, Path]) -> None:
    view = view_of(stores["foreign100"])
    room = stream_bytes(view, 0, STEP, Loader(2))
    assert room is not None
    blocks, rows = BlockCache(room + room // 2, 2), [0] * 4

    def scan(k: int) -> None:
        for index in range(view.partitions):
            with blocks.stream(view, index, STEP) as parts:
                if parts is None:
                    continue
                assert blocks.held <= blocks.budget
                rows[k] += sum(len(block.X) for block in parts)

    threads = [threading.Thread(target=scan, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert rows == [ROWS] * 4
    assert blocks.held == 0


def test_labels_of_what_comes_and_goes_are_read_once_where_there_is_room(stores: dict[str, Path]) -> None:
    view = view_of(stores["foreign100"])
    other = replace(view, scaling=None)
    expected, budget = view.load(1), view.decoded_bytes(1) - 1
    size = 12 * view.partition(1).rows
    for most, held in ((size - 1, 0), (size, size)):
        blocks, read = BlockCache(budget), []
        blocks._labels.most = most
        for _ in range(3):
            with blocks.stream(view, 1, STEP) as parts:
                assert parts is not None
                assert blocks.held <= budget
                seen = [(block.y, block.weight, block.bytes_read) for block in parts]
            for k, whole_of_it in enumerate((expected.y, expected.weight)):
                assert np.concatenate([part[k] for part in seen]).tobytes() == whole_of_it.tobytes()
            read.append(sum(part[2] for part in seen))
            assert blocks.held == blocks._labels.held == held
        assert read[0] == expected.bytes_read
        assert (read[1] < read[0]) is (held > 0)
        assert read[1] == read[2]
        with blocks.stream(other, 2, STEP) as parts:  # in the place of another view's
            assert parts is not None
            assert sum(len(block.X) for block in parts) == view.partition(2).rows
        assert blocks.held == held
        assert blocks._labels.get(view, 1) is None
        with blocks._changed:
            assert blocks._evict() is (held > 0)
        assert blocks.held == blocks._labels.held == 0


@pytest.mark.skipif(bool(compiled.missing()), reason=compiled.missing())
@pytest.mark.parametrize("start", [0.0, 30.0])
def test_a_sum_of_unchecked_rows_refuses_what_the_block_refuses(tmp_path: Path, start: float) -> None:
    X, y, _ = columns()
    X[7777, 5] = np.inf
    group = zarr.open_group(str(tmp_path / "bad"), mode="w")
    for name, values in (("X", X), ("y", y)):
        chunks = (100, *values.shape[1:])
        group.create_array(name, shape=values.shape, chunks=chunks, dtype=values.dtype)[...] = values
    source = open_dataset(str(tmp_path / "bad"))
    view = DataView(source.source, np.array([0, ROWS]), "float32", targets=Targets("binary", (0, 1)))
    with pytest.raises(DataError) as expected:
        view.load(0)
    work = GradientSum(
        LinearModel(COLUMNS, 1, BinaryCrossEntropy(), True), view, 0, "float64", 256, kernels=compiled.COMPILED
    )
    blocks, units = BlockCache(view.decoded_bytes(0) // 2), whole([0], np.diff(view.bounds))
    with pytest.raises(DataError) as caught:
        execute(blocks, work, (np.full(COLUMNS + 1, start),), 1, 0, units)
    assert str(caught.value) == str(expected.value)
    fine = replace(work, view=view_of_columns(tmp_path))
    nodes, _ = execute(blocks, fine, (np.full(COLUMNS + 1, np.inf),), 1, 0, units)
    assert not np.isfinite(nodes[0, 0].grad).all()  # a run that diverges is not refused here


def view_of_columns(folder: Path) -> DataView:
    X, y, _ = columns()
    group = zarr.open_group(str(folder / "fine"), mode="w")
    for name, values in (("X", X), ("y", y)):
        chunks = (100, *values.shape[1:])
        group.create_array(name, shape=values.shape, chunks=chunks, dtype=values.dtype)[...] = values
    source = open_dataset(str(folder / "fine")).source
    return DataView(source, np.array([0, ROWS]), "float32", targets=Targets("binary", (0, 1)))


@pytest.mark.parametrize("split", [None, Split(3, 0.3, validation=False)])
def test_blocks_that_come_and_go_read_their_labels_once(stores: dict[str, Path], split: Split | None) -> None:
    view = view_of(stores["foreign100"], split=split)
    expected = [view.load(index) for index in range(view.partitions)]
    blocks = BlockCache(view.all_bytes - 1)
    blocks._labels.most = blocks.budget
    for first in (True, False):
        for index, whole_of_it in enumerate(expected):
            with blocks._changed:
                while blocks._evict_block():
                    pass
            with blocks.block(view, index) as (entry, bytes_read):
                for got, wanted in zip(entry.block[:3], whole_of_it[:3], strict=True):
                    assert got.tobytes() == wanted.tobytes()
            assert (bytes_read == whole_of_it.bytes_read) is first
            assert bytes_read <= whole_of_it.bytes_read
            assert blocks.held <= blocks.budget
