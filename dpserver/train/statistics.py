"""What is read off the training set before training: how close atoms come, how many meet, where energies lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dpserver.frames import Floats, Frames, Ints
from dpserver.neighbors import Edges

SEL_MULTIPLE = 4
"""`sel: auto` rounds up to a multiple of this, as DeePMD-kit does."""


@dataclass(frozen=True, eq=False)
class NeighbourStatistics:
    """Extremes of the neighbour lists of a data set.

    Attributes:
        max_count: most neighbours of each species around any atom, (n_species,), int64.
        min_distance: smallest distance of each pair of species, (n_species, n_species), Å; inf where never met.
    """

    max_count: Ints
    min_distance: Floats

    @classmethod
    def collect(cls, batches: Iterable[tuple[Frames, Edges]], n_species: int) -> NeighbourStatistics:
        """Go once over structures and their neighbour lists."""
        max_count = np.zeros(n_species, dtype=np.int64)
        min_distance = np.full((n_species, n_species), np.inf)
        for frames, edges in batches:
            ti, tj = frames.types[edges.centre], frames.types[edges.neighbour]
            np.minimum.at(min_distance, (ti, tj), edges.distance)
            counts = np.bincount(edges.centre * n_species + tj, minlength=frames.n_atoms * n_species)
            np.maximum(max_count, counts.reshape(-1, n_species).max(axis=0), out=max_count)
        return cls(max_count, np.minimum(min_distance, min_distance.T))


def choose_sel(sel: Sequence[int] | str, max_count: Ints) -> tuple[int, ...]:
    """Turn `auto` or `auto:factor` into numbers: the most neighbours seen, times 1.1 or the factor, rounded up."""
    if not isinstance(sel, str):
        return tuple(sel)
    factor = float(sel.partition(":")[2] or 1.1)
    return tuple(int(np.ceil(max(n, 1) * factor / SEL_MULTIPLE)) * SEL_MULTIPLE for n in max_count)


def fit_energy_bias(energy: Floats, composition: Floats, rcond: float | None = None) -> Floats:
    """Fit an energy per species, the least squares solution of smallest norm.

    Args:
        energy: (n_frames,), eV.
        composition: atoms of each species, (n_frames, n_species).
        rcond: cut of small singular values, as in `numpy.linalg.lstsq`.

    Returns:
        (n_species,), eV.
    """
    return np.linalg.lstsq(composition, energy, rcond=rcond)[0].astype(np.float64)
