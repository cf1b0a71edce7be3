"""Connections between rank 0 and the others that say nothing while all is well: when one breaks, a rank has gone.

MPI itself does not tell. The system closes the connections of a process that ends, however it ends, and who listens at
the other end knows within a millisecond. Rank 0 listens; each of the others is connected to it and to nobody else.

    to rank 0    STOP     somebody has asked this rank to end, and means the whole job
                 DIED …   what has killed it, from the process that stands by it (see `guard`)
                 BYE      it leaves in good order
    to the rest  BYE      rank 0 leaves in good order
                 END n    rank 0 leaves with the exit code n, and has said why
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dpserver import guard
from dpserver.errors import DeviceError

logger = logging.getLogger(__name__)

STOP: Final = b"S"
DIED: Final = b"D"
BYE: Final = b"B"
END: Final = b"E"

_HELLO: Final = struct.Struct("=16si")
_SECONDS: Final = 20.0
_SECONDS_FOR_HELLO: Final = 2.0
_SECONDS_TO_LEAVE: Final = 2.0
_MOST_STRANGERS: Final = 64
_PATIENCE_AFTER_SILENCE: Final = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


@dataclass(frozen=True)
class Address:
    """Where rank 0 listens.

    Attributes:
        host: name or address.
        port: of TCP.
        token: that shows who belongs to the job.
    """

    host: str
    port: int
    token: bytes


class _Caller:
    """Who calls rank 0, while it has not said all of who it is.

    Args:
        connection: that never waits.

    Attributes:
        said: so far.
        since: when it called, on the monotonic clock.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.said = b""
        self.since = time.monotonic()

    def listen(self) -> bool:
        """Take what has come; whether that is all there will be."""
        try:
            more = self.connection.recv(_HELLO.size - len(self.said))
        except BlockingIOError:
            return False
        except OSError:
            return True
        self.said += more
        return not more or len(self.said) == _HELLO.size


class Hub:
    """Rank 0's ends of all lines.

    Args:
        n_others: how many ranks there are to be connected.
        is_one_node: whether they all run here.
    """

    def __init__(self, n_others: int, *, is_one_node: bool) -> None:
        self._n_others = n_others
        self._server = guard.line or socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._server.bind(("127.0.0.1" if is_one_node else "", 0))
        self._server.listen(max(16, n_others))
        host = "127.0.0.1" if is_one_node else socket.gethostname()
        self.address = Address(host, self._server.getsockname()[1], secrets.token_bytes(16))
        self._lines: dict[int, socket.socket] = {}

    def accept(self, ranks: set[int]) -> None:
        """Take the connections of ranks that have made theirs; strangers are turned away.

        All that call are listened to at once, so that a stranger who says nothing, or one byte now and then, keeps
        nobody waiting.

        Raises:
            DeviceError: one does not come.
        """
        deadline = time.monotonic() + _SECONDS
        self._server.setblocking(False)
        callers: dict[socket.socket, _Caller] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            while missing := ranks - set(self._lines):
                if (left := deadline - time.monotonic()) <= 0:
                    raise DeviceError(f"ranks {sorted(missing)} have not called rank 0 within {_SECONDS:g} s")
                for key, _ in selector.select(min(left, _SECONDS_FOR_HELLO)):
                    if key.fileobj is self._server:
                        self._answer(callers, selector)
                        continue
                    caller: _Caller = key.data
                    if caller.connection not in callers:  # it had to make room for another, a moment ago
                        continue
                    if caller.listen():
                        del callers[caller.connection]
                        selector.unregister(caller.connection)
                        self._admit(caller, missing)
                for caller in [c for c in callers.values() if c.since + _SECONDS_FOR_HELLO < time.monotonic()]:
                    self._turn_away(caller, callers, selector)
            for caller in list(callers.values()):
                self._turn_away(caller, callers, selector)
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # who stands by this rank has it open too
        self._server.close()

    def _answer(self, callers: dict[socket.socket, _Caller], selector: selectors.BaseSelector) -> None:
        """Take a call; where too many have called and said too little, the first of them has to go."""
        try:
            connection, _ = self._server.accept()
        except OSError:  # the caller has gone again
            return
        if len(callers) >= _MOST_STRANGERS + self._n_others:
            self._turn_away(next(iter(callers.values())), callers, selector)
        connection.setblocking(False)
        callers[connection] = _Caller(connection)
        selector.register(connection, selectors.EVENT_READ, callers[connection])

    @staticmethod
    def _turn_away(caller: _Caller, callers: dict[socket.socket, _Caller], selector: selectors.BaseSelector) -> None:
        del callers[caller.connection]
        selector.unregister(caller.connection)
        caller.connection.close()

    def _admit(self, caller: _Caller, missing: set[int]) -> None:
        """Keep the connection of a rank that is expected, and close any other."""
        token, rank = _HELLO.unpack(caller.said) if len(caller.said) == _HELLO.size else (b"", -1)
        if rank not in missing or not secrets.compare_digest(token, self.address.token):
            caller.connection.close()
            return
        caller.connection.setblocking(True)
        _keep_alive(caller.connection)
        self._lines[rank] = caller.connection

    def watch(self, on_lost: Callable[[int, str], None], on_stop: Callable[[], None]) -> None:
        """Begin to listen, in a thread of its own.

        Args:
            on_lost: is told the rank that has gone and why; once.
            on_stop: is called when a rank was asked to end the job.
        """
        threading.Thread(target=self._watch, args=(on_lost, on_stop), name="lifelines", daemon=True).start()

    def _watch(self, on_lost: Callable[[int, str], None], on_stop: Callable[[], None]) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._lines.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    said, why = _read(self._lines[key.data])
                    if said == STOP:
                        on_stop()
                        continue
                    selector.unregister(key.fileobj)
                    if said != BYE:
                        on_lost(key.data, why)
                        return

    def close(self) -> None:
        """Leave in good order."""
        self._tell(BYE)

    def end(self, code: int) -> None:
        """Have all leave now, with an exit code, and wait until they have."""
        self._tell(END + bytes([code]))
        deadline = time.monotonic() + _SECONDS_TO_LEAVE
        for connection in self._lines.values():
            with contextlib.suppress(OSError):
                while (left := deadline - time.monotonic()) > 0:
                    connection.settimeout(left)
                    if not connection.recv(4096):
                        break

    def _tell(self, words: bytes) -> None:
        for connection in self._lines.values():
            with contextlib.suppress(OSError):
                connection.sendall(words)


class Line:
    """The end of one of the other ranks.

    Args:
        rank: this one.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._connection = guard.line or socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._lock = threading.Lock()

    def call(self, address: Address) -> str | None:
        """Connect to rank 0; returns why that cannot be done."""
        try:
            self._connection.settimeout(_SECONDS)
            self._connection.connect((address.host, address.port))
            self._connection.sendall(_HELLO.pack(address.token, self._rank))
            self._connection.settimeout(None)
            _keep_alive(self._connection)
        except OSError as error:
            return f"{address.host}:{address.port}: {error}"
        return None

    def watch(self, on_end: Callable[[int | None], None]) -> None:
        """Begin to listen, in a thread of its own.

        Args:
            on_end: is called with the exit code to leave with at once; with None where rank 0 has gone without a word.
        """
        threading.Thread(target=self._watch, args=(on_end,), name="lifeline", daemon=True).start()

    def _watch(self, on_end: Callable[[int | None], None]) -> None:
        said, _ = _read(self._connection)
        if said == END:
            on_end(_receive(self._connection, 1)[0])
        elif said != BYE:
            on_end(None)

    def ask_to_stop(self) -> None:
        """Tell rank 0 that the job is to end; from a signal handler."""
        with contextlib.suppress(OSError):
            self._connection.send(STOP)

    def died(self, why: str) -> None:
        """Tell rank 0 that this rank cannot go on."""
        with contextlib.suppress(OSError):
            self._connection.sendall(DIED + why.encode() + b"\n")

    def close(self) -> None:
        """Leave in good order."""
        with contextlib.suppress(OSError):
            self._connection.sendall(BYE)


def _read(connection: socket.socket) -> tuple[bytes, str]:
    """What is said next, and why the other end is gone where it is."""
    try:
        said = connection.recv(1)
        if said != DIED:
            return said, "has gone without a word"
        words = bytearray()
        while (more := connection.recv(1)) not in (b"", b"\n"):
            words += more
        return said, words.decode(errors="replace")
    except OSError as error:
        return b"", f"is out of reach: {error.strerror or error}"


def _receive(connection: socket.socket, n: int) -> bytes:
    found = b""
    while len(found) < n and (more := connection.recv(n - len(found))):
        found += more
    return found


def _keep_alive(connection: socket.socket) -> None:
    """Notice within half a minute that a node has lost its power or its network."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in _PATIENCE_AFTER_SILENCE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
