"""The interaction of Gaussian charges on CPU cores, exact: all waves of a periodic structure, all pairs of an open one.

The formulas are those of `models.coulomb`. `add_waves` and `add_pairs` add for one structure the potential φ at its
atoms, the derivative of φ_i by x_i, and the virial -dE/dε. The others do so for some of its atoms: for the waves in two
steps, between which the structure factors of all atoms are added up.
"""

from __future__ import annotations

import math

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.jit import jit, jit_reordered
from dpserver.kernels.phases import add_phases, join_phases, sum_phases


@jit
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
    n, room = len(charges), (len(charges) + 15) // 16 * 16
    tables = [np.zeros((2, longest[d] + 1, room)) for d in range(3)]
    for d in range(3):
        _powers(positions, inverse[:, d], tables[d][0], tables[d][1])
    charge, phases, found = np.zeros(room), np.empty((4, room)), np.zeros((4, room))
    charge[:n] = charges
    sums, weights = np.empty((longest[2] + 1, 8)), np.empty((longest[2] + 1, 8))
    gaps = [(longest[d] + 1) * room for d in range(3)]
    for n1 in range(longest[0] + 1):
        for n2 in range(-longest[1] if n1 else 0, longest[1] + 1):
            last = _last_wave(inverse, n1, n2, longest[2], shape[0])
            if last < 0:
                continue
            at, is_negative = abs(n2) * room, 1 if n2 < 0 else 0
            join_phases(tables[0], tables[1], charge, phases, n1 * room, gaps[0], at, gaps[1], is_negative, room)
            for n3 in range(last + 1):
                sum_phases(phases, tables[2], sums, n3 * room, gaps[2], 8 * n3, room)
            _weigh(inverse, shape, n1, n2, sums[: last + 1], weights, virial)
            add_phases(phases, tables[2], weights, found, gaps[2], last + 1, n1, n2, room)
    for i in range(n):
        potential[i] += found[0, i]
        for d in range(3):
            slope = inverse[d, 0] * found[1, i] + inverse[d, 1] * found[2, i] + inverse[d, 2] * found[3, i]
            gradient[d, i] += 2 * math.pi * slope


@jit
def _last_wave(inverse: Floats, n1: int, n2: int, longest: int, reach: float) -> int:
    """The largest third component, of either sign, of waves up to a length with two others; -1: there is none."""
    for n3 in range(longest, -1, -1):
        if _square(inverse, n1, n2, n3) <= reach or _square(inverse, n1, n2, -n3) <= reach:
            return n3
    return -1


@jit
def _square(inverse: Floats, n1: int, n2: int, n3: int) -> float:
    """The square of a wave, Å⁻²."""
    total = 0.0
    for d in range(3):
        g = 2 * math.pi * (inverse[d, 0] * n1 + inverse[d, 1] * n2 + inverse[d, 2] * n3)
        total += g * g
    return total


@jit
def _weigh(inverse: Floats, shape: Floats, n1: int, n2: int, sums: Floats, weights: Floats, virial: Floats) -> None:
    """From the sums over atoms of waves that differ in the third component alone to what atoms take of them.

    With w S = a + ib for each wave, + and - for the signs of the third component k, an atom's potential is
    Σ_k Re[(a₊ - ib₊) exp(iG₊·x) + (a₋ - ib₋) exp(iG₋·x)].

    Args:
        inverse: of the cell, (3, 3), Å⁻¹.
        shape: see `add_waves`.
        n1: first component.
        n2: second.
        sums: see `sum_phases`, (n, 8), for k from 0.
        weights: see `add_phases`, (n, 8); filled.
        virial: added to, (3, 3), eV.
    """
    two_pi = 2 * math.pi
    for k in range(len(sums)):
        a = b = c = d = 0.0
        for sign in (1, -1):
            n3, square = sign * k, _square(inverse, n1, n2, sign * k)
            if square > shape[0] or (n1 == 0 and n2 == 0 and n3 <= 0) or (k == 0 and sign < 0):
                continue
            real, imaginary = sums[k, 0] - sign * sums[k, 1], sums[k, 2] + sign * sums[k, 3]
            weight = shape[2] * math.exp(-shape[1] * square) / square
            energy = 0.5 * weight * (real * real + imaginary * imaginary)
            gx = two_pi * (inverse[0, 0] * n1 + inverse[0, 1] * n2 + inverse[0, 2] * n3)
            gy = two_pi * (inverse[1, 0] * n1 + inverse[1, 1] * n2 + inverse[1, 2] * n3)
            gz = two_pi * (inverse[2, 0] * n1 + inverse[2, 1] * n2 + inverse[2, 2] * n3)
            _add_stress(virial, gx, gy, gz, energy, 2 * (1 / square + shape[1]))
            real, imaginary = weight * real, weight * imaginary
            a += real
            b += sign * imaginary
            c += imaginary
            d += sign * real
        weights[k, 0], weights[k, 1], weights[k, 2], weights[k, 3] = a, b, c, -d
        weights[k, 4], weights[k, 5], weights[k, 6], weights[k, 7] = k * b, -k * a, k * d, k * c


@jit
def _powers(positions: Floats, inverse: Floats, cosines: Floats, sines: Floats) -> None:
    """Cosine and sine of 0, 1, 2, … times the phase of each atom along one direction."""
    for i in range(len(positions)):
        s = positions[i, 0] * inverse[0] + positions[i, 1] * inverse[1] + positions[i, 2] * inverse[2]
        s = 2 * math.pi * (s - math.floor(s))
        a, b = math.cos(s), math.sin(s)
        c, d = 1.0, 0.0
        for m in range(len(cosines)):
            cosines[m, i], sines[m, i] = c, d
            c, d = c * a - d * b, c * b + d * a


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


@jit
def list_waves(inverse: Floats, longest: Ints, reach: float) -> Ints:
    """Components of all waves up to a length, one of each pair of opposite ones, in the order of `add_waves`.

    Args:
        inverse: of the cell whose rows are lattice vectors, (3, 3), Å⁻¹.
        longest: largest component of a wave along each reciprocal lattice vector, (3,).
        reach: square of the longest wave, Å⁻².

    Returns:
        (n_waves, 3).
    """
    found = np.empty((64, 3), dtype=np.int64)
    n = 0
    for n1 in range(longest[0] + 1):
        for n2 in range(-longest[1] if n1 else 0, longest[1] + 1):
            for n3 in range(-longest[2] if n1 or n2 else 1, longest[2] + 1):
                square = 0.0
                for d in range(3):
                    g = 2 * math.pi * (inverse[d, 0] * n1 + inverse[d, 1] * n2 + inverse[d, 2] * n3)
                    square += g * g
                if square > reach:
                    continue
                if n == len(found):
                    larger = np.empty((2 * n, 3), dtype=np.int64)
                    larger[:n] = found
                    found = larger
                found[n, 0], found[n, 1], found[n, 2] = n1, n2, n3
                n += 1
    return found[:n]


@jit_reordered
def find_factors(positions: Floats, charges: Floats, inverse: Floats, waves: Ints, factors: Floats) -> None:
    """Write the part of the structure factors S(G) = Σ_i q_i exp(iG·x_i) that some atoms are.

    Args:
        positions: (n, 3), Å.
        charges: (n,), e.
        inverse: of the cell, (3, 3), Å⁻¹.
        waves: components, (n_waves, 3).
        factors: real and imaginary parts, (2, n_waves), e; filled.
    """
    n = len(charges)
    cosines, sines = _phases(positions, inverse, waves)
    re12, im12 = np.empty(n), np.empty(n)
    for w in range(len(waves)):
        n3 = waves[w, 2]
        if w == 0 or waves[w, 0] != waves[w - 1, 0] or waves[w, 1] != waves[w - 1, 1]:
            _join(cosines, sines, waves[w, 0], waves[w, 1], re12, im12)
        c3, s3, sign = cosines[2][abs(n3)], sines[2][abs(n3)], 1.0 if n3 >= 0 else -1.0
        a = b = 0.0
        for i in range(n):
            a += charges[i] * (re12[i] * c3[i] - sign * im12[i] * s3[i])
            b += charges[i] * (im12[i] * c3[i] + sign * re12[i] * s3[i])
        factors[0, w], factors[1, w] = a, b


@jit_reordered
def add_factors(
    positions: Floats,
    inverse: Floats,
    waves: Ints,
    shape: Floats,
    factors: Floats,
    potential: Floats,
    gradient: Floats,
    virial: Floats,
) -> None:
    """Sum over waves at some atoms of a periodic structure, given the structure factors of all of it.

    Args:
        positions: (n, 3), Å.
        inverse: of the cell, (3, 3), Å⁻¹.
        waves: components, (n_waves, 3).
        shape: σ², Å²; 8πk/V, eV/Å² per e².
        factors: real and imaginary parts, (2, n_waves), e.
        potential: added to, (n,), eV/e.
        gradient: of it, added to, (3, n), eV/e/Å.
        virial: of the whole structure, added to, (3, 3), eV.
    """
    n, width, two_pi = len(positions), shape[0], 2 * math.pi
    cosines, sines = _phases(positions, inverse, waves)
    re12, im12 = np.empty(n), np.empty(n)
    for w in range(len(waves)):
        n1, n2, n3 = waves[w, 0], waves[w, 1], waves[w, 2]
        if w == 0 or n1 != waves[w - 1, 0] or n2 != waves[w - 1, 1]:
            _join(cosines, sines, n1, n2, re12, im12)
        c3, s3, sign = cosines[2][abs(n3)], sines[2][abs(n3)], 1.0 if n3 >= 0 else -1.0
        gx = two_pi * (inverse[0, 0] * n1 + inverse[0, 1] * n2 + inverse[0, 2] * n3)
        gy = two_pi * (inverse[1, 0] * n1 + inverse[1, 1] * n2 + inverse[1, 2] * n3)
        gz = two_pi * (inverse[2, 0] * n1 + inverse[2, 1] * n2 + inverse[2, 2] * n3)
        square = gx * gx + gy * gy + gz * gz
        weight = shape[1] * math.exp(-width * square) / square
        a, b = factors[0, w], factors[1, w]
        _add_stress(virial, gx, gy, gz, 0.5 * weight * (a * a + b * b), 2 * (1 / square + width))
        a, b = weight * a, weight * b
        for i in range(n):
            re = re12[i] * c3[i] - sign * im12[i] * s3[i]
            im = im12[i] * c3[i] + sign * re12[i] * s3[i]
            potential[i] += a * re + b * im
            slope = b * re - a * im
            gradient[0, i] += gx * slope
            gradient[1, i] += gy * slope
            gradient[2, i] += gz * slope


@jit
def _phases(positions: Floats, inverse: Floats, waves: Ints) -> tuple[list[Floats], list[Floats]]:
    """Cosines and sines of the atoms, for all components of waves along each direction."""
    cosines = [np.empty((np.abs(waves[:, d]).max() + 1 if len(waves) else 1, len(positions))) for d in range(3)]
    sines = [np.empty((len(cosines[d]), len(positions))) for d in range(3)]
    for d in range(3):
        _powers(positions, inverse[:, d], cosines[d], sines[d])
    return cosines, sines


@jit
def _join(cosines: list[Floats], sines: list[Floats], n1: int, n2: int, re: Floats, im: Floats) -> None:
    """Cosine and sine of the first two directions together."""
    sign = 1.0 if n2 >= 0 else -1.0
    c1, s1, c2, s2 = cosines[0][n1], sines[0][n1], cosines[1][abs(n2)], sines[1][abs(n2)]
    for i in range(len(re)):
        re[i] = c1[i] * c2[i] - sign * s1[i] * s2[i]
        im[i] = s1[i] * c2[i] + sign * c1[i] * s2[i]


@jit
def add_pairs_of(
    positions: Floats, charges: Floats, low: int, shape: Floats, potential: Floats, gradient: Floats, virial: Floats
) -> None:
    """Sum over the pairs of an open structure that some of its atoms are in, at these.

    Args:
        positions: of all atoms, (n, 3), Å.
        charges: (n,), e.
        low: first of the atoms; there are as many as there is room for in `potential`.
        shape: width of the charges, Å; e²/(4πε₀), eV Å.
        potential: added to, (n_some,), eV/e.
        gradient: of it, added to, (3, n_some), eV/e/Å.
        virial: added to, (3, 3), eV; half of each pair.
    """
    sigma, factor, d = shape[0], shape[1], np.empty(3)
    for k in range(len(potential)):
        i = low + k
        for j in range(len(charges)):
            if j == i:
                continue
            d[0] = positions[i, 0] - positions[j, 0]
            d[1] = positions[i, 1] - positions[j, 1]
            d[2] = positions[i, 2] - positions[j, 2]
            square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
            r = math.sqrt(square)
            value = math.erf(r / (2 * sigma)) / r
            slope = (math.exp(-square / (4 * sigma * sigma)) / (sigma * math.sqrt(math.pi)) - value) / square
            potential[k] += factor * charges[j] * value
            slope *= factor * charges[j]
            for a in range(3):
                gradient[a, k] += slope * d[a]
                for b in range(3):
                    virial[a, b] -= 0.5 * charges[i] * slope * d[a] * d[b]
