"""The analysis of dynamics and of measurements, and what exact theory says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpserver.demo import rdf
from dpserver.frames import Floats, Ints
from dpserver.units import BOLTZMANN

HBAR_EV_FS = 0.6582119569509067
"""ħ, eV fs; e/2π of the Planck constant of the SI, exact to the digits given."""


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error."""

    value: float
    error: float


def block_mean(series: Floats, n_blocks: int = 10) -> Mean:
    """Mean and standard error from the scatter of consecutive blocks; NaN where there are fewer rows than blocks."""
    if len(series) < n_blocks:
        return Mean(float(series.mean()), float("nan"))
    means = np.array([block.mean() for block in np.array_split(series, n_blocks)])
    return Mean(float(series.mean()), float(means.std(ddof=1) / np.sqrt(n_blocks)))


def pair_distributions(positions: Floats, cells: Floats, symbols: tuple[str, ...], width: float) -> dict[str, Floats]:
    """g(r) of water, `g_OO`, `g_OH` and `g_HH`, in bins as wide as given, Å.

    Args:
        positions: (n_frames, n_atoms, 3), Å.
        cells: (n_frames, 3, 3), Å.
        symbols: of the atoms.
        width: of the bins, Å.
    """
    edges = np.arange(0.0, rdf.largest_radius(cells), width)
    atoms = {s: np.flatnonzero(np.array(symbols) == s) for s in "OH"}
    return {
        f"g_{a}{b}": rdf.radial_distribution(positions, cells, atoms[a], atoms[b], edges) for a, b in ("OO", "OH", "HH")
    }


def slope(x: Floats, y: Floats, n_blocks: int = 10) -> Mean:
    """Slope of the straight line of least squares; the error from leaving one block out after the other.

    Neighbouring points are correlated, whole blocks hardly.
    """

    def fitted(x: Floats, y: Floats) -> float:
        dx = x - x.mean()
        return float(dx @ (y - y.mean()) / (dx @ dx))

    blocks = np.array_split(np.arange(len(x)), n_blocks)
    estimates = [fitted(np.delete(x, b), np.delete(y, b)) for b in blocks if len(b)]
    return Mean(fitted(x, y), float(np.sqrt((len(estimates) - 1) * np.var(estimates))))


def power_law(n: Floats, y: Floats) -> Mean:
    """The exponent a of y = c nᵃ, by a straight line through the logarithms; the error from what is left of it."""
    x, z = np.log(n), np.log(y)
    line, covariance = np.polyfit(x, z, 1, cov=True) if len(x) > 3 else (np.polyfit(x, z, 1), np.full((2, 2), np.nan))
    return Mean(float(line[0]), float(np.sqrt(covariance[0, 0])))


def line_with_offset(n: Floats, y: Floats) -> tuple[float, float]:
    """Offset a and slope b of y = a + b n, in the least squares of the relative deviations."""
    b, a = np.polyfit(n, y, 1, w=1 / y)
    return float(a), float(b)


def oscillator_kinetic(omega: float, temperature: float, beads: int) -> float:
    """Kinetic energy of a harmonic oscillator in one dimension by the primitive path integral, exact for P beads, eV.

    ⟨T⟩_P = ⟨V⟩_P = (kT/2) Σ_k ω²/(ω_k² + ω²),   ω_k = (2P kT/ħ) sin(kπ/P),  k = 0 … P - 1

    Each normal mode of the ring polymer is a classical oscillator of the frequency √(ω_k² + ω²), which gives ⟨V⟩; by
    the virial theorem the virial estimator has the same mean, and so has the centroid's.

    Args:
        omega: angular frequency, 1/fs.
        temperature: K.
        beads: P; 0 for the limit of infinitely many, (ħω/4) coth(ħω/2kT).
    """
    thermal = BOLTZMANN * temperature
    if beads == 0:
        return 0.25 * HBAR_EV_FS * omega / float(np.tanh(0.5 * HBAR_EV_FS * omega / thermal))
    mode = 2 * beads * thermal / HBAR_EV_FS * np.sin(np.arange(beads) * np.pi / beads)
    return float(0.5 * thermal * (omega**2 / (mode**2 + omega**2)).sum())


def coordination(positions: Floats, cells: Floats, atoms: Ints, radius: float) -> float:
    """Mean number of neighbours within a radius among some atoms.

    Args:
        positions: (n_frames, n_atoms, 3), Å.
        cells: (n_frames, 3, 3), Å.
        atoms: which ones.
        radius: Å, at most half of a cell.
    """
    near = [int((_distances(x[atoms], cell)[1] < radius).sum()) for x, cell in zip(positions, cells, strict=True)]
    return float(np.mean(near)) / len(atoms)


def radius_of_coordination(positions: Floats, cells: Floats, atoms: Ints, wanted: float) -> float:
    """The radius within which an atom has so many neighbours on average, Å."""
    distances = np.concatenate(
        [d[np.isfinite(d)] for d in (_distances(x[atoms], cell)[1] for x, cell in zip(positions, cells, strict=True))]
    )
    n_wanted = round(wanted * len(positions) * len(atoms))
    return float(np.partition(distances, n_wanted)[n_wanted])


def angles(positions: Floats, cells: Floats, atoms: Ints, radius: float, edges: Floats) -> Floats:
    """The distribution of angles between neighbours of an atom, among atoms of one kind.

    Each atom is the corner of the angles between all pairs of its neighbours within the radius.

    Args:
        positions: (n_frames, n_atoms, 3), Å.
        cells: lattice vectors as rows, (n_frames, 3, 3), Å.
        atoms: which ones.
        radius: how far neighbours are, Å, at most half of a cell.
        edges: bounds of the bins, (n_bins + 1,), degrees.

    Returns:
        The probability density, (n_bins,), 1/degree; its integral is 1 where the bins go from 0 to 180.
    """
    counts, n_angles = np.zeros(len(edges) - 1), 0
    for x, cell in zip(positions, cells, strict=True):
        delta, distance = _distances(x[atoms], cell)
        for vectors, r in zip(delta, distance, strict=True):
            near = np.flatnonzero(r < radius)
            unit = vectors[near] / r[near, None]
            cosine = (unit @ unit.T)[np.triu_indices(len(near), k=1)]
            found = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
            counts += np.histogram(found, edges)[0]
            n_angles += len(found)
    return counts / (max(n_angles, 1) * np.diff(edges))


def nearest_images(vectors: Floats, cell: Floats) -> Floats:
    """Vectors, (…, 3), each less the lattice vectors that its fractional coordinates round to."""
    fractional = vectors @ np.linalg.inv(cell)
    return np.asarray((fractional - np.rint(fractional)) @ cell)


def _distances(x: Floats, cell: Floats) -> tuple[Floats, Floats]:
    """Vectors to the nearest images, (n, n, 3), and distances, (n, n), infinite from an atom to itself."""
    delta = nearest_images(x[None, :] - x[:, None], cell)
    distance = np.linalg.norm(delta, axis=2)
    np.fill_diagonal(distance, np.inf)
    return delta, distance


def deviation(first: Floats, second: Floats) -> float:
    """Mean absolute difference of two curves over an even grid, by what the second one is on average."""
    return float(np.abs(first - second).mean() / np.abs(second).mean())
