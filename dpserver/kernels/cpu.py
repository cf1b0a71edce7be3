"""What the kernels of all descriptors have in common: blocks of atoms, and the sums that follow.

Threads take blocks of atoms of one species through all stages, there and back, while their data are in cache. No stage
adds to what another atom owns, and every number is summed in an order of its own atom: results are the same to the last
bit however many threads and whatever blocks there are. Positions, distances, and the sums that make forces, energies
and virials are in float64; tables, moments and nets in the dtype of `Nets.weights`.

There is a module for each kind of descriptor, with a `run_blocks` of its own: `angular`, `radial`, `local_frames`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from dpserver.frames import Floats, ForceResult, Frames, Ints
from dpserver.jit import jit
from dpserver.kernels import simd
from dpserver.kernels.layout import Batch, Output

_ROWS: Final = simd.TILE_ROWS
_MANY_ROUNDS: Final = 12
"""Blocks for each thread, of which one more or less for one of them takes no time to speak of."""
_Vector = tuple[float, float, float]
Virial = tuple[float, float, float, float, float, float]
"""Sums over the edges of an atom while they are made: xx yy zz, and twice xy xz yz, eV."""
NO_VIRIAL: Final = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Kernels(Protocol):
    """The kernels of one kind of descriptor, a module."""

    @property
    def STAGES(self) -> tuple[str, ...]:  # a constant of the module
        """What `stages` tells apart."""

    def run_blocks(
        self, counter: Ints, model: Any, batch: Batch, output: Output, space: Any, ends_with_charges: bool
    ) -> None:
        """Take blocks until there are none left, and every stage on each; for several threads at once.

        Args:
            counter: of the blocks given out, (1,), shared by the threads.
            model: the numbers of all members.
            batch: the atoms.
            output: where results go, shared by the threads.
            space: of this thread.
            ends_with_charges: find only what the nets for charges say, and the status of each atom.
        """

    def stages(
        self, model: Any, batch: Batch, output: Output, space: Any, block: int
    ) -> Iterator[tuple[str, Callable[[], None]]]:
        """The stages of `run_blocks` for one block, each with what runs it; to see where the time goes."""


@jit
def clear_edges(batch: Batch, output: Output, i: int, n_species: int, member: int) -> None:
    """Let the derivatives of an atom's energy by its edges be 0, as they are beyond the cutoff."""
    output.edge_gradient[member, batch.starts[i * n_species] : batch.starts[(i + 1) * n_species]] = 0


@jit
def add_edge(target: Floats, virial: Virial, slot: int, r: _Vector, g: _Vector) -> Virial:
    """Write dE/dr of an edge; find what its atom's edges so far and this one add to the virial.

    Args:
        target: `Output.edge_gradient` of a member.
        virial: of the edges so far.
        slot: the edge.
        r: its vector, Å.
        g: dE/dr, eV/Å.
    """
    x, y, z = r
    gx, gy, gz = g
    target[slot, 0], target[slot, 1], target[slot, 2] = gx, gy, gz
    xx, yy, zz, xy, xz, yz = virial
    return (
        xx - gx * x,
        yy - gy * y,
        zz - gz * z,
        xy - (gx * y + gy * x),
        xz - (gx * z + gz * x),
        yz - (gy * z + gz * y),
    )


@jit
def write_virial(target: Floats, virial: Virial) -> None:
    """Keep the sum over the edges of an atom, in `Output.atom_virial` of it."""
    target[0], target[1], target[2] = virial[0], virial[1], virial[2]
    target[3], target[4], target[5] = virial[3] / 2, virial[4] / 2, virial[5] / 2


class Sums(NamedTuple):
    """Results of frames, of all members.

    Attributes:
        frame_idx: of each atom.
        forces: (n_members, n_atoms, 3), eV/Å; energy: (n_members, n_frames), and virial: (n_members, n_frames, 3, 3),
            eV, zeros at first.
    """

    frame_idx: Ints
    forces: Floats
    energy: Floats
    virial: Floats

    @classmethod
    def of(cls, frames: Frames, n_members: int) -> Sums:
        """Room for the results of a batch."""
        n_atoms, n_frames = frames.n_atoms, frames.n_frames
        forces = np.empty((n_members, n_atoms, 3))
        return cls(frames.frame_idx, forces, np.zeros((n_members, n_frames)), np.zeros((n_members, n_frames, 3, 3)))

    def results(self, atom_energy: Floats) -> list[ForceResult]:
        """One for each member, with the energies of atoms, (n_members, n_atoms), eV."""
        parts = zip(self.energy, self.forces, self.virial, atom_energy, strict=True)
        return [ForceResult(*part, self.frame_idx.copy()) for part in parts]


@jit
def sum_at_the_end(ended: Ints, n_threads: int, batch: Batch, output: Output, sums: Sums) -> None:
    """Sum what belongs together in the thread that is the last to come here; the others have nothing to wait for.

    Args:
        ended: how many came before, (1,), shared by the threads.
        n_threads: how many there are.
        batch: the atoms.
        output: of all their blocks.
        sums: where results go.
    """
    if simd.take_number(ended) == n_threads - 1:
        sum_forces(batch, output.edge_gradient, 0, len(batch.positions), sums.forces)
        sum_frames(output.atom_energy, output.atom_virial, sums)


@jit
def sum_forces(batch: Batch, edge_gradient: Floats, first: int, end: int, forces: Floats) -> None:
    """F_i = Σ_{i→j} dE/dr_ij - Σ_{j→i} dE/dr_ji for the atoms from `first` to `end`, (n_members, n_atoms, 3), eV/Å."""
    n_species = (len(batch.starts) - 1) // max(len(batch.positions), 1)
    for member in range(len(forces)):
        gradient = edge_gradient[member]
        for i in range(first, end):
            x = y = z = 0.0
            for e in range(batch.starts[i * n_species], batch.starts[(i + 1) * n_species]):
                x += gradient[e, 0]
                y += gradient[e, 1]
                z += gradient[e, 2]
            for k in range(batch.incoming_starts[i], batch.incoming_starts[i + 1]):
                e = batch.incoming[k]
                x -= gradient[e, 0]
                y -= gradient[e, 1]
                z -= gradient[e, 2]
            forces[member, i, 0], forces[member, i, 1], forces[member, i, 2] = x, y, z


@jit
def sum_frames(atom_energy: Floats, atom_virial: Floats, sums: Sums) -> None:
    """Add energies and virials of atoms, of all members, to those of their frames."""
    for member in range(len(atom_energy)):
        energy, virial = sums.energy[member], sums.virial[member]
        for i in range(len(sums.frame_idx)):
            frame = sums.frame_idx[i]
            energy[frame] += atom_energy[member, i]
            for d in range(3):
                virial[frame, d, d] += atom_virial[member, i, d]
            virial[frame, 0, 1] += atom_virial[member, i, 3]
            virial[frame, 0, 2] += atom_virial[member, i, 4]
            virial[frame, 1, 2] += atom_virial[member, i, 5]
        for frame in range(len(energy)):
            virial[frame, 1, 0] = virial[frame, 0, 1]
            virial[frame, 2, 0] = virial[frame, 0, 2]
            virial[frame, 2, 1] = virial[frame, 1, 2]


@jit
def filled(n_rows: int) -> int:
    """Rows of a block filled up to whole tiles."""
    return -(-n_rows // _ROWS) * _ROWS


def cut_into_blocks(counts: Ints, products: Floats, n_threads: int, rows: int) -> Ints:
    """Cut atoms, sorted by species, into blocks of one species, for all threads to end at about the same time.

    Where there are few, they are cut into shares of equal cost, as many for each thread; a share of two species is two
    blocks. Those that cost most come first, so that whoever is done earlier has small ones to go on with. Blocks are
    made of whole tiles, but for the last one of a species.

    Args:
        counts: of the atoms of each species, (n_species,).
        products: multiplications and additions in the net of one atom of each, (n_species,).
        n_threads: that take blocks.
        rows: atoms in a block where there are many, in whole tiles; in a share of cheap ones up to a third more.

    Returns:
        First and end in the sorted atoms, and the species, (n_blocks, 3).
    """
    tiles, most = -(-counts // _ROWS), rows // _ROWS
    costs = products + products.max() / 2 + 1  # beside the net, what is done for any atom takes about half as long
    n_rounds = max(-(-int(tiles.sum()) // (n_threads * most)), 1)
    if n_rounds > _MANY_ROUNDS:
        bounds = _cut_tiles(tiles, costs, 1, most)
    else:
        bounds = _cut_tiles(tiles, costs, n_threads * n_rounds, most * 4 // 3)
    first = np.cumsum(tiles) - tiles
    species = np.arange(len(counts)).repeat(tiles)[bounds[:-1]]
    start, end = (np.cumsum(counts) - counts)[species], np.cumsum(counts)[species]
    low = start + (bounds[:-1] - first[species]) * _ROWS
    high = np.minimum(start + (bounds[1:] - first[species]) * _ROWS, end)
    order = np.argsort((low - high) * costs[species], kind="stable")
    return np.stack([low, high, species], axis=1)[order]


def _cut_tiles(tiles: Ints, costs: Floats, n_shares: int, most: int) -> Ints:
    """The tiles before which blocks begin, and where the last one ends.

    Args:
        tiles: of each species.
        costs: of a tile of each.
        n_shares: of about equal cost.
        most: tiles in a block.
    """
    by_species = np.cumsum(np.append(0, tiles))
    cost = np.cumsum(np.append(0.0, costs.repeat(tiles)))
    ends = np.searchsorted(cost, np.arange(1, n_shares) * (cost[-1] / n_shares), side="right") - 1
    # No blocks of a tile or two: for each the weights of a whole net are read.
    nearest = by_species[np.abs(ends[:, None] - by_species).argmin(axis=1)]
    is_near = np.abs(ends - nearest) <= by_species[-1] // n_shares // 8
    bounds = np.unique(np.concatenate([by_species, np.where(is_near, nearest, ends)]))
    pieces = [
        np.linspace(low, high, -(-(high - low) // most) + 1).astype(np.int64)[:-1] for low, high in pairwise(bounds)
    ]
    return np.concatenate([*pieces, bounds[-1:]])
