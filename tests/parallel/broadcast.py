"""The simplest way to evaluate a structure over ranks, an oracle of the one that serves: Bcast, and Reduce.

All ranks get the whole structure with its cell, call every atom but their own centres a ghost, and add up what they
find. Nothing is cut out, no atom is copied, and no list says what goes where.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpserver.engine.runner import ForceModel
from dpserver.frames import ForceResult, Frames
from dpserver.parallel.domain import Decomposition


class Collective(Protocol):
    """What is asked of a communicator of mpi4py, by its names; all ranks have to call."""

    def Get_rank(self) -> int: ...

    def Get_size(self) -> int: ...

    def Bcast(self, array: NDArray) -> None:
        """Overwrite an array with that of rank 0."""

    def Reduce(self, array: NDArray, total: NDArray) -> None:
        """Sum the arrays of all ranks into one of rank 0."""


def evaluate(group: Collective, model: ForceModel, frame: Frames | None = None) -> ForceResult:
    """Evaluate one structure over all ranks; each has to call, and rank 0 brings it and gets the answer."""
    frame = _spread(group, frame)
    cut = Decomposition.build(frame, group.Get_size(), model.rcut)
    part = cut.parts[group.Get_rank()]
    is_ghost = np.ones(frame.n_atoms, dtype=bool)
    is_ghost[part.index[: part.n_owned]] = False
    n = frame.n_atoms
    found = np.zeros(1 + 9 + 4 * n)
    if part.n_owned:
        mine = model.evaluate(replace(frame, is_ghost=is_ghost))
        found = np.concatenate([mine.energy, mine.virial.ravel(), mine.forces.ravel(), mine.atom_energy])
    total = np.zeros_like(found)
    group.Reduce(found, total)
    energy, virial, forces, atom_energy = np.split(total, [1, 10, 10 + 3 * n])
    return ForceResult(energy, forces.reshape(n, 3), virial.reshape(1, 3, 3), atom_energy, frame.frame_idx)


def _spread(group: Collective, frame: Frames | None) -> Frames:
    """The structure of rank 0, in all ranks."""
    n = np.array([0 if frame is None else frame.n_atoms])
    group.Bcast(n)
    numbers = np.empty(9 + 3 * n[0])
    integers = np.empty(3 + n[0], dtype=np.int64)
    if frame is not None:
        numbers[:] = np.concatenate([frame.cell.ravel(), frame.positions.ravel()])
        integers[:] = np.concatenate([frame.pbc.ravel(), frame.types])
    group.Bcast(numbers)
    group.Bcast(integers)
    return Frames.single(
        numbers[9:].reshape(-1, 3), integers[3:], numbers[:9].reshape(3, 3), integers[:3].astype(bool).tolist()
    )
