"""Atom-centred symmetry functions on CPU cores: D from positions, and from derivatives by D to those by r_ij.

Pairs and triples of neighbours are visited twice, on the way there and on the way back, and nothing of them is kept:
the memory is that of the neighbour list. What the functions are says `models.behler_parrinello`.

With u and v the vectors to two neighbours, w = v - u, c the cosine of the angle and W = f(u) f(v) f(w), one triple adds

    W S,  S = Σ_f g_f exp(-η_f s) 2^(1-ζ_f) (1 + λ_f c)^ζ_f,  s = u² + v² + w²

to the energy's derivative along g = dE/dD; the way back takes the derivatives of that by u, v, w and c. Sums are kept
for every pair of a reach η and an angle (λ, ζ), whether there is such a function or not.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.jit import jit
from dpserver.kernels.layout import GOOD, TOO_CLOSE, Batch

CLOSEST: Final = 0.3
"""Å; whether nearer neighbours are a mistake is left to the reference."""
_NUMBERS: Final = 6


class Functions(NamedTuple):
    """The functions of a descriptor, and the kinds of neighbours.

    Attributes:
        rcut: cutoff, Å.
        n_species: number of species.
        radial: η and R_s of each G2, (n_radial, 2).
        reaches: η of the angular functions, each once, (n_reaches,).
        angles: λ and ζ, each pair once, (n_angles, 2).
        places: reach and angle of each G4, (n_angular, 2).
        first: feature of the first G4 of each pair of species of neighbours, (n_species, n_species).
    """

    rcut: float
    n_species: int
    radial: Floats
    reaches: Floats
    angles: Ints
    places: Ints
    first: Ints


@jit
def find_features(functions: Functions, batch: Batch, low: int, high: int, features: Floats, status: Ints) -> None:
    """D of some atoms before standardisation.

    Args:
        functions: of the descriptor.
        batch: the atoms.
        low: first of `batch.atoms`.
        high: the last + 1.
        features: where they go, (atoms, n_features), in the order of `batch.atoms`.
        status: of all atoms.
    """
    near, slot, species = _space(functions, batch, low, high)
    reach, angle, _, sums = _rooms(functions)
    for a in range(low, high):
        i = batch.atoms[a]
        n, status[i] = _look(functions, batch, i, near, slot, species)
        found = features[a]
        found[:] = 0
        for q in range(n):
            _add_radial(functions, found, near[q], species[q])
        sums[:] = 0
        _add_triples(functions, near, species, n, reach, angle, sums)
        for k in range(functions.n_species):
            for m in range(functions.n_species):
                for f in range(len(functions.places)):
                    e, o = functions.places[f]
                    found[functions.first[k, m] + f] += sums[k, m, e, o]


@jit
def find_gradients(
    functions: Functions,
    batch: Batch,
    low: int,
    high: int,
    by_feature: Floats,
    edge_gradient: Floats,
    atom_virial: Floats,
) -> None:
    """dE/dr_ij of the edges of some atoms, and their virials.

    Args:
        functions: of the descriptor.
        batch: the atoms.
        low: first of `batch.atoms`.
        high: the last + 1.
        by_feature: dE/dD, (atoms, n_features), in the order of `batch.atoms`.
        edge_gradient: where these go, (n_edges, 3); 0 beyond the cutoff.
        atom_virial: -Σ_j dE/dr_ij ⊗ r_ij, xx yy zz xy xz yz, (n_atoms, 6).
    """
    near, slot, species = _space(functions, batch, low, high)
    reach, angle, slope, weights = _rooms(functions)
    gradient = np.empty((len(near), 3))
    n_species = functions.n_species
    for a in range(low, high):
        i = batch.atoms[a]
        n, _ = _look(functions, batch, i, near, slot, species)
        g = by_feature[a]
        gradient[:n] = 0
        for q in range(n):
            _add_radial_gradient(functions, g, near[q], species[q], gradient[q])
        _spread(functions, g, weights)
        _add_triple_gradients(functions, near, species, n, (reach, angle, slope), weights, gradient)
        edge_gradient[batch.starts[i * n_species] : batch.starts[(i + 1) * n_species]] = 0
        virial = atom_virial[i]
        virial[:] = 0
        for q in range(n):
            x, y, z = near[q, 0], near[q, 1], near[q, 2]
            gx, gy, gz = gradient[q, 0], gradient[q, 1], gradient[q, 2]
            edge_gradient[slot[q], 0], edge_gradient[slot[q], 1], edge_gradient[slot[q], 2] = gx, gy, gz
            virial[0] -= gx * x
            virial[1] -= gy * y
            virial[2] -= gz * z
            virial[3] -= (gx * y + gy * x) / 2
            virial[4] -= (gx * z + gz * x) / 2
            virial[5] -= (gy * z + gz * y) / 2


@jit
def _space(functions: Functions, batch: Batch, low: int, high: int) -> tuple[Floats, Ints, Ints]:
    """Room for the neighbours of any of these atoms: x, y, z, r, f and f', the edge, and the species."""
    most, n_species = 1, functions.n_species
    for a in range(low, high):
        i = batch.atoms[a]
        most = max(most, batch.starts[(i + 1) * n_species] - batch.starts[i * n_species])
    return np.empty((most, _NUMBERS)), np.empty(most, dtype=np.int64), np.empty(most, dtype=np.int64)


@jit
def _rooms(functions: Functions) -> tuple[Floats, Floats, Floats, Floats]:
    """Room for the parts of the functions of one triple, and for a number of each pair of these and of species."""
    k, e, o = functions.n_species, len(functions.reaches), len(functions.angles)
    return np.empty(e), np.empty(o), np.empty(o), np.empty((k, k, e, o))


@jit
def _spread(functions: Functions, g: Floats, weights: Floats) -> None:
    """Put dE/dD of the angular functions where their reach and angle are."""
    weights[:] = 0
    for k in range(functions.n_species):
        for m in range(functions.n_species):
            for f in range(len(functions.places)):
                e, o = functions.places[f]
                weights[k, m, e, o] = g[functions.first[k, m] + f]


@jit
def _look(functions: Functions, batch: Batch, i: int, near: Floats, slot: Ints, species: Ints) -> tuple[int, int]:
    """The neighbours of an atom within the cutoff: how many, and the status of the atom."""
    n, found = 0, GOOD
    x, shifts, rcut, n_species = batch.positions, batch.shifts, functions.rcut, functions.n_species
    for k in range(n_species):
        for e in range(batch.starts[i * n_species + k], batch.starts[i * n_species + k + 1]):
            j, shift = batch.neighbour[e], shifts[batch.shift[e]]
            dx = x[j, 0] - x[i, 0] + shift[0]
            dy = x[j, 1] - x[i, 1] + shift[1]
            dz = x[j, 2] - x[i, 2] + shift[2]
            square = dx * dx + dy * dy + dz * dz
            if square < rcut * rcut:
                r = math.sqrt(square)
                if r < CLOSEST:
                    found = TOO_CLOSE
                near[n, 0], near[n, 1], near[n, 2], near[n, 3] = dx, dy, dz, r
                near[n, 4] = 0.5 + 0.5 * math.cos(math.pi * r / rcut)
                near[n, 5] = -0.5 * math.pi / rcut * math.sin(math.pi * r / rcut)
                slot[n], species[n] = e, k
                n += 1
    return n, found


@jit
def _add_radial(functions: Functions, features: Floats, near: Floats, species: int) -> None:
    """G2 of one neighbour."""
    radial, r, weight = functions.radial, near[3], near[4]
    at = species * len(radial)
    for f in range(len(radial)):
        features[at + f] += weight * math.exp(-radial[f, 0] * (r - radial[f, 1]) ** 2)


@jit
def _add_radial_gradient(functions: Functions, g: Floats, near: Floats, species: int, gradient: Floats) -> None:
    """The derivative of G2 by the vector to one neighbour, along g."""
    radial, r, weight, slope = functions.radial, near[3], near[4], near[5]
    at, total = species * len(radial), 0.0
    for f in range(len(radial)):
        away = r - radial[f, 1]
        total += g[at + f] * math.exp(-radial[f, 0] * away**2) * (slope - 2 * radial[f, 0] * away * weight)
    for d in range(3):
        gradient[d] += total * near[d] / r


# One triple takes as long as a few calls with arrays do, so that all that is done with it stands in one loop.


@jit
def _add_triples(
    functions: Functions, near: Floats, species: Ints, n: int, reach: Floats, angle: Floats, sums: Floats
) -> None:
    """Add all triples of an atom to the sums of their pairs of species."""
    reaches, angles, rcut = functions.reaches, functions.angles, functions.rcut
    for q in range(n if len(functions.places) else 0):
        for p in range(q):
            wx, wy, wz = near[q, 0] - near[p, 0], near[q, 1] - near[p, 1], near[q, 2] - near[p, 2]
            square = wx * wx + wy * wy + wz * wz
            if square >= rcut * rcut:
                continue
            squares = near[p, 3] * near[p, 3] + near[q, 3] * near[q, 3] + square
            dot = near[p, 0] * near[q, 0] + near[p, 1] * near[q, 1] + near[p, 2] * near[q, 2]
            cosine = dot / (near[p, 3] * near[q, 3])
            weight = near[p, 4] * near[q, 4] * (0.5 + 0.5 * math.cos(math.pi * math.sqrt(square) / rcut))
            for o in range(len(angles)):
                base = 0.5 * (1 + angles[o, 0] * cosine)
                angle[o] = 2 * _power(base, angles[o, 1])
            k, m = species[p], species[q]
            for e in range(len(reaches)):
                reach[e] = weight * math.exp(-reaches[e] * squares)
                for o in range(len(angles)):
                    sums[k, m, e, o] += reach[e] * angle[o]


@jit
def _add_triple_gradients(
    functions: Functions,
    near: Floats,
    species: Ints,
    n: int,
    rooms: tuple[Floats, Floats, Floats],
    weights: Floats,
    gradient: Floats,
) -> None:
    """Add the derivatives of W S by the vectors to both neighbours, for all triples of an atom."""
    reaches, angles, rcut = functions.reaches, functions.angles, functions.rcut
    reach, angle, slope = rooms
    rate = math.pi / rcut
    for q in range(n if len(functions.places) else 0):
        for p in range(q):
            wx, wy, wz = near[q, 0] - near[p, 0], near[q, 1] - near[p, 1], near[q, 2] - near[p, 2]
            square = wx * wx + wy * wy + wz * wz
            if square >= rcut * rcut:
                continue
            r_p, r_q, r_w = near[p, 3], near[q, 3], math.sqrt(square)
            squares = r_p * r_p + r_q * r_q + square
            dot = near[p, 0] * near[q, 0] + near[p, 1] * near[q, 1] + near[p, 2] * near[q, 2]
            cosine = dot / (r_p * r_q)
            for o in range(len(angles)):
                base = 0.5 * (1 + angles[o, 0] * cosine)
                below = _power(base, angles[o, 1] - 1)
                angle[o] = 2 * base * below
                slope[o] = angles[o, 0] * angles[o, 1] * below
            k, m = species[p], species[q]
            total = by_squares = by_cosine = 0.0
            for e in range(len(reaches)):
                reach[e] = math.exp(-reaches[e] * squares)
                value = change = 0.0
                for o in range(len(angles)):
                    value += weights[k, m, e, o] * angle[o]
                    change += weights[k, m, e, o] * slope[o]
                total += reach[e] * value
                by_squares -= reaches[e] * reach[e] * value
                by_cosine += reach[e] * change
            f_p, f_q, f_w = near[p, 4], near[q, 4], 0.5 + 0.5 * math.cos(rate * r_w)
            common = 2 * f_p * f_q * f_w * by_squares
            across = f_p * f_q * f_w * by_cosine / (r_p * r_q)
            along_p = near[p, 5] * f_q * f_w * total / r_p + common - across * dot / (r_p * r_p)
            along_q = f_p * near[q, 5] * f_w * total / r_q + common - across * dot / (r_q * r_q)
            along_w = -0.5 * rate * math.sin(rate * r_w) * f_p * f_q * total / r_w + common
            for d in range(3):
                by_w = along_w * (near[q, d] - near[p, d])
                gradient[p, d] += along_p * near[p, d] + across * near[q, d] - by_w
                gradient[q, d] += along_q * near[q, d] + across * near[p, d] + by_w


@jit
def _power(base: float, exponent: int) -> float:
    """A whole power, by squaring."""
    found = 1.0
    while exponent > 0:
        if exponent & 1:
            found *= base
        base *= base
        exponent >>= 1
    return found
