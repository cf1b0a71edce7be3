"""The messages of i-PI's `<ffmpi>`: arrays of numbers under six tags, between i-PI and the roots of driver groups.

    to i-PI     HELLO    int32: root, group size, ranks of the group; then, under the same tag, the force field's name
                RESULT   float64 of each structure: energy, forces, virial; in the order of WORK
                EXTRA    bytes of each structure: int32 length, string
    to a root   INIT     int32: bead, length; then the string, as on the socket
                WORK     int32: atoms, structures; then float64 of each structure: cell, inverse cell, positions
                EXIT     int32, without a meaning

There is neither a word for an error nor padding: WORK holds up to `batch_size` structures.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dpserver.errors import RemoteProtocolError
from dpserver.frames import Floats
from dpserver.ipi.codec import Forces, Limits, Structures, check_atoms, encode_extras, from_wire, to_wire
from dpserver.ipi.events import Initialised
from dpserver.ipi.parameters import parse_parameters, read_batch_size

Ints32 = NDArray[np.int32]

HEADER_INTS = 2
"""Numbers in front of INIT and of WORK."""

_CELLS = 18  # float64 of a cell and its inverse


class Tag(IntEnum):
    """What a message is."""

    HELLO = 1
    INIT = 2
    WORK = 3
    RESULT = 4
    EXTRA = 5
    EXIT = 6


def encode_hello(ranks: list[int]) -> Ints32:
    """Introduce a group, whose root is the first of its ranks."""
    return np.array([ranks[0], len(ranks), *ranks], dtype=np.int32)


def init_size(header: Ints32, limits: Limits) -> int:
    """Count the bytes of the string that follows the header of INIT.

    Raises:
        RemoteProtocolError: it is out of bounds.
    """
    length = int(header[1])
    if not 0 <= length <= limits.init_bytes:
        raise RemoteProtocolError(f"INIT announces a string of {length} bytes; expected 0 to {limits.init_bytes}")
    return length


def decode_init(header: Ints32, raw: bytes, limits: Limits) -> Initialised:
    """Read INIT.

    Raises:
        RemoteProtocolError: it is not text, or the batch size is out of bounds.
    """
    parameters = parse_parameters(raw)
    return Initialised(int(header[0]), parameters, read_batch_size(parameters, limits))


def work_size(header: Ints32, limits: Limits) -> int:
    """Count the float64 that follow the header of WORK.

    Raises:
        RemoteProtocolError: a number is out of bounds.
    """
    n_atoms, n_frames = map(int, header)
    if not 1 <= n_frames <= limits.batch:
        raise RemoteProtocolError(f"WORK announces {n_frames} structures; expected 1 to {limits.batch}")
    check_atoms(n_atoms, n_frames, limits)
    return n_frames * (_CELLS + 3 * n_atoms)


def decode_work(header: Ints32, body: Floats) -> Structures:
    """Read WORK; the arrays are new, and the inverse cells are not read."""
    n_atoms, n_frames = map(int, header)
    rows = body.reshape(n_frames, _CELLS + 3 * n_atoms)
    return from_wire(rows[:, _CELLS:].reshape(n_frames, n_atoms, 3), rows[:, :9].reshape(n_frames, 3, 3))


def encode_result(answer: Forces) -> tuple[Floats, bytes]:
    """Write RESULT and EXTRA."""
    wire = to_wire(answer)
    n_frames = len(answer.energy)
    parts = (wire.energy_hartree, wire.forces_hartree_per_bohr, wire.virial_hartree)
    return np.concatenate([part.reshape(n_frames, -1) for part in parts], axis=1), encode_extras(answer)
