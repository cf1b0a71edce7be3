"""The smooth descriptor and its fitting nets on CPU cores: energies of atoms, and derivatives by edge vectors.

Threads take blocks of atoms of one species through all stages, there (`edges`, `fitting`) and back, while their data
are in cache. No stage adds to what another atom owns, and every number is summed in an order of its own atom: results
are the same to the last bit however many threads and whatever blocks there are. Positions, distances, and the
sums that make forces, energies and virials are in float64; tables, moments and nets in the dtype of `Model.weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.jit import jit
from dpserver.kernels import simd
from dpserver.kernels.edges import find_edges, find_gradients, find_moments, find_places, finish_edges
from dpserver.kernels.fitting import find_energies, find_inputs, find_moment_gradients, fit, fit_backward
from dpserver.kernels.layout import Batch, Model, Output, Workspace

_ROWS: Final = simd.TILE_ROWS


@jit
def run_blocks(counter: Ints, model: Model, batch: Batch, output: Output, space: Workspace) -> None:
    """Take blocks until there are none left, and every stage on each; for several threads at once.

    Args:
        counter: of the blocks given out, (1,), shared by the threads.
        model: the numbers of all members.
        batch: the atoms.
        output: where results go, shared by the threads.
        space: of this thread.
    """
    where = np.zeros(3, dtype=np.int64)
    while True:
        block = simd.take_number(counter)
        if block >= len(batch.blocks):
            return
        low, high, centre = batch.blocks[block]
        n_rows = high - low
        find_edges(model, batch, output, space, low, high, centre)
        for member in range(len(model.norm)):
            where[0], where[1], where[2] = -(-n_rows // _ROWS) * _ROWS, member, centre
            find_places(model, space, n_rows, member, centre)
            find_moments(model, space, n_rows, member, centre)
            find_inputs(model, space, n_rows, member, centre)
            fit(model, space, where[0], member, centre)
            find_energies(model, batch, output, space, low, high, where)
            fit_backward(model, space, where[0], member, centre)
            find_moment_gradients(model, space, n_rows, member, centre)
            find_gradients(model, space, n_rows, member, centre)
            finish_edges(model, batch, output, space, low, high, where)


STAGES: Final = ("edges", "moments", "products", "fitting", "back to moments", "back to edges")
"""What `stages` tells apart."""


def stages(
    model: Model, batch: Batch, output: Output, space: Workspace, block: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The stages of `run_blocks` for one block, each with what runs it; to see where the time goes."""
    low, high, centre = map(int, batch.blocks[block])
    n_rows, filled = high - low, -(-(high - low) // _ROWS) * _ROWS
    yield "edges", partial(find_edges, model, batch, output, space, low, high, centre)
    for member in range(len(model.norm)):
        where = np.array([filled, member, centre])
        yield "edges", partial(find_places, model, space, n_rows, member, centre)
        yield "moments", partial(find_moments, model, space, n_rows, member, centre)
        yield "products", partial(find_inputs, model, space, n_rows, member, centre)
        yield "fitting", partial(fit, model, space, filled, member, centre)
        yield "fitting", partial(find_energies, model, batch, output, space, low, high, where)
        yield "fitting", partial(fit_backward, model, space, filled, member, centre)
        yield "back to moments", partial(find_moment_gradients, model, space, n_rows, member, centre)
        yield "back to edges", partial(find_gradients, model, space, n_rows, member, centre)
        yield "back to edges", partial(finish_edges, model, batch, output, space, low, high, where)


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


def rows_of_block(n_atoms: int, n_blocks: int, most: int) -> int:
    """Atoms in each of about so many blocks, in whole tiles."""
    return min(max(-(-n_atoms // (n_blocks * _ROWS)), 1) * _ROWS, most)
