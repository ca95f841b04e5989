"""Whole runs on a card made of array-api-strict: what lies on it, what is sent anew, and that no number changes."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

from bigopt.core import arrays
from bigopt.core.staging import Stage
from bigopt.data.card import CardBlocks
from bigopt.data.entry import Entry
from bigopt.data.view import Block
from tests.support.problems import MODELS, run


class StrictCard:
    """A card whose arrays know the standard's functions only; its streams are never behind."""

    def __init__(self, sent: list[int]) -> None:
        self.sent = sent

    def pinned(self, size: int, dtype: np.dtype[Any]) -> Any:
        return np.empty(size, dtype=dtype)

    def empty(self, size: int, dtype: np.dtype[Any]) -> Any:
        return strict.empty(size, dtype=getattr(strict, dtype.name))

    def shaped(self, vector: Any, shape: tuple[int, ...]) -> Any:
        return strict.reshape(vector, shape)

    def copy(self, source: Any, target: Any) -> None:
        self.sent.append(source.nbytes)
        target[:] = strict.asarray(source)

    def copied(self) -> None:
        return None

    def computed(self) -> None:
        return None

    def copy_after(self, event: None) -> None:
        """Streams are never behind."""

    def compute_after(self, event: None) -> None:
        """Streams are never behind."""

    def host_after(self, event: None) -> None:
        """Streams are never behind."""


@pytest.fixture(params=[0, 20_000, 10**9], ids=["nothing fits", "some fits", "all fits"])
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[int], list[int]]:
    """Put array-api-strict in CuPy's place; return its memory, and sizes of what was sent to stay and to pass."""
    kept: list[int] = []
    passing: list[int] = []
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1,
        getDevice=lambda: 0,
        setDevice=lambda number: None,
        memGetInfo=lambda: (2 * request.param, 10**10),
        CUDARuntimeError=RuntimeError,
    )

    def asarray(array: Any) -> Any:
        return strict.asarray(array)

    fake = types.SimpleNamespace(
        cuda=types.SimpleNamespace(runtime=runtime), asarray=asarray, asnumpy=lambda a: np.array(a)
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)

    def send(array: Any) -> Any:
        kept.append(array.nbytes)
        return strict.asarray(array)

    monkeypatch.setattr(arrays, "send", send)
    monkeypatch.setattr(arrays, "stage", lambda: Stage(StrictCard(passing)))
    return request.param, kept, passing


@pytest.mark.parametrize("kind", ["ridge", "mlp_classes"])
@pytest.mark.parametrize("batch", ["full", 32])
def test_a_run_on_a_card_has_the_bits_of_the_host(
    tmp_path: Path, card: tuple[int, list[int], list[int]], kind: str, batch: str | int
) -> None:
    room, kept, passing = card
    problem, model = MODELS[kind]
    keys = [*model, f"batch.size={batch}", "stop.epochs=2", "run.kernels=numpy", "backend.workers=2"]
    host = run(tmp_path / "host", problem, *keys)
    assert not kept
    found = run(tmp_path / "card", problem, *keys, "backend.device=gpu")
    assert found["params_sha256"] == host["params_sha256"]
    assert bool(kept) == (room > 0)
    assert sum(kept) <= room
    assert bool(passing) == (room < 10**9)


def entry(rows: int) -> Entry:
    """A block of 8 rows a unit of size 8."""
    return Entry(Block(np.ones((rows, 1)), None, None, 0, 0), 0)


def test_what_comes_first_stays_and_other_views_make_room() -> None:
    blocks = CardBlocks(100, lambda a: a.copy())
    first, second, third = entry(6), entry(6), entry(3)
    on_card = blocks.put("a", 0, first)
    assert on_card is not first
    assert blocks.get("a", 0) is on_card
    assert blocks.put("a", 0, entry(6)) is on_card
    assert blocks.put("a", 1, second) is not second
    assert blocks.put("a", 2, third) is third
    assert blocks.held == 96
    assert blocks.get("a", 2) is None
    assert blocks.put("b", 0, third) is not third
    assert blocks.held == 24
    assert blocks.get("a", 0) is None


def test_a_block_larger_than_the_budget_is_never_kept() -> None:
    blocks = CardBlocks(10, lambda a: a)
    large = entry(2)
    assert blocks.put("a", 0, large) is large
    assert blocks.held == 0
