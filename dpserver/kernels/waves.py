"""The interaction of Gaussian charges on CPU cores, exact: all waves of a periodic structure, all pairs of an open one.

The formulas are those of `models.coulomb`. Found are the potential φ at atoms, the derivative of φ_i by x_i, and the
virial -dE/dε: by `add_waves` for all atoms of a structure, by `find_factors` and `add_factors` for some, between which
the sums of all atoms are added up, and by `add_pairs` for all or some.

Waves that differ in the third component alone are a line, on which most of the work is done together, see `phases`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.jit import jit
from dpserver.kernels.phases import add_phases, join_phases, sum_phases


class _Atoms(NamedTuple):
    """What waves pass through.

    Attributes:
        first: cosine and sine of 0, 1, 2, … times the phase of each atom along a direction, (2, n, room).
        second: along the next one.
        third: along the last one.
        charges: (room,), e.
        phases: see `join_phases`, (4, room).
        found: see `add_phases`, (4, room).
        sums: see `sum_phases`, of one line, (n_terms, 8).
        weights: see `add_phases`, of one line, (n_terms, 8).
    """

    first: Floats
    second: Floats
    third: Floats
    charges: Floats
    phases: Floats
    found: Floats
    sums: Floats
    weights: Floats


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
    atoms, line = _place(positions, charges, inverse, longest), _no_line()
    while _go_on(line, inverse, longest, shape[0]):
        _join(atoms, line)
        _sum(atoms, line)
        _weigh(inverse, shape, line, atoms.sums[: line[2]], atoms.weights, virial)
        _add(atoms, line)
    _collect(atoms, inverse, potential, gradient)


@jit
def list_lines(inverse: Floats, longest: Ints, reach: float) -> Ints:
    """The lines of all waves up to a length, of which one of each pair of opposite ones is taken.

    Args:
        inverse: of the cell, (3, 3), Å⁻¹.
        longest: see `add_waves`, (3,).
        reach: square of the longest wave, Å⁻².

    Returns:
        See `_no_line`, and how many third components there are in the lines before, (n_lines, 4).
    """
    found, line, n, first = np.empty((64, 4), dtype=np.int64), _no_line(), 0, 0
    while _go_on(line, inverse, longest, reach):
        if n == len(found):
            larger = np.empty((2 * n, 4), dtype=np.int64)
            larger[:n] = found
            found = larger
        found[n, :3], found[n, 3] = line, first
        first += line[2]
        n += 1
    return found[:n].copy()


@jit
def find_factors(
    positions: Floats, charges: Floats, inverse: Floats, longest: Ints, lines: Ints, factors: Floats
) -> None:
    """Write the part of the structure factors S(G) = Σ_i q_i exp(iG·x_i) that some atoms are.

    Args:
        positions: (n, 3), Å.
        charges: (n,), e.
        inverse: of the cell, (3, 3), Å⁻¹.
        longest: see `add_waves`, (3,).
        lines: see `list_lines`, (n_lines, 4).
        factors: line by line the four sums of `sum_phases` for each third component, (n_factors, 4), e; filled.
    """
    atoms = _place(positions, charges, inverse, longest)
    for line in lines:
        _join(atoms, line)
        _sum(atoms, line)
        factors[line[3] : line[3] + line[2]] = atoms.sums[: line[2], :4]


@jit
def add_factors(
    positions: Floats,
    inverse: Floats,
    longest: Ints,
    lines: Ints,
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
        longest: see `add_waves`, (3,).
        lines: see `list_lines`, (n_lines, 4).
        shape: see `add_waves`.
        factors: see `find_factors`, (n_factors, 4), e.
        potential: added to, (n,), eV/e.
        gradient: of it, added to, (3, n), eV/e/Å.
        virial: of the whole structure, added to, (3, 3), eV.
    """
    atoms = _place(positions, np.zeros(len(positions)), inverse, longest)
    for line in lines:
        _join(atoms, line)
        _weigh(inverse, shape, line, factors[line[3] : line[3] + line[2]], atoms.weights, virial)
        _add(atoms, line)
    _collect(atoms, inverse, potential, gradient)


@jit
def _no_line() -> Ints:
    """A line is its first two components, and how many third ones there are, from 0 on and of either sign, (3,)."""
    return np.array([0, -1, 0])


@jit
def _go_on(line: Ints, inverse: Floats, longest: Ints, reach: float) -> bool:
    """Put the next line with waves up to a length in place, one of each pair of opposite ones; False after the last."""
    n1, n2 = line[0], line[1]
    while True:
        n2 += 1
        if n2 > longest[1]:
            n1, n2 = n1 + 1, -longest[1]
        if n1 > longest[0]:
            return False
        for n3 in range(longest[2], -1, -1):
            if _square(inverse, n1, n2, n3) <= reach or _square(inverse, n1, n2, -n3) <= reach:
                line[0], line[1], line[2] = n1, n2, n3 + 1
                return True


@jit
def _place(positions: Floats, charges: Floats, inverse: Floats, longest: Ints) -> _Atoms:
    """Phases of atoms by all components of waves, and room for what comes of them."""
    n, room = len(charges), (len(charges) + 15) // 16 * 16
    tables = [np.zeros((2, longest[d] + 1, room)) for d in range(3)]
    for d in range(3):
        _find_powers(positions, inverse[:, d], tables[d][0], tables[d][1])
    padded = np.zeros(room)
    padded[:n] = charges
    phases, found = np.empty((4, room)), np.zeros((4, room))
    sums, weights = np.empty((longest[2] + 1, 8)), np.empty((longest[2] + 1, 8))
    return _Atoms(tables[0], tables[1], tables[2], padded, phases, found, sums, weights)


@jit
def _join(atoms: _Atoms, line: Ints) -> None:
    """The phases of the first two components together."""
    first, second, room = atoms.first, atoms.second, len(atoms.charges)
    at, other, is_negative = line[0] * room, abs(line[1]) * room, 1 if line[1] < 0 else 0
    gap, other_gap = first.shape[1] * room, second.shape[1] * room
    join_phases(first, second, atoms.charges, atoms.phases, at, gap, other, other_gap, is_negative, room)


@jit
def _sum(atoms: _Atoms, line: Ints) -> None:
    """Sums over atoms, for each third component."""
    room, gap = len(atoms.charges), atoms.third.shape[1] * len(atoms.charges)
    for n3 in range(line[2]):
        sum_phases(atoms.phases, atoms.third, atoms.sums, n3 * room, gap, 8 * n3, room)


@jit
def _add(atoms: _Atoms, line: Ints) -> None:
    """What atoms take of a line."""
    room, gap = len(atoms.charges), atoms.third.shape[1] * len(atoms.charges)
    add_phases(atoms.phases, atoms.third, atoms.weights, atoms.found, gap, line[2], line[0], line[1], room)


@jit
def _collect(atoms: _Atoms, inverse: Floats, potential: Floats, gradient: Floats) -> None:
    """Add what atoms have taken of all lines; see `add_waves`."""
    found = atoms.found
    for i in range(len(potential)):
        potential[i] += found[0, i]
        for d in range(3):
            slope = inverse[d, 0] * found[1, i] + inverse[d, 1] * found[2, i] + inverse[d, 2] * found[3, i]
            gradient[d, i] += 2 * math.pi * slope


@jit
def _square(inverse: Floats, n1: int, n2: int, n3: int) -> float:
    """The square of a wave, Å⁻²."""
    total = 0.0
    for d in range(3):
        g = 2 * math.pi * (inverse[d, 0] * n1 + inverse[d, 1] * n2 + inverse[d, 2] * n3)
        total += g * g
    return total


@jit
def _weigh(inverse: Floats, shape: Floats, line: Ints, sums: Floats, weights: Floats, virial: Floats) -> None:
    """From the sums over atoms of waves that differ in the third component alone to what atoms take of them.

    With w S = a + ib for each wave, + and - for the signs of the third component k, an atom's potential is
    Σ_k Re[(a₊ - ib₊) exp(iG₊·x) + (a₋ - ib₋) exp(iG₋·x)].

    Args:
        inverse: of the cell, (3, 3), Å⁻¹.
        shape: see `add_waves`.
        line: see `_no_line`.
        sums: see `sum_phases`, (n, 4) or more, for k from 0.
        weights: see `add_phases`, (n, 8); filled.
        virial: added to, (3, 3), eV.
    """
    two_pi, n1, n2 = 2 * math.pi, line[0], line[1]
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
def _find_powers(positions: Floats, inverse: Floats, cosines: Floats, sines: Floats) -> None:
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
    positions: Floats, charges: Floats, low: int, shape: Floats, potential: Floats, gradient: Floats, virial: Floats
) -> None:
    """Sum over the pairs of an open structure, at all of its atoms or at some that follow each other.

    Args:
        positions: of all atoms, (n, 3), Å.
        charges: (n,), e.
        low: first of those that are summed at; there are as many as there is room for in `potential`.
        shape: width of the charges, Å; e²/(4πε₀), eV Å.
        potential: added to, (n_some,), eV/e.
        gradient: of it, added to, (3, n_some), eV/e/Å.
        virial: added to, (3, 3), eV; of pairs with others a half.
    """
    n_some, d = len(potential), np.empty(3)
    for k in range(n_some):
        i = low + k
        for other in range(k):
            j = low + other
            value, slope = _pair(positions, i, j, shape, d)
            potential[k] += charges[j] * value
            potential[other] += charges[i] * value
            for a in range(3):
                gradient[a, k] += charges[j] * slope * d[a]
                gradient[a, other] -= charges[i] * slope * d[a]
            _add_pull(virial, charges[i] * charges[j] * slope, d)
        for other in range(len(charges) - n_some):
            j = other if other < low else other + n_some
            value, slope = _pair(positions, i, j, shape, d)
            potential[k] += charges[j] * value
            for a in range(3):
                gradient[a, k] += charges[j] * slope * d[a]
            _add_pull(virial, 0.5 * charges[i] * charges[j] * slope, d)


@jit
def _pair(positions: Floats, i: int, j: int, shape: Floats, d: Floats) -> tuple[float, float]:
    """What a unit charge is to another: φ, eV/e, (dφ/dr)/r, eV/e/Å², and in `d` the vector r, Å."""
    sigma, factor = shape[0], shape[1]
    for a in range(3):
        d[a] = positions[i, a] - positions[j, a]
    square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    r = math.sqrt(square)
    value = math.erf(r / (2 * sigma)) / r
    slope = (math.exp(-square / (4 * sigma * sigma)) / (sigma * math.sqrt(math.pi)) - value) / square
    return factor * value, factor * slope


@jit
def _add_pull(virial: Floats, pull: float, d: Floats) -> None:
    """Ξ -= p r ⊗ r for a pair, (3, 3), eV."""
    for a in range(3):
        for b in range(3):
            virial[a, b] -= pull * d[a] * d[b]
