"""Atoms of a structure in bins, so that those near each other are found without looking at all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpserver.frames import Bools, Floats, Frames, Ints
from dpserver.jit import jit

_BINS_PER_REACH = 2


@dataclass(frozen=True, eq=False)
class Grid:
    """The atoms of one frame, brought back into its cell and sorted by bins.

    Atoms closer than the reach, periodic images included, lie at most `n_around` bins from each other. A bin beyond the
    end of a periodic direction is one of an image: bin b along a direction is bin b - S n_bins of the image S.

    Attributes:
        n_bins: along each lattice vector, (3,); n_around: bins to look at on each side; largest: image, (3,).
        is_periodic: (3,).
        wraps: lattice vectors between an atom and the cell, integers as float64, (n_atoms, 3).
        order: the atoms, bin by bin, in each bin those that are no ghosts first, (n_atoms,).
        positions: of the atoms in this order, brought back, (n_atoms, 3), Å.
        bounds: first atom of each bin in this order, and their number, (n_bins + 1,).
        ends: first ghost of each bin in this order, (n_bins,).
        bin_volume: Å³.
        images: all S up to the largest, integers, in lexical order, (n_images, 3).
        translations: of these images, (n_images, 3), Å.
    """

    n_bins: Ints
    n_around: Ints
    largest: Ints
    is_periodic: Bools
    wraps: Floats
    order: Ints
    positions: Floats
    bounds: Ints
    ends: Ints
    bin_volume: float
    images: Ints
    translations: Floats

    @classmethod
    def build(cls, frame: Frames, reach: float) -> Grid:
        """Put the atoms of one frame into bins.

        Args:
            frame: one structure, checked.
            reach: distance, Å, up to which atoms are to be found.
        """
        x, pbc = frame.positions, frame.pbc[0]
        cell = completed(frame.cell[0], pbc)
        fractional = x @ np.linalg.inv(cell)
        wraps = np.where(pbc, np.floor(fractional), 0.0)
        fractional -= wraps
        n_bins, n_around, low, extent = _bins(fractional, cell, pbc, reach)
        largest = -(-n_around // n_bins)  # a bin so far away is in this image at most
        is_ghost = np.zeros(len(x), dtype=bool) if frame.is_ghost is None else frame.is_ghost
        order, bounds, ends = _sort(fractional, low, n_bins / extent, n_bins, is_ghost)
        images = integers(largest)
        wrapped = (x - wraps @ cell)[order]
        volume = float(abs(np.linalg.det(cell)) * (extent / n_bins).prod())
        return cls(n_bins, n_around, largest, pbc, wraps, order, wrapped, bounds, ends, volume, images, images @ cell)

    @property
    def table(self) -> Ints:
        """For compiled functions: number of bins, largest image and periodicity along each vector, (3, 3)."""
        return np.stack([self.n_bins, self.largest, self.is_periodic])

    def density(self) -> float:
        """Density around an atom, on average over the atoms, 1/Å³."""
        counts = np.diff(self.bounds).astype(np.float64)
        return float((counts**2).sum() / max(counts.sum(), 1.0) / self.bin_volume)


def integers(limits: Ints) -> Ints:
    """All triples of integers from -limit to limit, in lexical order, (n, 3)."""
    return np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in limits), indexing="ij"), axis=-1).reshape(-1, 3)


def completed(cell: Floats, pbc: Bools) -> Floats:
    """A cell whose vectors of open directions are unit vectors at right angles to everything else."""
    if pbc.all():
        return cell
    full = np.zeros((3, 3))
    full[pbc] = cell[pbc]
    full[~pbc] = np.linalg.svd(cell[pbc])[2][int(pbc.sum()) :]
    return full


def heights(cell: Floats) -> Floats:
    """Distances between the opposite faces of a cell, (3,), Å."""
    return np.asarray(1 / np.linalg.norm(np.linalg.inv(cell), axis=0))


def _bins(fractional: Floats, cell: Floats, pbc: Bools, reach: float) -> tuple[Ints, Ints, Floats, Floats]:
    """Number of bins along each vector, bins to look at on each side, and where they start and end (fractional)."""
    low = np.where(pbc, 0.0, fractional.min(axis=0))
    extent = np.where(pbc, 1.0, np.maximum(fractional.max(axis=0) - low, 1e-3))
    height = extent * heights(cell)
    n_bins = np.maximum(np.floor(height / reach * _BINS_PER_REACH), 1)
    # No more bins than atoms; a very long one is cut first.
    while n_bins.prod() > max(len(fractional), 8):
        n_bins[n_bins.argmax()] = np.ceil(n_bins.max() / 2)
    n_around = np.floor(reach / (height / n_bins)) + 1
    n_around = np.where(pbc, n_around, np.minimum(n_around, n_bins - 1))
    return n_bins.astype(np.int64), n_around.astype(np.int64), low, extent


@jit
def find_bin(a: int, offset: Ints, grid: Ints) -> tuple[int, int, bool]:
    """Find the bin that lies some bins from another.

    Args:
        a: the other.
        offset: bins along each lattice vector, (3,).
        grid: `Grid.table`.

    Returns:
        The bin, the place of its image among `Grid.images`, and whether there is such a bin.
    """
    bin_of, image_of, rest, is_inside = 0, 0, a, True
    for d in range(3):
        size = grid[0, d]
        behind = grid[0, d + 1] * (grid[0, 2] if d == 0 else 1) if d < 2 else 1
        there = rest // behind
        rest -= there * behind
        there += offset[d]
        image = there // size
        is_inside &= grid[2, d] == 1 or image == 0
        bin_of = bin_of * size + there - image * size
        image_of = image_of * (2 * grid[1, d] + 1) + image + grid[1, d]
    return bin_of, image_of, is_inside


@jit
def _sort(fractional: Floats, low: Floats, per_bin: Floats, n_bins: Ints, is_ghost: Bools) -> tuple[Ints, Ints, Ints]:
    """Sort atoms by bins, in a bin ghosts last and otherwise as they come: order, bounds, ends."""
    n_atoms, n = len(fractional), n_bins[0] * n_bins[1] * n_bins[2]
    key = np.empty(n_atoms, dtype=np.int64)
    bounds = np.zeros(2 * n + 1, dtype=np.int64)
    for i in range(n_atoms):
        bin_of = 0
        for d in range(3):
            place = int((fractional[i, d] - low[d]) * per_bin[d])
            bin_of = bin_of * n_bins[d] + min(max(place, 0), n_bins[d] - 1)
        key[i] = 2 * bin_of + is_ghost[i]
        bounds[key[i] + 1] += 1
    for k in range(2 * n):
        bounds[k + 1] += bounds[k]
    place_of = bounds[:-1].copy()
    order = np.empty(n_atoms, dtype=np.int64)
    for i in range(n_atoms):
        order[place_of[key[i]]] = i
        place_of[key[i]] += 1
    return order, bounds[::2].copy(), bounds[1::2].copy()
