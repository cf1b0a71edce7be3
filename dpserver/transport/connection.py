"""One connected socket that never blocks: reads all there is, writes a reply in one call, closes without a reset."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

Buffer = bytes | bytearray | memoryview

CHUNK_BYTES = 1 << 17
CHUNKS_PER_TURN = 16
"""Read at most this much of one peer before the others have their turn."""

MAX_BUFFERS = 512
"""Buffers in one system call; the system allows 1024."""


class Watchable(Protocol):
    """What a selector can watch."""

    def fileno(self) -> int:
        """Its descriptor."""


class Connection:
    """The bytes of one peer.

    Args:
        sock: connected; belongs to the connection from here on.

    Attributes:
        companions: what is to be closed together with the socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # a peer that is already gone is noticed when it is read
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self.companions = contextlib.ExitStack()
        self._received = self._sent = 0
        self._is_delayed = sock.family != socket.AF_UNIX and hasattr(socket, "TCP_QUICKACK")
        self._chunk = bytearray(CHUNK_BYTES)
        self._outbox: deque[memoryview] = deque()

    @property
    def has_unsent(self) -> bool:
        """Whether the peer has yet to take bytes; it is not read meanwhile."""
        return bool(self._outbox)

    def receive(self) -> Iterator[memoryview]:
        """Read what has come; an empty chunk is the end of the stream, reset connections included.

        Yields:
            Views that are valid until the next one.
        """
        view = memoryview(self._chunk)
        for _ in range(CHUNKS_PER_TURN):
            try:
                count = self.socket.recv_into(view)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            self._received += count
            if self._is_delayed and count:
                self._acknowledge()
            yield view[:count]
            if count < CHUNK_BYTES:
                return

    def take_traffic(self) -> tuple[int, int]:
        """Give the bytes that came and that went since this was last asked."""
        traffic = self._received, self._sent
        self._received = self._sent = 0
        return traffic

    def _acknowledge(self) -> None:
        """Have the system acknowledge at once, which it forgets again after a while.

        ASE writes a message in five small pieces through a socket that holds each back until the one before it is
        acknowledged: 40 ms a step where the system takes its time.
        """
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Write buffers in order, as far as the system takes them now; `flush` goes on."""
        self._outbox.extend(memoryview(b) for b in buffers)
        self.flush()

    def flush(self) -> None:
        """Write on. A peer that is gone loses its bytes here and is noticed when it is read."""
        while self._outbox:
            try:
                sent = self.socket.sendmsg([self._outbox[k] for k in range(min(len(self._outbox), MAX_BUFFERS))])
            except BlockingIOError:
                return
            except OSError:
                self._outbox.clear()
                return
            self._sent += sent
            while self._outbox and sent >= len(self._outbox[0]):
                sent -= len(self._outbox.popleft())
            if sent:
                self._outbox[0] = self._outbox[0][sent:]

    def finish(self) -> None:
        """Say that nothing more will be sent; what the peer still sends has to be read off before `close`.

        A socket closed over unread bytes resets the connection, which ends some peers where an orderly end of the
        stream lets them go on with another engine.
        """
        self._outbox.clear()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def discard(self) -> bool:
        """Read and forget what has come since `finish`.

        Returns:
            Whether the peer has closed its side too.
        """
        return any(not chunk for chunk in self.receive())

    def close(self) -> None:
        """Give the socket back, and its companions."""
        self.socket.close()
        self.companions.close()
