"""Bytes of the i-PI protocol: the size, the reading and the writing of each message, without any state.

A header is twelve ASCII bytes, space padded; numbers are int32 and float64 in native byte order, in atomic units. A
cell travels as the transpose of ours (its columns are the lattice vectors), followed by an inverse whose convention
differs between peers and which is therefore not read. Bohr and Hartree end here: what is returned and what is taken
is in Å, eV and eV/Å.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dpserver.errors import LocalProtocolError, RemoteProtocolError
from dpserver.frames import Floats
from dpserver.units import BOHR, HARTREE, HARTREE_PER_BOHR

Buffer = bytes | bytearray | memoryview

HEADER_SIZE = 12
_INT = struct.Struct("=i")
_TWO_INTS = struct.Struct("=ii")
_FLOAT_SIZE = 8
_CELL_SIZE = 9 * _FLOAT_SIZE

EMPTY_EXTRA = b" "
"""One byte that every peer reads as nothing: ASE cannot receive zero bytes, i-PI drops white space."""


class PeerMessage(StrEnum):
    """What the code that moves the atoms may say."""

    STATUS = "STATUS"
    INIT = "INIT"
    POSDATA = "POSDATA"
    GETFORCE = "GETFORCE"
    EXIT = "EXIT"


class EngineMessage(StrEnum):
    """What we may answer."""

    NEEDINIT = "NEEDINIT"
    READY = "READY"
    HAVEDATA = "HAVEDATA"
    FORCEREADY = "FORCEREADY"


@dataclass(frozen=True)
class Limits:
    """Bounds on the numbers that a peer controls, checked before anything of that size is stored.

    What a session holds grows with the bytes that have come, never with what was announced. At most it is four times
    the largest message within these bounds, which has 16 + 144 batch + 24 atoms bytes or the length of an INIT.

    Attributes:
        atoms: atoms of all structures of one message.
        batch: structures in one message.
        init_bytes: length of the INIT string.
    """

    atoms: int = 10_000_000
    batch: int = 65_536
    init_bytes: int = 65_536


@dataclass(frozen=True, eq=False)
class Structures:
    """The structures of one POSDATA; their species are not on the wire.

    Attributes:
        positions: (n_frames, n_atoms, 3), float64, Å.
        cell: lattice vectors as rows, zeros for an open system, (n_frames, 3, 3), float64, Å.
    """

    positions: Floats
    cell: Floats

    @property
    def n_frames(self) -> int:
        """Structures in the message."""
        return len(self.positions)

    @property
    def n_atoms(self) -> int:
        """Atoms of each structure."""
        return int(self.positions.shape[1])


@dataclass(frozen=True, eq=False)
class Forces:
    """The answer to one POSDATA, in its order.

    Attributes:
        energy: (n_frames,), float64, eV.
        forces: (n_frames, n_atoms, 3), float64, eV/Å.
        virial: -dE/d(strain), symmetric, (n_frames, 3, 3), float64, eV.
        extras: a string of bytes for each structure; none means nothing to add.
    """

    energy: Floats
    forces: Floats
    virial: Floats
    extras: Sequence[bytes] = ()

    def check(self, n_frames: int, n_atoms: int) -> None:
        """Refuse what must not reach a peer.

        Args:
            n_frames: structures that were asked for.
            n_atoms: atoms of each.

        Raises:
            LocalProtocolError: an array has another shape or a number that is not finite, or extras are missing.
        """
        expected = {"energy": (n_frames,), "forces": (n_frames, n_atoms, 3), "virial": (n_frames, 3, 3)}
        for name, shape in expected.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise LocalProtocolError(f"the {name} of an answer must be finite, of shape {shape}; got {array.shape}")
        if self.extras and len(self.extras) != n_frames:
            raise LocalProtocolError(f"{len(self.extras)} extras were given for {n_frames} structures")


@dataclass(frozen=True, eq=False)
class WireForces:
    """An answer in atomic units, as every transport carries it.

    Attributes:
        energy_hartree: (n_frames,), float64.
        forces_hartree_per_bohr: (n_frames, n_atoms, 3), float64, contiguous.
        virial_hartree: (n_frames, 3, 3), float64; exactly symmetric, for the wire carries the transpose and peers drop
            one triangle or the other.
    """

    energy_hartree: Floats
    forces_hartree_per_bohr: Floats
    virial_hartree: Floats


def to_wire(answer: Forces) -> WireForces:
    """Turn an answer into atomic units; the arrays are new."""
    return WireForces(
        answer.energy / HARTREE,
        np.divide(answer.forces, HARTREE_PER_BOHR, order="C"),
        (0.5 * answer.virial + 0.5 * answer.virial.transpose(0, 2, 1)) / HARTREE,  # halved first: no overflow
    )


def from_wire(positions_bohr: Floats, cells_bohr: Floats) -> Structures:
    """Make structures of what a transport has carried; the arrays are new and writable.

    Args:
        positions_bohr: (n_frames, n_atoms, 3).
        cells_bohr: lattice vectors as columns, (n_frames, 3, 3).
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN is refused, in silence, where structures are checked
        return Structures(positions_bohr * BOHR, np.ascontiguousarray(cells_bohr.transpose(0, 2, 1)) * BOHR)


def encode_header(message: PeerMessage | EngineMessage) -> bytes:
    """Pad the name of a message to the size of a header."""
    return message.value.encode().ljust(HEADER_SIZE)


_PEER_HEADERS = {encode_header(message): message for message in PeerMessage}


def decode_header(buffer: Buffer) -> PeerMessage:
    """Read the name of the message that starts a buffer of at least `HEADER_SIZE` bytes.

    Raises:
        RemoteProtocolError: it is no message of the protocol.
    """
    raw = bytes(memoryview(buffer)[:HEADER_SIZE])
    message = _PEER_HEADERS.get(raw)
    if message is None:
        raise RemoteProtocolError(
            f"expected the header {', '.join(PeerMessage)} in {HEADER_SIZE} bytes, got {raw!r}; "
            "is it an i-PI socket that listens at this address?"
        )
    return message


def message_size(message: PeerMessage, buffer: Buffer, batch_size: int, limits: Limits) -> int:
    """Count the bytes of the message that starts a buffer, header included.

    While the number that decides it has not arrived, the bytes up to that number are counted.

    Args:
        message: its header.
        buffer: the bytes that have come, from the header on.
        batch_size: structures in a POSDATA; 1 is the plain layout.
        limits: bounds to hold the peer's numbers against.

    Raises:
        RemoteProtocolError: a number of the peer is out of bounds.
    """
    if message is PeerMessage.INIT:
        return _init_size(memoryview(buffer), limits)
    if message is PeerMessage.POSDATA:
        return _posdata_size(memoryview(buffer), batch_size, limits)
    return HEADER_SIZE


def _init_size(buffer: memoryview, limits: Limits) -> int:
    """Header, bead, length, and the string."""
    fixed = HEADER_SIZE + _TWO_INTS.size
    if len(buffer) < fixed:
        return fixed
    _, length = _TWO_INTS.unpack_from(buffer, HEADER_SIZE)
    if not 0 <= length <= limits.init_bytes:
        raise RemoteProtocolError(f"INIT announces a string of {length} bytes; expected 0 to {limits.init_bytes}")
    return fixed + int(length)


def _posdata_size(buffer: memoryview, batch_size: int, limits: Limits) -> int:
    """Header and, in the order of the layout, cells, atom count and positions."""
    count_at = _count_offset(batch_size)
    fixed = HEADER_SIZE + _INT.size + batch_size * 2 * _CELL_SIZE
    if len(buffer) < count_at + _INT.size:
        return count_at + _INT.size
    (n_atoms,) = _INT.unpack_from(buffer, count_at)
    check_atoms(n_atoms, batch_size, limits)
    return fixed + batch_size * int(n_atoms) * 3 * _FLOAT_SIZE


def _count_offset(batch_size: int) -> int:
    """Where a POSDATA holds its atom count: after the cell alone, before the cells in a batch."""
    return HEADER_SIZE + 2 * _CELL_SIZE if batch_size == 1 else HEADER_SIZE


def decode_init(buffer: Buffer) -> tuple[int, bytes]:
    """Read a whole INIT: the id of a bead and the string."""
    bead, length = _TWO_INTS.unpack_from(buffer, HEADER_SIZE)
    start = HEADER_SIZE + _TWO_INTS.size
    return bead, bytes(memoryview(buffer)[start : start + length])


def decode_posdata(buffer: Buffer, batch_size: int) -> Structures:
    """Read a whole POSDATA; the arrays are new and writable, the buffer is free again.

    Args:
        buffer: starts with the header.
        batch_size: structures in it; 1 is the plain layout (cell, atom count, positions), more is the batched one
            (atom count, all cells, all positions).
    """
    count_at = _count_offset(batch_size)
    (n_atoms,) = _INT.unpack_from(buffer, count_at)
    cells_at = HEADER_SIZE if batch_size == 1 else count_at + _INT.size
    positions_at = HEADER_SIZE + _INT.size + batch_size * 2 * _CELL_SIZE
    cells_bohr = np.frombuffer(buffer, np.float64, batch_size * 18, cells_at).reshape(batch_size, 2, 3, 3)[:, 0]
    positions_bohr = np.frombuffer(buffer, np.float64, batch_size * n_atoms * 3, positions_at)
    return from_wire(positions_bohr.reshape(batch_size, n_atoms, 3), cells_bohr)


def encode_forces(answer: Forces) -> list[Buffer]:
    """Write FORCEREADY with its numbers; one structure gives the plain layout, as its batch is the same bytes.

    Returns:
        Buffers to be sent in order; the big one is an array of its own and is not copied again.
    """
    wire = to_wire(answer)
    return [
        encode_header(EngineMessage.FORCEREADY) + wire.energy_hartree.tobytes() + _INT.pack(answer.forces.shape[1]),
        wire.forces_hartree_per_bohr.data.cast("B"),
        wire.virial_hartree.tobytes() + encode_extras(answer),
    ]


def encode_extras(answer: Forces) -> bytes:
    """Write the extras of an answer, each with its length; what is empty becomes `EMPTY_EXTRA`."""
    extras = answer.extras or [EMPTY_EXTRA] * len(answer.energy)
    return b"".join(_INT.pack(len(e)) + e for e in (extra or EMPTY_EXTRA for extra in extras))


def check_atoms(n_atoms: int, n_frames: int, limits: Limits) -> None:
    """Hold the atom count of a peer against the limits.

    Raises:
        RemoteProtocolError: it is out of bounds.
    """
    if not 1 <= n_atoms <= limits.atoms // n_frames:
        raise RemoteProtocolError(
            f"POSDATA announces {n_atoms} atoms in each of {n_frames} structures; expected 1 to "
            f"{limits.atoms // n_frames} (does the peer run on a machine of the same byte order?)"
        )
