"""What a worker shows of the round it is in, and how its peers look at it.

Every worker has a `Board`, threads that answer from it (`_Server`), and connections to the boards of others (`Peer`).
Who looks is answered when there is something to see, so nothing comes unasked and nothing of an earlier round can be
mistaken for this one: a board names its round, and says of an older one, or of one that its worker has given up, that
it is over. Nobody waits for somebody who is gone: a connection that breaks, a board that is over and a partner that
says nothing for the patience of the run all raise `Lonely`.

Connections prove a key that comes from the channel's and never travels. Between processes of a machine they are Unix
sockets without a path, with vectors in shared memory (`bigopt.backends.wire`), so that a killed worker leaves nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import socket
import struct
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any, Final, NamedTuple

from bigopt.backends.segments import Pool
from bigopt.backends.slices import cut
from bigopt.backends.wire import Wire
from bigopt.core import tree
from bigopt.core.codec import wire
from bigopt.core.sums import Sums
from bigopt.data.kept import Kept
from bigopt.shardserver import own_host

Turn = tuple[int, int]
"""Ticket of a round, and which of its deals: later ones are larger."""

PARAMS: Final = "params"
"""Shown: a worker's slice of the params."""
SUMS: Final = "sums"
"""Shown: the nodes of the round's tree that cover its units."""

_BROKEN: Final = (OSError, EOFError, AuthenticationError, ValueError)
_BACKLOG: Final = 64


@wire
class PeerAt(NamedTuple):
    """Where a worker is found by its peers.

    Parameters
    ----------
    token : str
        Drawn when it began to listen: the same token is the same worker.
    near : str
        Name of its Unix socket without a path, for workers of its machine; empty where the system has none.
    host : str
    port : int
        For the others; 0 where it listens to none.
    """

    token: str
    near: str
    host: str
    port: int


@wire
class Want(NamedTuple):
    """Asks a board for what it shows, ``params`` or ``sums``, in a round; of sums the entries ``[start, stop)``."""

    ticket: int
    deal: int
    what: str
    start: int
    stop: int


@wire
class NotYet(NamedTuple):
    """There is nothing to see yet; the answer follows."""


@wire
class Over(NamedTuple):
    """There never will be."""


@wire
class Shown(NamedTuple):
    """The nodes of a tree and their values; params are the value of one."""

    levels: tuple[tree.Node, ...]
    values: tuple[Any, ...]


class Lonely(Exception):
    """Some workers were not reached, or had given up."""

    def __init__(self, reason: str, gone: tuple[int, ...]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.gone = gone


class Board:
    """What a worker shows of the round it is in; safe for threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._turn: Turn = (0, 0)
        self._over = False
        self._shown: dict[str, dict[tree.Node, Any]] = {}

    def begin(self, turn: Turn) -> None:
        """Begin a round; nothing of the last one is shown any more."""
        with self._changed:
            self._turn, self._over, self._shown = turn, False, {}
            self._changed.notify_all()

    def show(self, what: str, value: dict[tree.Node, Any]) -> None:
        """Show something."""
        with self._changed:
            self._shown[what] = value
            self._changed.notify_all()

    def give_up(self) -> None:
        """Show no more in this round."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def look(self, want: Want, seconds: float) -> dict[tree.Node, Any] | NotYet | Over:
        """Return what is wanted, or that it is not there after so many seconds, or never will be."""
        turn = want.ticket, want.deal

        def decided() -> bool:
            return self._turn > turn or (self._turn == turn and (self._over or want.what in self._shown))

        with self._changed:
            if not self._changed.wait_for(decided, seconds):
                return NotYet()
            return self._shown.get(want.what, Over()) if self._turn == turn else Over()


class _Server:
    """The threads that answer from a board: they hold no reference to the `Peer`."""

    def __init__(self, board: Board, pool: Pool, secret: bytes, host: str, patience: float) -> None:
        self._board = board
        self._pool = pool
        self._secret = secret
        self._patience = patience
        self._open: set[Wire] = set()
        self._closed = False
        self._lock = threading.Lock()
        token = secrets.token_hex(16)
        far = socket.create_server((host, 0), backlog=_BACKLOG)
        self._listeners = [far]
        near = f"\0bigopt-{token}" if sys.platform == "linux" else ""
        if near:
            unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            unix.bind(near)
            unix.listen(_BACKLOG)
            self._listeners.append(unix)
        self.at = PeerAt(token, near, host, int(far.getsockname()[1]))
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), name="bigopt-peers", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                found, _ = listener.accept()
            except OSError:
                return
            _patient(found, 0.0, self._patience)
            connection = Connection(found.detach())
            threading.Thread(target=self._greet, args=(connection,), name="bigopt-peer-link", daemon=True).start()

    def _greet(self, connection: Connection) -> None:
        with contextlib.closing(Wire(connection, self._pool, writable=False)) as partner:
            with self._lock:
                if self._closed:
                    return
                self._open.add(partner)
            try:
                deliver_challenge(connection, self._secret)
                answer_challenge(connection, self._secret)
                while True:
                    self._answer(partner)
            except _BROKEN:
                pass  # a stranger, a peer that is gone, or one that speaks another protocol
            finally:
                with self._lock:
                    self._open.discard(partner)

    def _answer(self, partner: Wire) -> None:
        """Answer one question; what was shown is held no longer than that."""
        want, _ = partner.receive()
        if not isinstance(want, Want):
            raise ValueError("not a question")
        while isinstance(found := self._board.look(want, self._patience / 4), NotYet):
            partner.send(found)
        if isinstance(found, Over):
            partner.send(found)
            return
        part = slice(want.start, want.stop)
        values = [cut(value, part) if isinstance(value, Sums) else value for value in found.values()]
        partner.send(Shown(tuple(found), tuple(values)), found if want.what == PARAMS else None)

    def close(self) -> None:
        """End all connections; safe to call twice."""
        with self._lock:
            self._closed = True
            for partner in self._open:
                partner.hang_up()
        for listener in self._listeners:
            with contextlib.suppress(OSError):  # closing a socket does not wake who waits in accept
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._pool.close()


def _patient(found: socket.socket, receive: float, send: float) -> None:
    """Let reads and writes of a socket fail after so many seconds; 0 for never."""
    found.settimeout(None)
    for option, seconds in ((socket.SO_RCVTIMEO, receive), (socket.SO_SNDTIMEO, send)):
        found.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))


def _secret_of(key: bytes) -> bytes:
    return hashlib.blake2b(key, person=b"bigopt peers").digest()


def _socket_to(at: PeerAt, patience: float) -> socket.socket:
    """Connect to a worker of this machine, else over the network."""
    if at.near:
        near = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        near.settimeout(patience)
        try:
            near.connect(at.near)
            return near
        except OSError:
            near.close()
    return socket.create_connection((at.host, at.port), timeout=patience)


class Peer:
    """A worker's board, its server, and its connections to others; the server ends when this dies.

    Parameters
    ----------
    kept : Kept
        Of the process: the key, and a host on whose network the workers meet.
    patience : float
        Seconds after which a partner that says nothing is gone.
    """

    def __init__(self, kept: Kept, patience: float) -> None:
        self._pool = Pool()
        self._secret = _secret_of(kept.secret)
        self._patience = patience
        self.board = Board()
        server = _Server(self.board, self._pool, self._secret, own_host(kept.towards), patience)
        self.at = server.at
        self._links: dict[str, Wire] = {}
        weakref.finalize(self, _end, server, self._links).atexit = False

    def _link(self, at: PeerAt) -> Wire:
        link = self._links.get(at.token)
        if link is None:
            found = _socket_to(at, self._patience)
            _patient(found, self._patience, self._patience)
            link = Wire(connection := Connection(found.detach()), self._pool, writable=False)
            self._links[at.token] = link
            answer_challenge(connection, self._secret)
            deliver_challenge(connection, self._secret)
        return link

    def ask(self, peers: Sequence[PeerAt], want: Want) -> Iterator[tuple[int, Shown]]:
        """Ask all others and yield what they show, with their numbers.

        Raises
        ------
        Lonely
            Where one was not reached or had given up. All connections are ended: what is left in them belongs to no
            question.
        """
        asked: list[tuple[int, Wire]] = []
        for index, at in enumerate(peers):
            if at.token != self.at.token:
                try:
                    link = self._link(at)
                    link.send(want)
                except _BROKEN as error:
                    raise self._lonely(index, error) from None
                asked.append((index, link))
        for index, link in asked:
            try:
                while isinstance(answer := link.receive()[0], NotYet):
                    pass
            except _BROKEN as error:
                raise self._lonely(index, error) from None
            if not isinstance(answer, Shown):
                raise self._lonely(index, None)
            yield index, answer
            del answer  # its memory is given back with the next question

    def _lonely(self, index: int, error: BaseException | None) -> Lonely:
        self.part()
        if error is None:
            return Lonely(f"worker {index} of the round has given it up", ())
        return Lonely(f"worker {index} of the round was not reached ({type(error).__name__}: {error})", (index,))

    def part(self) -> None:
        """End the connections to others."""
        for link in self._links.values():
            link.close()
        self._links.clear()


def _end(server: _Server, links: dict[str, Wire]) -> None:
    server.close()
    for link in links.values():
        link.close()
