"""Memory that is used again, helpers that bring chunks side by side, and rows that are decoded to their place."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigopt.core.errors import DataError
from bigopt.data.files import RemoteFiles
from bigopt.data.loading import REQUESTS, Loader, Memory
from bigopt.data.open import open_dataset
from bigopt.data.preparation import Scaling
from bigopt.data.streaming import stream_bytes
from bigopt.data.view import DataView, Split
from bigopt.data.zarrplain import all_finite

from .helpers import table, write

MB = 1 << 20


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_comes_back_when_the_last_row_that_lies_in_it_is_gone():
    memory = Memory()
    first = memory.take(MB)
    rows = first.view(np.float32).reshape(-1, 64)
    kept, where = rows[10:20], address(first)
    del first, rows
    assert memory.spare == 0
    second = memory.take(MB)
    assert address(second) != where  # somebody still looks at the first
    kept[...] = 7
    second[...] = 1
    assert (kept == 7).all()
    del kept
    assert memory.spare == MB
    assert address(memory.take(MB - 1000)) == where


def test_what_is_lent_and_what_waits_are_no_more_than_was_lent_at_once():
    memory, rng, lent = Memory(), np.random.default_rng(0), []
    most = now = 0
    for _ in range(300):
        if lent and rng.random() < 0.5:
            now -= lent.pop(int(rng.integers(len(lent)))).base.nbytes
        else:
            lent.append(memory.take(int(rng.integers(1, 40)) << 16))
            now = sum(piece.base.nbytes for piece in lent)
        most = max(most, now)
        assert now + memory.spare <= most
    memory.keep(MB)
    assert memory.spare <= MB
    lent.clear()
    memory.keep(0)
    assert memory.spare == 0


def together(count: int) -> Callable[[], None]:
    """Return a job that ends when `count` threads are in it at once."""
    barrier = threading.Barrier(count)
    return lambda: (barrier.wait(20), None)[1]


def test_helpers_work_beside_the_caller_as_many_as_may():
    for threads, waits, width in ((1, True, REQUESTS), (3, False, 3), (2, True, REQUESTS)):
        loader, names = Loader(threads), set[str]()
        loader.each([_noting(together(width), names)] * width * 3, waits=waits)
        assert len(names) == width
    loader, names = Loader(1), set()
    loader.each([_noting(lambda: None, names)] * 50, waits=False)
    assert names == {threading.current_thread().name}


def _noting(job: Callable[[], None], names: set[str]) -> Callable[[], None]:
    def noting() -> None:
        names.add(threading.current_thread().name)
        job()

    return noting


def test_a_helper_leaves_when_another_load_wants_the_core():
    loader, busy, most = Loader(2), [0], [0]
    lock = threading.Lock()

    def job() -> None:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], loader._decoding)
        sum(range(2000))
        with lock:
            busy[0] -= 1

    callers = [threading.Thread(target=lambda: loader.each([job] * 200, waits=False)) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert loader._decoding == 0
    assert most[0] <= 4


@pytest.mark.parametrize("waits", [False, True])
def test_the_first_error_in_order_is_raised_and_what_had_begun_has_ended(waits):
    loader, running = Loader(3), [0]

    def job(k: int) -> None:
        running[0] += 1
        try:
            if k >= 5:
                raise DataError(f"chunk {k}")
        finally:
            running[0] -= 1

    for _ in range(20):
        jobs = [lambda k=k: job(k) for k in range(40)]
        with pytest.raises(DataError, match="chunk 5$"):
            loader.each(jobs, waits=waits)
        assert running == [0]
        assert loader._decoding == 0


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """100 rows by 6 columns: by bigopt, and by a stranger in chunks that do not divide them, behind each codec."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    root = tmp_path_factory.mktemp("stores")
    X, y, weight = table(rows=100, columns=6)
    write(root / "ours", "zarr", X, y, weight, partition_rows=40)
    kinds = {"raw": [], "crc": [Crc32cCodec()], "zstd": [ZstdCodec()], "blosc": [BloscCodec()]}
    for name, codecs in kinds.items():
        for columns in (6, 4):
            group = zarr.open_group(str(root / f"{name}{columns}"), mode="w")
            for key, values, chunks in (("X", X, (15, columns)), ("y", y, (15,))):
                group.create_array(key, shape=values.shape, chunks=chunks, dtype=values.dtype, compressors=codecs)[
                    ...
                ] = values
    return {path.name: path for path in root.iterdir()}


NAMES = ["ours", *(f"{name}{columns}" for name in ("raw", "crc", "zstd", "blosc") for columns in (6, 4))]


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_rows_decoded_to_their_place_are_those_of_the_pieces(stores: dict[str, Path], name: str):
    dataset = open_dataset(str(stores[name]))
    bounds = np.array([0, *(p.stop for p in dataset.partitions)])
    loader = Loader(3)
    splits = (None, Split(3, 0.3, False), Split(3, 0.3, True))
    for dtype, split in ((d, s) for d in ("float32", "float64") for s in splits):
        view = DataView(dataset.source, bounds, dtype, split=split, scaling=Scaling(np.full(6, 0.5), np.full(6, 2.0)))
        pieces = replace(view, skip_bad=True)  # rows that may be left out come in pieces
        for index in range(view.partitions):
            room = view.loading_bytes(index, loader)
            assert room <= view.decoded_bytes(index)
            got, expected = view.load(index, loader), pieces.load(index)
            assert got.X.tobytes() == expected.X.tobytes()
            assert got.X.flags.c_contiguous
            assert got.X.dtype == dtype
            assert got.y.tobytes() == expected.y.tobytes()
            assert (got.weight is None) == (expected.weight is None)
            assert got.weight is None or got.weight.tobytes() == expected.weight.tobytes()
            assert got.bytes_read == expected.bytes_read
    del got
    gc.collect()
    used = loader.memory.spare
    assert 0 < used < 1 << 20


def test_finite_values_whose_squares_are_not_pass_and_others_do_not():
    values = np.full((300, 500), 1e30, dtype=np.float32)
    assert all_finite(values)
    assert all_finite(values[:, ::2])
    for bad in (np.nan, np.inf, -np.inf):
        for at in ((0, 0), (299, 499), (150, 250)):
            values = np.ones((300, 500), dtype=np.float32)
            values[at] = bad
            assert not all_finite(values)
            assert not all_finite(values[:, ::-1])


@dataclass
class Slow:
    """A file system that answers for chunks of X once so many are asked for together, and knows how many it had."""

    wanted: int
    now: int = 0
    most: int = 0
    requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def cat_file(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        with self.lock:
            self.now, self.requests = self.now + 1, self.requests + 1
            self.most = max(self.most, self.now)
        end_of_patience = time.monotonic() + 5.0
        while "/X/c/" in path and self.most < self.wanted and time.monotonic() < end_of_patience:
            time.sleep(0.001)
        with self.lock:
            self.now -= 1
        return Path(path).read_bytes()[start:end]


@pytest.mark.parametrize("name", ["ours", "zstd6", "raw6"])
def test_the_chunks_of_a_partition_are_asked_for_together(stores: dict[str, Path], name: str) -> None:
    dataset = open_dataset(str(stores[name]))
    view = DataView(dataset.source, np.array([0, 100]), "float32")
    chunks = len(list((stores[name] / "X" / "c").glob("*/*")))
    assert chunks > 1
    expected, slow = view.load(0), Slow(min(chunks, REQUESTS))
    dataset.source.__dict__["_files"] = RemoteFiles(slow, str(stores[name]), "slow://bucket/d")
    got = view.load(0, Loader(1))
    assert got.X.tobytes() == expected.X.tobytes()
    assert got.y.tobytes() == expected.y.tobytes()
    assert slow.most == min(chunks, REQUESTS)
    assert slow.now == 0
    assert stream_bytes(view, 0, 1, Loader(1)) is None
    path = next((stores[name] / "X" / "c").glob("3/*"), None) or next((stores[name] / "X" / "c").glob("1/*"))
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    try:
        with pytest.raises(DataError, match=f"slow://bucket/d/X/c/{path.parent.name}/0"):
            view.load(0, Loader(1))
    finally:
        path.write_bytes(good)
    assert slow.now == 0
