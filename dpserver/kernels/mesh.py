"""The interaction of Gaussian charges on CPU cores by smooth particle-mesh Ewald (Essmann et al., JCP 103, 8577, 1995).

Charges are spread over a mesh by B-splines M_p, the mesh is folded with the interaction by Fourier transforms, and the
result read off by the same splines: potential, and its exact derivative. The energy is smooth in positions and cell as
long as the mesh has the same number of points.

Several threads may share the work; every number is summed in an order of its own, whatever their number.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dpserver.frames import Floats, Ints
from dpserver.jit import jit

ORDER = 8
"""Points that a charge is spread over in each direction."""

Complexes = NDArray[np.complex128]


@jit
def find_weights(
    positions: Floats, inverse: Floats, first: Ints, weights: Floats, slopes: Floats, sizes: Ints, low: int, high: int
) -> None:
    """Splines of the atoms from `low` to `high`.

    Args:
        positions: (n, 3), Å.
        inverse: of the cell whose rows are lattice vectors, (3, 3), Å⁻¹.
        first: first point of the mesh that an atom reaches along each lattice vector, (n, 3); filled.
        weights: of the points from there on, (n, 3, ORDER); filled.
        slopes: their derivatives by the coordinate in units of the mesh; filled.
        sizes: points of the mesh, (3,).
        low: of the atoms.
        high: of them.
    """
    for i in range(low, high):
        for d in range(3):
            s = positions[i, 0] * inverse[0, d] + positions[i, 1] * inverse[1, d] + positions[i, 2] * inverse[2, d]
            u = (s - math.floor(s)) * sizes[d]
            point = math.floor(u)
            first[i, d] = (point - ORDER + 1) % sizes[d]
            spline(u - point, weights[i, d], slopes[i, d])


@jit
def spline(f: float, weights: Floats, slopes: Floats) -> None:
    """M_p(f + p - 1 - j) for j = 0, …, p - 1, and the derivatives; p is `ORDER`."""
    weights[0], weights[1] = 1 - f, f
    for m in range(3, ORDER + 1):
        if m == ORDER:
            slopes[0], slopes[m - 1] = -weights[0], weights[m - 2]
            for j in range(1, m - 1):
                slopes[j] = weights[j - 1] - weights[j]
        scale = 1.0 / (m - 1)
        weights[m - 1] = scale * f * weights[m - 2]
        for j in range(1, m - 1):
            weights[m - 1 - j] = scale * ((f + j) * weights[m - 2 - j] + (m - j - f) * weights[m - 1 - j])
        weights[0] *= scale * (1 - f)


@jit
def spread(charges: Floats, first: Ints, weights: Floats, mesh: Floats, low: int, high: int) -> None:
    """Put the charges onto the planes of the mesh from `low` to `high`, which were 0."""
    nx, ny, nz = mesh.shape
    for i in range(len(charges)):
        for a in range(ORDER):
            x = (first[i, 0] + a) % nx
            if x < low or x >= high:
                continue
            for b in range(ORDER):
                line = mesh[x, (first[i, 1] + b) % ny]
                w = charges[i] * weights[i, 0, a] * weights[i, 1, b]
                z = first[i, 2]
                if z + ORDER <= nz:
                    for c in range(ORDER):
                        line[z + c] += w * weights[i, 2, c]
                else:
                    for c in range(ORDER):
                        line[(z + c) % nz] += w * weights[i, 2, c]


@jit
def find_influence(inverse: Floats, shape: Floats, moduli: tuple[Floats, Floats, Floats], influence: Floats) -> None:
    """What each wave of the mesh is multiplied by, (nx, ny, nz // 2 + 1), eV/Å² per e² times points.

    Args:
        inverse: of the cell, (3, 3), Å⁻¹.
        shape: σ², Å²; 4πk/V.
        moduli: 1/|Σ_j M_p(j + 1) exp(2πi m j/n)|² for the waves m of each direction.
        influence: filled.
    """
    nx, ny, nz = influence.shape
    for x in range(nx):
        m1 = x if 2 * x <= nx else x - nx
        for y in range(ny):
            m2 = y if 2 * y <= ny else y - ny
            for m3 in range(nz):
                square = _square(inverse, m1, m2, m3)
                if square == 0.0:
                    influence[x, y, m3] = 0.0
                    continue
                b = moduli[0][x] * moduli[1][y] * moduli[2][m3]
                influence[x, y, m3] = shape[1] * b * math.exp(-shape[0] * square) / square


@jit
def _square(inverse: Floats, m1: int, m2: int, m3: int) -> float:
    """The square of a wave, Å⁻²."""
    total = 0.0
    for d in range(3):
        g = 2 * math.pi * (inverse[d, 0] * m1 + inverse[d, 1] * m2 + inverse[d, 2] * m3)
        total += g * g
    return total


@jit
def fold(
    waves: Complexes, influence: Floats, inverse: Floats, width: float, is_even: bool, low: int, high: int,
    virial: Floats,
) -> None:  # fmt: skip
    """Multiply the planes from `low` to `high` by the influence, in place, and add their part of the virial.

    Args:
        waves: transform of the charges on the mesh, (nx, ny, nz // 2 + 1).
        influence: see `find_influence`.
        inverse: of the cell, (3, 3), Å⁻¹.
        width: σ², Å².
        is_even: whether the mesh has an even number of points along the third direction.
        low: of the planes.
        high: of them.
        virial: of each plane, added to, (nx, 3, 3), eV.
    """
    nx, ny, nz = influence.shape
    g = np.empty(3)
    for x in range(low, high):
        m1 = x if 2 * x <= nx else x - nx
        for y in range(ny):
            m2 = y if 2 * y <= ny else y - ny
            for m3 in range(nz):
                value, weight = waves[x, y, m3], influence[x, y, m3]
                waves[x, y, m3] = value * weight
                if weight == 0.0:
                    continue
                twice = 0.5 if m3 == 0 or (is_even and m3 == nz - 1) else 1.0
                energy = twice * weight * (value.real * value.real + value.imag * value.imag)
                square = 0.0
                for d in range(3):
                    g[d] = 2 * math.pi * (inverse[d, 0] * m1 + inverse[d, 1] * m2 + inverse[d, 2] * m3)
                    square += g[d] * g[d]
                pull = 2 * energy * (1 / square + width)
                for d in range(3):
                    virial[x, d, d] += energy
                    for e in range(3):
                        virial[x, d, e] -= pull * g[d] * g[e]


@jit
def collect(
    mesh: Floats, first: Ints, weights: Floats, slopes: Floats, inverse: Floats, low: int, high: int,
    potential: Floats, gradient: Floats,
) -> None:  # fmt: skip
    """Read potential, (n,), and gradient, (3, n), of the atoms from `low` to `high` off the mesh; adds to both."""
    nx, ny, nz = mesh.shape
    for i in range(low, high):
        value = gx = gy = gz = 0.0
        z = first[i, 2]
        for a in range(ORDER):
            plane = mesh[(first[i, 0] + a) % nx]
            wx, dx = weights[i, 0, a], slopes[i, 0, a]
            for b in range(ORDER):
                line = plane[(first[i, 1] + b) % ny]
                along = across = 0.0
                for c in range(ORDER):
                    point = line[z + c] if z + c < nz else line[z + c - nz]
                    along += weights[i, 2, c] * point
                    across += slopes[i, 2, c] * point
                wy = weights[i, 1, b]
                value += wx * wy * along
                gx += dx * wy * along
                gy += wx * slopes[i, 1, b] * along
                gz += wx * wy * across
        potential[i] += value
        for d in range(3):
            gradient[d, i] += nx * gx * inverse[d, 0] + ny * gy * inverse[d, 1] + nz * gz * inverse[d, 2]


def moduli_of(size: int) -> Floats:
    """1/|Σ_j M_p(j + 1) exp(2πi m j/n)|² for all waves m of a mesh of n points, (n,)."""
    weights, slopes = np.zeros(ORDER), np.zeros(ORDER)
    spline(0.0, weights, slopes)
    values = np.zeros(size)
    for j, weight in enumerate(weights):
        values[j % size] += weight
    found: Floats = 1 / np.abs(np.fft.fft(values)) ** 2
    return found
