"""Which card a slot computes on: its own where there are enough, the one that the engine gave it, else a shared one."""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from bigopt.backends.local import LocalSession
from bigopt.data.cache import BlockCache
from bigopt.work import Order


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Put a driver with two cards in CuPy's place; return the card that each thread uses, by the thread's name."""
    used: dict[str, int] = {}
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 2,
        setDevice=lambda number: used.__setitem__(threading.current_thread().name, number),
        getDevice=lambda: used.get(threading.current_thread().name, 0),
        CUDARuntimeError=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime)))
    return used


class Where:
    """A work that says on which card it is."""

    view = types.SimpleNamespace(key="none")

    def __init__(self, device: str) -> None:
        self.device = device

    def prepare(self, inputs: tuple[object, ...]) -> tuple[object, ...]:
        return inputs

    def __call__(self, inputs: object, unit: object, meter: object) -> int:
        return sys.modules["cupy"].cuda.runtime.getDevice()


def test_slots_take_the_cards_in_turn(cards: dict[str, int]) -> None:
    session = LocalSession(3, 10**6)
    units = np.zeros((1, 4), dtype=np.int64)
    try:
        for slot in range(3):
            session.submit(Order(slot, 0, slot, Where("gpu"), (), 1, 0, units))  # type: ignore[arg-type]
        found = {}
        for _ in range(3):
            arrival = session.wait()
            assert arrival.nodes is not None
            found[arrival.order.slot] = arrival.nodes[(0, 0)]
    finally:
        session.close()
    assert found == {0: 0, 1: 1, 2: 0}


def test_a_work_of_the_host_touches_no_card(cards: dict[str, int]) -> None:
    session = LocalSession(1, 10**6)
    try:
        session.submit(Order(0, 0, 0, Where("cpu"), (), 1, 0, np.zeros((1, 4), dtype=np.int64)))  # type: ignore[arg-type]
        session.wait()
    finally:
        session.close()
    assert cards == {}


def test_the_engines_card_goes_before_the_slot(cards: dict[str, int]) -> None:
    blocks = BlockCache(10**6)
    blocks.use_card(2)
    assert list(cards.values()) == [0]
    blocks.given_card = 1
    blocks.use_card(2)
    assert list(cards.values()) == [1]


def test_spark_says_which_card_it_gave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pyspark = pytest.importorskip("pyspark")
    from bigopt.backends.spark.session import _given_card

    def context(resources: dict[str, object] | None) -> types.SimpleNamespace:
        found = None if resources is None else types.SimpleNamespace(resources=lambda: resources)
        return types.SimpleNamespace(get=lambda: found)

    for resources, card in (
        (None, None),
        ({}, None),
        ({"gpu": types.SimpleNamespace(name="gpu", addresses=["3"])}, 3),
    ):
        monkeypatch.setattr(pyspark, "TaskContext", context(resources))
        assert _given_card() == card
