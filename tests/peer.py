"""The other side of the wire, written from the protocol and not from our codec: messages of a peer, and a peer."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpserver.units import BOHR, HARTREE
from tests.patience import PATIENCE

_names = itertools.count()

STATUS = b"STATUS      "
GETFORCE = b"GETFORCE    "
EXIT = b"EXIT        "
NEEDINIT = b"NEEDINIT    "
READY = b"READY       "
HAVEDATA = b"HAVEDATA    "
FORCEREADY = b"FORCEREADY  "


def init(text: bytes = b"\0", bead: int = 0) -> bytes:
    return b"INIT        " + struct.pack("=ii", bead, len(text)) + text


def posdata(positions: ArrayLike, cell: ArrayLike) -> bytes:
    """One structure, Å; lattice vectors are the rows of `cell` and become columns on the wire."""
    x = np.asarray(positions, dtype=float) / BOHR
    h = np.asarray(cell, dtype=float).T / BOHR
    return b"POSDATA     " + h.tobytes() + np.full(9, np.nan).tobytes() + struct.pack("=i", len(x)) + x.tobytes()


def batched_posdata(positions: ArrayLike, cells: ArrayLike) -> bytes:
    """Several structures as i-PI >= 3.3 sends them: (n_frames, n_atoms, 3) and (n_frames, 3, 3), Å."""
    x = np.asarray(positions, dtype=float) / BOHR
    h = [np.asarray(cell, dtype=float).T / BOHR for cell in np.asarray(cells)]
    blocks = b"".join(cell.tobytes() + np.full(9, np.nan).tobytes() for cell in h)
    return b"POSDATA     " + struct.pack("=i", x.shape[1]) + blocks + x.tobytes()


@dataclass(frozen=True, eq=False)
class Reply:
    """What came after FORCEREADY, in eV and Å."""

    energy: NDArray[np.float64]
    forces: NDArray[np.float64]
    virial: NDArray[np.float64]
    extras: list[bytes]
    size: int


def read_reply(raw: bytes, n_frames: int = 1) -> Reply:
    """Take a reply to pieces; `size` tells how many bytes it took."""
    assert raw[:12] == FORCEREADY
    at = 12
    energy = np.frombuffer(raw, float, n_frames, at) * HARTREE
    at += 8 * n_frames
    (n_atoms,) = struct.unpack_from("=i", raw, at)
    at += 4
    forces = np.frombuffer(raw, float, n_frames * n_atoms * 3, at).reshape(n_frames, n_atoms, 3) * (HARTREE / BOHR)
    at += forces.nbytes
    virial = np.frombuffer(raw, float, n_frames * 9, at).reshape(n_frames, 3, 3) * HARTREE
    at += virial.nbytes
    extras = []
    for _ in range(n_frames):
        (length,) = struct.unpack_from("=i", raw, at)
        extras.append(raw[at + 4 : at + 4 + length])
        assert len(extras[-1]) == length
        at += 4 + length
    return Reply(energy, forces, virial, extras, at)


def reply_size(n_atoms: int, n_frames: int = 1) -> int:
    """Bytes of a reply whose extras are one byte each."""
    return 12 + 4 + n_frames * (8 + 24 * n_atoms + 72 + 5)


class Peer:
    """Listens like an MD code, and says what a test tells it to.

    Args:
        address: `unix` for a new unix socket, the path of one, or a TCP port of this machine, 0 for a free one.
        backlog: connections the system keeps waiting.
    """

    def __init__(self, address: str | int = "unix", backlog: int = 8) -> None:
        self.address = address
        if isinstance(address, str):
            self.address = f"/tmp/ipi_dpserver_test_{os.getpid()}_{next(_names)}" if address == "unix" else address
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(self.address)
            self.endpoint = f"unix:{self.address}"
        else:
            self.listener = socket.socket(socket.AF_INET)
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind(("127.0.0.1", address))
            self.address = self.listener.getsockname()[1]
            self.endpoint = f"inet:127.0.0.1:{self.address}"
        self.listener.settimeout(PATIENCE)
        self.listener.listen(backlog)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        if isinstance(self.address, str):
            os.unlink(self.address)

    def accept(self) -> Line:
        sock, _ = self.listener.accept()
        return Line(sock)


class Line:
    """One accepted connection; every method blocks."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, *messages: bytes) -> None:
        self.sock.sendall(b"".join(messages))

    def receive(self, n_bytes: int) -> bytes:
        """Exactly so many bytes, or fewer at the end of the stream."""
        data = b""
        while len(data) < n_bytes and (chunk := self.sock.recv(n_bytes - len(data))):
            data += chunk
        return data

    def status(self) -> bytes:
        self.send(STATUS)
        return self.receive(12)

    def handshake(self, text: bytes = b"\0") -> None:
        assert self.status() == NEEDINIT
        self.send(init(text))
        assert self.status() == READY

    def reply(self, n_atoms: int, n_frames: int = 1) -> Reply:
        return read_reply(self.receive(reply_size(n_atoms, n_frames)), n_frames)

    def ask(self, positions: ArrayLike, cell: ArrayLike) -> Reply:
        """Positions and GETFORCE in one piece, as i-PI >= 3.2."""
        self.send(posdata(positions, cell), GETFORCE)
        return self.reply(len(np.asarray(positions)))

    def is_closed(self) -> bool:
        """Wait for the end of the stream, which must come orderly and before any byte."""
        return self.sock.recv(1) == b""
