"""Sums that workers add among themselves: the bits and counts of a Reduce on the driver, whoever is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probes import MEMORY, SIZES, Recorder, same
from problems import files, run, run_on

from bigopt.backends.channel import Hub, serve
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.local import LocalSession
from bigopt.backends.peers import Exchange, FindPeer
from bigopt.backends.peers_round import Peers
from bigopt.core.sums import Sums
from bigopt.core.vectors import dense
from bigopt.data.plan import homes, whole
from bigopt.data.synthetic import SyntheticSource
from bigopt.data.view import DataView, Targets
from bigopt.models.linear import LinearModel
from bigopt.models.losses import SquaredLoss
from bigopt.work import GradientSum

UNITS = whole(np.arange(len(SIZES)), SIZES)


def gradient(dtype: str) -> GradientSum:
    source = SyntheticSource(3, 8, dtype=dtype)
    view = DataView(source, np.cumsum([0, *SIZES]), dtype, targets=Targets("values"))
    return GradientSum(LinearModel(8, 1, SquaredLoss()), view, 5, "float64", 16)


WORK = gradient("float64")
PARAMS = np.linspace(-1.0, 1.0, 9) / 7


def one_round(session: Any, rounds: Rounds, slots: int, work: GradientSum = WORK, params: np.ndarray = PARAMS) -> Sums:
    root = rounds.run(session, work, (params,), UNITS, lambda _: homes(SIZES, slots)[UNITS[:, 0]], "step 1")
    return root._replace(grad=dense(root.grad).copy())


def among(retries: int = 3, **more: Any) -> Rounds:
    rounds = Rounds(Ledger(), retries)
    rounds.peers = Peers(always=True, patience=20.0, **more)
    return rounds


def expected(work: GradientSum = WORK, params: np.ndarray = PARAMS) -> Sums:
    session = LocalSession(1, MEMORY)
    root = one_round(session, Rounds(Ledger(), 0), 1, work, params)
    session.close()
    return root


def workers(hub: Hub, count: int) -> None:
    for slot in range(count):
        keys = (hub.addresses, hub.key, MEMORY, f"w{slot}")
        threading.Thread(target=serve, args=keys, daemon=True).start()
    hub.wait_for_workers(count)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(3, timeout=30.0)
    workers(hub, 3)
    yield hub
    hub.close()


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("dtype", ["float64", "float32"])  # gradients of single blocks of float32 are narrow
def test_a_round_among_workers_has_the_bits_and_counts_of_one_on_the_driver(hub, slots, dtype):
    work, rounds, recorder = gradient(dtype), among(), Recorder(hub)
    for k in range(3):
        params = PARAMS * (k + 1)
        assert same(one_round(recorder, rounds, slots, work, params), expected(work, params)), k
    ledger = rounds.ledger
    assert ledger.rounds == 3
    assert ledger.accepted == ledger.planned == ledger.executed == 3 * len(SIZES)
    assert ledger.rows == 3 * SIZES.sum()
    assert (ledger.lost, ledger.duplicates) == (0, 0)
    assert sum(isinstance(order.work, FindPeer) for order in recorder.orders) == slots  # once, not once a round
    exchanges = [order for order in recorder.orders if isinstance(order.work, Exchange)]
    assert len(exchanges) == 3 * slots
    down = [order.inputs[0] for order in exchanges[:slots]]
    assert np.concatenate(down).tobytes() == PARAMS.tobytes()  # the driver sends p numbers, and receives p
    up = [a.nodes for a in recorder.arrivals if isinstance(a.order.work, Exchange)][:slots]
    assert sum(len(dense(value.grad)) for nodes in up for value in nodes.values()) == 9


KEYS = [
    "model.name=mlp",
    "data.task=classification",
    "model.hidden=[6]",
    "optimizer.name=adam",
    "batch.size=64",
    "batch.lanes=4",
]


@pytest.mark.slow
def test_a_run_on_dask_has_the_bits_of_a_local_one(tmp_path):
    path = files(tmp_path, "classes", "zarr")
    keys = [*KEYS, "stop.epochs=2", "run.seed=4"]
    want = run(tmp_path, "classes", *keys)
    found = run_on(path, tmp_path, *keys, "backend.name=dask", "backend.workers=3", "backend.reduce=workers")
    assert "reduce: among " in (Path(found["run"]) / "log.txt").read_text()
    assert found["params_sha256"] == want["params_sha256"]
    assert found["rounds"] == want["rounds"]
