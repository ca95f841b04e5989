"""hogwild on real workers: several threads share a vector inside each worker, and the workers' vectors are averaged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import MODELS, run, run_on, table

from bigopt import sessions
from bigopt.backends.base import Session
from bigopt.config import load_conf
from bigopt.data.writer import DatasetWriter

pytestmark = pytest.mark.slow
KIND, LOGISTIC = MODELS["logistic"]
KEYS = [*LOGISTIC, "strategy.name=hogwild", "stop.epochs=3", "schedule.name=cosine", "batch.lanes=0"]
ROWS = 2400


class Kept:
    """A session that outlives a run."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def close(self) -> None:
        """Stay open."""


@pytest.fixture(scope="module", params=["dask", "spark"])
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[str, Session]]:
    name = request.param
    pytest.importorskip({"dask": "distributed", "spark": "pyspark"}[name])
    conf = load_conf([], [f"backend.name={name}", "backend.workers=2", "data.memory=200MB"])
    session = sessions.open_session(conf, name, "hogwild")
    yield name, session
    session.close()


def write(folder: Path) -> Path:
    X, y = table(KIND, ROWS)
    path = folder / "rows.zarr"
    names = [f"x{i}" for i in range(X.shape[1])]
    with DatasetWriter(str(path), format="zarr", columns=names, target=["y"], partition_rows=[ROWS // 8] * 8) as writer:
        writer.append(X, y)
    return path


def told(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(result["run"]) / "result.json").read_text())
    return found


@pytest.mark.parametrize(
    "kind",
    [
        ["batch.size=4", "schedule.learning_rate=0.1", "run.kernels=numpy"],
        ["batch.size=1", "schedule.learning_rate=0.1", "model.init=zeros"],
    ],
    ids=["batches", "rows"],
)
def test_threads_of_a_worker_share_a_vector(
    tmp_path: Path, engine: tuple[str, Session], kind: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind[0] == "batch.size=1":
        pytest.importorskip("numba")
    data, (name, session) = write(tmp_path), engine
    monkeypatch.setattr(sessions, "open_session", lambda *_: Kept(session))
    keys = [*KEYS, *kind, f"backend.name={name}", "backend.workers=2"]
    one, two = (run_on(data, tmp_path, *keys, *more) for more in ((), ("strategy.threads=2",)))
    assert (one["steps"], one["epochs"]) == (two["steps"], two["epochs"])
    assert two["loss"] == pytest.approx(one["loss"], rel=0.02)
    assert one["loss"] < 0.5 * np.log(2)
    assert told(one)["tau"]["max"] == 1  # null: one thread a worker
    if kind[0] != "batch.size=1":  # every gradient is counted there: some were read without several others
        assert sum(told(two)["tau"]["histogram"].values()) == 2 * two["steps"]  # each worker takes half of each batch
        assert told(two)["tau"]["max"] > 1


def test_threads_of_the_local_backend_are_the_workers_unless_named(tmp_path: Path) -> None:
    keys = [*KEYS, "batch.size=20", "schedule.learning_rate=0.1"]
    one, same = (
        run(tmp_path, KIND, *keys, f"backend.workers={workers}", *threads)
        for workers, threads in ((1, ()), (3, ("strategy.threads=1",)))
    )
    assert one["params_sha256"] == same["params_sha256"]
