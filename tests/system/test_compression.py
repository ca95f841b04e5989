"""Compressed gradients on real workers: the bits of the local run, also where a worker is killed; what travels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from killer import Killer
from problems import MODELS, files, run_on

from bigopt import sessions

KIND, _ = MODELS["mlp_classes"]
KEYS = [
    *("model.name=mlp", "model.hidden=[256]", "data.task=classification"),
    *("optimizer.name=momentum", "schedule.learning_rate=0.02", "batch.size=40", "stop.steps=60"),
    *("strategy.compression.name=top_k", "strategy.replicas=2", "backend.workers=2"),
]


def ledger(result: dict) -> dict:
    return json.loads((Path(result["run"]) / "result.json").read_text())["ledger"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files(tmp_path_factory.mktemp("data"), KIND, "zarr")


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_on(data, tmp_path_factory.mktemp("local"), *KEYS, "backend.name=local")["params_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dask", "spark"])
def test_the_bits_of_local_and_few_bytes_up(backend: str, data: Path, expected: str, tmp_path: Path) -> None:
    found = run_on(data, tmp_path, *KEYS, f"backend.name={backend}")
    assert found["params_sha256"] == expected
    count = ledger(found)
    assert count["lost"] == 0
    assert count["bytes_received"] < 0.5 * count["bytes_uncoded"]  # 18 kB of params: headers count
    assert count["bytes_sent"] >= 60 * 8 * 2564  # params, once a step to every worker that is there


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dask", "spark"])
def test_a_killed_worker_changes_nothing(
    backend: str, data: Path, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sessions.open_session
    made: list[Killer] = []

    def opened(*args: object) -> Killer:
        made.append(Killer(real(*args), at=(20, 50)))
        return made[0]

    monkeypatch.setattr(sessions, "open_session", opened)
    found = run_on(data, tmp_path, *KEYS, f"backend.name={backend}")
    assert len(made[0].killed) == 2
    assert found["params_sha256"] == expected
    assert ledger(found)["lost"] > 0
