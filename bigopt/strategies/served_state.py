"""What a checkpoint of downpour with shards on workers holds: the last snapshot of the shards, and what was counted."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.shardserver import ShardState, fresh
from bigopt.strategies.shards import Sharded
from bigopt.work_shards import PushTurn

Array = npt.NDArray[Any]
_DELAYS: Final = 256


@wire
class ServedState(NamedTuple):
    """What a checkpoint holds: the last snapshot.

    Parameters
    ----------
    shards : tuple of ShardState
    steps : tuple of int
        Local steps of each replica whose pushes the shards certainly hold.
    staleness : ndarray, shape (256,), int64
        Histogram over the pushes; the last bin is for all that are older.
    pushes : tuple of int
        Of each replica.
    lost, dropped : int
        Pushes to shards that were lost with them; pushes that came to a shard again.
    restarts : int
        Shards that were served again.
    """

    shards: tuple[ShardState, ...]
    steps: tuple[int, ...]
    staleness: Array
    pushes: tuple[int, ...]
    lost: int
    dropped: int
    restarts: int

    @property
    def number(self) -> int:
        """How many replicas there are."""
        return len(self.steps)

    def after(self, number: int, turn: PushTurn) -> ServedState:
        """Return the state with a replica's turn counted."""
        delays = self.staleness.copy()
        np.add.at(delays, np.minimum(np.array(turn.staleness, dtype=np.int64), _DELAYS - 1), 1)
        return self._replace(
            steps=_added(self.steps, number, turn.steps),
            pushes=_added(self.pushes, number, len(turn.staleness)),
            staleness=delays,
            dropped=self.dropped + turn.dropped,
        )

    @property
    def delays(self) -> dict[str, Any]:
        """What the run's result says of pushes and their delays."""
        counts = {int(k): int(self.staleness[k]) for k in np.flatnonzero(self.staleness)}
        return {
            "staleness": {
                "mean": sum(k * n for k, n in counts.items()) / max(1, sum(counts.values())),
                "max": max(counts, default=0),
                "histogram": {str(k): n for k, n in counts.items()},
            },
            "updates_by_worker": {str(r): n for r, n in enumerate(self.pushes)},
            "pushes_lost": self.lost,
            "pushes_dropped": self.dropped,
            "shards_restarted": self.restarts,
        }


def begin(sharded: Sharded, params: Array, replicas: int) -> ServedState:
    """Return the state of a new run."""
    shards = tuple(fresh(m, p.copy(), replicas) for m, p in zip(sharded.methods, sharded.cut(params), strict=True))
    none = (0,) * replicas
    return ServedState(shards, none, np.zeros(_DELAYS, dtype=np.int64), none, 0, 0, 0)


def _added(counts: tuple[int, ...], at: int, more: int) -> tuple[int, ...]:
    return tuple(count + more * (i == at) for i, count in enumerate(counts))
