"""The smooth descriptor without directions, `se_e2_r`, and its fitting nets, on CPU cores.

edges      r_ij and s, see `edges`
moments    M = Σ_edges φ(s) over the neighbours of an atom, φ the columns of a table (see `tables`)
fitting    the net, forward and backward; its inputs are M, and for each species of neighbours the number of empty
           slots and that of excluded neighbours, which all add the same
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import numpy as np

from dpserver.frames import Ints
from dpserver.jit import jit
from dpserver.kernels import simd
from dpserver.kernels.cpu import NO_VIRIAL, add_edge, clear_edges, filled, write_virial
from dpserver.kernels.edges import find_edges, find_places, next_vectors
from dpserver.kernels.fitting import evaluate_nets, find_charges
from dpserver.kernels.layout import BY_SWITCHED, EXCLUDED, Batch, Model, Output, Workspace


@jit
def run_blocks(
    counter: Ints, model: Model, batch: Batch, output: Output, space: Workspace, ends_with_charges: bool
) -> None:
    """Take blocks until there are none left, and every stage on each; see `cpu.Kernels`."""
    where = np.zeros(3, dtype=np.int64)
    while True:
        block = simd.take_number(counter)
        if block >= len(batch.blocks):
            return
        low, high, centre = batch.blocks[block]
        n_rows = high - low
        find_edges(model, batch, output, space, low, high, centre)
        for member in range(len(model.norm)):
            where[0], where[1], where[2] = filled(n_rows), member, centre
            find_places(model, space, n_rows, member, centre)
            find_sums(model, space, n_rows, member, centre)
            if ends_with_charges:
                find_charges(model.nets, batch, output, space.net, low, high, where)
                continue
            evaluate_nets(model.nets, batch, output, space.net, low, high, where)
            find_slopes(model, space, n_rows, member, centre)
            finish_edges(model, batch, output, space, low, high, where)


STAGES: Final[tuple[str, ...]] = ("edges", "moments", "fitting", "back to edges")


def stages(
    model: Model, batch: Batch, output: Output, space: Workspace, block: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The stages of `run_blocks` for one block; see `cpu.Kernels`."""
    low, high, centre = map(int, batch.blocks[block])
    n_rows = high - low
    yield "edges", partial(find_edges, model, batch, output, space, low, high, centre)
    for member in range(len(model.norm)):
        where = np.array([filled(n_rows), member, centre])
        yield "edges", partial(find_places, model, space, n_rows, member, centre)
        yield "moments", partial(find_sums, model, space, n_rows, member, centre)
        yield "fitting", partial(evaluate_nets, model.nets, batch, output, space.net, low, high, where)
        yield "back to edges", partial(find_slopes, model, space, n_rows, member, centre)
        yield "back to edges", partial(finish_edges, model, batch, output, space, low, high, where)


@jit
def find_sums(model: Model, space: Workspace, n_rows: int, member: int, centre: int) -> None:
    """Inputs of the fitting net."""
    n_species, inputs, weights = len(model.sel), space.net.inputs, model.nets.weights
    n_inputs = model.nets.heads[member, centre].n_inputs
    total = model.centres[member, centre].columns
    inputs[: n_rows * n_inputs] = 0
    lanes = simd.lanes_of(inputs)
    for k in range(n_species):
        table_at, columns, column = model.tables[member, centre, k]
        is_excluded = model.exclusion[centre, k] == EXCLUDED
        for a in range(n_rows):
            row = a * n_species + k
            n_empty, at = space.n_empty[row], a * n_inputs + total + 2 * k
            inputs[at] = n_empty
            inputs[at + 1] = model.sel[k] - n_empty if is_excluded else 0
            start, stop = space.first[row], space.first[row + 1] - 1
            done, left = 0, columns // lanes
            while left:
                n = next_vectors(left)
                simd.add_values(
                    weights,
                    space.row,
                    space.interval,
                    inputs,
                    table_at + done,
                    columns,
                    start,
                    stop,
                    a * n_inputs + column + done,
                    n,
                )
                left -= n
                done += n * lanes


@jit
def find_slopes(model: Model, space: Workspace, n_rows: int, member: int, centre: int) -> None:
    """Derivatives by the place in the table of each edge of a block, from those by the inputs of the fitting net."""
    n_species, by_inputs, weights = len(model.sel), space.net.by_inputs, model.nets.weights
    step = model.nets.layers[model.nets.heads[member, centre].layer_at].n_in_padded
    lanes = simd.lanes_of(by_inputs)
    for k in range(n_species):
        table_at, columns, column = model.tables[member, centre, k]
        for a in range(n_rows):
            start, stop = space.first[a * n_species + k], space.first[a * n_species + k + 1] - 1
            done, left = 0, columns // lanes
            while left:
                n = next_vectors(left)
                simd.add_slopes(
                    weights,
                    space.row,
                    space.interval,
                    by_inputs,
                    space.gradient,
                    table_at + done,
                    columns,
                    start,
                    stop,
                    a * step + column + done,
                    n,
                    done == 0,
                )
                left -= n
                done += n * lanes


@jit
def finish_edges(
    model: Model, batch: Batch, output: Output, space: Workspace, low: int, high: int, where: Ints
) -> None:
    """Write dE/dr_ij = r/r dv/dr dE/dv of the edges of a block, and the virials of its atoms."""
    member, n_species = where[1], len(model.sel)
    edges = space.edges
    slope = edges[6 if model.variable == BY_SWITCHED else 10]
    target = output.edge_gradient[member]
    for a in range(high - low):
        i = batch.atoms[low + a]
        clear_edges(batch, output, i, n_species, member)
        virial = NO_VIRIAL
        for row in range(a * n_species, (a + 1) * n_species):
            for e in range(space.first[row], space.first[row + 1] - 1):
                x, y, z = edges[0, e], edges[1, e], edges[2, e]
                along = space.gradient[e, 0] * edges[8, e] * slope[e]
                virial = add_edge(target, virial, space.slot[e], (x, y, z), (x * along, y * along, z * along))
        write_virial(output.atom_virial[member, i], virial)
