"""Recorded dynamics, so that every engine sees the same structures and neighbour lists go stale as they do in a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from structures import water

from dpserver.frames import Floats, Frames
from dpserver.units import BOLTZMANN

MASSES = np.array([15.9994, 1.00794])
"""Of the species of `structures.SPECIES`, in Dalton."""
KELVIN = 300.0
TIME_STEP = 0.5
"""fs, what DeePMD-kit's own example of water for LAMMPS has."""

_SPEED = 9.648533212e-3  # Å/fs² that 1 eV/Å gives to 1 Dalton


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Structures of one simulation, step by step, or of several at once.

    Attributes:
        positions: (n_steps, n_beads, n_atoms, 3), Å, atoms never brought back into the cell.
        cell: (3, 3), Å; types: (n_atoms,).
        tiles: how often what was recorded is to be put beside itself along each lattice vector.
    """

    positions: Floats
    cell: Floats
    types: np.ndarray
    tiles: tuple[int, int, int] = (1, 1, 1)

    @property
    def n_steps(self) -> int:
        """Steps there are."""
        return len(self.positions)

    @property
    def n_beads(self) -> int:
        """Structures of a step."""
        return self.positions.shape[1]

    @property
    def n_atoms(self) -> int:
        """Atoms of one structure."""
        return len(self.types) * int(np.prod(self.tiles))

    def box(self) -> Floats:
        """Cell of the whole, (3, 3), Å."""
        return self.cell * np.array(self.tiles)[:, None]

    def at(self, step: int) -> list[Floats]:
        """Positions of each structure of a step, (n_atoms, 3), Å."""
        return [_tiled(x, self.cell, self.tiles) for x in self.positions[step]]

    def frames(self, step: int) -> Frames:
        """The structures of a step."""
        types = np.tile(self.types, int(np.prod(self.tiles)))
        return Frames.concatenate(Frames.single(x, types, self.box()) for x in self.at(step))


def _tiled(x: Floats, cell: Floats, tiles: tuple[int, int, int]) -> Floats:
    """A structure beside itself."""
    shifts = np.stack(np.meshgrid(*(np.arange(n) for n in tiles), indexing="ij"), axis=-1).reshape(-1, 3) @ cell
    return (x[None] + shifts[:, None]).reshape(-1, 3)


def record(forces: Callable[[Frames], Floats], tile: int, n_beads: int, n_steps: int, seed: int = 7) -> Trajectory:
    """Integrate Newton's equations (velocity Verlet) from thermal velocities.

    Args:
        forces: of a batch, (n_atoms, 3), eV/Å.
        tile: how often water is tiled along each vector.
        n_beads: simulations at once, each with its own velocities.
        n_steps: how many.
        seed: of the velocities.
    """
    start = water(tile)
    rng = np.random.default_rng(seed)
    frames = Frames.concatenate([start] * n_beads)
    masses = MASSES[frames.types][:, None]
    spread = np.sqrt(BOLTZMANN * KELVIN * _SPEED / masses)
    velocities = rng.normal(size=frames.positions.shape) * spread
    shape = (n_beads, start.n_atoms, 3)
    for bead in velocities.reshape(shape):
        bead -= bead.mean(axis=0)
    found = np.empty((n_steps, *shape))
    accelerations = forces(frames) * _SPEED / masses
    for step in range(n_steps):
        found[step] = frames.positions.reshape(shape)
        velocities += accelerations * TIME_STEP / 2
        frames = replace(frames, positions=frames.positions + velocities * TIME_STEP)
        accelerations = forces(frames) * _SPEED / masses
        velocities += accelerations * TIME_STEP / 2
    return Trajectory(found, start.cell[0], start.types)
