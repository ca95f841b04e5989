"""Rows reach a card whole, in every order in which its streams may run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from bigopt.core.staging import Stage


class Event:
    """A place in a stream."""

    def __init__(self) -> None:
        self.happened = False


class Deferred:
    """A card whose streams run as late, and in as unlucky an order, as their events allow.

    Vectors on the card come from memory that kernels of the past may still be reading.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.copies: list[Callable[[], bool]] = []
        self.kernels: list[Callable[[], bool]] = []
        self.copied_bytes = 0

    def pinned(self, size: int, dtype: np.dtype[Any]) -> Any:
        return np.full(size, 77, dtype=dtype)

    def empty(self, size: int, dtype: np.dtype[Any]) -> Any:
        return np.full(size, 99, dtype=dtype)

    def shaped(self, vector: Any, shape: tuple[int, ...]) -> Any:
        return vector.reshape(shape)

    def copy(self, source: Any, target: Any) -> None:
        def run() -> bool:
            target[...] = source
            self.copied_bytes += source.nbytes
            return True

        self.copies.append(run)

    def compute(self, kernel: Callable[[], None]) -> None:
        def run() -> bool:
            kernel()
            return True

        self.kernels.append(run)

    @staticmethod
    def _mark(stream: list[Callable[[], bool]]) -> Event:
        event = Event()

        def run() -> bool:
            event.happened = True
            return True

        stream.append(run)
        return event

    def copied(self) -> Event:
        return self._mark(self.copies)

    def computed(self) -> Event:
        return self._mark(self.kernels)

    def copy_after(self, event: Event) -> None:
        self.copies.append(lambda: event.happened)

    def compute_after(self, event: Event) -> None:
        self.kernels.append(lambda: event.happened)

    def host_after(self, event: Event) -> None:
        self.run(lambda: event.happened)

    def run(self, until: Callable[[], bool]) -> None:
        """Run operations one at a time, of either stream, until something is so."""
        while not until():
            streams = [s for s in (self.copies, self.kernels) if s]
            assert streams, "waiting for what nobody was asked to do"
            self.random.shuffle(streams)
            assert any(self._first(stream) for stream in streams), "two streams wait for each other"

    @staticmethod
    def _first(stream: list[Callable[[], bool]]) -> bool:
        if stream[0]():
            stream.pop(0)
            return True
        return False

    def finish(self) -> None:
        self.run(lambda: not self.copies and not self.kernels)


class NoCopyAfter(Deferred):
    """Copies wait for no kernel."""

    def copy_after(self, event: Event) -> None:
        """Forget it."""


class NoComputeAfter(Deferred):
    """Kernels wait for no copy."""

    def compute_after(self, event: Event) -> None:
        """Forget it."""


class NoHostAfter(Deferred):
    """The host waits for nothing."""

    def host_after(self, event: Event) -> None:
        """Forget it."""


def pieces(seed: int) -> list[tuple[Any, ...]]:
    """Pieces of unequal length, some without weights."""
    rng = np.random.default_rng(seed)
    found = []
    for rows in rng.integers(1, 40, 12):
        X, y = rng.standard_normal((rows, 3)).astype(np.float32), rng.integers(0, 5, rows)
        found.append((X, y, rng.random(rows) if rng.random() < 0.7 else None))
    return found


def seen(card: Deferred, given: list[tuple[Any, ...]], stage: Stage) -> list[tuple[Any, ...]]:
    """What kernels saw of the pieces."""
    found: list[tuple[Any, ...]] = []

    def kernel(arrays: tuple[Any, ...]) -> Callable[[], None]:
        return lambda: found.append(tuple(None if a is None else a.copy() for a in arrays))

    for arrays in stage.stream(iter(given)):
        card.compute(kernel(arrays))
    card.finish()
    return found


def same(found: list[tuple[Any, ...]], given: list[tuple[Any, ...]]) -> bool:
    """Whether all values arrived, in order."""
    return len(found) == len(given) and all(
        (a is None and b is None) or (a is not None and np.array_equal(a, b))
        for one, other in zip(found, given, strict=True)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("seed", range(40))
def test_every_piece_is_whole_when_it_is_computed_on(seed: int) -> None:
    card = Deferred(seed)
    stage = Stage(card)
    for turn in range(3):  # lanes are used again by the next unit
        given = pieces(100 * turn + seed)
        assert same(seen(card, given, stage), given)


@pytest.mark.parametrize("kind", [NoCopyAfter, NoComputeAfter, NoHostAfter])
def test_each_wait_is_needed(kind: type[Deferred]) -> None:
    wrong = 0
    for seed in range(40):
        card = kind(seed)
        wrong += not same(seen(card, pieces(seed), Stage(card)), pieces(seed))
    assert wrong > 0


def test_a_piece_is_under_way_while_another_is_computed_on() -> None:
    asked: list[int] = []

    def given() -> Iterator[tuple[Any, ...]]:
        for i in range(4):
            asked.append(i)
            yield (np.full(8, i),)

    card = Deferred(0)
    found = []
    for (array,) in Stage(card).stream(given()):
        found.append(len(asked))
        card.compute(lambda array=array: None)
    assert found == [2, 3, 4, 4]


def test_nothing_to_send() -> None:
    assert list(Stage(Deferred(0)).stream(iter([]))) == []
