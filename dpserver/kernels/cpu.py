"""What the kernels of all descriptors have in common: blocks of atoms, and the sums that follow.

Threads take blocks of atoms of one species through all stages, there and back, while their data are in cache. No stage
adds to what another atom owns, and every number is summed in an order of its own atom: results are the same to the last
bit however many threads and whatever blocks there are. Positions, distances, and the sums that make forces, energies
and virials are in float64; tables, moments and nets in the dtype of `Nets.weights`.

There is a module for each kind of descriptor, with a `run_blocks` of its own: `angular`, `radial`, `local_frames`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from dpserver.frames import Floats, Ints
from dpserver.jit import jit
from dpserver.kernels import simd
from dpserver.kernels.layout import Batch, Output

_ROWS: Final = simd.TILE_ROWS
_Vector = tuple[float, float, float]
Virial = tuple[float, float, float, float, float, float]
"""Sums over the edges of an atom while they are made: xx yy zz, and twice xy xz yz, eV."""
NO_VIRIAL: Final = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Kernels(Protocol):
    """The kernels of one kind of descriptor, a module."""

    @property
    def STAGES(self) -> tuple[str, ...]:  # a constant of the module
        """What `stages` tells apart."""

    def run_blocks(self, counter: Ints, model: Any, batch: Batch, output: Output, space: Any) -> None:
        """Take blocks until there are none left, and every stage on each; for several threads at once.

        Args:
            counter: of the blocks given out, (1,), shared by the threads.
            model: the numbers of all members.
            batch: the atoms.
            output: where results go, shared by the threads.
            space: of this thread.
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


@jit
def sum_forces(batch: Batch, edge_gradient: Floats, n_species: int, first: int, end: int, forces: Floats) -> None:
    """F_i = Σ_{i→j} dE/dr_ij - Σ_{j→i} dE/dr_ji for the atoms from `first` to `end`, (n_atoms, 3), eV/Å."""
    for i in range(first, end):
        x = y = z = 0.0
        for e in range(batch.starts[i * n_species], batch.starts[(i + 1) * n_species]):
            x += edge_gradient[e, 0]
            y += edge_gradient[e, 1]
            z += edge_gradient[e, 2]
        for k in range(batch.incoming_starts[i], batch.incoming_starts[i + 1]):
            e = batch.incoming[k]
            x -= edge_gradient[e, 0]
            y -= edge_gradient[e, 1]
            z -= edge_gradient[e, 2]
        forces[i, 0], forces[i, 1], forces[i, 2] = x, y, z


@jit
def sum_frames(atom_energy: Floats, atom_virial: Floats, frame_idx: Ints, energy: Floats, virial: Floats) -> None:
    """Add energies and virials of atoms to those of their frames, (n_frames,) and (n_frames, 3, 3), eV."""
    for i in range(len(frame_idx)):
        frame = frame_idx[i]
        energy[frame] += atom_energy[i]
        for d in range(3):
            virial[frame, d, d] += atom_virial[i, d]
        virial[frame, 0, 1] += atom_virial[i, 3]
        virial[frame, 0, 2] += atom_virial[i, 4]
        virial[frame, 1, 2] += atom_virial[i, 5]
    for frame in range(len(energy)):
        virial[frame, 1, 0] = virial[frame, 0, 1]
        virial[frame, 2, 0] = virial[frame, 0, 2]
        virial[frame, 2, 1] = virial[frame, 1, 2]


@jit
def filled(n_rows: int) -> int:
    """Rows of a block filled up to whole tiles."""
    return -(-n_rows // _ROWS) * _ROWS


def rows_of_block(n_atoms: int, n_blocks: int, most: int) -> int:
    """Atoms in each of about so many blocks, in whole tiles."""
    return min(max(-(-n_atoms // (n_blocks * _ROWS)), 1) * _ROWS, most)
