"""Moments of environments in Chebyshev polynomials, and how they change with the edge vectors, for the CPU.

For the edges e of an atom i to neighbours of one species, with the normalised environment R̃ (see `models.smooth`),

    A_kp(i) = Σ_e R̃_k,e T_p(u_e),   u = scale s̃ + offset, between -1 and 1

These are linear in everything that a network makes of s̃ afterwards, and know nothing of its weights.
"""

from __future__ import annotations

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.jit import jit, jit_reordered

N_CONSTANTS = 13
"""rcut_smth, rcut, env_protection, davg (4), dstd (4), scale, offset."""


@jit
def _environment(x: float, y: float, z: float, constants: Floats, row: Floats) -> None:
    """R̃ (4), u, unit vector (3), ds/dr, h = s/(r + protection), dh/dr of an edge, into `row`, (11,)."""
    near, far, protection = constants[0], constants[1], constants[2]
    r = np.sqrt(x * x + y * y + z * z)
    u = min(max((r - near) / (far - near), 0.0), 1.0)
    w = u * u * u * (-6 * u * u + 15 * u - 10) + 1
    w_slope = -30 * u * u * (1 - u) * (1 - u) / (far - near)
    inverse = 1 / (r + protection)
    s = w * inverse
    s_slope = (w_slope - s) * inverse
    h = s * inverse
    row[0] = (s - constants[3]) / constants[7]
    row[1] = (h * x - constants[4]) / constants[8]
    row[2] = (h * y - constants[5]) / constants[9]
    row[3] = (h * z - constants[6]) / constants[10]
    row[4] = constants[11] * row[0] + constants[12]
    row[5], row[6], row[7] = x / r, y / r, z / r
    row[8], row[9] = s_slope, h
    row[10] = (s_slope - h) * inverse


@jit_reordered
def _polynomials(u: Floats, n: int, values: Floats, slopes: Floats) -> None:
    """T_p(u_e) and T'_p(u_e) for the first n edges, into `values` and `slopes`, (n_polynomials, ≥ n)."""
    for e in range(n):
        values[0, e], slopes[0, e] = 1.0, 0.0
        values[1, e], slopes[1, e] = u[e], 1.0
    for p in range(2, len(values)):
        for e in range(n):
            values[p, e] = 2 * u[e] * values[p - 1, e] - values[p - 2, e]
            slopes[p, e] = 2 * (values[p - 1, e] + u[e] * slopes[p - 1, e]) - slopes[p - 2, e]


@jit_reordered
def add_moments(vectors: Floats, bounds: Ints, constants: Floats, moments: Floats, first: int, count: int) -> None:
    """Add A of the edges between atoms of two species.

    Args:
        vectors: of the edges, (n_edges, 3), Å.
        bounds: first edge of each atom and the end of the last, (n_atoms + 1,).
        constants: see `N_CONSTANTS`.
        moments: what to add to, (n_atoms, 4, ≥ first + count), float64.
        first: place of the polynomials in it.
        count: number of polynomials, at least 2.
    """
    width = _width(bounds)
    values, slopes = np.empty((count, width)), np.empty((count, width))
    environment, row, u = np.empty((4, width)), np.empty(11), np.empty(width)
    for i in range(len(bounds) - 1):
        n = bounds[i + 1] - bounds[i]
        for e in range(n):
            v = vectors[bounds[i] + e]
            _environment(v[0], v[1], v[2], constants, row)
            environment[0, e], environment[1, e], environment[2, e], environment[3, e] = row[0], row[1], row[2], row[3]
            u[e] = row[4]
        _polynomials(u, n, values, slopes)
        for p in range(count):
            a = b = c = d = 0.0
            for e in range(n):
                value = values[p, e]
                a += environment[0, e] * value
                b += environment[1, e] * value
                c += environment[2, e] * value
                d += environment[3, e] * value
            moments[i, 0, first + p] += a
            moments[i, 1, first + p] += b
            moments[i, 2, first + p] += c
            moments[i, 3, first + p] += d


@jit_reordered
def edge_gradients(
    vectors: Floats, bounds: Ints, constants: Floats, by_moment: Floats, first: int, count: int, gradients: Floats
) -> None:
    """Derivatives by the edge vectors of what has the derivatives `by_moment` by A.

    Args:
        vectors: (n_edges, 3), Å.
        bounds: (n_atoms + 1,).
        constants: see `N_CONSTANTS`.
        by_moment: (n_atoms, 4, ≥ first + count), float64.
        first: place of the polynomials in it.
        count: number of polynomials.
        gradients: (n_edges, 3), overwritten.
    """
    width = _width(bounds)
    values, slopes = np.empty((count, width)), np.empty((count, width))
    rows, u, weights = np.empty((width, 11)), np.empty(width), np.empty((5, width))
    environment = np.empty((4, width))
    for i in range(len(bounds) - 1):
        n = bounds[i + 1] - bounds[i]
        for e in range(n):
            v = vectors[bounds[i] + e]
            _environment(v[0], v[1], v[2], constants, rows[e])
            u[e] = rows[e, 4]
            for k in range(4):
                environment[k, e] = rows[e, k]
                weights[k, e] = 0.0
            weights[4, e] = 0.0
        _polynomials(u, n, values, slopes)
        for p in range(count):
            a, b = by_moment[i, 0, first + p], by_moment[i, 1, first + p]
            c, d = by_moment[i, 2, first + p], by_moment[i, 3, first + p]
            for e in range(n):
                value = values[p, e]
                weights[0, e] += a * value
                weights[1, e] += b * value
                weights[2, e] += c * value
                weights[3, e] += d * value
                weights[4, e] += slopes[p, e] * (
                    a * environment[0, e] + b * environment[1, e] + c * environment[2, e] + d * environment[3, e]
                )
        for e in range(n):
            row, v = rows[e], vectors[bounds[i] + e]
            by_s = (weights[0, e] + constants[11] * weights[4, e]) / constants[7]
            bx, by, bz = weights[1, e] / constants[8], weights[2, e] / constants[9], weights[3, e] / constants[10]
            along = by_s * row[8] + row[10] * (bx * v[0] + by * v[1] + bz * v[2])
            out = gradients[bounds[i] + e]
            out[0] = along * row[5] + row[9] * bx
            out[1] = along * row[6] + row[9] * by
            out[2] = along * row[7] + row[9] * bz


@jit_reordered
def add_changes(
    vectors: Floats, bounds: Ints, constants: Floats, changes: Floats, moments: Floats, first: int, count: int
) -> None:
    """Add how A changes, to first order, with the edge vectors: the adjoint of `edge_gradients`.

    Args:
        vectors: (n_edges, 3), Å.
        bounds: (n_atoms + 1,).
        constants: see `N_CONSTANTS`.
        changes: of the vectors, (n_edges, 3).
        moments: what to add to, (n_atoms, 4, ≥ first + count), float64.
        first: place of the polynomials in it.
        count: number of polynomials.
    """
    width = _width(bounds)
    values, slopes = np.empty((count, width)), np.empty((count, width))
    row, u = np.empty(11), np.empty(width)
    environment, change = np.empty((4, width)), np.empty((4, width))
    for i in range(len(bounds) - 1):
        n = bounds[i + 1] - bounds[i]
        for e in range(n):
            v, dv = vectors[bounds[i] + e], changes[bounds[i] + e]
            _environment(v[0], v[1], v[2], constants, row)
            along = row[5] * dv[0] + row[6] * dv[1] + row[7] * dv[2]
            change[0, e] = row[8] * along / constants[7]
            for k in range(3):
                change[k + 1, e] = (row[9] * dv[k] + row[10] * along * v[k]) / constants[8 + k]
            by_u = constants[11] * change[0, e]
            for k in range(4):
                environment[k, e] = row[k] * by_u
            u[e] = row[4]
        _polynomials(u, n, values, slopes)
        for p in range(count):
            a = b = c = d = 0.0
            for e in range(n):
                value, slope = values[p, e], slopes[p, e]
                a += change[0, e] * value + environment[0, e] * slope
                b += change[1, e] * value + environment[1, e] * slope
                c += change[2, e] * value + environment[2, e] * slope
                d += change[3, e] * value + environment[3, e] * slope
            moments[i, 0, first + p] += a
            moments[i, 1, first + p] += b
            moments[i, 2, first + p] += c
            moments[i, 3, first + p] += d


@jit
def sum_gradients(
    vectors: Floats, pairs: tuple[Ints, Ints, Ints], gradients: Floats, forces: Floats, virial: Floats
) -> None:
    """Forces and virials from derivatives by edge vectors.

    F_k = Σ_{i→j: i=k} g_ij - Σ_{i→j: j=k} g_ij,   Ξ = -Σ_{i→j} g_ij ⊗ r_ij

    Args:
        vectors: r_ij, (n_edges, 3), Å.
        pairs: atoms i and j of each edge, (n_edges,), and the frame of each atom, (n_atoms,).
        gradients: g_ij, (n_edges, 3), eV/Å.
        forces: what to add to, (n_atoms, 3), eV/Å.
        virial: what to add to, (n_frames, 3, 3), eV.
    """
    centre, neighbour, frame_idx = pairs
    for e in range(len(centre)):
        i, j = centre[e], neighbour[e]
        frame = frame_idx[i]
        for a in range(3):
            g = gradients[e, a]
            forces[i, a] += g
            forces[j, a] -= g
            for b in range(3):
                virial[frame, a, b] -= g * vectors[e, b]


@jit
def spread_gradients(
    vectors: Floats, pairs: tuple[Ints, Ints, Ints], by_forces: Floats, by_virial: Floats, changes: Floats
) -> None:
    """The adjoint of `sum_gradients`: how far the edge vectors are to move, (n_edges, 3), overwritten."""
    centre, neighbour, frame_idx = pairs
    for e in range(len(centre)):
        i, j = centre[e], neighbour[e]
        frame = frame_idx[i]
        for a in range(3):
            change = by_forces[i, a] - by_forces[j, a]
            for b in range(3):
                change -= by_virial[frame, a, b] * vectors[e, b]
            changes[e, a] = change


@jit
def _width(bounds: Ints) -> int:
    """Edges of the atom that has most."""
    most = 0
    for i in range(len(bounds) - 1):
        most = max(most, bounds[i + 1] - bounds[i])
    return most
