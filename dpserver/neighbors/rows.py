"""Neighbour lists for kernels: the neighbours of each atom in rows by species, each edge with the one back.

Atoms are put into bins; pairs are found once and entered at both ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpserver.frames import Bools, Floats, Frames, Ints
from dpserver.jit import jit

Ints32 = NDArray[np.int32]

_BINS_PER_REACH = 2


@dataclass(frozen=True, eq=False)
class Rows:
    """Directed neighbour pairs i→j of one frame, both directions present.

    r_ij = (x_j - w_j @ cell) - (x_i - w_i @ cell) + T @ cell with the wraps w of the atoms and the shift T of the edge

    Attributes:
        starts: first edge for each atom i and species of j, and the total, (n_atoms * n_species + 1,).
        neighbour: atom j of each edge, (n_edges,).
        shift: which of `shifts`, (n_edges,); reverse: the edge j→i with the opposite shift, (n_edges,).
        wraps: lattice vectors between an atom and the cell, integers as float64, (n_atoms, 3).
        shifts: integers as float64, (n_shifts, 3).
    """

    starts: Ints
    neighbour: Ints32
    shift: Ints32
    reverse: Ints32
    wraps: Floats
    shifts: Floats

    @property
    def n_edges(self) -> int:
        """Number of directed pairs."""
        return len(self.neighbour)


def build_rows(frame: Frames, reach: float, n_species: int) -> Rows:
    """Find the pairs of one frame that are closer than `reach`, periodic images included.

    Args:
        frame: one structure, checked.
        reach: largest distance, Å.
        n_species: number of species.
    """
    x, pbc = frame.positions, frame.pbc[0]
    cell = completed(frame.cell[0], pbc)
    fractional = x @ np.linalg.inv(cell)
    wraps = np.where(pbc, np.floor(fractional), 0.0)
    fractional -= wraps
    n_bins, n_around, low, extent = _bins(fractional, cell, pbc, reach)
    place = np.clip(((fractional - low) / extent * n_bins).astype(np.int64), 0, n_bins - 1)
    around = _integers(n_around)
    around = around[len(around) // 2 :]  # this bin, and of two opposite ones only one
    largest = -(-n_around // n_bins)  # a bin so far away is in this image at most
    shifts = _integers(largest)
    bin_of = (place[:, 0] * n_bins[1] + place[:, 1]) * n_bins[2] + place[:, 2]
    order = np.argsort(bin_of, kind="stable")
    bounds = np.searchsorted(bin_of[order], np.arange(n_bins.prod() + 1))
    wrapped = x - wraps @ cell
    pairs = np.empty((3, _expected_pairs(frame, reach)), dtype=np.int32)
    grid = np.stack([n_bins, largest, pbc])
    while (n := _find_pairs(wrapped[order], order, bounds, grid, around, shifts @ cell, reach**2, pairs)) < 0:
        pairs = np.empty((3, 2 * pairs.shape[1]), dtype=np.int32)
    arrays = _rows(pairs[:, :n], frame.types, n_species, len(shifts))
    return Rows(*arrays, wraps, shifts.astype(np.float64))


def _expected_pairs(frame: Frames, reach: float) -> int:
    """How many pairs to make room for, with candidates to spare."""
    volume = abs(float(np.linalg.det(frame.cell[0])))
    per_atom = frame.n_atoms / volume * 2 / 3 * np.pi * reach**3 if frame.pbc.all() else 64.0
    return int(1.1 * per_atom * frame.n_atoms) + 4096


def _integers(limits: Ints) -> Ints:
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


def _bins(fractional: Floats, cell: Floats, pbc: Bools, reach: float) -> tuple[Ints, Ints, Floats, Floats]:
    """Number of bins along each vector, bins to look at on each side, and where they start and end (fractional)."""
    low = np.where(pbc, 0.0, fractional.min(axis=0))
    extent = np.where(pbc, 1.0, np.maximum(fractional.max(axis=0) - low, 1e-3))
    height = extent / np.linalg.norm(np.linalg.inv(cell), axis=0)
    n_bins = np.maximum(np.floor(height / reach * _BINS_PER_REACH), 1)
    # No more bins than atoms; a very long one is cut first.
    while n_bins.prod() > max(len(fractional), 8):
        n_bins[n_bins.argmax()] = np.ceil(n_bins.max() / 2)
    n_around = np.floor(reach / (height / n_bins)) + 1
    n_around = np.where(pbc, n_around, np.minimum(n_around, n_bins - 1))
    return n_bins.astype(np.int64), n_around.astype(np.int64), low, extent


@jit
def _find_pairs(
    x: Floats,
    order: Ints,
    bounds: Ints,
    grid: Ints,
    around: Ints,
    translations: Floats,
    square: float,
    pairs: Ints32,
) -> int:
    """Find each pair once.

    Args:
        x: positions, sorted by bin.
        order: atoms in that order.
        bounds: first atom of each bin, and the total.
        grid: number of bins, largest image and periodicity along each vector.
        around: bins to look at, counted from that of an atom, which is the first of them.
        translations: of all images, Å.
        square: of the largest distance, Å².
        pairs: becomes atoms i and j and the shift, (3, room).

    Returns:
        Number of pairs, or -1 where there is no room for them.
    """
    n = 0
    cells = np.empty(len(around), dtype=np.int64)
    images = np.empty(len(around), dtype=np.int64)
    for a in range(len(bounds) - 1):
        n_cells = 0
        n_candidates = 0
        for b in range(len(around)):
            cell, shift, rest, is_inside = 0, 0, a, True
            for d in range(3):
                size = grid[0, d]
                behind = grid[0, d + 1] * (grid[0, 2] if d == 0 else 1) if d < 2 else 1
                there = rest // behind
                rest -= there * behind
                there += around[b, d]
                image = there // size
                is_inside &= grid[2, d] == 1 or image == 0
                cell = cell * size + there - image * size
                shift = shift * (2 * grid[1, d] + 1) + image + grid[1, d]
            if is_inside:
                cells[n_cells] = cell
                images[n_cells] = shift
                n_cells += 1
                n_candidates += bounds[cell + 1] - bounds[cell]
        for p in range(bounds[a], bounds[a + 1]):
            if n + n_candidates > pairs.shape[1]:
                return -1
            i = order[p]
            for b in range(n_cells):
                shift = images[b]
                dx = translations[shift, 0] - x[p, 0]
                dy = translations[shift, 1] - x[p, 1]
                dz = translations[shift, 2] - x[p, 2]
                for q in range(p + 1 if b == 0 else bounds[cells[b]], bounds[cells[b] + 1]):
                    j = order[q]
                    rx, ry, rz = x[q, 0] + dx, x[q, 1] + dy, x[q, 2] + dz
                    pairs[0, n], pairs[1, n], pairs[2, n] = i, j, shift
                    n += rx * rx + ry * ry + rz * rz < square
    return n


@jit
def _rows(pairs: Ints32, types: Ints, n_species: int, n_shifts: int) -> tuple[Ints, Ints32, Ints32, Ints32]:
    """Enter each pair at both ends: starts, neighbour, shift, reverse."""
    n_atoms, n_pairs = len(types), pairs.shape[1]
    starts = np.zeros(n_atoms * n_species + 1, dtype=np.int64)
    for p in range(n_pairs):
        i, j = pairs[0, p], pairs[1, p]
        starts[i * n_species + types[j] + 1] += 1
        starts[j * n_species + types[i] + 1] += 1
    for row in range(n_atoms * n_species):
        starts[row + 1] += starts[row]
    end = starts[:-1].copy()
    neighbour = np.empty(2 * n_pairs, dtype=np.int32)
    shift = np.empty(2 * n_pairs, dtype=np.int32)
    reverse = np.empty(2 * n_pairs, dtype=np.int32)
    for p in range(n_pairs):
        i, j, s = pairs[0, p], pairs[1, p], pairs[2, p]
        there, back = i * n_species + types[j], j * n_species + types[i]
        one = end[there]
        end[there] += 1
        other = end[back]
        end[back] += 1
        neighbour[one], shift[one], reverse[one] = j, s, other
        neighbour[other], shift[other], reverse[other] = i, n_shifts - 1 - s, one
    return starts, neighbour, shift, reverse
