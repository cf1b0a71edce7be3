"""What is read off the training set before training: how close atoms come, how many meet, where energies lie."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dpserver.frames import Bools, Floats, Frames, Ints
from dpserver.models.config.descriptor import NeighbourCounts
from dpserver.neighbors import Edges
from dpserver.neighbors.crowds import crowd_distance


@dataclass(frozen=True, eq=False)
class NeighbourStatistics:
    """Extremes of the neighbour lists of a data set.

    Attributes:
        counts: most neighbours around any atom, by cutoff in Å.
        min_distance: smallest distance of each pair of species, (n_species, n_species), Å; inf where never met.
        crowd_distance: smallest within which a structure had a crowd of them, see `neighbors.crowds`.
    """

    counts: dict[float, NeighbourCounts]
    min_distance: Floats
    crowd_distance: Floats

    @classmethod
    def collect(
        cls, batches: Iterable[tuple[Frames, Edges]], n_species: int, cutoffs: Collection[float] = ()
    ) -> NeighbourStatistics:
        """Go once over structures and their neighbour lists.

        Args:
            batches: the structures, with lists that reach as far as the largest cutoff.
            n_species: number of species.
            cutoffs: within which neighbours are counted, Å.
        """
        by_species = {rcut: np.zeros(n_species, dtype=np.int64) for rcut in cutoffs}
        total = dict.fromkeys(cutoffs, 0)
        min_distance, crowded = np.full((n_species, n_species), np.inf), np.full((n_species, n_species), np.inf)
        for frames, edges in batches:
            ti, tj = frames.types[edges.centre], frames.types[edges.neighbour]
            distance = edges.distance
            np.minimum.at(min_distance, (ti, tj), distance)
            np.minimum(crowded, crowd_distance(frames, edges, n_species), out=crowded)
            for rcut in cutoffs:
                counts = _count(frames, edges, distance < rcut, n_species)
                np.maximum(by_species[rcut], counts.max(axis=0), out=by_species[rcut])
                total[rcut] = max(total[rcut], int(counts.sum(axis=1).max()))
        found = {rcut: NeighbourCounts(tuple(map(int, by_species[rcut])), total[rcut]) for rcut in cutoffs}
        return cls(found, np.minimum(min_distance, min_distance.T), crowded)

    def allowing(self, other: NeighbourStatistics) -> NeighbourStatistics:
        """The same distances, and the larger of the counts of two data sets."""
        larger = {}
        for rcut, mine in self.counts.items():
            theirs = other.counts[rcut]
            most = tuple(max(pair) for pair in zip(mine.by_species, theirs.by_species, strict=True))
            larger[rcut] = NeighbourCounts(most, max(mine.total, theirs.total))
        return NeighbourStatistics(larger, self.min_distance, self.crowd_distance)


def _count(frames: Frames, edges: Edges, is_near: Bools, n_species: int) -> Ints:
    """Neighbours of each species around each atom, over some of the edges, (n_atoms, n_species)."""
    slots = edges.centre[is_near] * n_species + frames.types[edges.neighbour[is_near]]
    return np.bincount(slots, minlength=frames.n_atoms * n_species).reshape(-1, n_species)


def composition(frames: Frames, n_species: int, weight: Floats | None = None) -> Floats:
    """Atoms of each species in each frame, (n_frames, n_species).

    Args:
        frames: the structures.
        n_species: number of species.
        weight: what each atom counts, (n_atoms,); 1 by default.
    """
    slots = frames.frame_idx * n_species + frames.types
    counts = np.bincount(slots, weights=weight, minlength=frames.n_frames * n_species)
    return counts.reshape(-1, n_species).astype(np.float64)


def fit_energy_bias(
    energy: Floats, counts: Floats, rcond: float | None = None, given: Sequence[float | None] = ()
) -> Floats:
    """Fit an energy per species, the least squares solution of smallest norm.

    Args:
        energy: (n_frames,), eV.
        counts: atoms of each species, (n_frames, n_species).
        rcond: cut of small singular values, as in `numpy.linalg.lstsq`.
        given: the energy of each species where it is known, else None; nothing is known by default.

    Returns:
        (n_species,), eV.
    """
    known = np.array([np.nan if e is None else e for e in given or [None] * counts.shape[1]], dtype=np.float64)
    is_free = np.isnan(known)
    bias = np.where(is_free, 0.0, known)
    bias[is_free] = np.linalg.lstsq(counts[:, is_free], energy - counts @ bias, rcond=rcond)[0]
    return bias
