"""Stands between a daemon and the peer it serves: records what is said, or cuts the line after any byte."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from tests.patience import PATIENCE
from tests.peer import FORCEREADY, GETFORCE, HAVEDATA, READY, STATUS, Peer

Side = Literal["peer", "engine"]

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: a close that resets the connection."""


def reset(sock: socket.socket) -> None:
    """Close so that the other side has an error, not an end of the stream; a unix socket knows only the latter."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


@dataclass(frozen=True)
class Cut:
    """Where a connection breaks, and how.

    Attributes:
        after: bytes that still pass, in the direction that is cut.
        side: whose words are cut; `peer` is the code that moves the atoms.
        how: what the daemon sees: the end of the stream, or a reset. The peer always sees an orderly end, for
            that is all that peers survive.
    """

    after: int
    side: Side = "peer"
    how: Literal["close", "reset"] = "close"

    def hits(self, side: Side, said: bytes | bytearray, data: bytes) -> bool:
        """Whether it falls into the next piece of data, or on its end."""
        return side == self.side and len(said) + len(data) >= self.after


@dataclass
class Passed:
    """What one connection has said."""

    peer: bytearray = field(default_factory=bytearray)
    engine: bytearray = field(default_factory=bytearray)
    is_cut: bool = False

    def said(self, side: Side) -> bytearray:
        """The words of one side."""
        return self.peer if side == "peer" else self.engine


def survivable(cut: Cut, passed: Passed, data: bytes) -> Cut:
    """Put a cut off where i-PI without consolidated messages never recovers from an engine that leaves.

    There are two such places. Behind GETFORCE it takes the end of the stream for a message that it does not know, and
    reads on for ever. And a client that it finds dead by the STATUS behind its forces it tries to give more work, again
    and again, while any is left. Our daemon closes before HAVEDATA, or not at all.
    """
    said = passed.said(cut.side)
    start, end = len(said), len(said) + len(data)
    asks, asked = data == GETFORCE and passed.peer.endswith(STATUS), passed.peer.endswith(STATUS + GETFORCE)
    if cut.side == "peer":
        is_deadly = asks or (asked and data == STATUS)
        return replace(cut, side="engine", after=len(passed.engine) + 12) if is_deadly else cut
    if asked and data.startswith(FORCEREADY):
        return replace(cut, after=end + 12 if cut.after == end else max(cut.after, start + 12))
    if data == READY and passed.peer.endswith(STATUS + GETFORCE + STATUS):
        return replace(cut, after=end)
    return replace(cut, after=end + 12) if data == HAVEDATA and cut.after == end else cut


class Proxy:
    """Listens where the daemon dials, and dials the peer for each connection.

    Args:
        target: where the peer listens, or will: the path of a unix socket, or a TCP port of this machine.
        address: where to listen, as `Peer` has it.
        cuts: asked for the cut of each new connection; None leaves it alone.

    Attributes:
        endpoint: for the daemon.
        passed: what went over each connection, in their order.
    """

    def __init__(
        self, target: str | int, address: str | int = "unix", cuts: Callable[[], Cut | None] = lambda: None
    ) -> None:
        self._target = target
        self._listening = Peer(address)
        self._listening.listener.settimeout(None)
        self.endpoint = self._listening.endpoint
        self.passed: list[Passed] = []
        self._cuts = cuts
        self._stop, self._stopping = socket.socketpair()
        self._threads = [threading.Thread(target=self._accept, name="proxy")]

    def __enter__(self) -> Proxy:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.close()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the proxy goes on"
        self._stop.close()
        with self._listening:
            pass

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._stop, selectors.EVENT_READ)
            selector.register(self._listening.listener, selectors.EVENT_READ)
            while self._stop not in {key.fileobj for key, _ in selector.select()}:
                engine, _ = self._listening.listener.accept()
                if (peer := self._dial()) is None:
                    engine.close()
                    continue
                thread = threading.Thread(target=self._forward, args=(peer, engine), name="proxied")
                self._threads.append(thread)
                thread.start()

    def _dial(self) -> socket.socket | None:
        is_unix = isinstance(self._target, str)
        peer = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
        try:
            peer.connect(self._target if is_unix else ("127.0.0.1", self._target))
        except OSError:
            peer.close()
            return None
        return peer

    def _forward(self, peer: socket.socket, engine: socket.socket) -> None:
        passed, cut = Passed(), self._cuts()
        self.passed.append(passed)
        with peer:
            with engine, contextlib.suppress(OSError):
                self._pass_on(peer, engine, passed, cut)
                if cut is not None and passed.is_cut and cut.how == "reset":
                    reset(engine)
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
                for _, data in self._heard(peer):
                    if not data:
                        break

    def _pass_on(self, peer: socket.socket, engine: socket.socket, passed: Passed, cut: Cut | None) -> None:
        """Until one of them has no more to say, or the cut."""
        for source, data in self._heard(peer, engine):
            side: Side = "peer" if source is peer else "engine"
            said, other = passed.said(side), engine if source is peer else peer
            if cut is not None and cut.hits(side, said, data):
                cut = survivable(cut, passed, data)
                passed.is_cut = cut.hits(side, said, data)
            piece = data[: cut.after - len(said)] if cut is not None and passed.is_cut else data
            said += piece
            other.sendall(piece)
            if passed.is_cut or not data:
                return

    def _heard(self, *sources: socket.socket) -> Iterator[tuple[socket.socket, bytes]]:
        """What the sources say, one piece after the other, until the proxy is stopped."""
        with selectors.DefaultSelector() as selector:
            for source in (*sources, self._stop):
                selector.register(source, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._stop:
                        return
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    yield source, source.recv(1 << 16)
