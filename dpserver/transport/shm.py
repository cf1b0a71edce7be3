"""The shared memory of i-PI's `mode="shm"`: segments that the peer has made, by name.

They are read and written as the files they are in /dev/shm, and never mapped: to touch the memory of a peer that has
cut its segment short would end this process with SIGBUS, where a call only comes back short. The peer owns the
segments and removes them; we close them and do nothing else to them.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dpserver.errors import RemoteProtocolError
from dpserver.frames import Floats
from dpserver.ipi import Forces, Segment, SharedStructures, Structures
from dpserver.ipi.codec import from_wire, to_wire

SEGMENTS = Path("/dev/shm")
"""Where Linux shows the segments of `shm_open`."""

_FLOAT_SIZE = 8
_TAKEN = (Segment.POSITIONS, Segment.CELL)
_GIVEN = (Segment.ENERGY, Segment.FORCES, Segment.VIRIAL)


class SharedArrays:
    """Structures and forces of one connection; the inverse cells are not read, whatever is in them.

    Args:
        shared: sizes and names, as the peer has announced them.
        folder: where the segments are.

    Raises:
        RemoteProtocolError: a segment is missing, is no segment, or is too small.
    """

    def __init__(self, shared: SharedStructures, folder: Path = SEGMENTS) -> None:
        self._shared = shared
        self._files: dict[Segment, int] = {}
        try:
            for segment in (*_TAKEN, *_GIVEN):
                self._files[segment] = _open(folder / shared.names[segment], segment)
                self._check_size(segment)
        except RemoteProtocolError:
            self.close()
            raise

    def read(self) -> Structures:
        """Take the structures; the arrays are ours.

        Raises:
            RemoteProtocolError: the peer has cut a segment short.
        """
        return from_wire(self._read(Segment.POSITIONS), self._read(Segment.CELL))

    def write(self, answer: Forces) -> None:
        """Bring energies, forces and virials, of the shapes that were announced; to be followed by FORCEREADY.

        Raises:
            RemoteProtocolError: the peer has cut a segment short, or there is no memory left for it.
        """
        wire = to_wire(answer)
        arrays: Mapping[Segment, Floats] = {
            Segment.ENERGY: wire.energy_hartree,
            Segment.FORCES: wire.forces_hartree_per_bohr,
            Segment.VIRIAL: wire.virial_hartree,
        }
        for segment, array in arrays.items():
            self._check_size(segment)
            data = np.ascontiguousarray(array).data.cast("B")
            try:
                written = os.pwrite(self._files[segment], data, 0)
            except OSError as error:
                raise self._refusal(segment, f"cannot be written: {error.strerror}") from None
            if written != len(data):
                raise self._refusal(segment, f"took {written} of {len(data)} bytes")

    def close(self) -> None:
        """Give the files back; the segments stay the peer's."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _read(self, segment: Segment) -> Floats:
        array: Floats = np.empty(self._shared.shape(segment))
        read = os.preadv(self._files[segment], [array.data.cast("B")], 0)
        if read != array.nbytes:
            raise self._refusal(segment, f"has {read} bytes; expected {array.nbytes}")
        return array

    def _check_size(self, segment: Segment) -> None:
        """Hold a segment against what it is to take: to write beyond its end would make it longer."""
        size = os.fstat(self._files[segment]).st_size
        shape = self._shared.shape(segment)
        needed = math.prod(shape) * _FLOAT_SIZE
        if size < needed:
            raise self._refusal(segment, f"has {size} bytes; expected {needed} for float64 of shape {shape}")

    def _refusal(self, segment: Segment, what: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"the peer's shared memory {self._shared.names[segment]!r} ({segment.value}) {what}")


def _open(path: Path, segment: Segment) -> int:
    """Open what is a plain file, for what is done with it and no more.

    Raises:
        RemoteProtocolError: there is none that we may open.
    """
    mode = os.O_RDONLY if segment in _TAKEN else os.O_RDWR
    try:
        file = os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise RemoteProtocolError(
            f"the peer's shared memory {path.name!r} ({segment.value}) cannot be opened in {path.parent}: "
            f"{error.strerror}. Both sides must run on one Linux machine, in one container and as one user; else let "
            "the peer's forcefield have mode='unix' or 'inet'"
        ) from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise RemoteProtocolError(f"the peer's shared memory {path.name!r} ({segment.value}) is no segment")
    return file
