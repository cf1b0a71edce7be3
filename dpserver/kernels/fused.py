"""The stages of the smooth descriptor that no library has, on a GPU, in Triton.

compact     which edges of the lists are within the cutoff, and how many slots of `sel` they leave empty
moments     M_k = Σ_edges R̃_k φ(s) over the neighbours of an atom, φ the columns of a table (see `tables`)
inputs      products of columns of moments, the inputs of the fitting net; and back
gradients   from derivatives by moments to dE/dr_ij
sums        edges to forces, atoms to frames

Every number is summed by one program in an order of its own, without atomics: results are the same to the last bit
from run to run. Geometry and sums are in float64; tables and moments in the dtype of the tables. Edges are computed
from positions where they are needed and never stored; of the table only the columns of one pair of species are read.

All arrays are flat. The tables of the pairs with one species of centres are described by a row of int64 each, `PAIR`.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from dpserver.kernels.layout import GOOD, SEEN, SILENT, TOO_CLOSE, TOO_MANY, UNSEEN

PAIR: Final = ("table_at", "columns", "start", "bin_at", "n_bins", "kind", "sel")
"""What a row of integers says of a pair: place of its coefficients, columns of its table, its first column in a row of
moments, its first bin and their number, how neighbours enter (`layout.SEEN` and so on), slots for them."""
BINS: Final = ("per_s", "closest")
"""What a row of numbers says of it: 1/width of its bins in s, smallest r² that the table reaches."""
BLOCK: Final = ("column", "first", "end")
"""What a row of integers says of a block of columns of moments: where it begins, and which neighbour species add to
it."""

MOMENTS: Final = {"EDGES": 8, "COLUMNS": 32, "num_warps": 2}
"""How `moments` is launched: edges and columns that a program takes at a time, and its warps."""
GRADIENTS: Final = {"EDGES": 8, "COLUMNS": 32, "num_warps": 4}
"""How `gradients` is launched."""

_SEEN: tl.constexpr = tl.constexpr(SEEN)
_UNSEEN: tl.constexpr = tl.constexpr(UNSEEN)
_SILENT: tl.constexpr = tl.constexpr(SILENT)
_GOOD: tl.constexpr = tl.constexpr(GOOD)
_TOO_MANY: tl.constexpr = tl.constexpr(TOO_MANY)
_TOO_CLOSE: tl.constexpr = tl.constexpr(TOO_CLOSE)
_PAIR: tl.constexpr = tl.constexpr(len(PAIR))
_BINS: tl.constexpr = tl.constexpr(len(BINS))
_BLOCK: tl.constexpr = tl.constexpr(len(BLOCK))


@triton.jit
def _vectors(x, translations, neighbour, shift, edge, mask, xi, yi, zi):
    """r_ij of some edges."""
    j = 3 * tl.load(neighbour + edge, mask=mask, other=0).to(tl.int64)
    t = 3 * tl.load(shift + edge, mask=mask, other=0).to(tl.int64)
    dx = tl.load(x + j, mask=mask, other=0.0) - xi + tl.load(translations + t, mask=mask, other=0.0)
    dy = tl.load(x + j + 1, mask=mask, other=0.0) - yi + tl.load(translations + t + 1, mask=mask, other=0.0)
    dz = tl.load(x + j + 2, mask=mask, other=0.0) - zi + tl.load(translations + t + 2, mask=mask, other=0.0)
    return dx, dy, dz


@triton.jit
def _lengths(square, cutoff):
    """From r²: s = w(r)/r, b = s/r and their derivatives, divided by r."""
    rcut = tl.load(cutoff)
    rcut_smth = tl.load(cutoff + 1)
    r = tl.sqrt(square)
    q = 1.0 / (r + tl.load(cutoff + 2))
    per_width = 1.0 / (rcut - rcut_smth)
    u = tl.minimum(tl.maximum((r - rcut_smth) * per_width, 0.0), 1.0)
    w = u * u * u * (u * (15.0 - 6.0 * u) - 10.0) + 1.0
    slope = -30.0 * u * u * (1.0 - u) * (1.0 - u) * per_width
    s = w * q
    b = s * q
    by_r = slope * q - b
    return s, b, by_r / r, (by_r - b) * q / r


@triton.jit
def _place(s, pair, bins, bin_first, bin_parts):
    """Interval of a table, place in it from 0 to 1, and the derivative of that by s."""
    bin_at = tl.load(pair + 3)
    n_bins = tl.load(pair + 4)
    per_s = tl.load(bins)
    place = s * per_s
    here = tl.minimum(place.to(tl.int64), n_bins - 1)
    parts = tl.load(bin_parts + bin_at + here)
    place = (place - here.to(tl.float64)) * parts
    part = tl.minimum(place.to(tl.int64), parts.to(tl.int64) - 1)
    interval = tl.load(bin_first + bin_at + here) + part
    return interval, place - part.to(tl.float64), per_s * parts


@triton.jit
def compact(
    x, translations, atoms, starts, neighbour, shift,
    pairs, bins, cutoff,
    kept, n_kept, n_empty, status,
    n_species, WIDTH: tl.constexpr,
):  # fmt: skip
    """Program (row): the edges of an atom within the cutoff, species by species, and whether the atom can be answered.

    kept, beginning where the list of the pair begins: numbers of edges; n_kept and n_empty (n_atoms, n_species);
    status (n_atoms,), as in `layout`.
    """
    i = tl.load(atoms + tl.program_id(0))
    xi, yi, zi = tl.load(x + 3 * i), tl.load(x + 3 * i + 1), tl.load(x + 3 * i + 2)
    rcut_squared = tl.load(cutoff) * tl.load(cutoff)
    lane = tl.arange(0, WIDTH)
    found = 0 * i + _GOOD
    for k in range(n_species):
        pair = pairs + k * _PAIR
        kind = tl.load(pair + 5)
        sel = tl.load(pair + 6)
        low = tl.load(starts + i * n_species + k)
        high = tl.load(starts + i * n_species + k + 1)
        n = 0 * i
        closest = rcut_squared
        for first in range(low, high, WIDTH):
            edge = first + lane
            mask = edge < high
            dx, dy, dz = _vectors(x, translations, neighbour, shift, edge, mask, xi, yi, zi)
            square = tl.where(mask, dx * dx + dy * dy + dz * dz, rcut_squared)
            is_near = square < rcut_squared
            place = n + tl.cumsum(is_near.to(tl.int32), 0) - 1
            tl.store(kept + low + place, edge.to(tl.int32), mask=is_near)
            closest = tl.minimum(closest, tl.min(square, 0))
            n += tl.sum(is_near.to(tl.int64), 0)
        if (n > sel) & (kind != _UNSEEN):
            found = 0 * i + _TOO_MANY
        elif (closest < tl.load(bins + k * _BINS + 1)) & (found == _GOOD):
            found = 0 * i + _TOO_CLOSE
        empty = tl.where(kind == _SILENT, 0 * i, tl.where(kind == _UNSEEN, sel, sel - n))
        tl.store(n_empty + i * n_species + k, empty)
        tl.store(n_kept + i * n_species + k, tl.where(kind == _SEEN, n, 0 * i))
    tl.store(status + i, found)


@triton.jit
def moments(
    x, translations, atoms, starts, neighbour, shift,
    kept, n_kept, n_empty,
    pairs, bins, bin_first, bin_parts, coefficients, norm, cutoff, blocks,
    moment,
    n_species, columns, EDGES: tl.constexpr, COLUMNS: tl.constexpr, POWERS: tl.constexpr,
):  # fmt: skip
    """Program (row, block of columns): moments of an atom, (n_rows, 4, columns)."""
    row = tl.program_id(0).to(tl.int64)
    block = blocks + tl.program_id(1) * _BLOCK
    column = tl.load(block)
    i = tl.load(atoms + row)
    xi, yi, zi = tl.load(x + 3 * i), tl.load(x + 3 * i + 1), tl.load(x + 3 * i + 2)
    dtype = coefficients.dtype.element_ty
    lane = tl.arange(0, EDGES)
    rcut_squared = tl.load(cutoff) * tl.load(cutoff)
    m0, m1 = tl.zeros((COLUMNS,), dtype), tl.zeros((COLUMNS,), dtype)
    m2, m3 = tl.zeros((COLUMNS,), dtype), tl.zeros((COLUMNS,), dtype)
    for k in range(tl.load(block + 1), tl.load(block + 2)):
        pair = pairs + k * _PAIR
        table = coefficients + tl.load(pair)
        n_columns = tl.load(pair + 1)
        here = column - tl.load(pair + 2) + tl.arange(0, COLUMNS)
        is_column = (here >= 0) & (here < n_columns)
        low = tl.load(starts + i * n_species + k)
        n = tl.load(n_kept + i * n_species + k)
        at_cutoff = tl.load(table + here, mask=is_column, other=0.0)
        empty = tl.load(n_empty + i * n_species + k).to(tl.float64)
        m0 += (-empty * tl.load(norm) * tl.load(norm + 4)).to(dtype) * at_cutoff
        m1 += (-empty * tl.load(norm + 1) * tl.load(norm + 5)).to(dtype) * at_cutoff
        m2 += (-empty * tl.load(norm + 2) * tl.load(norm + 6)).to(dtype) * at_cutoff
        m3 += (-empty * tl.load(norm + 3) * tl.load(norm + 7)).to(dtype) * at_cutoff
        for first in range(0, n, EDGES):
            mask = first + lane < n
            edge = tl.load(kept + low + first + lane, mask=mask, other=0).to(tl.int64)
            dx, dy, dz = _vectors(x, translations, neighbour, shift, edge, mask, xi, yi, zi)
            square = tl.where(mask, dx * dx + dy * dy + dz * dz, rcut_squared)
            s, b, _, _ = _lengths(square, cutoff)
            interval, place, _ = _place(s, pair, bins + k * _BINS, bin_first, bin_parts)
            t = place.to(dtype)[:, None]
            here_in = interval[:, None] * (POWERS * n_columns) + here[None, :]
            is_in = mask[:, None] & is_column[None, :]
            phi = tl.load(table + here_in + (POWERS - 1) * n_columns, mask=is_in, other=0.0)
            for p in tl.static_range(POWERS - 2, -1, -1):
                phi = phi * t + tl.load(table + here_in + p * n_columns, mask=is_in, other=0.0)
            m0 += tl.sum(((s - tl.load(norm)) * tl.load(norm + 4)).to(dtype)[:, None] * phi, 0)
            m1 += tl.sum(((b * dx - tl.load(norm + 1)) * tl.load(norm + 5)).to(dtype)[:, None] * phi, 0)
            m2 += tl.sum(((b * dy - tl.load(norm + 2)) * tl.load(norm + 6)).to(dtype)[:, None] * phi, 0)
            m3 += tl.sum(((b * dz - tl.load(norm + 3)) * tl.load(norm + 7)).to(dtype)[:, None] * phi, 0)
    lanes = tl.arange(0, COLUMNS)
    width = columns - column
    for k in range(tl.load(block + 1), tl.load(block + 2)):
        pair = pairs + k * _PAIR
        width = tl.minimum(width, tl.load(pair + 2) + tl.load(pair + 1) - column)
    out = moment + row * 4 * columns + column + lanes
    tl.store(out, m0, mask=lanes < width)
    tl.store(out + columns, m1, mask=lanes < width)
    tl.store(out + 2 * columns, m2, mask=lanes < width)
    tl.store(out + 3 * columns, m3, mask=lanes < width)


@triton.jit
def gradients(
    x, translations, atoms, starts, neighbour, shift,
    kept, n_kept,
    pairs, bins, bin_first, bin_parts, coefficients, norm, cutoff,
    by_moment, edge_gradient, pair_virial,
    n_species, columns, EDGES: tl.constexpr, COLUMNS: tl.constexpr, POWERS: tl.constexpr,
):  # fmt: skip
    """Program (row, neighbour species): dE/dr_ij of edges within the cutoff, and the virial of each pair.

    edge_gradient (n_edges, 3); pair_virial (n_atoms, n_species, 6): xx yy zz xy xz yz.

    r_ij enters s and the vector b r_ij, so that dE/dr = b g + r/r (s' dE/ds + b' r·g), g the derivatives by b r_ij.
    """
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1)
    i = tl.load(atoms + row)
    xi, yi, zi = tl.load(x + 3 * i), tl.load(x + 3 * i + 1), tl.load(x + 3 * i + 2)
    dtype = coefficients.dtype.element_ty
    lane = tl.arange(0, EDGES)
    rcut_squared = tl.load(cutoff) * tl.load(cutoff)
    pair = pairs + k * _PAIR
    table = coefficients + tl.load(pair)
    n_columns = tl.load(pair + 1)
    above = by_moment + row * 4 * columns + tl.load(pair + 2)
    low = tl.load(starts + i * n_species + k)
    n = tl.load(n_kept + i * n_species + k)
    xx, yy, zz = tl.zeros((EDGES,), tl.float64), tl.zeros((EDGES,), tl.float64), tl.zeros((EDGES,), tl.float64)
    xy, xz, yz = tl.zeros((EDGES,), tl.float64), tl.zeros((EDGES,), tl.float64), tl.zeros((EDGES,), tl.float64)
    for first in range(0, n, EDGES):
        mask = first + lane < n
        edge = tl.load(kept + low + first + lane, mask=mask, other=0).to(tl.int64)
        dx, dy, dz = _vectors(x, translations, neighbour, shift, edge, mask, xi, yi, zi)
        square = tl.where(mask, dx * dx + dy * dy + dz * dz, rcut_squared)
        s, b, s_by_r, b_by_r = _lengths(square, cutoff)
        interval, place, by_s = _place(s, pair, bins + k * _BINS, bin_first, bin_parts)
        t = place.to(dtype)[:, None]
        r0 = ((s - tl.load(norm)) * tl.load(norm + 4)).to(dtype)[:, None]
        r1 = ((b * dx - tl.load(norm + 1)) * tl.load(norm + 5)).to(dtype)[:, None]
        r2 = ((b * dy - tl.load(norm + 2)) * tl.load(norm + 6)).to(dtype)[:, None]
        r3 = ((b * dz - tl.load(norm + 3)) * tl.load(norm + 7)).to(dtype)[:, None]
        g, g0 = tl.zeros((EDGES,), dtype), tl.zeros((EDGES,), dtype)
        g1, g2, g3 = tl.zeros((EDGES,), dtype), tl.zeros((EDGES,), dtype), tl.zeros((EDGES,), dtype)
        for column in range(0, n_columns, COLUMNS):
            here = column + tl.arange(0, COLUMNS)
            is_column = here < n_columns
            here_in = interval[:, None] * (POWERS * n_columns) + here[None, :]
            is_in = mask[:, None] & is_column[None, :]
            phi = tl.load(table + here_in + (POWERS - 1) * n_columns, mask=is_in, other=0.0)
            slope = tl.zeros((EDGES, COLUMNS), dtype)
            for p in tl.static_range(POWERS - 2, -1, -1):
                slope = slope * t + phi
                phi = phi * t + tl.load(table + here_in + p * n_columns, mask=is_in, other=0.0)
            a0 = tl.load(above + here, mask=is_column, other=0.0)[None, :]
            a1 = tl.load(above + columns + here, mask=is_column, other=0.0)[None, :]
            a2 = tl.load(above + 2 * columns + here, mask=is_column, other=0.0)[None, :]
            a3 = tl.load(above + 3 * columns + here, mask=is_column, other=0.0)[None, :]
            g += tl.sum(slope * (r0 * a0 + r1 * a1 + r2 * a2 + r3 * a3), 1)
            g0 += tl.sum(phi * a0, 1)
            g1 += tl.sum(phi * a1, 1)
            g2 += tl.sum(phi * a2, 1)
            g3 += tl.sum(phi * a3, 1)
        e_by_s = g.to(tl.float64) * by_s + g0.to(tl.float64) * tl.load(norm + 4)
        gx = g1.to(tl.float64) * tl.load(norm + 5)
        gy = g2.to(tl.float64) * tl.load(norm + 6)
        gz = g3.to(tl.float64) * tl.load(norm + 7)
        along = e_by_s * s_by_r + (gx * dx + gy * dy + gz * dz) * b_by_r
        gx = tl.where(mask, b * gx + dx * along, 0.0)
        gy = tl.where(mask, b * gy + dy * along, 0.0)
        gz = tl.where(mask, b * gz + dz * along, 0.0)
        tl.store(edge_gradient + 3 * edge, gx, mask=mask)
        tl.store(edge_gradient + 3 * edge + 1, gy, mask=mask)
        tl.store(edge_gradient + 3 * edge + 2, gz, mask=mask)
        xx -= gx * dx
        yy -= gy * dy
        zz -= gz * dz
        xy -= (gx * dy + gy * dx) / 2
        xz -= (gx * dz + gz * dx) / 2
        yz -= (gy * dz + gz * dy) / 2
    out = pair_virial + (i * n_species + k) * 6
    tl.store(out, tl.sum(xx, 0))
    tl.store(out + 1, tl.sum(yy, 0))
    tl.store(out + 2, tl.sum(zz, 0))
    tl.store(out + 3, tl.sum(xy, 0))
    tl.store(out + 4, tl.sum(xz, 0))
    tl.store(out + 5, tl.sum(yz, 0))


@triton.jit
def inputs(moment, left, right, out, n_inputs, columns, WIDTH: tl.constexpr):
    """Program (row, block): products Σ_k M_kp M_kq, (n_rows, n_inputs); `left` and `right` hold p and q of each."""
    row = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = m < n_inputs
    p = moment + row * 4 * columns + tl.load(left + m, mask=mask, other=0)
    q = moment + row * 4 * columns + tl.load(right + m, mask=mask, other=0)
    found = tl.load(p, mask=mask, other=0.0) * tl.load(q, mask=mask, other=0.0)
    for _ in tl.static_range(3):
        p += columns
        q += columns
        found += tl.load(p, mask=mask, other=0.0) * tl.load(q, mask=mask, other=0.0)
    tl.store(out + row * n_inputs + m, found, mask=mask)


@triton.jit
def inputs_back(
    moment, places, by_input, by_moment, n_inputs, columns, WIDTH: tl.constexpr
):  # fmt: skip
    """Program (row, block of columns): from derivatives by products to those by moments, (n_rows, 4, columns).

    `places` (columns, columns) holds the input that is the product of two columns, -1 where none is.
    """
    row = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_p = p < columns
    dtype = moment.dtype.element_ty
    d0, d1 = tl.zeros((WIDTH,), dtype), tl.zeros((WIDTH,), dtype)
    d2, d3 = tl.zeros((WIDTH,), dtype), tl.zeros((WIDTH,), dtype)
    source = moment + row * 4 * columns
    for first in range(0, columns, WIDTH):
        q = first + tl.arange(0, WIDTH)
        is_q = q < columns
        both = is_p[:, None] & is_q[None, :]
        place = tl.load(places + p[:, None] * columns + q[None, :], mask=both, other=-1)
        weight = tl.load(by_input + row * n_inputs + place, mask=place >= 0, other=0.0)
        weight = tl.where(p[:, None] == q[None, :], 2 * weight, weight)
        d0 += tl.sum(weight * tl.load(source + q, mask=is_q, other=0.0)[None, :], 1)
        d1 += tl.sum(weight * tl.load(source + columns + q, mask=is_q, other=0.0)[None, :], 1)
        d2 += tl.sum(weight * tl.load(source + 2 * columns + q, mask=is_q, other=0.0)[None, :], 1)
        d3 += tl.sum(weight * tl.load(source + 3 * columns + q, mask=is_q, other=0.0)[None, :], 1)
    out = by_moment + row * 4 * columns + p
    tl.store(out, d0, mask=is_p)
    tl.store(out + columns, d1, mask=is_p)
    tl.store(out + 2 * columns, d2, mask=is_p)
    tl.store(out + 3 * columns, d3, mask=is_p)


@triton.jit
def sum_forces(
    edge_gradient, starts, incoming, incoming_starts, forces, n_species,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Program (atom): F_i = Σ_{i→j} dE/dr_ij - Σ_{j→i} dE/dr_ji, (n_atoms, 3), eV/Å."""
    i = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    fx, fy, fz = tl.zeros((WIDTH,), tl.float64), tl.zeros((WIDTH,), tl.float64), tl.zeros((WIDTH,), tl.float64)
    low, high = tl.load(starts + i * n_species), tl.load(starts + (i + 1) * n_species)
    for first in range(low, high, WIDTH):
        edge = first + lane
        mask = edge < high
        fx += tl.load(edge_gradient + 3 * edge, mask=mask, other=0.0)
        fy += tl.load(edge_gradient + 3 * edge + 1, mask=mask, other=0.0)
        fz += tl.load(edge_gradient + 3 * edge + 2, mask=mask, other=0.0)
    low, high = tl.load(incoming_starts + i), tl.load(incoming_starts + i + 1)
    for first in range(low, high, WIDTH):
        mask = first + lane < high
        edge = tl.load(incoming + first + lane, mask=mask, other=0).to(tl.int64)
        fx -= tl.load(edge_gradient + 3 * edge, mask=mask, other=0.0)
        fy -= tl.load(edge_gradient + 3 * edge + 1, mask=mask, other=0.0)
        fz -= tl.load(edge_gradient + 3 * edge + 2, mask=mask, other=0.0)
    tl.store(forces + 3 * i, tl.sum(fx, 0))
    tl.store(forces + 3 * i + 1, tl.sum(fy, 0))
    tl.store(forces + 3 * i + 2, tl.sum(fz, 0))


@triton.jit
def sum_rows(values, starts, sums, n_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Program (segment): the rows of a segment added up, (n_segments, n_columns)."""
    segment = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    found = tl.zeros((ROWS, COLUMNS), tl.float64)
    low, high = tl.load(starts + segment), tl.load(starts + segment + 1)
    for first in range(low, high, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < high)[:, None] & (column < n_columns)[None, :]
        found += tl.load(values + row[:, None] * n_columns + column[None, :], mask=mask, other=0.0)
    tl.store(sums + segment * n_columns + column, tl.sum(found, 0), mask=column < n_columns)
