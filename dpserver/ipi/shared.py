"""The layout of i-PI's `mode="shm"`: what its socket still carries, and what lies in shared memory.

POSDATA is the atom count and, the first time on a connection, six names with their lengths. They are segments that the
peer has made and will remove, each with the structures of a batch as its first dimension. The forces go into the last
three before FORCEREADY, which only the extras follow.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from dpserver.errors import RemoteProtocolError
from dpserver.ipi.codec import (
    HEADER_SIZE,
    Buffer,
    EngineMessage,
    Forces,
    Limits,
    check_atoms,
    encode_extras,
    encode_header,
)

_INT = struct.Struct("=i")
_NAMES_AT = HEADER_SIZE + _INT.size
_LONGEST_NAME = 255
_FLOAT_SIZE = 8
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class Segment(StrEnum):
    """The segments, in the order of their names, called as i-PI calls them."""

    POSITIONS = "pos"
    CELL = "h"
    INVERSE_CELL = "ih"
    ENERGY = "pot"
    FORCES = "force"
    VIRIAL = "vir"


@dataclass(frozen=True)
class SharedStructures:
    """Structures that lie in shared memory.

    Attributes:
        n_frames: of the batch.
        n_atoms: of each structure.
        names: of the segments.
    """

    n_frames: int
    n_atoms: int
    names: Mapping[Segment, str]

    def shape(self, segment: Segment) -> tuple[int, ...]:
        """Shape of the float64 array in a segment."""
        match segment:
            case Segment.POSITIONS | Segment.FORCES:
                return self.n_frames, self.n_atoms, 3
            case Segment.ENERGY:
                return (self.n_frames,)
        return self.n_frames, 3, 3


def posdata_size(buffer: Buffer, batch_size: int, has_names: bool, limits: Limits) -> int:
    """Count the bytes of the POSDATA that starts a buffer, as far as they can be known.

    Args:
        buffer: from the header on.
        batch_size: structures of each message.
        has_names: whether the segments are named; they are by the first POSDATA of a connection.
        limits: bounds on the atom count.

    Raises:
        RemoteProtocolError: a number or a name is out of bounds.
    """
    if len(buffer) < _NAMES_AT:
        return _NAMES_AT
    (n_atoms,) = _INT.unpack_from(buffer, HEADER_SIZE)
    check_atoms(n_atoms, batch_size, limits)
    end = _NAMES_AT
    for segment in Segment if has_names else ():
        if len(buffer) < end + _INT.size:
            return end + _INT.size
        (length,) = _INT.unpack_from(buffer, end)
        if not 1 <= length <= _LONGEST_NAME:
            raise RemoteProtocolError(
                f"POSDATA announces a name of {length} bytes for the segment {segment.value!r}; expected 1 to "
                f"{_LONGEST_NAME}. Has the peer's forcefield mode='shm'? Else dial it as unix:NAME"
            )
        end += _INT.size + int(length)
    return end


def decode_posdata(buffer: Buffer, has_names: bool) -> tuple[int, dict[Segment, str]]:
    """Read a whole POSDATA: the atom count and the names, if they are there.

    Raises:
        RemoteProtocolError: a name is not plain, or two segments have one name.
    """
    (n_atoms,) = _INT.unpack_from(buffer, HEADER_SIZE)
    names: dict[Segment, str] = {}
    at = _NAMES_AT
    for segment in Segment if has_names else ():
        (length,) = _INT.unpack_from(buffer, at)
        at += _INT.size + length
        raw = bytes(memoryview(buffer)[at - length : at])
        if not _PLAIN_NAME.fullmatch(raw):
            raise RemoteProtocolError(
                f"the segment {segment.value!r} has the name {raw!r}; expected letters, digits, '_', '-' and '.'"
            )
        names[segment] = raw.decode("ascii")
    if len(set(names.values())) < len(names):
        raise RemoteProtocolError(f"two segments of shared memory have the same name: {', '.join(names.values())}")
    return n_atoms, names


def encode_forces(answer: Forces) -> list[Buffer]:
    """Write FORCEREADY and the extras; the numbers are in shared memory by then."""
    return [encode_header(EngineMessage.FORCEREADY) + encode_extras(answer)]


def names_segments(buffer: Buffer) -> bool:
    """Whether the POSDATA that starts a buffer is of this layout, though another one was expected.

    A name cannot be mistaken for the cell that stands in its place elsewhere: as float64, eight letters, digits or
    signs are no length of a lattice vector.
    """
    view = memoryview(buffer)
    if len(view) < _NAMES_AT + _INT.size:
        return False
    (length,) = _INT.unpack_from(view, _NAMES_AT)
    start = _NAMES_AT + _INT.size
    is_there = _FLOAT_SIZE <= length <= _LONGEST_NAME and len(view) >= start + length
    return is_there and _PLAIN_NAME.fullmatch(bytes(view[start : start + length])) is not None
