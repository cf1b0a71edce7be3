"""Tables of pair energies for tests, and what they mean: loops over pairs, and a spline from its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpserver.frames import Floats, Frames
from tests.models import slots

STEP = 0.02


def repulsion(n_types: int = 2, rmin: float = 0.1, rmax: float = 3.0) -> Floats:
    """Distances and energies that fall steeply, different for each pair of types, and end with 0."""
    r = rmin + STEP * np.arange(round((rmax - rmin) / STEP) + 1)
    n_pairs = n_types * (n_types + 1) // 2
    energies = [(1 + 0.4 * k) * 2.0 * np.exp(-(1.6 + 0.2 * k) * r) / r * (1 - r / r[-1]) ** 3 for k in range(n_pairs)]
    return np.column_stack([r, *energies])


def write(path: Path, table: Floats) -> Path:
    np.savetxt(path, table, fmt="%.17g")
    return path


def spline(table: Floats, column: int, r: float, rcut: float) -> float:
    """The clamped cubic spline through the points of a table, by one dense system for its slopes; 0 beyond its end."""
    x, y = table[:, 0], table[:, column]
    if r >= rcut or r >= x[0] + (len(x) - 1) * (x[1] - x[0]):
        return 0.0
    n, h = len(x), np.diff(x)
    matrix, right = np.eye(n), np.zeros(n)
    for k in range(1, n - 1):  # equal second derivatives on both sides of a point
        matrix[k, k - 1 : k + 2] = 2 / h[k - 1], 4 / h[k - 1] + 4 / h[k], 2 / h[k]
        right[k] = 6 * ((y[k] - y[k - 1]) / h[k - 1] ** 2 + (y[k + 1] - y[k]) / h[k] ** 2)
    slope = np.linalg.solve(matrix, right)
    k = min(int((r - x[0]) / h[0]), n - 2)
    u = (r - x[k]) / h[k]
    ends = y[k] * (1 + 2 * u) * (1 - u) ** 2 + y[k + 1] * u**2 * (3 - 2 * u)
    return float(ends + h[k] * (slope[k] * u * (1 - u) ** 2 - slope[k + 1] * u**2 * (1 - u)))


def column_of(a: int, b: int, n_types: int) -> int:
    pairs = [(i, j) for i in range(n_types) for j in range(i, n_types)]
    return 1 + pairs.index((min(a, b), max(a, b)))


def energies(frame: Frames, table: Floats, rcut: float, n_types: int = 2) -> Floats:
    """½ Σ_j V(r_ij) of each atom of one frame."""
    found = np.zeros(frame.n_atoms)
    for i, mine in enumerate(slots.neighbours(frame, rcut)):
        for kind, r in mine:
            column = column_of(int(frame.types[i]), kind, n_types)
            found[i] += spline(table, column, float(np.linalg.norm(r)), rcut) / 2
    return found


def weights(frame: Frames, rcut: float, alpha: float, rmin: float, rmax: float, floor: float) -> Floats:
    """Weight of the table for each atom of one frame."""
    found = np.zeros(frame.n_atoms)
    for i, mine in enumerate(slots.neighbours(frame, rcut)):
        if mine:
            r = np.array([np.linalg.norm(v) for _, v in mine])
            e = np.exp(-r / alpha)
            sigma = (r * e).sum() / max(e.sum(), floor)
            u = (sigma - rmin) / (rmax - rmin)
            found[i] = 1.0 if u < 0 else 0.0 if u >= 1 else 1 + u**3 * (-10 + u * (15 - 6 * u))
    return found
