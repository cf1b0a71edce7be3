"""Reaching a peer that may not listen yet: one attempt that never blocks, and the pauses between attempts."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from dpserver.transport.connection import Connection
from dpserver.transport.endpoint import Address

ATTEMPT_SECONDS = 5.0
"""How long an address may stay silent; a refusal comes at once."""


class Attempt:
    """One round over the addresses of an endpoint.

    Args:
        addresses: of the endpoint, not empty.

    Attributes:
        socket: to be watched for becoming writable.
        error: what went wrong last.
        is_nobody: whether nobody listened there, rather than somebody who was busy or far away.
        is_busy: whether somebody listened who takes no more at present.
    """

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = list(addresses)
        self.socket: socket.socket | None = None
        self.error = ""
        self.is_nobody = self.is_busy = False

    def advance(self) -> Connection | None:
        """Go on: start the next address where there is no socket, else ask how the present, now writable one fares.

        Returns:
            The connection, which then belongs to the caller, or None.
        """
        while True:
            if self.socket is None:
                if not self._addresses:
                    return None
                code = self._start(self._addresses.pop(0))
            else:
                code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == errno.EINPROGRESS:
                return None
            if code == 0 and self.socket is not None:
                if not _is_own_echo(self.socket):
                    sock, self.socket = self.socket, None
                    return Connection(sock)
                code = errno.ECONNREFUSED
            self.is_nobody, self.is_busy = code in {errno.ECONNREFUSED, errno.ENOENT}, code == errno.EAGAIN
            self.give_up(os.strerror(code))

    @property
    def has_failed(self) -> bool:
        """Whether no address is left and none is being tried."""
        return self.socket is None and not self._addresses

    def give_up(self, error: str) -> None:
        """Leave the present address, for this reason."""
        self.error = error
        self._close()

    def _close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def cancel(self) -> None:
        """Give all of them up."""
        self._addresses.clear()
        self._close()

    def _start(self, address: Address) -> int:
        """Begin to connect; the answer is an error code, 0 where it is done already."""
        try:
            self.socket = socket.socket(address.family, socket.SOCK_STREAM)
            self.socket.setblocking(False)
            return self.socket.connect_ex(address.target)
        except OSError as error:
            return error.errno or errno.EIO


def _is_own_echo(sock: socket.socket) -> bool:
    """Whether TCP has connected a socket to itself: its own port may be the one it dials, where nobody listens."""
    try:
        return sock.family != socket.AF_UNIX and sock.getsockname() == sock.getpeername()
    except OSError:  # gone again
        return True


@dataclass
class Backoff:
    """Pauses between attempts: short while nobody listens, longer for a peer that brings nothing, or only trouble.

    Attributes:
        shortest_wait: first pause, s.
        longest_wait: while nobody listens, s; a peer that starts again on the same port is found within it.
        longest_futile: after connections that asked for nothing, s.
        longest_penalty: after connections that were refused, one after the other, s.
    """

    shortest_wait: float = 0.02
    longest_wait: float = 0.15
    longest_futile: float = 1.0
    longest_penalty: float = 10.0
    _attempts: int = 0
    _failures: int = 0

    def after_nobody(self) -> float:
        """Pause after an attempt that reached nobody, s."""
        wait = self.shortest_wait * 1.6 ** min(self._attempts, 20)
        self._attempts += 1
        return min(wait, self.longest_wait)

    def after_success(self) -> float:
        """Pause after a connection that was of use, s."""
        self._attempts = self._failures = 0
        return self.shortest_wait

    def after_failure(self, *, is_refusal: bool) -> float:
        """Pause after a connection that was refused, or asked for nothing, s; doubled each time in a row."""
        self._attempts = 0
        self._failures += 1
        longest = self.longest_penalty if is_refusal else self.longest_futile
        return min(self.longest_wait * 2.0 ** min(self._failures - 1, 20), longest)
