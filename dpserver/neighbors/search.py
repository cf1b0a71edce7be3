"""The compiled part of the search for neighbours; see `rows`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dpserver.frames import Bools, Floats, Ints
from dpserver.jit import jit
from dpserver.neighbors.grid import find_bin
from dpserver.neighbors.selection import LANES, Found, Ints32, Points, find


class Bins(NamedTuple):
    """The atoms of one frame, sorted by species, and those of a species by bins.

    Attributes:
        points: brought back into the cell, in this order.
        is_ghost: of these, (n_atoms,).
        bounds: first atom of each bin for each species, and the total, (n_species * n_bins + 1,).
        grid: `Grid.table`.
        columns: bins to look at along the first two lattice vectors, counted from that of an atom, (n_columns, 3).
        n_around: bins to look at on each side along the third.
        translations: of all images, Å.
        square: of the distance that is looked for, Å².
    """

    points: Points
    is_ghost: Bools
    bounds: Ints
    grid: Ints
    columns: Ints
    n_around: int
    translations: Floats
    square: float


@jit
def sort_by_species(
    order: Ints, positions: Floats, bounds: Ints, types: Ints, is_ghost: Bools, n_species: int
) -> tuple[Points, Bools, Ints]:
    """Sort atoms that are sorted by bins by species first.

    Args:
        order: the atoms, bin by bin.
        positions: in this order, Å.
        bounds: first of each bin, and the total.
        types: of the atoms.
        is_ghost: of the atoms.
        n_species: number of species.

    Returns:
        `points`, `is_ghost` and `bounds` of `Bins`.
    """
    n_bins, n = len(bounds) - 1, len(order)
    starts = np.zeros(n_species * n_bins + 1, dtype=np.int64)
    for a in range(n_bins):
        for p in range(bounds[a], bounds[a + 1]):
            starts[types[order[p]] * n_bins + a + 1] += 1
    add_up(starts)
    x, y, z = np.zeros(n + LANES), np.zeros(n + LANES), np.zeros(n + LANES)
    atoms, ghosts = np.zeros(n + LANES, dtype=np.int32), np.empty(n, dtype=np.bool_)
    place = starts[:-1].copy()
    for a in range(n_bins):
        for p in range(bounds[a], bounds[a + 1]):
            i = order[p]
            q = place[types[i] * n_bins + a]
            place[types[i] * n_bins + a] += 1
            x[q], y[q], z[q] = positions[p, 0], positions[p, 1], positions[p, 2]
            atoms[q], ghosts[q] = i, is_ghost[i]
    return Points(x, y, z, atoms), ghosts, starts


@jit
def add_up(counts: Ints) -> int:
    """Turn 0 and numbers into where each begins, and the total."""
    for k in range(len(counts) - 1):
        counts[k + 1] += counts[k]
    return int(counts[-1])


@jit
def find_edges(bins: Bins, first: int, end: int, found: Found, counts: Ints, places: Ints) -> int:
    """Find the edges of the atoms in some bins.

    Args:
        bins: all atoms.
        first: bin.
        end: the one after the last.
        found: becomes the edges, species by species for each atom.
        counts: becomes the number for each atom and species of neighbours, (n_atoms, n_species).
        places: becomes where in `found` those of each atom begin, (n_atoms,).

    Returns:
        Number of edges, or -1 - n where there is room for n of them and no more.
    """
    n, n_bins, n_species = 0, _number(bins), counts.shape[1]
    runs = np.empty((len(bins.columns) * (2 * bins.grid[1, 2] + 1), 3), dtype=np.int64)
    for a in range(first, end):
        n_runs = most = -1
        for own in range(n_species):
            for p in range(bins.bounds[own * n_bins + a], bins.bounds[own * n_bins + a + 1]):
                if bins.is_ghost[p]:
                    continue
                if n_runs < 0:
                    n_runs = _find_runs(bins, a, runs)
                    most = _count_candidates(bins, runs[:n_runs], n_species) + LANES
                if n + most > len(found.atoms):
                    return -1 - n
                i = bins.points.atoms[p]
                places[i] = n
                for k in range(n_species):
                    before, n = n, _find_near(bins, runs, n_runs, p, k, found, n)
                    counts[i, k] = n - before
    return n


@jit
def _find_near(bins: Bins, runs: Ints, n_runs: int, p: int, species: int, found: Found, n: int) -> int:
    """Add the neighbours of one species that an atom has in some runs to what has been found; how many there are."""
    x, y, z, atoms = bins.points
    near, images = found
    bounds, translations, square = bins.bounds, bins.translations, bins.square
    a, b, c = x[p], y[p], z[p]
    n_bins, here = _number(bins), len(translations) // 2
    for r in range(n_runs):
        low, high = bounds[species * n_bins + runs[r, 0]], bounds[species * n_bins + runs[r, 1]]
        image = runs[r, 2]
        tx, ty, tz = translations[image, 0], translations[image, 1], translations[image, 2]
        but = p if image == here else -1
        n = find(x, y, z, atoms, a, b, c, tx, ty, tz, square, low, high, but, image, near, images, n)
    return n


@jit
def write_rows(
    bins: Bins, first: int, end: int, found: Found, places: Ints, starts: Ints, neighbour: Ints32, shift: Ints32
) -> None:
    """Write the edges that `find_edges` has found for the atoms in some bins to their rows.

    Args:
        bins: all atoms.
        first: bin.
        end: the one after the last.
        found: what `find_edges` has found in these.
        places: where it says that those of each atom begin.
        starts: of each row, (n_atoms * n_species + 1,).
        neighbour: becomes the other atom of each edge.
        shift: becomes its image.
    """
    n_bins = _number(bins)
    n_species = (len(bins.bounds) - 1) // n_bins
    for k in range(n_species):
        for p in range(bins.bounds[k * n_bins + first], bins.bounds[k * n_bins + end]):
            if bins.is_ghost[p]:
                continue
            i = bins.points.atoms[p]
            start, place = starts[i * n_species], places[i]
            for e in range(starts[(i + 1) * n_species] - start):
                neighbour[start + e] = found.atoms[place + e]
                shift[start + e] = found.images[place + e]


@jit
def _number(bins: Bins) -> int:
    """Number of bins."""
    return int(bins.grid[0, 0] * bins.grid[0, 1] * bins.grid[0, 2])


@jit
def _find_runs(bins: Bins, a: int, runs: Ints) -> int:
    """Find the bins around one, in runs of the same image along the third lattice vector.

    Args:
        bins: all atoms.
        a: the bin.
        runs: become first bin, the one after the last, and the place of the image, (room, 3).

    Returns:
        How many.
    """
    n, size = 0, bins.grid[0, 2]
    place = a % size
    low, high = place - bins.n_around, place + bins.n_around
    for b in range(len(bins.columns)):
        cell, image, is_inside = find_bin(a, bins.columns[b], bins.grid)
        if is_inside:
            for s in range(low // size, high // size + 1):
                if s == 0 or bins.grid[2, 2] == 1:
                    runs[n, 0] = cell - place + max(low - s * size, 0)
                    runs[n, 1] = cell - place + min(high - s * size, size - 1) + 1
                    runs[n, 2] = image + s
                    n += 1
    return n


@jit
def _count_candidates(bins: Bins, runs: Ints, n_species: int) -> int:
    """Number of atoms in some runs."""
    n, n_bins = 0, _number(bins)
    for k in range(n_species):
        for r in range(len(runs)):
            n += bins.bounds[k * n_bins + runs[r, 1]] - bins.bounds[k * n_bins + runs[r, 0]]
    return n


@jit
def count_ends(neighbour: Ints32, counts: Ints32) -> None:
    """Count the edges that end at each atom, (n_atoms,)."""
    for e in range(len(neighbour)):
        counts[neighbour[e]] += 1


@jit
def find_places(counts: Ints32) -> Ints:
    """Where the edges that end at each atom begin, (n_atoms + 1,).

    Args:
        counts: their numbers among some of the edges, then the next ones and so on, (n_parts, n_atoms); become where
            those of each part begin.
    """
    starts = np.empty(counts.shape[1] + 1, dtype=np.int64)
    n = 0
    for j in range(counts.shape[1]):
        starts[j] = n
        for part in range(len(counts)):
            more = counts[part, j]
            counts[part, j] = n
            n += more
    starts[-1] = n
    return starts


@jit
def write_incoming(neighbour: Ints32, first: int, end: int, places: Ints32, incoming: Ints32) -> None:
    """Write some of the edges where those that end at an atom are kept, and move these places on, (n_atoms,)."""
    for e in range(first, end):
        j = neighbour[e]
        incoming[places[j]] = e
        places[j] += 1
