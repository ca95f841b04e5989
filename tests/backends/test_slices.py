"""Gradients that leave their workers in slices: the same bits and counts, bounded messages, kept once computed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from probes import MEMORY, SIZES, Recorder, same, wait_until
from problems import files, run, run_on

from bigopt import fit
from bigopt.backends import slices
from bigopt.backends.channel import Hub, serve
from bigopt.backends.ledger import Ledger, Rounds
from bigopt.backends.local import LocalSession
from bigopt.backends.slices import Keeper, Slice, Slicer, answer_bytes
from bigopt.backends.spark.jobs import refuse_large
from bigopt.backends.tasks import Packer, Setting
from bigopt.backends.tasks import run as run_task
from bigopt.backends.testing import Probe, Unreliable
from bigopt.core.errors import ClusterError, ConfError
from bigopt.core.sums import Sums
from bigopt.core.vectors import Narrow, dense
from bigopt.data.cache import BlockCache
from bigopt.data.plan import homes, whole
from bigopt.data.synthetic import SyntheticSource
from bigopt.data.view import DataView, Targets
from bigopt.models.linear import LinearModel
from bigopt.models.losses import SquaredLoss
from bigopt.work import Arrival, GradientSum, Order, execute

UNITS = whole(np.arange(len(SIZES)), SIZES)
VIEW = DataView(SyntheticSource(3, 8, dtype="float64"), np.cumsum([0, *SIZES]), "float64", targets=Targets("values"))
WORK = GradientSum(LinearModel(8, 1, SquaredLoss()), VIEW, 5, "float64", 16)
PARAMS = np.linspace(-1.0, 1.0, 9) / 7
BYTES = 24  # three numbers: nine parameters in three slices


def one_round(session: Any, rounds: Rounds, params: np.ndarray = PARAMS, slots: int = 2) -> Sums:
    root = rounds.run(session, WORK, (params,), UNITS, lambda _: homes(SIZES, slots)[UNITS[:, 0]], "step 1")
    return root._replace(grad=dense(root.grad))


def sliced(retries: int = 3) -> Rounds:
    rounds = Rounds(Ledger(), retries)
    rounds.slicer = Slicer(BYTES)
    return rounds


@pytest.fixture(scope="module")
def expected() -> Sums:
    session = LocalSession(1, MEMORY)
    root = one_round(session, Rounds(Ledger(), 0))
    session.close()
    return root


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(2, timeout=30.0)
    for slot in range(2):
        keys = (hub.addresses, hub.key, MEMORY, f"w{slot}")
        threading.Thread(target=serve, args=keys, daemon=True).start()
    hub.wait_for_workers(2)
    yield hub
    hub.close()


@pytest.mark.parametrize("size", [3, 7, 9, 100])
@pytest.mark.parametrize("kind", ["dense", "narrow"])
def test_slices_are_a_vector_cut_without_gaps(size, kind):
    values = np.random.default_rng(size).normal(size=size).astype("f4")
    vector = Narrow(values, "float64") if kind == "narrow" else values
    parts = [Slice(WORK, "r", index, 3).of(Sums(vector, 1.0, 2.0, 3)) for index in range(3)]
    assert np.concatenate([dense(part.grad) for part in parts]).tobytes() == dense(vector).tobytes()
    assert all(part[1:] == (1.0, 2.0, 3) for part in parts)
    assert max(len(dense(part.grad)) for part in parts) <= -(-size // 3)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_sliced_round_has_the_bits_and_the_counts_of_a_orderone(hub, expected, slots):
    rounds, recorder = sliced(), Recorder(hub)
    for k in range(3):
        assert same(one_round(recorder, rounds, slots=slots), expected), k
    ledger = rounds.ledger
    assert ledger.rounds == 3
    assert ledger.accepted == ledger.planned == ledger.executed == 3 * len(SIZES)
    assert ledger.rows == 3 * SIZES.sum()
    assert (ledger.lost, ledger.duplicates) == (0, 0)
    assert all(len(value.grad) == 3 for a in recorder.arrivals for value in a.nodes.values())
    computed = [a for a in recorder.arrivals if a.stats.rows]
    assert len(computed) == len({(a.order.ticket, a.order.start) for a in recorder.arrivals})  # once, not once a slice
    assert all((order.inputs == ()) == (order.work.index > 0) for order in recorder.orders)


def test_without_anybody_who_keeps_the_orderevery_slice_is_computed(expected):
    """To a session that knows nothing of slices they are work like any other; without retries inputs always come."""
    session = LocalSession(2, MEMORY)
    assert same(one_round(session, sliced(retries=0)), expected)
    session.close()


def test_orders_of_a_slot_that_has_no_worker_find_what_they_need(hub, expected):
    rounds = sliced()
    assert same(one_round(hub, rounds, slots=7), expected)
    assert rounds.ledger.accepted == rounds.ledger.planned == len(SIZES)


def test_lost_repeated_and_late_arrivals_change_nothing(hub, expected):
    bad = Unreliable(hub, 5, lose=0.3, repeat=0.3, late=0.4)
    rounds = sliced(retries=40)
    for _ in range(12):
        assert same(one_round(bad, rounds), expected)
    assert rounds.ledger.accepted == rounds.ledger.planned == 12 * len(SIZES)
    assert rounds.ledger.duplicates > 0
    assert bad.lost > 5


def test_a_worker_that_is_lost_between_two_slices_is_replaced(hub, expected):
    class Dropping(Recorder):
        def wait(self) -> Arrival:
            arrival = super().wait()
            if len(self.arrivals) == 3:  # in the second slice
                hub.drop("w0")
                assert wait_until(lambda: len(hub.links) == 1)
            return arrival

    rounds = sliced()
    assert same(one_round(Dropping(hub), rounds), expected)
    assert rounds.ledger.lost > 0
    assert rounds.ledger.accepted == rounds.ledger.planned == len(SIZES)


def test_a_keeper_keeps_the_nodes_of_one_round_and_never_those_of_another_run():
    keeper, blocks = Keeper(), BlockCache(MEMORY)
    first, last = Slice(WORK, "a", 0, 2), Slice(WORK, "a", 1, 2)

    def ask(work: Slice, ticket: int, inputs: Any) -> Any:
        return keeper.execute(blocks, work, ticket, inputs, 7, 0, UNITS[:4], ())

    nodes, stats = ask(first, 1, (PARAMS,))
    assert stats.rows == SIZES[:4].sum()
    again, stats = ask(last, 1, ())
    assert stats.rows == 0
    direct, _ = execute(blocks, WORK, (PARAMS,), 7, 0, UNITS[:4])
    for node, value in direct.items():
        assert np.concatenate([nodes[node].grad, again[node].grad]).tobytes() == value.grad.tobytes()
    assert ask(last, 1, ()) is None  # the last slice has left
    ask(first, 2, (PARAMS,))
    assert ask(replace(last, run="b"), 2, ()) is None  # another run's round of the same number
    assert ask(last, 2, ()) is None  # which took its place
    assert ask(last, 2, (PARAMS,)) is not None


def test_engines_tasks_keep_the_ordertoo():
    packer, setting = Packer("strict"), Setting("slices", MEMORY, "")

    def ask(index: int, inputs: Any) -> Arrival:
        order = Order(9, 0, 0, Slice(WORK, "t", index, 2), inputs, 7, 0, UNITS[:4])
        parcel = packer.pack(order)
        return packer.arrival(order, parcel, run_task(setting, parcel))

    assert ask(1, ()).lost
    assert ask(0, (PARAMS,)).stats.rows == SIZES[:4].sum()
    assert ask(1, ()).stats.rows == 0


def test_the_bytes_of_an_answer_are_known_before_it_comes(hub):
    recorder = Recorder(hub)
    one_round(recorder, sliced())
    for arrival in recorder.arrivals:
        sent = sum(value.grad.nbytes for value in arrival.nodes.values())
        assert answer_bytes(arrival.order) == sent
    assert answer_bytes(Order(1, 0, 0, Probe(VIEW), (PARAMS,), 7, 0, UNITS[:4])) == 0
    order = Order(1, 0, 0, WORK, (PARAMS,), 7, 0, UNITS[:5])
    assert answer_bytes(order) == 2 * 9 * 8  # two nodes
    refuse_large([order, order], 288)
    refuse_large([order, order], 0)
    with pytest.raises(ConfError, match=r"in 2 tasks, and the driver takes spark\.driver\.maxResultSize = 0 MB"):
        refuse_large([order, order], 287)


def test_a_slice_that_nobody_keeps_any_more_ends_in_the_ledgers_limit(hub):
    class Forgetful(Recorder):
        def wait(self) -> Arrival:
            arrival = super().wait()
            return Arrival(arrival.order, lost="on purpose") if arrival.order.work.index else arrival

    with pytest.raises(ClusterError, match="were lost 4 times: on purpose"):
        one_round(Forgetful(hub), sliced())


KEYS = [
    "model.name=mlp",
    "data.task=classification",
    "model.hidden=[6]",
    "optimizer.name=adam",
    "batch.size=64",
    "stop.epochs=2",
    "run.seed=4",
]


@pytest.mark.slow
@pytest.mark.parametrize("keys", [[], ["backend.channel=off"]], ids=["channel", "actors"])
def test_a_run_on_dask_has_the_bits_of_a_local_one(tmp_path, monkeypatch, keys):
    path = files(tmp_path, "classes", "zarr")
    want = run(tmp_path, "classes", *KEYS)
    asked: list[Order] = []
    monkeypatch.setattr(fit, "SLICE_BYTES", 100)
    seen = slices.Cut.next
    monkeypatch.setattr(slices.Cut, "next", lambda cut, root: asked.append(root) or seen(cut, root))
    found = run_on(path, tmp_path, *KEYS, "backend.name=dask", "backend.workers=2", *keys)
    assert found["params_sha256"] == want["params_sha256"]
    assert found["rounds"] == want["rounds"]
    assert asked  # slices there were
