"""The MD code's side of the i-PI socket, as lean as it gets: it sends structures, and tells how long the answers took.

POSDATA and GETFORCE go in one piece, as i-PI has done since 3.2, with nothing in between. Messages are made before the
clock starts and answers taken to pieces after it has stopped. Several connections are kept busy: whichever has answered
gets the next structure.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpserver.frames import Floats
from dpserver.units import BOHR, HARTREE

GETFORCE = b"GETFORCE".ljust(12)
PATIENCE = 300.0
"""Seconds that an engine may take, for loading its model too."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What an engine says of a structure: energy, eV, and forces, (n_atoms, 3), eV/Å."""

    energy: float
    forces: Floats


class Line:
    """A connection, and the answer that is coming in over it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.number = -1
        self.buffer = bytearray()
        self._n_bytes = 0

    def send(self, number: int, message: bytes, size: int) -> None:
        """Ask for an answer of so many bytes before its extras, by its number."""
        self.number, self.buffer, self._n_bytes = number, bytearray(size), 0
        self.sock.sendall(message)

    def receive(self) -> bool:
        """Read what has come; tell whether that was all but the extras."""
        n = self.sock.recv_into(memoryview(self.buffer)[self._n_bytes :])
        if not n:
            raise ConnectionError("the engine has closed its connection")
        self._n_bytes += n
        return self._n_bytes == len(self.buffer)

    def skip_extras(self, n: int) -> None:
        """Read the extras of so many structures."""
        for _ in range(n):
            (length,) = struct.unpack("=i", self.read(4))
            self.read(length)

    def read(self, n_bytes: int) -> bytes:
        """Wait for so many bytes."""
        found = b""
        while len(found) < n_bytes:
            chunk = self.sock.recv(n_bytes - len(found))
            if not chunk:
                raise ConnectionError("the engine has closed its connection")
            found += chunk
        return found

    def shake_hands(self, text: bytes) -> None:
        """STATUS, INIT, STATUS."""
        self.sock.sendall(b"STATUS".ljust(12))
        word = self.read(12).strip()
        if word == b"NEEDINIT":
            self.sock.sendall(b"INIT".ljust(12) + struct.pack("=ii", 0, len(text)) + text + b"STATUS".ljust(12))
            word = self.read(12).strip()
        if word != b"READY":
            raise ConnectionError(f"the engine says {word!r}; expected READY")


class Probe:
    """Listens at a unix socket of its own, and asks the engines that dial it.

    Args:
        name: of the socket, `/tmp/ipi_NAME`.
        per_message: structures in one message, a native batch of i-PI's if they are more than one.

    Attributes:
        path: of the socket.
    """

    def __init__(self, name: str, per_message: int = 1) -> None:
        self.path = Path(f"/tmp/ipi_{name}")
        self._per_message = per_message
        self._lines: list[Line] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(self.path))
        self._listener.settimeout(0.5)
        self._listener.listen(64)

    def close(self) -> None:
        """Say EXIT to everybody."""
        for line in self._lines:
            try:
                line.sock.sendall(b"EXIT".ljust(12))
            except OSError:
                continue
            finally:
                line.sock.close()
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def accept(self, n_lines: int, has_ended: Callable[[], bool]) -> None:
        """Wait for so many connections.

        Args:
            n_lines: how many.
            has_ended: whether nobody is left who might dial.
        """
        end = time.monotonic() + PATIENCE
        text = b" " if self._per_message == 1 else b"batch_size:%d" % self._per_message
        while len(self._lines) < n_lines:
            if has_ended() or time.monotonic() > end:
                raise ConnectionError(f"only {len(self._lines)} of {n_lines} connections have come")
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            sock.settimeout(PATIENCE)
            self._lines.append(Line(sock))
            self._lines[-1].shake_hands(text)

    def ask(self, structures: Sequence[Floats], cell: Floats) -> tuple[float, list[Answer]]:
        """Have structures evaluated.

        Args:
            structures: positions of each, (n_atoms, 3), Å.
            cell: of all, lattice vectors as rows, (3, 3), Å.

        Returns:
            Seconds from the first byte sent to the last one received, and the answers.
        """
        n_atoms, n = len(structures[0]), self._per_message
        messages = [_message(structures[k : k + n], cell, n > 1) for k in range(0, len(structures), n)]
        size = 12 + 4 + n * (8 + 24 * n_atoms + 72)
        replies = [bytearray()] * len(messages)
        waiting = list(range(len(messages)))[::-1]
        n_busy = 0
        with selectors.DefaultSelector() as selector:
            for line in self._lines:
                selector.register(line.sock, selectors.EVENT_READ, line)
            start = time.perf_counter()
            for line in self._lines[: len(messages)]:
                number = waiting.pop()
                line.send(number, messages[number], size)
                n_busy += 1
            while n_busy:
                ready = selector.select(PATIENCE)
                if not ready:
                    raise TimeoutError(f"no answer within {PATIENCE:g} s")
                for line in (key.data for key, _ in ready):
                    if not line.receive():
                        continue
                    line.skip_extras(n)
                    replies[line.number] = line.buffer
                    n_busy -= 1
                    if waiting:
                        number = waiting.pop()
                        line.send(number, messages[number], size)
                        n_busy += 1
            seconds = time.perf_counter() - start
        return seconds, [answer for reply in replies for answer in _answers(reply, n, n_atoms)]


def _message(structures: Sequence[Floats], cell: Floats, is_batch: bool) -> bytes:
    """POSDATA and GETFORCE."""
    h = np.ascontiguousarray(cell.T) / BOHR
    box = h.tobytes() + np.linalg.inv(h).tobytes()
    n_atoms = struct.pack("=i", len(structures[0]))
    head = n_atoms + len(structures) * box if is_batch else box + n_atoms
    return b"POSDATA".ljust(12) + head + b"".join((x / BOHR).tobytes() for x in structures) + GETFORCE


def _answers(reply: bytearray, n_frames: int, n_atoms: int) -> list[Answer]:
    """Take a reply to pieces; the virials are left."""
    if bytes(reply[:12]).strip() != b"FORCEREADY":
        raise ConnectionError(f"the engine says {bytes(reply[:12])!r}; expected FORCEREADY")
    energy = np.frombuffer(reply, np.float64, n_frames, 12) * HARTREE
    at = 12 + 8 * n_frames
    if struct.unpack_from("=i", reply, at) != (n_atoms,):
        raise ConnectionError(f"the engine answers for another number of atoms than {n_atoms}")
    forces = np.frombuffer(reply, np.float64, 3 * n_atoms * n_frames, at + 4) * (HARTREE / BOHR)
    if not np.isfinite(forces).all():
        raise ConnectionError("forces are not finite")
    return [Answer(float(e), f) for e, f in zip(energy, forces.reshape(n_frames, n_atoms, 3), strict=True)]
