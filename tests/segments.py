"""Shared memory as i-PI's mode="shm" makes it, from the protocol and not from our code."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import shared_memory

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpserver.units import BOHR, HARTREE
from tests.peer import FORCEREADY, Line

KINDS = ("pos", "h", "ih", "pot", "force", "vir")
_numbers = itertools.count()


class Segments:
    """The segments of one connection.

    Args:
        n_frames: structures of a batch.
        n_atoms: of each.
    """

    def __init__(self, n_frames: int, n_atoms: int) -> None:
        shapes = {
            "pos": (n_frames, n_atoms, 3),
            "h": (n_frames, 3, 3),
            "ih": (n_frames, 3, 3),
            "pot": (n_frames,),
            "force": (n_frames, n_atoms, 3),
            "vir": (n_frames, 3, 3),
        }
        prefix = f"dpserver_test_{os.getpid()}_{next(_numbers)}_"
        self.n_atoms = n_atoms
        self.memory = {
            kind: shared_memory.SharedMemory(prefix + kind, create=True, size=8 * int(np.prod(shape)))
            for kind, shape in shapes.items()
        }
        self.arrays: dict[str, NDArray[np.float64]] = {
            kind: np.ndarray(shape, float, self.memory[kind].buf) for kind, shape in shapes.items()
        }
        for array in self.arrays.values():
            array[:] = np.nan
        self.names = {kind: memory.name for kind, memory in self.memory.items()}

    def fill(self, positions: ArrayLike, cells: ArrayLike) -> None:
        """Structures in Å; lattice vectors are rows here and columns there. The inverse cells stay what they were."""
        self.arrays["pos"][:] = np.asarray(positions) / BOHR
        self.arrays["h"][:] = np.asarray(cells).transpose(0, 2, 1) / BOHR

    def posdata(self, has_names: bool = True) -> bytes:
        names = [self.names[kind].encode() for kind in KINDS] if has_names else []
        return posdata(self.n_atoms, names)

    def answer(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Energies, forces and virials as they are now, eV and Å."""
        units = {"pot": HARTREE, "force": HARTREE / BOHR, "vir": HARTREE}
        energy, forces, virial = (self.arrays[kind] * unit for kind, unit in units.items())
        return energy, forces, virial

    def close(self) -> None:
        self.arrays.clear()
        for memory in self.memory.values():
            memory.close()
            memory.unlink()


@contextmanager
def segments(n_frames: int, n_atoms: int) -> Iterator[Segments]:
    made = Segments(n_frames, n_atoms)
    try:
        yield made
    finally:
        made.close()


def posdata(n_atoms: int, names: list[bytes]) -> bytes:
    blocks = b"".join(struct.pack("=i", len(name)) + name for name in names)
    return b"POSDATA     " + struct.pack("=i", n_atoms) + blocks


def take_reply(line: Line, n_frames: int = 1) -> list[bytes]:
    """What follows GETFORCE on the socket: the extras."""
    assert line.receive(12) == FORCEREADY
    extras = []
    for _ in range(n_frames):
        (length,) = struct.unpack("=i", line.receive(4))
        extras.append(line.receive(length))
    return extras
