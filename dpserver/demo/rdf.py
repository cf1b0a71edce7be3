"""Radial distribution functions of periodic frames, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpserver.errors import StructureError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def largest_radius(cells: Floats) -> float:
    """Half the smallest height of the cells: up to there every pair has one nearest image.

    Args:
        cells: lattice vectors as rows, (n_frames, 3, 3), Å.

    Returns:
        The radius in Å.
    """
    # The rows of the inverse transpose are the reciprocal vectors, whose lengths are one over the heights.
    reciprocal = np.linalg.inv(cells).transpose(0, 2, 1)
    return float(0.5 / np.linalg.norm(reciprocal, axis=-1).max())


def radial_distribution(positions: Floats, cells: Floats, first: Ints, second: Ints, edges: Floats) -> Floats:
    """Compute g(r) between two kinds of atoms, averaged over frames.

    g(r) = Σ_frames n(r) / Σ_frames N_pairs · v(r) / V

    n(r) counts the pairs in the shell of volume v(r) and N_pairs is the number of distinct pairs, so that an ideal gas
    gives 1 in a box of any size.

    Args:
        positions: (n_frames, n_atoms, 3), Å; they may lie any number of cells away.
        cells: lattice vectors as rows, (n_frames, 3, 3), Å.
        first: indices of one kind of atoms.
        second: indices of the other kind; either the same as `first` or without a common atom.
        edges: ascending bounds of the shells, (n_bins + 1,), Å.

    Returns:
        g, (n_bins,).

    Raises:
        StructureError: the last edge is beyond half the smallest height of a cell.
    """
    if edges[-1] > (limit := largest_radius(cells)):
        raise StructureError(
            f"g(r) was asked for up to {edges[-1]:.3f} Å, but half the smallest height of the cell is {limit:.3f} Å; "
            "ask for a smaller radius"
        )
    is_same = np.array_equal(first, second)
    upper = np.triu_indices(len(first), k=1)
    counts = np.zeros(len(edges) - 1)
    density = 0.0
    for x, cell in zip(positions, cells, strict=True):
        fractional = x @ np.linalg.inv(cell)
        delta = fractional[second][None, :] - fractional[first][:, None]
        delta -= np.rint(delta)
        pairs = delta[upper] if is_same else delta.reshape(-1, 3)
        counts += np.histogram(np.linalg.norm(pairs @ cell, axis=1), edges)[0]
        density += len(pairs) / abs(np.linalg.det(cell))
    return counts / (density * shell_volumes(edges))


def shell_volumes(edges: Floats) -> Floats:
    """Volumes between consecutive radii, (n_bins,), Å³."""
    return 4.0 / 3.0 * np.pi * np.diff(edges**3)


def coarsen(edges: Floats, g: Floats, factor: int) -> tuple[Floats, Floats]:
    """Join `factor` neighbouring shells into one, exactly as if g had been counted in the wider ones.

    Args:
        edges: bounds of the shells, (n_bins + 1,), Å.
        g: (n_bins,).
        factor: how many shells make one; shells left over at the end are dropped.

    Returns:
        The wider bounds, (n_bins // factor + 1,), and g within them.
    """
    n_bins = len(g) // factor
    volumes = shell_volumes(edges)[: n_bins * factor].reshape(n_bins, factor)
    joined = (g[: n_bins * factor].reshape(n_bins, factor) * volumes).sum(axis=1) / volumes.sum(axis=1)
    return edges[: n_bins * factor + 1 : factor], joined
