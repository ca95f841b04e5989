"""Line searches of the linear family keep their margins: further rounds do not touch X, and no bit depends on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from problems import MODELS, run, run_on

from bigopt import work_second
from bigopt.data.cache import BlockCache
from bigopt.data.memory import from_arrays
from bigopt.data.meter import Meter
from bigopt.data.view import DataView
from bigopt.data.writer import DatasetWriter
from bigopt.models.build import build_model

SEARCH = ["optimizer.name=gd", "schedule.name=exact_line_search", "stop.steps=3", "run.metrics_every_steps=1"]


@pytest.fixture
def passes(monkeypatch):
    """Count the blocks of X that margins are computed from."""
    found: list[int] = []
    compute = work_second.margins

    def counted(model, params, direction, X):
        found.append(len(X))
        return compute(model, params, direction, X)

    monkeypatch.setattr(work_second, "margins", counted)
    return found


def disable(monkeypatch):
    monkeypatch.setattr(BlockCache, "note", lambda *_: None)


@pytest.mark.parametrize("name", ["logistic", "softmax", "huber"])
def test_x_is_read_once_a_search_and_the_bits_are_those_without_notes(tmp_path, monkeypatch, passes, name):
    kind, keys = MODELS[name]
    results, counts = [], []
    for workers in (1, 3):
        results.append(run(tmp_path, kind, *keys, *SEARCH, f"backend.workers={workers}"))
        counts.append(sum(passes))
        passes.clear()
    disable(monkeypatch)
    for workers in (1, 2):
        results.append(run(tmp_path, kind, *keys, *SEARCH, f"backend.workers={workers}"))
        counts.append(sum(passes))
        passes.clear()
    assert len({r["params_sha256"] for r in results}) == 1
    rows, steps = 451, 3
    searches = results[0]["rounds"] - 2 - steps  # less facts, the final evaluation and the gradients
    assert searches >= 2 * steps
    assert counts == [rows * steps] * 2 + [rows * searches] * 2


def test_what_does_not_fit_the_memory_is_not_read_again_for_further_rounds(tmp_path, monkeypatch):
    """Blocks of 2.6 MB in 1.2 MB: a step reads what a gradient and one line need, however many rounds it takes."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(16000, 20))
    y = (X @ rng.normal(size=20) + rng.logistic(size=16000) > 0) * 1
    names = [f"x{i}" for i in range(20)]
    with DatasetWriter(str(tmp_path / "a.zarr"), format="zarr", columns=names, target=["y"], partition_rows=1000) as w:
        w.append(X, y)
    keys = ["model.name=logistic", "data.memory=1200000", *SEARCH, "backend.workers=1"]
    kept = run_on(tmp_path / "a.zarr", tmp_path, *keys)
    disable(monkeypatch)
    lost = run_on(tmp_path / "a.zarr", tmp_path, *keys)
    assert lost["params_sha256"] == kept["params_sha256"]
    assert lost["rounds"] == kept["rounds"]

    def read(result: dict) -> np.ndarray:
        text = (Path(result["run"]) / "metrics.jsonl").read_text()
        return np.diff([json.loads(line)["bytes_read"] for line in text.splitlines()])

    rounds = (kept["rounds"] - 2) / 3
    assert rounds > 3
    assert read(kept).max() <= 2.1 * X.nbytes  # y is read too
    assert read(lost).min() >= 2.4 * X.nbytes


def view(rows: int = 600, order: str = "C") -> DataView:
    rng = np.random.default_rng(1)
    X = np.array(rng.normal(size=(rows, 4)), order=order)
    data = from_arrays(X, rng.normal(size=rows), None, partition_rows=[rows // 2, rows // 2])
    return DataView(data.source, np.array([0, rows // 2, rows]), "float64")


def test_a_note_is_found_by_its_digest_and_charged():
    v, cache = view(), BlockCache(10**6)
    unit = np.array([0, -1, 0, 300])
    assert cache.recall(v, unit, b"a") is None
    note = cache.note(v, unit, b"a", 1000)
    assert cache.held == 1000
    note.parts.append(7)
    assert cache.recall(v, unit, b"a") is None  # not complete
    note.complete = True
    assert cache.recall(v, unit, b"a") == [7]
    assert cache.recall(v, unit, b"b") is None
    assert cache.recall(v, np.array([0, -1, 0, 200]), b"a") is None
    assert cache.note(v, unit, b"b", 500) is not None  # takes the place of the first
    assert cache.held == 500
    assert cache.note(v, np.array([1, -1, 0, 300]), b"b", 500_000) is None  # more than half of the budget
    assert cache.held == 500


def test_blocks_give_way_to_notes_and_notes_to_pinned_blocks():
    v = view(order="F")  # rows in C order would be used where they are
    size = v.decoded_bytes(0)
    cache = BlockCache(int(3.5 * size))
    with cache.block(v, 0), cache.block(v, 1):
        pass
    assert cache.held == 2 * size
    assert cache.note(v, np.array([0, -1, 0, 300]), b"a", int(1.7 * size)) is not None
    assert cache.held == size + int(1.7 * size)  # a block went
    with cache.block(v, 0), cache.block(v, 1):
        assert cache.held == 2 * size  # decoding takes two rooms: the note went
    assert cache.recall(v, np.array([0, -1, 0, 300]), b"a") is None


def test_sums_from_a_note_are_those_of_the_rows_to_the_bit(passes):
    v = view()
    model = build_model("linear", features=4, targets=1, classes=None, loss="huber")
    rng = np.random.default_rng(2)
    params, direction = rng.normal(size=(2, 5))
    work = work_second.LineSum(model, v, 0, 64)
    unit, meter = np.array([1, -1, 0, 300]), Meter(BlockCache(10**6))

    def ask(steps: list[float], to: Meter) -> bytes:
        found = work(work.prepare((params, direction, np.array(steps))), unit, to)
        assert found.rows == 300
        return found.values.tobytes() + found.slopes.tobytes() + found.curves.tobytes()

    ask([0.0, 1.0], meter)
    assert sum(passes) == 300
    again = ask([0.3, 0.7, 2.0], meter)
    assert sum(passes) == 300
    assert meter.rows == 600
    assert again == ask([0.3, 0.7, 2.0], Meter(BlockCache(10**6)))
    assert sum(passes) == 600
    direction = 2.0 * direction
    ask([0.0], meter)
    assert sum(passes) == 900
