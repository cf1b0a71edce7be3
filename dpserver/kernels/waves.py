"""The interaction of Gaussian charges on CPU cores, exact: all waves of a periodic structure, all pairs of an open one.

The formulas are those of `models.coulomb`. Each function adds for one structure the potential φ at its atoms, the
derivative of φ_i by x_i, and the virial -dE/dε.
"""

from __future__ import annotations

import math

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.jit import jit, jit_reordered


@jit_reordered
def add_waves(
    positions: Floats,
    charges: Floats,
    inverse: Floats,
    longest: Ints,
    shape: Floats,
    potential: Floats,
    gradient: Floats,
    virial: Floats,
) -> None:
    """Sum over the waves of a periodic structure up to a length.

    Args:
        positions: (n, 3), Å.
        charges: (n,), e.
        inverse: of the cell whose rows are lattice vectors, (3, 3), Å⁻¹.
        longest: largest component of a wave along each reciprocal lattice vector, (3,).
        shape: square of the longest wave, Å⁻²; σ², Å²; 8πk/V, eV/Å² per e².
        potential: added to, (n,), eV/e.
        gradient: of it, added to, (3, n), eV/e/Å.
        virial: added to, (3, 3), eV.
    """
    n, reach, width, factor = len(charges), shape[0], shape[1], shape[2]
    cosines = [np.empty((longest[d] + 1, n)) for d in range(3)]
    sines = [np.empty((longest[d] + 1, n)) for d in range(3)]
    for d in range(3):
        _powers(positions, inverse[:, d], cosines[d], sines[d])
    re12, im12, re, im = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    two_pi = 2 * math.pi
    for n1 in range(longest[0] + 1):
        for n2 in range(-longest[1] if n1 else 0, longest[1] + 1):
            sign = 1.0 if n2 >= 0 else -1.0
            c1, s1, c2, s2 = cosines[0][n1], sines[0][n1], cosines[1][abs(n2)], sines[1][abs(n2)]
            for i in range(n):
                re12[i] = c1[i] * c2[i] - sign * s1[i] * s2[i]
                im12[i] = s1[i] * c2[i] + sign * c1[i] * s2[i]
            for n3 in range(-longest[2] if n1 or n2 else 1, longest[2] + 1):
                gx = two_pi * (inverse[0, 0] * n1 + inverse[0, 1] * n2 + inverse[0, 2] * n3)
                gy = two_pi * (inverse[1, 0] * n1 + inverse[1, 1] * n2 + inverse[1, 2] * n3)
                gz = two_pi * (inverse[2, 0] * n1 + inverse[2, 1] * n2 + inverse[2, 2] * n3)
                square = gx * gx + gy * gy + gz * gz
                if square > reach:
                    continue
                sign = 1.0 if n3 >= 0 else -1.0
                c3, s3 = cosines[2][abs(n3)], sines[2][abs(n3)]
                a = b = 0.0
                for i in range(n):
                    re[i] = re12[i] * c3[i] - sign * im12[i] * s3[i]
                    im[i] = im12[i] * c3[i] + sign * re12[i] * s3[i]
                    a += charges[i] * re[i]
                    b += charges[i] * im[i]
                weight = factor * math.exp(-width * square) / square
                _add_stress(virial, gx, gy, gz, 0.5 * weight * (a * a + b * b), 2 * (1 / square + width))
                a, b = weight * a, weight * b
                for i in range(n):
                    potential[i] += a * re[i] + b * im[i]
                    slope = b * re[i] - a * im[i]
                    gradient[0, i] += gx * slope
                    gradient[1, i] += gy * slope
                    gradient[2, i] += gz * slope


@jit
def _powers(positions: Floats, inverse: Floats, cosines: Floats, sines: Floats) -> None:
    """Cosine and sine of 0, 1, 2, … times the phase of each atom along one direction."""
    for i in range(len(positions)):
        s = positions[i, 0] * inverse[0] + positions[i, 1] * inverse[1] + positions[i, 2] * inverse[2]
        s = 2 * math.pi * (s - math.floor(s))
        for m in range(len(cosines)):
            cosines[m, i], sines[m, i] = math.cos(m * s), math.sin(m * s)


@jit
def _add_stress(virial: Floats, gx: float, gy: float, gz: float, energy: float, pull: float) -> None:
    """Ξ += e (1 - p G ⊗ G) for a wave of the energy e, (3, 3), eV."""
    for d in range(3):
        virial[d, d] += energy
    energy *= pull
    virial[0, 0] -= energy * gx * gx
    virial[1, 1] -= energy * gy * gy
    virial[2, 2] -= energy * gz * gz
    virial[0, 1] -= energy * gx * gy
    virial[0, 2] -= energy * gx * gz
    virial[1, 2] -= energy * gy * gz
    virial[1, 0] -= energy * gx * gy
    virial[2, 0] -= energy * gx * gz
    virial[2, 1] -= energy * gy * gz


@jit
def add_pairs(
    positions: Floats, charges: Floats, sigma: float, factor: float, potential: Floats, gradient: Floats, virial: Floats
) -> None:
    """Sum over the pairs of an open structure.

    Args:
        positions: (n, 3), Å.
        charges: (n,), e.
        sigma: width of the charges, Å.
        factor: e²/(4πε₀), eV Å.
        potential: added to, (n,), eV/e.
        gradient: of it, added to, (3, n), eV/e/Å.
        virial: added to, (3, 3), eV.
    """
    n, d = len(charges), np.empty(3)
    for i in range(n):
        for j in range(i):
            d[0] = positions[i, 0] - positions[j, 0]
            d[1] = positions[i, 1] - positions[j, 1]
            d[2] = positions[i, 2] - positions[j, 2]
            square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
            r = math.sqrt(square)
            value = math.erf(r / (2 * sigma)) / r
            slope = (math.exp(-square / (4 * sigma * sigma)) / (sigma * math.sqrt(math.pi)) - value) / square
            potential[i] += factor * charges[j] * value
            potential[j] += factor * charges[i] * value
            slope *= factor
            for a in range(3):
                gradient[a, i] += charges[j] * slope * d[a]
                gradient[a, j] -= charges[i] * slope * d[a]
                for b in range(3):
                    virial[a, b] -= charges[i] * charges[j] * slope * d[a] * d[b]
