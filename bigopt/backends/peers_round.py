"""A Reduce among workers, seen from the driver: who takes part, and what happens when one of them is lost.

A `PeerRound` is a `Round` whose sums the workers add themselves (`bigopt.backends.peers`). It has three kinds of turns:

1. slots whose workers nobody knows how to find are asked (`FindPeer`): all in the first round, later those that were
   empty; so a worker that joins takes part in the next round;
2. the round is *dealt*: each worker that was found gets its slice of the params, and the units of its slot and of the
   empty slots after it, and answers with its slice of the root;
3. a deal in which anybody was lost is void as a whole. Nothing of it is accepted, all slots are asked again, and the
   round is dealt anew, as often as ``backend.retries`` says. The tree knows units only, so the bits stay the same.

Where workers turn out not to reach each other, or one alone is left, the driver adds, as in any other round.
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.backends.boards import PeerAt
from bigopt.backends.ledger import Round
from bigopt.backends.peers import Apart, Exchange, FindPeer, Found, bounds
from bigopt.core.buffers import Buffers
from bigopt.core.errors import ClusterError, ConfError
from bigopt.core.sums import Sums
from bigopt.core.vectors import dense
from bigopt.data.plan import Ints
from bigopt.work import Arrival, GradientSum, Order, Work

if TYPE_CHECKING:
    from bigopt.config import Conf

LEAST_BYTES: Final = 16_000_000
"""Bytes of a vector above which workers add by themselves where nobody says who should."""
LEAST_SLOTS: Final = 3
"""Slots from which on they do; with two the driver moves hardly more."""
_FEWEST: Final = 2
_APART: Final = 2
"""Deals in a row in which workers that were there did not reach each other, after which they are not asked again."""


def silent(text: str) -> None:
    """Tell nobody."""


class Peers:
    """Which rounds of a run are added by workers, and where these are found.

    Parameters
    ----------
    always : bool
        ``backend.reduce: workers``, instead of where it pays.
    patience : float
        Seconds after which a worker that says nothing to another is gone.
    tell : callable
        Takes what a person should know.
    least : int
        Bytes of a vector above which it pays.

    Attributes
    ----------
    known : dict
        Slot to where its worker is found.
    """

    def __init__(
        self,
        *,
        always: bool,
        patience: float,
        tell: Callable[[str], object] = silent,
        least: int = LEAST_BYTES,
    ) -> None:
        self.always = always
        self.known: dict[int, PeerAt] = {}
        self.apart = 0
        self._patience = patience
        self._tell = tell
        self._least = least
        self._run = secrets.token_hex(8)
        self._off = False
        self._told = False
        self._finds: dict[int, tuple[Work, FindPeer]] = {}
        self._exchanges: dict[tuple[int, tuple[PeerAt, ...]], tuple[Work, Exchange]] = {}
        self._buffers = Buffers()

    def takes(self, work: Work, inputs: tuple[Any, ...], homes: Ints) -> bool:
        """Return whether workers add the sums of a round."""
        if self._off or not isinstance(work, GradientSum) or len(inputs) != 1:
            return False
        if work.view.source.sparse:
            if self.always:
                message = "backend.reduce=workers adds dense gradients, and those of sparse rows travel encoded"
                raise ConfError(message, where="backend.reduce", hint="backend.reduce=driver")
            return False
        return self.pays(work.model.layout.size, np.dtype(work.dtype).itemsize, len(np.unique(homes)))

    def pays(self, size: int, itemsize: int, slots: int) -> bool:
        """Return whether workers add vectors of `size` entries in rounds of so many slots."""
        if self.always:
            return slots >= _FEWEST and size >= slots
        return slots >= LEAST_SLOTS and size * itemsize > self._least

    def kind(self, work: Work, inputs: tuple[Any, ...], homes: Ints) -> Callable[..., Round]:
        """Return what makes a round: `PeerRound` where workers add its sums."""
        return functools.partial(PeerRound, self) if self.takes(work, inputs, homes) else Round

    @property
    def off(self) -> bool:
        """Whether workers cannot add."""
        return self._off

    def give_up(self, reason: str) -> None:
        """Let the driver add from now on; raise `ClusterError` where workers have to."""
        if self.always:
            raise ClusterError(
                f"workers cannot add among themselves: {reason}", where="backend.reduce", hint="backend.reduce=driver"
            )
        self._off = True
        self._tell(f"warning: workers cannot add among themselves, the driver does: {reason}")

    def find(self, work: Work) -> FindPeer:
        """Return the question where a worker is found."""
        if id(work) not in self._finds:  # the same in every round: workers are sent it once
            self._finds[id(work)] = work, FindPeer(work.view, self._run, self._patience)
        return self._finds[id(work)][1]

    def exchange(self, work: GradientSum, peers: tuple[PeerAt, ...]) -> Exchange:
        """Return a round's work for these workers."""
        key = id(work), peers
        if key not in self._exchanges:
            self._exchanges[key] = work, Exchange(work, self._run, peers)
            if not self._told:
                self._told = True
                each = math.ceil(work.model.layout.size / len(peers)) * np.dtype(work.dtype).itemsize
                self._tell(f"reduce: among {len(peers)} workers, {each / 1e6:.3g} MB of the gradient each")
        return self._exchanges[key][1]

    def forget(self) -> None:
        """Ask everybody again."""
        self.known.clear()
        self._exchanges.clear()

    def lend(self, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return the vector that slices are written into."""
        return self._buffers.lend(size, dtype)


def peers(conf: Conf, backend: str, tell: Callable[[str], object]) -> Peers | None:
    """Return what decides which rounds of a run are added by workers; None where no round is.

    Parameters
    ----------
    conf : Conf
    backend : str
        The one that runs.
    tell : callable
        Takes what a person should know.
    """
    reduce, strategy = conf.backend.reduce, conf.strategy.name
    if backend == "local" or strategy != "sync" or reduce == "driver" or conf.backend.channel == "off":
        return None
    if reduce == "auto" and (backend != "dask" or conf.backend.address is None):
        return None  # a cluster of one's own is on this machine: there is no network to relieve
    return Peers(always=reduce == "workers", patience=conf.backend.timeout, tell=tell)


class PeerRound(Round):
    """A round whose sums are added by workers; see `bigopt.backends.ledger.Round` for what it is made from.

    Parameters
    ----------
    peers : Peers
    """

    def __init__(self, peers: Peers, *where: Any, **more: Any) -> None:
        super().__init__(*where, **more)
        self._peers = peers
        self._slots: list[int] = np.unique(self._homes).tolist()
        self._turn = 0  # orders say as their attempt which turn they belong to
        self._asked: set[int] = set()
        self._members: list[int] = []
        self._lost = 0
        self._reason = ""
        self._broken = self._died = False
        self._alone = False
        self._fresh = False  # whether all were found in this round
        self._absent: set[int] = set()
        self._unreached: set[int] = set()
        self._answered: list[Arrival] = []
        self._whole: npt.NDArray[Any] | None = None
        self._root: Sums | None = None

    @property
    def _plain(self) -> bool:
        return self._root is None and (self._alone or self._peers.off)

    @property
    def done(self) -> bool:
        """Whether every unit is accepted."""
        return self._root is not None or super().done

    @property
    def value(self) -> Any:
        """The root of the tree; a partial sum is never given out."""
        return super().value if self._root is None else self._root

    def orders(self) -> list[Order]:
        """Ask where workers are found, deal the round, or leave the sums to the driver."""
        if self._plain:
            return super().orders()
        missing = [slot for slot in self._slots if slot not in self._peers.known]
        return self._find(missing) if missing else self._deal()

    def _begin(self, asked: list[int]) -> None:
        self._turn += 1
        self._asked = set(asked)
        self._broken, self._died, self._answered = False, False, []
        self._absent.clear()
        self._unreached.clear()

    def _find(self, slots: list[int]) -> list[Order]:
        self._begin(slots)
        work, n = self._peers.find(self.work), len(self.units)
        starts = np.searchsorted(self._homes, slots).tolist()
        return [
            Order(self.ticket, self._turn, slot, work, (), n, start, self.units[start : start + 1])
            for slot, start in zip(slots, starts, strict=True)
        ]

    def _deal(self) -> list[Order]:
        """Return one order for each worker: its slot's units, and those of empty slots up to the next worker's."""
        self._members = [slot for slot in self._slots if slot in self._peers.known]
        if len(self._members) < _FEWEST:
            self._alone = True
            return super().orders()
        self._begin(list(range(len(self._members))))
        assert isinstance(self.work, GradientSum)
        work = self._peers.exchange(self.work, tuple(self._peers.known[slot] for slot in self._members))
        params, n, count = self._inputs[0], len(self.units), len(self._members)
        self._whole = self._peers.lend(self.work.model.layout.size, self.work.dtype)
        starts = [0, *np.searchsorted(self._homes, self._members[1:]).tolist(), n]
        return [
            Order(
                self.ticket,
                self._turn,
                slot,
                work,
                (params[bounds(len(params), number, count)], np.array([number, self._turn], dtype=np.int64)),
                n,
                starts[number],
                self.units[starts[number] : starts[number + 1]],
            )
            for number, slot in enumerate(self._members)
        ]

    def accept(self, arrival: Arrival) -> list[Order]:
        """Take an arrival; return what is to be ordered next.

        Raises
        ------
        ClusterError
            Where the round was dealt more often than ``backend.retries`` allows.
        BigoptError
            What a worker found wrong with data or conf.
        """
        order = arrival.order
        ours = isinstance(order.work, FindPeer | Exchange)
        if self._plain and not ours:
            return super().accept(arrival)
        if arrival.error is not None:
            raise arrival.error
        finding = isinstance(order.work, FindPeer)
        number = order.slot if finding else int(order.inputs[1][0]) if ours else -1
        late = not ours or order.ticket != self.ticket or order.attempt != self._turn
        if late or self.done or number not in self._asked:
            if not finding:
                self._ledger.duplicates += order.stop - order.start
            return []
        self._asked.discard(number)
        if finding:
            self._located(arrival)
            return [] if self._asked else self.orders() if self._plain else self._deal()
        self._exchanged(arrival, number)
        return [] if self._asked else self._finish()

    def _located(self, arrival: Arrival) -> None:
        if arrival.lost or arrival.nodes is None:
            return
        (found,) = arrival.nodes.values()
        assert isinstance(found, Found)
        if found.at is not None:
            if found.slot == arrival.order.slot:  # else a worker of another slot answered for an empty one
                self._peers.known[found.slot] = found.at
        elif not self._peers.off:
            self._peers.give_up(found.reason)

    def _exchanged(self, arrival: Arrival, number: int) -> None:
        ledger, order = self._ledger, arrival.order
        value = None if arrival.lost or not arrival.nodes else next(iter(arrival.nodes.values()))
        if value is None or isinstance(value, Apart):
            self._broken = True
            self._died |= value is None
            if value is None or number in value.gone:
                self._absent.add(number)
            if value is not None:
                self._unreached.update(value.gone)
            if value is None or not self._reason:
                self._reason = value.reason if value is not None else arrival.lost
            return
        ledger.messages += 1
        ledger.executed += order.stop - order.start
        ledger.bytes_sent += arrival.sent
        ledger.bytes_received += arrival.received
        ledger.bytes_read += arrival.stats.bytes_read
        assert self._whole is not None
        self._whole[bounds(len(self._whole), number, len(self._members))] = dense(value.grad)
        nodes = {node: root._replace(grad=None) for node, root in arrival.nodes.items()} if arrival.nodes else None
        self._answered.append(Arrival(order, nodes, arrival.stats))

    def _finish(self) -> list[Order]:
        """Accept a deal that is complete, else deal anew."""
        if self._broken:
            between = self._unreached - self._absent
            self._peers.apart = self._peers.apart + 1 if between else 0
            if self._peers.apart >= _APART:
                self._peers.give_up(self._reason)
                return self.orders()
            return self._again_all(self._reason, self._died)
        ledger = self._ledger
        for arrival in self._answered:
            ledger.accepted += arrival.order.stop - arrival.order.start
            ledger.rows += arrival.stats.rows
            self.seconds_map = max(self.seconds_map, arrival.stats.seconds)
            self.rss = max(self.rss, arrival.stats.rss)
        assert self._answered[0].nodes is not None
        (first,) = self._answered[0].nodes.values()
        self._root = first._replace(grad=self._whole)
        self._accepted[:] = True
        self._peers.apart = 0
        ledger.rounds += 1
        return []

    def _again_all(self, reason: str, died: bool = True) -> list[Order]:
        self._lost += self._fresh or died  # a worker that was replaced between two rounds has lost nothing
        if self._lost > self._retries:
            first, last = int(self.units[0][0]), int(self.units[-1][0])
            raise ClusterError(
                f"partitions {first}..{last} of round {self.ticket} were lost {self._lost} times: {reason}",
                where=self.where,
                hint="a partition that kills its worker? raise backend.retries or the workers' memory, then resume",
            )
        self._ledger.lost += len(self.units)
        self._reason, self._fresh = "", True
        self._peers.forget()
        return self.orders()
