"""What workers keep between orders: versions, runs, threads."""

from __future__ import annotations

import threading

import numpy as np

from bigopt.core import codec
from bigopt.data.cache import BlockCache
from bigopt.data.kept import Kept, Missing


def test_the_last_two_versions_are_kept() -> None:
    kept = Kept()
    for version in range(1, 6):
        kept.put("run", "residual", 3, version, np.full(2, version))
    found = [kept.get("run", "residual", 3, version) for version in range(7)]
    assert [None if v is None else v[0] for v in found] == [None, None, None, None, 4, 5, None]


def test_an_order_that_comes_again_late_takes_nothing_away() -> None:
    kept = Kept()
    for version in (1, 2, 3, 1):
        kept.put("run", "residual", 0, version, version)
    assert [kept.get("run", "residual", 0, v) for v in (1, 2, 3)] == [None, 2, 3]
    kept.put("run", "residual", 0, 3, "again")
    assert kept.get("run", "residual", 0, 3) == "again"
    assert kept.get("run", "residual", 0, 2) == 2


def test_names_and_numbers_are_apart() -> None:
    kept = Kept()
    kept.put("run", "residual", 0, 1, "a")
    kept.put("run", "residual", 1, 7, "b")
    kept.put("run", "block", 0, 1, "c")
    assert kept.get("run", "residual", 0, 1) == "a"
    assert kept.get("run", "residual", 1, 7) == "b"
    assert kept.get("run", "block", 0, 1) == "c"
    assert kept.get("run", "block", 1, 1) is None


def test_another_run_gives_up_the_first_ones_values() -> None:
    kept = Kept()
    kept.put("first", "residual", 0, 1, "a")
    assert kept.get("second", "residual", 0, 1) is None
    assert kept.get("first", "residual", 0, 1) == "a"  # asking takes nothing away
    kept.put("second", "residual", 1, 1, "b")
    assert kept.get("first", "residual", 0, 1) is None
    kept.drop()
    assert kept.get("second", "residual", 1, 1) is None


def test_threads_share_it() -> None:
    kept = Kept()

    def work(index: int) -> None:
        for version in range(200):
            kept.put("run", "x", index, version, (index, version))
            assert kept.get("run", "x", index, version) == (index, version)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [kept.get("run", "x", i, 199) for i in range(8)] == [(i, 199) for i in range(8)]


def test_a_cache_owns_one_and_missing_travels() -> None:
    blocks = BlockCache(10)
    assert blocks.kept is blocks.kept
    assert blocks.kept is not BlockCache(10).kept
    assert codec.loads(codec.dumps(Missing("residual", 3, 7))) == Missing("residual", 3, 7)
