"""Of smooth descriptors: from atoms to moments, and from derivatives by moments back to edge vectors.

edges      r_ij from float64 positions, those within the cutoff kept; s, b = s/r and their derivatives
moments    M_k = Σ_edges R̃_k φ(s) over the neighbours of an atom, φ the columns of a table (see `tables`)
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.jit import jit
from dpserver.kernels import simd
from dpserver.kernels.cpu import NO_VIRIAL, add_edge, clear_edges, write_virial
from dpserver.kernels.layout import (
    BY_DISTANCE,
    BY_SWITCHED,
    GOOD,
    SEEN,
    SILENT,
    TOO_CLOSE,
    TOO_MANY,
    UNSEEN,
    Batch,
    Model,
    Output,
    Workspace,
)

_CHUNK: Final = simd.CHUNK


@jit
def find_edges(model: Model, batch: Batch, output: Output, space: Workspace, low: int, high: int, centre: int) -> None:
    """Vectors of the edges of a block that are within the cutoff, and what depends on their lengths.

    After the edges of each row comes one more, at the cutoff, that stands for the empty slots of `sel`.
    """
    n_species = len(model.sel)
    x, shifts, edges = batch.positions, batch.shifts, space.edges
    rcut_squared = model.cutoff[0] ** 2
    n = 0
    for a in range(high - low):
        i = batch.atoms[low + a]
        x_i, y_i, z_i = x[i]
        status, total = GOOD, 0
        for k in range(n_species):
            row = a * n_species + k
            space.first[row] = n
            closest = math.inf
            for e in range(batch.starts[i * n_species + k], batch.starts[i * n_species + k + 1]):
                there, shift = x[batch.neighbour[e]], shifts[batch.shift[e]]
                dx = there[0] - x_i + shift[0]
                dy = there[1] - y_i + shift[1]
                dz = there[2] - z_i + shift[2]
                square = dx * dx + dy * dy + dz * dz
                edges[0, n], edges[1, n], edges[2, n], edges[3, n] = dx, dy, dz, square
                space.slot[n] = e
                closest = min(closest, square)
                n += square < rcut_squared
            n_found = n - space.first[row]
            kind = model.exclusion[centre, k]
            total += n_found
            if n_found > model.limits[k] and kind != UNSEEN:
                status = TOO_MANY
            elif closest < model.closest[centre, k] and status == GOOD:
                status = TOO_CLOSE
            space.n_empty[row] = model.sel[k] - (0 if kind == UNSEEN else n_found)
            if kind == SILENT:
                space.n_empty[row] = 0
            if kind != SEEN:
                n = space.first[row]
            edges[0, n], edges[1, n], edges[2, n], edges[3, n] = 0.0, 0.0, 0.0, rcut_squared
            n += 1
        output.status[i] = status if total <= model.limits[n_species] else TOO_MANY
    space.first[(high - low) * n_species] = n
    _lengths(model, edges, n)


@jit
def _lengths(model: Model, edges: Floats, n: int) -> None:
    """From r²: s = w(r)/r, b = s/r, v where tables are functions of it, and their derivatives, divided by r."""
    rcut, rcut_smth, protection = model.cutoff
    per_width = 1 / (rcut - rcut_smth)
    for e in range(n):
        r = math.sqrt(edges[3, e])
        q = 1 / (r + protection)
        u = min(max((r - rcut_smth) * per_width, 0.0), 1.0)
        w = u * u * u * (u * (15 - 6 * u) - 10) + 1
        slope = -30 * u * u * (1 - u) * (1 - u) * per_width
        s = w * q
        b = s * q
        by_r = slope * q - b
        edges[4, e] = s
        edges[5, e] = b
        edges[6, e] = by_r / r
        edges[7, e] = (by_r - b) * q / r
        if model.variable == BY_DISTANCE:
            is_far = r >= rcut_smth
            edges[9, e] = (rcut - r) * per_width if is_far else 1 + q - 1 / (rcut_smth + protection)
            edges[10, e] = (-per_width if is_far else -q * q) / r


@jit
def find_places(model: Model, space: Workspace, n_rows: int, member: int, centre: int) -> None:
    """The interval of the table and the place in it, for each edge of a block."""
    n_species = len(model.sel)
    edges, row = space.edges, space.row
    variable = edges[4 if model.variable == BY_SWITCHED else 9]
    for k in range(n_species):
        bin_at, n_bins = model.bins[member, centre, k]
        parts_of, first_of = model.bin_parts[bin_at : bin_at + n_bins], model.bin_first[bin_at : bin_at + n_bins]
        per_s, last = model.bins_per_s[member, centre, k], np.nextafter(float(n_bins), 0.0)
        for a in range(n_rows):
            for e in range(space.first[a * n_species + k], space.first[a * n_species + k + 1]):
                place = min(variable[e] * per_s, last)
                here = np.uint64(place)
                parts = parts_of[here]
                place = (place - here) * parts
                part = int(place)
                space.interval[e] = first_of[here] + part
                row[e, 0] = place - part
                edges[8, e] = per_s * parts


@jit
def find_rows(model: Model, space: Workspace, n_rows: int, member: int, centre: int) -> None:
    """R̃ of each edge of a block; that of empty slots as many times as there are of them."""
    n_species = len(model.sel)
    edges, row, norm = space.edges, space.row, model.norm[member, centre]
    for e in range(space.first[n_rows * n_species]):
        b = edges[5, e]
        row[e, 1] = (edges[4, e] - norm[0]) * norm[4]
        row[e, 2] = (b * edges[0, e] - norm[1]) * norm[5]
        row[e, 3] = (b * edges[1, e] - norm[2]) * norm[6]
        row[e, 4] = (b * edges[2, e] - norm[3]) * norm[7]
    for pair in range(n_rows * n_species):
        for r in range(1, 5):
            row[space.first[pair + 1] - 1, r] *= space.n_empty[pair]


@jit
def next_vectors(left: int) -> int:
    """How many of the vectors of columns that are left to take next: all takes are about equal, and CHUNK at most."""
    return -(-left // -(-left // _CHUNK))


@jit
def find_moments(model: Model, space: Workspace, n_rows: int, member: int, centre: int) -> None:
    """Moments of the atoms of a block."""
    n_species, weights = len(model.sel), model.nets.weights
    step = model.centres[member, centre].step
    space.moment[: n_rows * 4 * step] = 0
    lanes = simd.lanes_of(space.moment)
    for k in range(n_species):
        table_at, columns, column = model.tables[member, centre, k]
        for a in range(n_rows):
            start, stop = space.first[a * n_species + k], space.first[a * n_species + k + 1]
            done, left = 0, columns // lanes
            while left:
                n = next_vectors(left)
                simd.add_moments(
                    weights,
                    space.row,
                    space.interval,
                    space.moment,
                    table_at + done,
                    columns,
                    start,
                    stop,
                    a * 4 * step + column + done,
                    step,
                    n,
                )
                left -= n
                done += n * lanes


@jit
def find_gradients(model: Model, space: Workspace, n_rows: int, member: int, centre: int) -> None:
    """Derivatives by the place in the table and by R̃ of each edge of a block, from those by the moments."""
    n_species, weights = len(model.sel), model.nets.weights
    step = model.centres[member, centre].step
    lanes = simd.lanes_of(space.by_moment)
    for k in range(n_species):
        table_at, columns, column = model.tables[member, centre, k]
        for a in range(n_rows):
            start, stop = space.first[a * n_species + k], space.first[a * n_species + k + 1] - 1
            done, left = 0, columns // lanes
            while left:
                n = next_vectors(left)
                simd.add_gradients(
                    weights,
                    space.row,
                    space.interval,
                    space.by_moment,
                    space.gradient,
                    table_at + done,
                    columns,
                    start,
                    stop,
                    a * 4 * step + column + done,
                    step,
                    n,
                    done == 0,
                )
                left -= n
                done += n * lanes


@jit
def finish_edges(
    model: Model, batch: Batch, output: Output, space: Workspace, low: int, high: int, where: Ints
) -> None:
    """Write dE/dr_ij of the edges of a block, and the virials of its atoms.

    r_ij enters s, v and the vector b r_ij, so that dE/dr = b g + r/r (s' dE/ds + v' dE/dv + b' r·g), g the derivatives
    by b r_ij.
    """
    _, member, centre = where
    n_species = len(model.sel)
    norm, edges, gradient = model.norm[member, centre], space.edges, space.gradient
    slope = edges[6 if model.variable == BY_SWITCHED else 10]
    target = output.edge_gradient[member]
    for a in range(high - low):
        i = batch.atoms[low + a]
        clear_edges(batch, output, i, n_species, member)
        virial = NO_VIRIAL
        for row in range(a * n_species, (a + 1) * n_species):
            for e in range(space.first[row], space.first[row + 1] - 1):
                x, y, z, b = edges[0, e], edges[1, e], edges[2, e], edges[5, e]
                by_v, by_s = gradient[e, 0] * edges[8, e], gradient[e, 1] * norm[4]
                gx = gradient[e, 2] * norm[5]
                gy = gradient[e, 3] * norm[6]
                gz = gradient[e, 4] * norm[7]
                along = by_v * slope[e] + by_s * edges[6, e] + (gx * x + gy * y + gz * z) * edges[7, e]
                g = (b * gx + x * along, b * gy + y * along, b * gz + z * along)
                virial = add_edge(target, virial, space.slot[e], (x, y, z), g)
        write_virial(output.atom_virial[member, i], virial)
