"""An independent Ewald sum of point charges in numpy, and what Gaussian charges lack of it, for tests."""

from __future__ import annotations

import itertools
import math

import numpy as np

from dpserver.frames import Floats
from dpserver.units import COULOMB

ERFC = np.vectorize(math.erfc)


def images(cell: Floats, reach: float) -> Floats:
    """Lattice translations that may bring two atoms within a distance, (n, 3), Å."""
    heights = abs(np.linalg.det(cell)) / np.array(
        [np.linalg.norm(np.cross(cell[(d + 1) % 3], cell[(d + 2) % 3])) for d in range(3)]
    )
    most = np.ceil(reach / heights).astype(int) + 1
    return np.array(list(itertools.product(*(range(-n, n + 1) for n in most)))) @ cell


def screened(positions: Floats, charges: Floats, cell: Floats | None, alpha: float) -> float:
    """½ k Σ q_i q_j erfc(α r)/r over all pairs and images, eV; converged to 1e-14."""
    moves = np.zeros((1, 3)) if cell is None else images(cell, 5.8 / alpha)
    total = 0.0
    for i, x in enumerate(positions):
        r = np.linalg.norm(positions[None] - x + moves[:, None], axis=2)
        r[(np.abs(moves).sum(axis=1) == 0), i] = np.inf
        near = r < 5.8 / alpha
        total += (
            0.5 * charges[i] * float((np.broadcast_to(charges, r.shape)[near] * ERFC(alpha * r[near]) / r[near]).sum())
        )
    return COULOMB * total


def points(positions: Floats, charges: Floats, cell: Floats, alpha: float = 0.55) -> float:
    """Energy of point charges with a neutralising background, the surroundings conducting, eV."""
    volume = abs(np.linalg.det(cell))
    reciprocal = 2 * np.pi * np.linalg.inv(cell).T
    reach = 2 * alpha * 5.8
    most = np.ceil(reach * np.linalg.norm(cell, axis=1) / (2 * np.pi)).astype(int)
    n = np.array(list(itertools.product(*(range(-m, m + 1) for m in most))))
    waves = n[np.abs(n).sum(axis=1) > 0] @ reciprocal
    square = (waves**2).sum(axis=1)
    structure = np.exp(1j * waves @ positions.T) @ charges
    long = 2 * np.pi / volume * float((np.exp(-square / (4 * alpha**2)) / square * np.abs(structure) ** 2).sum())
    own = alpha / math.sqrt(math.pi) * float((charges**2).sum())
    background = math.pi / (2 * volume * alpha**2) * float(charges.sum()) ** 2
    return COULOMB * (long - own - background) + screened(positions, charges, cell, alpha)


def smeared(positions: Floats, charges: Floats, cell: Floats, sigma: float) -> float:
    """Energy of Gaussian charges by that of points, eV."""
    return points(positions, charges, cell) - screened(positions, charges, cell, 1 / (2 * sigma))
