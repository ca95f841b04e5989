"""Which rows a replica takes: a pure function of the counts, the seed, the number of replicas and the step.

Replicas that step together (`cut`) share the sampler's global batches: the rows of batch t, in the plan's order, are
cut into p runs of equal length within a row, so that p replicas together use exactly the rows of one batch of the
synchronous strategy. Batches that are drawn anew cannot be cut; there each replica draws its own share.

Replicas that run by themselves (`own`) have a shard each, contiguous partitions of about equal rows, with a sampler of
its own over batches of size/p rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.data.plan import Ints, Plan, Sampling, homes, rows_of


@wire
@dataclass(frozen=True, eq=False)
class Shares:
    """The samplers of some replicas.

    Parameters
    ----------
    counts : ndarray, shape (P,), int64
        Used rows of each partition.
    size : int or None
        Rows of a global batch; None for all.
    lanes, seed, sampling
        As in `Plan`.
    replicas : int
        p.
    own : bool
        Whether each replica has a shard of its own.
    """

    counts: Ints
    size: int | None
    lanes: int
    seed: int
    sampling: Sampling
    replicas: int
    own: bool = False

    @classmethod
    def of(cls, plan: Plan, replicas: int, *, own: bool = False) -> Shares:
        """Return the shares of a plan's batches.

        Raises
        ------
        ConfError
            Where a replica would have no rows: fewer rows in a batch, or fewer partitions, than replicas.
        """
        batch = plan.rows if plan.size is None else min(plan.size, plan.rows)
        if batch < replicas:
            raise ConfError(
                f"{replicas} replicas share batches of {batch} rows", where="batch.size", hint="a larger batch"
            )
        shares = cls(plan.counts, plan.size, plan.lanes, plan.seed, plan.sampling, replicas, own)
        if own and len(np.unique(shares.shard[plan.counts > 0])) < replicas:
            raise ConfError(
                f"{np.count_nonzero(plan.counts)} partitions are too few for {replicas} replicas with their own rows",
                where="strategy.replicas",
                hint="fewer replicas, or write the data again with a smaller ingest.partition_rows",
            )
        return shares

    @cached_property
    def shard(self) -> Ints:
        """Replica whose shard each partition is in, shape (P,), ascending."""
        return homes(self.counts, self.replicas)

    @cached_property
    def _plan(self) -> Plan:
        return Plan(self.counts, self.size, self.lanes, self.seed, self.sampling)

    @cached_property
    def _plans(self) -> tuple[Plan, ...]:
        share = None if self.size is None or self._plan.full else -(-self.size // self.replicas)
        lanes = -(-self.lanes // self.replicas)
        return tuple(
            Plan(np.where(self.shard == r, self.counts, 0), share, lanes, self.seed, self.sampling)
            for r in range(self.replicas)
        )

    def units(self, replica: int, step: int) -> tuple[Ints, int]:
        """Return the units of a replica's share of a step's batch, and the number of rows its gradient is divided by.

        Parameters
        ----------
        replica : int
            From 0.
        step : int
            From 0, over the whole run; of the replica's own steps where it has a shard.
        """
        plan = self._plans[replica] if self.own else self._plan
        epoch, position = divmod(step, plan.steps_per_epoch)
        if self.own:
            return plan.units(epoch, position), plan.batch_rows(position)
        if plan.redrawn and not plan.full and self.size is not None:
            first, last = (self.size * r // self.replicas for r in (replica, replica + 1))
            drawn = Plan(self.counts, last - first, 0, self.seed, self.sampling)
            number = step * self.replicas + replica
            return drawn.units(*divmod(number, drawn.steps_per_epoch)), last - first
        units = plan.units(epoch, position)
        first, last = (rows_of(units) * r // self.replicas for r in (replica, replica + 1))
        return cut(units, first, last), last - first


def cut(units: Ints, first: int, last: int) -> Ints:
    """Return the units of rows [first, last) of a batch, counted in the order of its units.

    Parameters
    ----------
    units : ndarray, shape (k, 4)
        Ranges ``(partition, epoch, start, stop)``.
    """
    ends = np.cumsum(units[:, 3] - units[:, 2])
    starts = ends - (units[:, 3] - units[:, 2])
    part = units.copy()
    part[:, 2] = units[:, 2] + np.maximum(first - starts, 0)
    part[:, 3] = units[:, 3] - np.maximum(ends - last, 0)
    return part[part[:, 3] > part[:, 2]]
