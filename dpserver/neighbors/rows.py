"""Neighbour lists for kernels: the neighbours of each atom in rows by species, and the edges that end at each atom.

Atoms are put into bins; pairs are found once and entered at both ends. Ghosts are neighbours and no centres: they have
no edges of their own, and no two of them are looked at together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dpserver.frames import Bools, Floats, Frames, Ints
from dpserver.jit import jit
from dpserver.neighbors.grid import Grid, find_bin, integers

Ints32 = NDArray[np.int32]

MOST_EDGES: Final = 2**31 - 1
"""What a list can count."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Directed neighbour pairs i→j of one frame: both directions, but none from a ghost.

    r_ij = (x_j - w_j @ cell) - (x_i - w_i @ cell) + T @ cell with the wraps w of the atoms and the shift T of the edge

    Attributes:
        starts: first edge for each atom i and species of j, and the total, (n_atoms * n_species + 1,).
        neighbour: atom j of each edge, (n_edges,).
        shift: which of `shifts`, (n_edges,).
        incoming: the edges that end at each atom, atom by atom, (n_edges,).
        incoming_starts: first of them for each atom, and the total, (n_atoms + 1,).
        wraps: lattice vectors between an atom and the cell, integers as float64, (n_atoms, 3).
        shifts: integers as float64, (n_shifts, 3).
    """

    starts: Ints
    neighbour: Ints32
    shift: Ints32
    incoming: Ints32
    incoming_starts: Ints
    wraps: Floats
    shifts: Floats

    @property
    def n_edges(self) -> int:
        """Number of directed pairs."""
        return len(self.neighbour)


def build_rows(frame: Frames, reach: float, n_species: int, max_edges: int = MOST_EDGES) -> Rows:
    """Find the pairs of one frame that are closer than `reach`, periodic images included.

    Args:
        frame: one structure, checked.
        reach: largest distance, Å.
        n_species: number of species.
        max_edges: that there is memory for.

    Raises:
        MemoryError: there are more.
    """
    grid = Grid.build(frame, reach)
    around = integers(grid.n_around)
    around = around[len(around) // 2 :]  # this bin, and of two opposite ones only one
    is_ghost = np.zeros(frame.n_atoms, dtype=bool) if frame.is_ghost is None else frame.is_ghost
    bins = grid.bounds, grid.ends, grid.table
    room, most = _expected_pairs(frame, grid, reach), min(max_edges, MOST_EDGES) // 2
    n = -1
    while n < 0:
        pairs = np.empty((3, room), dtype=np.int32)
        n = _find_pairs(grid.positions, grid.order, *bins, around, grid.translations, reach**2, most, pairs)
        room *= 2
    if n > most:
        raise MemoryError(
            f"{frame.n_atoms} atoms have more than {most} pairs within {reach:g} Å, too many for one neighbour list "
            "in the memory that is left"
        )
    arrays = _rows(pairs[:, :n], frame.types, is_ghost, n_species, len(grid.images))
    return Rows(*arrays, grid.wraps, grid.images.astype(np.float64))


def _expected_pairs(frame: Frames, grid: Grid, reach: float) -> int:
    """How many pairs to make room for, with candidates to spare; room that is not written to takes no memory."""
    per_atom = min(grid.density() * 2 / 3 * np.pi * reach**3, frame.n_atoms * len(grid.images) / 2)
    return int(1.2 * per_atom * frame.n_atoms) + 4096


@jit
def _find_pairs(
    x: Floats,
    order: Ints,
    bounds: Ints,
    ends: Ints,
    grid: Ints,
    around: Ints,
    translations: Floats,
    square: float,
    most: int,
    pairs: Ints32,
) -> int:
    """Find each pair of which at least one is no ghost, once.

    Args:
        x: positions, sorted by bin.
        order: atoms in that order.
        bounds: first atom of each bin, and the total.
        ends: first ghost of each bin.
        grid: number of bins, largest image and periodicity along each vector.
        around: bins to look at, counted from that of an atom, which is the first of them.
        translations: of all images, Å.
        square: of the largest distance, Å².
        most: pairs; with one more the search ends.
        pairs: becomes atoms i and j and the shift, (3, room).

    Returns:
        Number of pairs, or -1 where there is no room for them.
    """
    n = 0
    cells = np.empty(len(around), dtype=np.int64)
    images = np.empty(len(around), dtype=np.int64)
    for a in range(len(bounds) - 1):
        if bounds[a] == bounds[a + 1]:
            continue
        n_cells = n_candidates = n_centres = 0
        for b in range(len(around)):
            cell, shift, is_inside = find_bin(a, around[b], grid)
            if is_inside:
                cells[n_cells] = cell
                images[n_cells] = shift
                n_cells += 1
                n_candidates += bounds[cell + 1] - bounds[cell]
                n_centres += ends[cell] - bounds[cell]
        for p in range(bounds[a], bounds[a + 1] if n_centres else ends[a]):
            if n > most:
                return n
            if n + n_candidates > pairs.shape[1]:
                return -1
            i, is_centre = order[p], p < ends[a]
            for b in range(n_cells):
                shift = images[b]
                dx = translations[shift, 0] - x[p, 0]
                dy = translations[shift, 1] - x[p, 1]
                dz = translations[shift, 2] - x[p, 2]
                stop = bounds[cells[b] + 1] if is_centre else ends[cells[b]]
                for q in range(p + 1 if b == 0 else bounds[cells[b]], stop):
                    j = order[q]
                    rx, ry, rz = x[q, 0] + dx, x[q, 1] + dy, x[q, 2] + dz
                    pairs[0, n], pairs[1, n], pairs[2, n] = i, j, shift
                    n += rx * rx + ry * ry + rz * rz < square
    return n


@jit
def _rows(
    pairs: Ints32, types: Ints, is_ghost: Bools, n_species: int, n_shifts: int
) -> tuple[Ints, Ints32, Ints32, Ints32, Ints]:
    """Enter each pair at both ends: starts, neighbour, shift, incoming, incoming_starts."""
    n_atoms, n_pairs = len(types), pairs.shape[1]
    starts = np.zeros(n_atoms * n_species + 1, dtype=np.int64)
    incoming_starts = np.zeros(n_atoms + 1, dtype=np.int64)
    for p in range(n_pairs):
        i, j = pairs[0, p], pairs[1, p]
        starts[i * n_species + types[j] + 1] += not is_ghost[i]
        starts[j * n_species + types[i] + 1] += not is_ghost[j]
        incoming_starts[i + 1] += not is_ghost[j]
        incoming_starts[j + 1] += not is_ghost[i]
    for row in range(n_atoms * n_species):
        starts[row + 1] += starts[row]
    for i in range(n_atoms):
        incoming_starts[i + 1] += incoming_starts[i]
    end, incoming_end = starts[:-1].copy(), incoming_starts[:-1].copy()
    neighbour = np.empty(starts[-1], dtype=np.int32)
    shift = np.empty(starts[-1], dtype=np.int32)
    incoming = np.empty(starts[-1], dtype=np.int32)
    for p in range(n_pairs):
        i, j, s = pairs[0, p], pairs[1, p], pairs[2, p]
        if not is_ghost[i]:
            row = i * n_species + types[j]
            neighbour[end[row]], shift[end[row]] = j, s
            incoming[incoming_end[j]] = end[row]
            end[row] += 1
            incoming_end[j] += 1
        if not is_ghost[j]:
            row = j * n_species + types[i]
            neighbour[end[row]], shift[end[row]] = i, n_shifts - 1 - s
            incoming[incoming_end[i]] = end[row]
            end[row] += 1
            incoming_end[i] += 1
    return starts, neighbour, shift, incoming, incoming_starts
