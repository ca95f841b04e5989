"""What happens when a replica meets the server: downpour and easgd.

A replica has taken local steps from params of its own and meets the server alone (`bigopt.strategies.replicas`).

- `Downpour` (Dean et al. 2012): every n_push steps the replica pushes the sum of its mean gradients, which the server's
  optimizer takes as one gradient (Adagrad is indifferent to its scale); every n_fetch steps it fetches the params.
- `Elastic` (EASGD, Zhang et al. 2015): every so many steps replica x and centre c attract each other:
  d = alpha (x - c);  x -= d;  c += d. The centre is the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.sums import Sums
from bigopt.optim.method import Ask, Method
from bigopt.strategies.base import Rates

Array = npt.NDArray[Any]


@wire
class Replica(NamedTuple):
    """A replica between two turns.

    Parameters
    ----------
    params : ndarray, shape (p,)
    pushed : ndarray, shape (p,)
        Sum of its mean gradients since its last push.
    steps : int
        Local steps so far.
    version : int
        Server's version at its last fetch or pull.
    """

    params: Array
    pushed: Array
    steps: int
    version: int


class Exchange(Protocol):
    """What happens when a replica meets the server."""

    def start(self, params: Array) -> Any:
        """Return the server's state."""
        ...

    def params(self, server: Any) -> Array:
        """Return the server's params."""
        ...

    def turn(self, replica: Replica) -> int:
        """Return the local steps to the next meeting."""
        ...

    def meet(self, server: Any, replica: Replica, version: int, batch: float, last: bool) -> tuple[Any, Replica, int]:
        """Return server, replica and version after a meeting.

        `batch` is where the run stands, in batches of all replicas: what the server's schedule counts. `last` says that
        the replica has no turn left.
        """
        ...


def turn_rates(rates: Rates, first: int, length: int, steps: int | None) -> Array:
    """Return the rates of a replica's turn that begins with batch `first`, shape (length,).

    The last turns of a run reach beyond its last batch, for the others stand still meanwhile; the schedule does not.
    """
    stop = first + length if steps is None else max(first + 1, min(first + length, steps))
    found = rates(first, stop)
    return np.concatenate([found, np.full(length - len(found), found[-1])])


@dataclass(frozen=True)
class Downpour:
    """Pushes of accumulated gradients, fetches of params.

    Parameters
    ----------
    method : Method
        The server's, one that asks for a gradient a step; without penalty, which acts in the local steps. Its schedule
        is told batches for epochs.
    n_push, n_fetch : int
    """

    method: Method[Any]
    n_push: int
    n_fetch: int

    def start(self, params: Array) -> Any:
        """Return the method's state."""
        return self.method.start(params)[0]

    def params(self, server: Any) -> Array:
        """Return the params of the server."""
        return self.method.result_params(server)

    def turn(self, replica: Replica) -> int:
        """Return the steps to the next push or fetch."""
        return min(every - replica.steps % every for every in (self.n_push, self.n_fetch))

    def meet(self, server: Any, replica: Replica, version: int, batch: float, last: bool) -> tuple[Any, Replica, int]:
        """Push where it is time (or the last turn is over), then fetch where it is time."""
        if last or replica.steps % self.n_push == 0:
            server, answer = self.method.tell(server, Sums(replica.pushed.copy(), 0.0, 1.0, 1), 1.0, batch)
            assert not isinstance(answer, Ask), "methods that ask again are refused"
            version += 1
            replica = replica._replace(pushed=np.zeros_like(replica.pushed))
        if replica.steps % self.n_fetch == 0:
            replica = replica._replace(params=self.method.ask(server).params, version=version)
        return server, replica, version


@dataclass(frozen=True)
class Elastic:
    """Attraction between replica and centre.

    Parameters
    ----------
    alpha : float
        0 < alpha < 1; 0.9/p as a rule.
    every : int
        Local steps between two pulls.
    """

    alpha: float
    every: int

    def start(self, params: Array) -> Array:
        """Return the centre."""
        return params.copy()

    def params(self, server: Array) -> Array:
        """Return the centre."""
        return server

    def turn(self, replica: Replica) -> int:
        """Return the steps to the next pull."""
        return self.every - replica.steps % self.every

    def meet(
        self, server: Array, replica: Replica, version: int, batch: float, last: bool
    ) -> tuple[Array, Replica, int]:
        """Pull both towards each other."""
        pull = self.alpha * (replica.params - server)
        version += 1
        return server + pull, replica._replace(params=replica.params - pull, version=version), version
