"""Decoded blocks on a local disk: the same arrays, mapped; room, other data, other users, many workers, whole runs."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from problems import SIZES, files, run_on

from bigopt.core import codec
from bigopt.core.csr import CSR
from bigopt.core.errors import ConfError
from bigopt.data.cache import BlockCache
from bigopt.data.memory import from_arrays
from bigopt.data.scratch import NodeScratch, is_mapped
from bigopt.data.view import Block, DataView, Targets
from bigopt.fit import resume


def block(rows: int = 50, seed: int = 0, *, sparse: bool = False) -> Block:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 7)).astype(np.float32)
    weight = rng.uniform(size=rows)
    if not sparse:
        return Block(X, rng.integers(0, 3, size=rows), weight, 3, 1234)
    indptr = np.arange(0, 2 * rows + 1, 2)
    indices = np.sort(rng.permuted(np.tile(np.arange(7), (rows, 1)), axis=1)[:, :2], axis=1)
    return Block(CSR(X[:, :2].reshape(-1), indices.reshape(-1).astype(np.int32), indptr, 7), X[:, :1], None, 0, 99)


def same(left: Block, right: Block) -> bool:
    def arrays(b: Block) -> list[np.ndarray]:
        X = [b.X.data, b.X.indices, b.X.indptr] if isinstance(b.X, CSR) else [b.X]
        return [a for a in (*X, b.y, b.weight) if a is not None]

    pairs = list(zip(arrays(left), arrays(right), strict=True))
    return left.X.shape == right.X.shape and all(a.dtype == b.dtype and (a == b).all() for a, b in pairs)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_block_comes_back_mapped(tmp_path: Path, sparse: bool) -> None:
    scratch, mine = NodeScratch(tmp_path / "s", 10**6), block(sparse=sparse)
    assert scratch.get("k", 4) is None
    back = scratch.put("k", 4, mine)
    assert same(back, mine)
    assert (is_mapped(back), is_mapped(mine), back.skipped, back.bytes_read) == (True, False, mine.skipped, 0)
    data = back.X.data if sparse else back.X
    assert not data.flags.writeable
    assert data.ctypes.data % 64 == 0
    assert same(NodeScratch(tmp_path / "s", 10**6).get("k", 4), mine)  # another process of the node
    assert (Path(tmp_path / "s").stat().st_mode & 0o777, scratch.has("k", 4), scratch.has("k", 5)) == (
        0o700,
        True,
        False,
    )


def test_what_came_first_stays_and_other_data_makes_room(tmp_path: Path) -> None:
    one = block()
    probe = NodeScratch(tmp_path / "probe", 10**6)
    probe.put("k", 0, one)
    size = next((tmp_path / "probe").glob("*.block")).stat().st_size
    scratch = NodeScratch(tmp_path / "s", 3 * size + 10)
    for index in range(5):
        assert is_mapped(scratch.put("old", index, one)) == (index < 3)
    for index in range(3):
        os.utime(tmp_path / "s" / f"old-{index:08d}.block", (index, index))
    assert is_mapped(scratch.put("new", 0, one))
    assert [scratch.has("old", i) for i in range(3)] == [False, True, True]
    assert sum(p.stat().st_size for p in (tmp_path / "s").glob("*.block")) <= 3 * size


def test_text_labels_stay_in_memory(tmp_path: Path) -> None:
    mine = block()._replace(y=np.array(["a"] * 50))
    assert NodeScratch(tmp_path / "s", 10**6).put("k", 0, mine) is mine


def test_a_torn_file_is_no_block(tmp_path: Path) -> None:
    scratch = NodeScratch(tmp_path / "s", 10**6)
    scratch.put("k", 0, block())
    path = next((tmp_path / "s").glob("*.block"))
    path.write_bytes(path.read_bytes()[:-64])
    assert scratch.get("k", 0) is None
    path.write_bytes(b"")
    assert scratch.get("k", 0) is None


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfError, match="other users can write to it"):
        NodeScratch(tmp_path / "open", 10**6)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfError, match="cannot be made"):
        NodeScratch(tmp_path / "file", 10**6)


def test_the_cache_counts_mapped_blocks_for_next_to_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = from_arrays(rng.normal(size=(800, 20)), rng.normal(size=800), partition_rows=100)
    view = DataView(data.source, np.arange(9) * 100, "float64", targets=Targets("values"))
    mapped = replace(view, scratch=(str(tmp_path / "s"), 10**7))
    assert mapped.key == view.key
    blocks = BlockCache(3 * view.decoded_bytes(0))
    for _ in range(2):
        for index in range(8):
            with blocks.block(mapped, index) as (entry, _):
                assert (entry.block.X == view.load(index).X).all()
    assert blocks.held == 8 * 100 * 8
    other = BlockCache(2 * view.decoded_bytes(0))
    with other.block(mapped, 5) as (entry, read):
        assert (is_mapped(entry.block), read) == (True, 0)


def _fill(folder: str, number: int) -> None:
    scratch = NodeScratch(Path(folder), 10**7)
    for index in range(20):
        found = scratch.put("k", (index + 7 * number) % 20, block(seed=(index + 7 * number) % 20))
        assert is_mapped(found)


def test_workers_write_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(str(tmp_path / "s"), k)) for k in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    scratch = NodeScratch(tmp_path / "s", 10**7)
    assert all(same(scratch.get("k", index), block(seed=index)) for index in range(20))
    assert not [p for p in (tmp_path / "s").iterdir() if p.name.startswith(".") and p.name != ".lock"]


@pytest.mark.parametrize("backend", ["local", pytest.param("dask", marks=pytest.mark.slow)])
def test_a_run_has_the_same_bits_with_a_scratch(tmp_path: Path, backend: str) -> None:
    data = files(tmp_path, "four", "zarr")
    keys = ["model.name=softmax", "batch.size=50", "stop.epochs=2", "backend.workers=2", "data.validation=0.2"]
    plain = run_on(data, tmp_path / "a", *keys)
    scratch = tmp_path / "scratch"
    place = f"data.scratch={{dir: {scratch}, size: 10MB}}"
    for _ in range(2):
        mapped = run_on(data, tmp_path / "b", *keys, f"backend.name={backend}", place)
        assert mapped["params_sha256"] == plain["params_sha256"]
    held = sum(1 for size in SIZES if size)
    assert held <= len(list(scratch.glob("*.block"))) <= 2 * held  # training and validation rows


def test_what_auto_became_stays_at_a_resume(tmp_path: Path) -> None:
    """Rows that fit neither memory nor scratch are sampled by blocks, with a larger scratch too."""
    data = files(tmp_path, "four", "zarr")
    keys = ["model.name=softmax", "batch.size=50", "data.memory=18KB", "backend.workers=1"]
    run = run_on(data, tmp_path / "a", *keys, "stop.epochs=1")
    facts = codec.load(Path(run["run"]) / "facts.npz")
    assert facts.sampling == "block"
    rest = resume(Path(run["run"]), ["stop.epochs=2", f"data.scratch={{dir: {tmp_path / 's'}, size: 1GB}}"])
    whole = run_on(data, tmp_path / "b", *keys, "stop.epochs=2")
    assert rest["params_sha256"] == whole["params_sha256"]
    other = run_on(data, tmp_path / "c", *keys, "stop.epochs=2", f"data.scratch={{dir: {tmp_path / 's'}, size: 1GB}}")
    assert codec.load(Path(other["run"]) / "facts.npz").sampling == "permuted"
