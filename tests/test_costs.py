"""The cost model: its parts by hand, its fit on rounds that it made itself, what it says about large clusters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bigopt.costs import (
    CLUSTER,
    FITTED,
    Rates,
    Round,
    best_slots,
    fit,
    message_factor,
    parts,
    peers_parts,
    seconds,
    ticket,
    tree_parts,
)

WORK = Round(multiply_adds=4e8, row_bytes=8e8, stored_bytes=0.0, vector_bytes=8e5, slots=4, units=16)


def test_parts_by_hand() -> None:
    rates = Rates(1e-3, 1e-4, 1e9, 4e9, 1e9, 1e9, 2e9, 4e9)
    found = parts(WORK, rates)
    assert found["map"] == pytest.approx(max(4e8 / (4 * 1e9), 8e8 / (4 * 4e9)))
    assert found["messages"] == pytest.approx(4e-4)
    assert found["down"] == pytest.approx(4 * 8e5 / 1e9)
    assert found["up"] == pytest.approx(4 * 4 * 8e5 / 2e9)  # 4 units a slot: 4 leaves are fewer than 2 log2(4) + 1
    assert found["update"] == pytest.approx(3 * 8e5 / 4e9)
    assert seconds(WORK, rates) == pytest.approx(sum(found.values()))
    assert parts(replace(WORK, shared=True), rates)["down"] == pytest.approx(8e5 / 1e9)
    assert parts(replace(WORK, stored_bytes=8e9), rates)["map"] == pytest.approx(8.0)


def test_the_fit_finds_the_rates_that_made_the_rounds() -> None:
    truth = Rates(2e-3, 3e-4, 5e9, 3e9, 1e9, 1.5e9, 0.8e9, 2e9)
    rng = np.random.default_rng(0)
    rounds = [
        Round(n * m, n * 400.0, 0.0, 8.0 * p, s, 16, 3)
        for n in (1e3, 1e5, 1e6)
        for m in (100.0, 1e5)
        for p in (100, 1e5, 1e6)
        for s in (1, 2, 4, 8)
    ]
    measured = [seconds(work, truth) * float(np.exp(0.01 * rng.normal())) for work in rounds]
    found = fit(rounds, measured, FITTED)
    for name in ("round", "message", "rate", "read"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.1), name
    errors = [seconds(work, found) / m - 1 for work, m in zip(rounds, measured, strict=True)]
    assert np.abs(errors).max() < 0.05


def test_more_slots_than_the_best_are_slower() -> None:
    work = Round(1e13, 1e12, 0.0, 8e6, 1, 10_000)
    best = best_slots(work, CLUSTER)
    here = seconds(replace(work, slots=best), CLUSTER)
    assert here < seconds(replace(work, slots=best // 4), CLUSTER)
    assert here < seconds(replace(work, slots=min(10_000, best * 8)), CLUSTER)
    many = replace(work, slots=10_000)
    assert sum(tree_parts(many, CLUSTER, 32).values()) < seconds(many, CLUSTER)


def test_workers_that_add_among_themselves_by_hand() -> None:
    rates = Rates(1e-3, 1e-4, 1e9, 4e9, 1e9, 1e9, 2e9, 4e9)
    work = Round(multiply_adds=4e6, row_bytes=8e6, stored_bytes=0.0, vector_bytes=8e5, slots=4, units=8)
    found, flat = peers_parts(work, rates), parts(work, rates)
    assert found["down"] == pytest.approx(8e5 / 1e9 * (1 + 3 / 4))  # the driver's, and what a worker lacks
    assert found["up"] == pytest.approx(8e5 / 2e9 * (1 + 2 * 3 / 4))  # two nodes a slot
    assert {k: v for k, v in found.items() if k not in ("down", "up")} == {
        k: v for k, v in flat.items() if k not in ("down", "up")
    }


def test_messages_of_a_ticket_by_hand() -> None:
    rates = Rates(1e-3, 1e-4, 1e9, 4e9, 1e9, 1e9, 2e9, 4e9)
    batch = Round(multiply_adds=4e6, row_bytes=8e6, stored_bytes=0.0, vector_bytes=8e5, slots=4, units=16)
    work = ticket(batch, 2, 5)
    found = parts(work, rates)
    assert found["map"] == pytest.approx(5 / 2 * 4e6 / 1e9)
    assert message_factor(work, rates) == pytest.approx((1e-3 + 1e-4 + 8e5 / 1e9 + 8e5 / 2e9) / found["map"])
    assert message_factor(ticket(batch, 2, 50), rates) == pytest.approx(message_factor(work, rates) / 10)
