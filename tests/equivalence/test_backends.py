"""Same bits: local, Dask and Spark, one to three workers, Zarr and Parquet twins, every model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import MODELS, SIZES, files, run, run_on

from bigopt import sessions
from bigopt.backends.base import Session
from bigopt.config import load_conf
from bigopt.core.csr import CSR
from bigopt.core.sums import Sums
from bigopt.core.vectors import SparseVector
from bigopt.data.columns import x_names
from bigopt.data.memory import from_arrays
from bigopt.data.writer import DatasetWriter
from bigopt.facts import Datasets

MINI = ["optimizer.name=adam", "batch.size=64", "stop.epochs=2", "data.validation=0.1"]
ENGINES = [(name, workers) for name in ("local", "dask", "spark") for workers in (1, 2, 3)]


class Kept:
    """A session that outlives a run: several runs of a test share its workers."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.arrivals: list[object] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def wait(self) -> object:
        arrival = self._session.wait()
        self.arrivals.append(arrival)
        return arrival

    def close(self) -> None:
        """Stay open."""

    def end(self) -> None:
        self._session.close()


@pytest.fixture(scope="module", params=ENGINES, ids=lambda p: f"{p[0]}-{p[1]}")
def session(request: pytest.FixtureRequest) -> Iterator[Kept]:
    name, workers = request.param
    conf = load_conf([], [f"backend.name={name}", f"backend.workers={workers}", "data.memory=200MB"])
    kept = Kept(sessions.open_session(conf, name, "equivalence"))
    yield kept
    kept.end()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("data")
    kinds = {kind for kind, _ in MODELS.values()}
    return {(kind, form): files(folder, kind, form) for kind in kinds for form in ("zarr", "parquet")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hash of each model on arrays in memory, local, one thread."""
    folder = tmp_path_factory.mktemp("expected")
    return {
        name: run(folder, kind, *keys, *MINI, "backend.workers=1")["params_sha256"]
        for name, (kind, keys) in MODELS.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zarr", "parquet"])
def test_every_model_has_the_same_bits_on_every_backend(session, data, expected, tmp_path, monkeypatch, form):
    monkeypatch.setattr(sessions, "open_session", lambda *args: session)
    hashes = {}
    for name, (kind, keys) in MODELS.items():
        result = run_on(data[kind, form], tmp_path, *keys, *MINI)
        hashes[name] = result["params_sha256"]
    assert hashes == expected


SPARSE = {
    "logistic": ["model.name=logistic", "model.l2=0.01", *MINI],
    "driver": ["model.name=logistic", "model.l2=0.01", *MINI, "model.backprop=driver"],
    "lbfgs": ["model.name=logistic", "model.l2=0.01", "optimizer.name=lbfgs", "stop.steps=4"],
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sparse twins, in memory and on disk: 300 rows of 12 values over 20,000 columns."""
    pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(0)
    n, each, d = 300, 12, 20_000
    indices = np.sort(rng.integers(0, d // each, (n, each)) + np.arange(each) * (d // each), axis=1)
    X = CSR(rng.normal(size=n * each), indices.ravel().astype(np.int32), np.arange(n + 1) * each, d)
    y = rng.choice(["no", "yes"], n)
    twins: dict[str, Any] = {"memory": from_arrays(X, y, partition_rows=50)}
    for form in ("zarr", "parquet"):
        path = tmp_path_factory.mktemp("words") / form
        options: dict[str, Any] = {"columns": x_names(d), "target": ["y"], "partition_rows": 50, "layout": "sparse"}
        with DatasetWriter(str(path), format=form, dtype="float64", **options) as writer:  # type: ignore[arg-type]
            writer.append(X, y)
        twins[form] = path
    return twins


@pytest.fixture(scope="module")
def expected_of_words(words: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, data = tmp_path_factory.mktemp("expected"), Datasets(words["memory"], None)
    return {
        name: run(folder, "", *keys, "backend.workers=1", data=data)["params_sha256"] for name, keys in SPARSE.items()
    }


@pytest.mark.slow
def test_sparse_rows_have_the_same_bits_on_every_backend(session, words, expected_of_words, tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "open_session", lambda *args: session)
    session.arrivals.clear()
    hashes = {
        name: run_on(words["parquet" if name == "lbfgs" else "zarr"], tmp_path, *keys)["params_sha256"]
        for name, keys in SPARSE.items()
    }
    assert hashes == expected_of_words
    assert expected_of_words["logistic"] == expected_of_words["driver"]
    sums = [v for a in session.arrivals for v in (a.nodes or {}).values() if isinstance(v, Sums)]
    assert any(isinstance(v.grad, SparseVector) for v in sums)


@pytest.mark.slow
def test_a_round_costs_at_most_one_message_a_slot_and_few_vectors(session, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "open_session", lambda *args: session)
    session.arrivals.clear()
    kind, keys = MODELS["ridge"]
    more = ["optimizer.name=adam", "batch.size=64", "batch.lanes=0", "stop.epochs=3"]
    run_on(data[kind, "zarr"], tmp_path, *keys, *more)
    rounds: dict[int, int] = {}
    for arrival in session.arrivals:
        rounds[arrival.order.ticket] = rounds.get(arrival.order.ticket, 0) + 1
        leaves = arrival.order.leaves
        assert len(arrival.nodes) <= max(1, 2 * (leaves - 1).bit_length())
    assert max(rounds.values()) <= session.slots
    epochs = [arrival for arrival in session.arrivals if arrival.order.ticket > 1]
    assert sum(a.stats.bytes_read for a in session.arrivals) > 0
    later = epochs[len(epochs) // 3 :]
    assert sum(a.stats.bytes_read for a in later) == 0  # decoded once: nothing is read after the first epoch


def test_adding_in_order_of_arrival_would_change_the_hash(tmp_path, monkeypatch):
    """The mutation: a fold that merges whatever comes, as it comes."""
    from bigopt.core import tree

    kind, keys = MODELS["mlp_regression"]
    more = [*keys, "optimizer.name=adam", "batch.size=full", "stop.steps=3", "backend.workers=1"]
    right = run(tmp_path, kind, *more)["params_sha256"]

    def add(self: tree.Fold, node: tree.Node, value: object) -> None:
        root = (tree.height(self.n), 0)
        self._open[root] = self._merge(self._open[root], value) if root in self._open else value

    monkeypatch.setattr(tree.Fold, "add", add)
    monkeypatch.setattr(tree, "cover", lambda start, stop, n: ((tree.height(n), 0),))
    assert len([s for s in SIZES if s]) == 7
    assert run(tmp_path, kind, *more)["params_sha256"] != right
