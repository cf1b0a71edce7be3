"""The loops over atoms of `domain`: who needs whom, from the whole to parts, and back."""

from __future__ import annotations

from typing import Final

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.jit import jit
from dpserver.neighbors.grid import find_bin

_MIXED: Final = -1
_EMPTY: Final = -2


@jit
def bin_owners(owner: Ints, bounds: Ints) -> Ints:
    """Part that owns all atoms of each bin, `_MIXED` where there are several, `_EMPTY` where there are no atoms.

    Args:
        owner: part of each atom, sorted by bins.
        bounds: first atom of each bin, and the total.
    """
    found = np.empty(len(bounds) - 1, dtype=np.int64)
    for b in range(len(found)):
        if bounds[b] == bounds[b + 1]:
            found[b] = _EMPTY
            continue
        found[b] = owner[bounds[b]]
        for p in range(bounds[b] + 1, bounds[b + 1]):
            if owner[p] != found[b]:
                found[b] = _MIXED
    return found


@jit
def find_ghosts(
    x: Floats,
    owner: Ints,
    bounds: Ints,
    owners: Ints,
    grid: Ints,
    around: Ints,
    translations: Floats,
    square: float,
    n_parts: int,
    ghosts: Ints,
) -> int:
    """Find the atoms, or images of them, that are closer than a distance to any atom that a part owns.

    Atoms all of whose surroundings are their own part's are passed over bin by bin.

    Args:
        x: positions, sorted by bins, (n_atoms, 3), Å.
        owner: part of each atom; `n_parts` for atoms that no part owns.
        bounds: first atom of each bin, and the total.
        owners: `bin_owners`.
        grid: `Grid.table`.
        around: bins to look at, counted from that of an atom, (n, 3).
        translations: of all images, Å.
        square: of the distance, Å².
        n_parts: number of parts.
        ghosts: becomes part, atom in the order of x, and image of the atom, (3, room).

    Returns:
        Number of ghosts, or -1 where there is no room for them.
    """
    n, here = 0, len(translations) // 2
    cells = np.empty(len(around), dtype=np.int64)
    images = np.empty(len(around), dtype=np.int64)
    for a in range(len(owners)):
        if owners[a] == _EMPTY:
            continue
        n_cells = 0
        for b in range(len(around)):
            cell, image, is_inside = find_bin(a, around[b], grid)
            if not is_inside or owners[cell] == _EMPTY or owners[cell] == n_parts:
                continue
            if image != here or owners[a] == _MIXED or owners[cell] != owners[a]:
                cells[n_cells], images[n_cells] = cell, image
                n_cells += 1
        for p in range(bounds[a], bounds[a + 1] if n_cells else bounds[a]):
            first = n
            for b in range(n_cells):
                cell, image = cells[b], images[b]
                back = len(translations) - 1 - image
                part = owners[cell]
                if part != _MIXED and _is_known(ghosts, first, n, part, back, owner[p], here):
                    continue
                dx = x[p, 0] - translations[image, 0]
                dy = x[p, 1] - translations[image, 1]
                dz = x[p, 2] - translations[image, 2]
                for q in range(bounds[cell], bounds[cell + 1]):
                    rx, ry, rz = x[q, 0] - dx, x[q, 1] - dy, x[q, 2] - dz
                    if rx * rx + ry * ry + rz * rz >= square or owner[q] == n_parts:
                        continue
                    if part == _MIXED and _is_known(ghosts, first, n, owner[q], back, owner[p], here):
                        continue
                    if n == ghosts.shape[1]:
                        return -1
                    ghosts[0, n], ghosts[1, n], ghosts[2, n] = owner[q], p, back
                    n += 1
                    if part != _MIXED:
                        break
    return n


@jit
def _is_known(ghosts: Ints, first: int, end: int, part: int, image: int, own: int, here: int) -> bool:
    """Whether a part has an image of an atom, as one of its own or as a ghost from `first` on."""
    is_known = part == own and image == here
    for k in range(first, end):
        is_known |= ghosts[0, k] == part and ghosts[2, k] == image
    return is_known


@jit
def list_atoms(
    owner: Ints, order: Ints, wraps: Ints, ghosts: Ints, images: Ints, offsets: Ints, n_owned: Ints
) -> tuple[Ints, Ints]:
    """List the atoms of all parts: owned ones, then ghosts, in each case bin by bin.

    Args:
        owner: part of each atom, sorted by bins; the number of parts for atoms that none owns.
        order: the atoms in that order.
        wraps: lattice vectors between an atom and the cell.
        ghosts: of `find_ghosts`.
        images: lattice vectors of each.
        offsets: first atom of each part.
        n_owned: by each part.

    Returns:
        Atom of the whole, (n_local,), and lattice shift, (n_local, 3).
    """
    index = np.empty(offsets[-1], dtype=np.int64)
    shift = np.empty((offsets[-1], 3), dtype=np.int64)
    end = offsets[:-1].copy()
    for p in range(len(owner)):
        if owner[p] == len(n_owned):
            continue
        place = end[owner[p]]
        end[owner[p]] += 1
        index[place] = order[p]
        for d in range(3):
            shift[place, d] = -wraps[order[p], d]
    for k in range(ghosts.shape[1]):
        part, atom = ghosts[0, k], order[ghosts[1, k]]
        place = end[part]
        end[part] += 1
        index[place] = atom
        for d in range(3):
            shift[place, d] = images[ghosts[2, k], d] - wraps[atom, d]
    return index, shift


@jit
def inverse(index: Ints, n_atoms: int) -> tuple[Ints, Ints]:
    """Where each atom of the whole is in the parts.

    Args:
        index: atom of the whole of each atom of the parts, (n_local,).
        n_atoms: of the whole.

    Returns:
        Places, atom by atom, (n_local,), and the first of each, (n_atoms + 1,).
    """
    first = np.zeros(n_atoms + 1, dtype=np.int64)
    for i in index:
        first[i + 1] += 1
    for i in range(n_atoms):
        first[i + 1] += first[i]
    end = first[:-1].copy()
    places = np.empty(len(index), dtype=np.int64)
    for k in range(len(index)):
        places[end[index[k]]] = k
        end[index[k]] += 1
    return places, first


@jit
def gather(x: Floats, index: Ints, shift: Ints, cell: Floats, found: Floats) -> None:
    """Write x_index + shift @ cell, (n_local, 3), Å."""
    for k in range(len(index)):
        i, a, b, c = index[k], shift[k, 0], shift[k, 1], shift[k, 2]
        for d in range(3):
            found[k, d] = x[i, d] + (a * cell[0, d] + b * cell[1, d] + c * cell[2, d])


@jit
def add_copies(values: Floats, places: Ints, first: Ints, found: Floats) -> None:
    """Write the sum of the values of all copies of each atom, (n_atoms, 3)."""
    for i in range(len(found)):
        a = b = c = 0.0
        for k in range(first[i], first[i + 1]):
            a += values[places[k], 0]
            b += values[places[k], 1]
            c += values[places[k], 2]
        found[i, 0], found[i, 1], found[i, 2] = a, b, c
