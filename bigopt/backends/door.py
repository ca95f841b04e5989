"""Where workers come in: a Unix socket for those of this machine, an address of the cluster for the others.

The socket lies in a folder that only its owner can enter; whoever connects, by either way, has to prove a random key
that came with his task, and the driver proves it too. What is said after that is not the door's business.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge

from bigopt.backends.resident import Address
from bigopt.core.errors import ClusterError


class Unreachable(ClusterError):
    """No worker can connect to the driver."""


class Door:
    """Sockets that are listened to.

    Parameters
    ----------
    host : str or None
        Address to listen on for workers of other machines; None for the Unix socket alone.

    Attributes
    ----------
    key : bytes
        What workers prove to have.
    """

    def __init__(self, host: str | None) -> None:
        self.key = secrets.token_bytes(32)
        self._folder = tempfile.mkdtemp(prefix="bigopt-")
        self._listeners = [Listener(os.path.join(self._folder, "hub"), backlog=64)]
        if host:
            self._listeners.append(Listener((host, 0), backlog=64))
        self._closed = False

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where workers connect to: the Unix socket of this machine, then the address for all."""
        return tuple(listener.address for listener in self._listeners)

    def open(self, enter: Callable[[Connection], None]) -> None:
        """Hand every connection from now on to `enter`, from a thread of each socket."""
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener, enter), name="bigopt-hub", daemon=True).start()

    def _accept(self, listener: Listener, enter: Callable[[Connection], None]) -> None:
        while True:
            try:
                connection = listener.accept()
            except OSError:
                return  # closed
            enter(connection)
            if self._closed:
                return

    def knows(self, connection: Connection) -> bool:
        """Return whether who connected has the key; False for a stranger, or one that died while it connected."""
        try:
            deliver_challenge(connection, self.key)
            answer_challenge(connection, self.key)
        except (AuthenticationError, EOFError, OSError):
            return False
        return True

    def close(self) -> None:
        """Listen no more and remove the socket."""
        self._closed = True
        for listener in self._listeners:
            with contextlib.suppress(OSError):  # closing a socket does not wake who waits in accept; connecting does
                Client(listener.address).close()
            listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)
