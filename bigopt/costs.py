"""What a synchronous round costs: a model of seconds from counts, its fit to measured rounds, its prediction.

A round of s slots over b rows with p parameters in u units (all bytes are per round, all rates per second):

    seconds = round
            + max(multiply-adds / (s * rate), bytes of rows / (s * read), [bytes stored / store] )     Map
            + s * message                                                                              slots, one by one
            + (s or 1) * vector / down + nodes * vector / up                                           vectors
            + vectors of the update * vector / memory                                                  update

Down the wire the driver sends one vector a slot over sockets, one in all through shared memory. Up come the nodes of
the tree that cover each slot's units, at most 2 log2(u/s) + 1 of them, and the driver adds them: that and the down
traffic are the parts that grow with s, so they are where the driver saturates. With trees inside the engine of fan-in
f the driver sees f vectors and the depth is log_f(s).

`FITTED` holds what ``python -m benchmarks.scaling`` found on a small machine (docs/scaling.md); a cluster has other
rates, and the model says how they matter, not what they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np


@dataclass(frozen=True)
class Round:
    """What one synchronous round does.

    Parameters
    ----------
    multiply_adds : float
        Of forward and backward over all rows of the batch.
    row_bytes : float
        Decoded bytes of all rows of the batch.
    stored_bytes : float
        Bytes that come from the store; 0 where the rows are kept in memory.
    vector_bytes : float
        Bytes of one vector of parameters.
    slots : int
    units : int
        Leaves of the tree.
    state : int
        Vectors that the update reads or writes.
    shared : bool
        Whether workers share the driver's memory: one vector down for all.
    """

    multiply_adds: float
    row_bytes: float
    stored_bytes: float
    vector_bytes: float
    slots: int
    units: int
    state: int = 3
    shared: bool = False

    @property
    def nodes(self) -> float:
        """Vectors that come up: the tree's nodes that cover the slots' units, at most 2 log2(units a slot) + 1 each."""
        busy = min(self.slots, self.units)
        return busy * min(self.units / busy, 2 * math.log2(max(1.0, self.units / busy)) + 1)


@dataclass(frozen=True)
class Rates:
    """A machine or cluster, in seconds and units per second.

    Parameters
    ----------
    round : float
        Seconds of a round that nothing else explains.
    message : float
        Seconds of the driver for each slot and round.
    rate : float
        Multiply-adds per second of a slot.
    read : float
        Bytes per second at which a slot reads decoded rows.
    store : float
        Bytes per second that the store delivers to all slots together.
    down, up : float
        Bytes per second of vectors out of and into the driver (with adding them).
    memory : float
        Bytes per second of the update on the driver.
    """

    round: float
    message: float
    rate: float
    read: float
    store: float
    down: float
    up: float
    memory: float


FITTED: Final = Rates(
    round=2.8e-3, message=1.2e-3, rate=8e9, read=5.5e9, store=1.0e9, down=5.2e9, up=1.6e10, memory=6e9
)
"""One machine of two cores, workers in processes of their own, vectors over local sockets."""

_PULL: Final = 0.02

CLUSTER: Final = replace(FITTED, round=2e-3, message=0.1e-3, store=100e9, down=1.25e9, up=1.25e9)
"""The same workers behind a network of 10 Gbit/s at the driver, and a store that scales to 100 GB/s."""


def parts(work: Round, rates: Rates) -> dict[str, float]:
    """Return the seconds of a round by part.

    Returns
    -------
    dict
        ``fixed``, ``map``, ``messages``, ``down``, ``up``, ``update``.
    """
    busy = min(work.slots, work.units)
    return {
        "fixed": rates.round,
        "map": max(
            work.multiply_adds / (busy * rates.rate),
            work.row_bytes / (busy * rates.read),
            work.stored_bytes / rates.store,
        ),
        "messages": busy * rates.message,
        "down": (1 if work.shared else busy) * work.vector_bytes / rates.down,
        "up": work.nodes * work.vector_bytes / rates.up,
        "update": work.state * work.vector_bytes / rates.memory,
    }


def seconds(work: Round, rates: Rates) -> float:
    """Return the seconds of a round."""
    return sum(parts(work, rates).values())


def ticket(work: Round, replicas: int, local_steps: int) -> Round:
    """Return what one worker does between two messages, where a batch is given whole to one, or shared by replicas.

    Parameters
    ----------
    work : Round
        A batch on all slots.
    replicas : int
        Into how many shares a batch is cut; 1 for async and ssp.
    local_steps : int
        Batches between two messages.
    """
    share = local_steps / replicas
    return replace(
        work, multiply_adds=work.multiply_adds * share, row_bytes=work.row_bytes * share, slots=1, units=1, shared=False
    )


def message_factor(work: Round, rates: Rates) -> float:
    """Return how many times as long the messages of a ticket take as its Map; above 1 they dominate."""
    found = parts(work, rates)
    return (found["fixed"] + found["messages"] + found["down"] + found["up"]) / found["map"]


def tree_parts(work: Round, rates: Rates, fan_in: int) -> dict[str, float]:
    """Return the parts of a round whose vectors go down and up a tree of workers of some fan-in.

    Each level costs one message and `fan_in` vectors each way; the driver has `fan_in` children.
    """
    busy = min(work.slots, work.units)
    depth = max(1, math.ceil(math.log(max(2, busy), fan_in)))
    flat = parts(work, rates)
    return {
        **flat,
        "messages": depth * fan_in * rates.message,
        "down": depth * fan_in * work.vector_bytes / rates.down,
        "up": depth * fan_in * work.vector_bytes / rates.up,
    }


def peers_parts(work: Round, rates: Rates) -> dict[str, float]:
    """Return the parts of a round whose sums the workers add among themselves (``backend.reduce: workers``).

    Parameters
    ----------
    work : Round
    rates : Rates
        A worker's network is taken to be as fast as the driver's.

    Returns
    -------
    dict
        As `parts`.

    Notes
    -----
    The driver sends one vector and receives one. All slots at once collect the params, (s - 1) / s of a vector, and
    send each other as much of each of their nodes.
    """
    busy = min(work.slots, work.units)
    others = (busy - 1) / busy
    return {
        **parts(work, rates),
        "down": (1 + others) * work.vector_bytes / rates.down,
        "up": (1 + others * work.nodes / busy) * work.vector_bytes / rates.up,
    }


def best_slots(work: Round, rates: Rates) -> int:
    """Return the number of slots at which a flat round is fastest: more would cost the driver more than the Map gains.

    Notes
    -----
    d/ds [A/s + s B] = 0 at s = sqrt(A/B), A the Map's seconds on one slot, B the driver's for each slot.
    """
    one = parts(replace(work, slots=1), rates)
    upward = min(work.units, 3) * work.vector_bytes / rates.up
    each = rates.message + work.vector_bytes / rates.down * (not work.shared) + upward
    return max(1, min(work.units, round(math.sqrt(one["map"] / each))))


def fit(rounds: Sequence[Round], measured: Sequence[float], start: Rates) -> Rates:
    """Fit the rates to measured rounds by least squares of relative errors, all of them positive.

    Parameters
    ----------
    rounds : sequence of Round
        Rounds that differ in rows, parameters and slots.
    measured : sequence of float
        Median seconds of each.
    start : Rates
        Where the search starts; rates that no round depends on stay as they are.

    Returns
    -------
    Rates

    Notes
    -----
    Gauss-Newton with Levenberg's damping on the logarithms of the rates; the logarithm of each round's seconds is the
    residual, so that a round of 1 ms counts as much as one of 1 s. A weak pull to `start` keeps rates that the rounds
    say little about.
    """
    names = ("round", "message", "rate", "read", "down", "up", "memory")
    x = np.log([getattr(start, name) for name in names])
    origin = x
    target = np.log(np.asarray(measured, dtype=np.float64))

    def residuals(at: np.ndarray) -> np.ndarray:
        trial = replace(start, **dict(zip(names, np.exp(at).tolist(), strict=True)))
        misfit = np.log([seconds(work, trial) for work in rounds]) - target
        return np.concatenate([misfit, _PULL * (at - origin)])

    damping, now = 1e-2, residuals(x)
    for _ in range(200):
        jacobian = np.stack([(residuals(x + 1e-5 * e) - now) / 1e-5 for e in np.eye(len(x))], axis=1)
        step = np.linalg.solve(jacobian.T @ jacobian + damping * np.eye(len(x)), -jacobian.T @ now)
        after = residuals(x + step)
        if after @ after < now @ now:
            gain = now @ now - after @ after
            x, now, damping = x + step, after, damping / 3
            if gain < 1e-12 * (now @ now + 1e-12):
                break
        else:
            damping *= 4
    return replace(start, **dict(zip(names, np.exp(x).tolist(), strict=True)))
