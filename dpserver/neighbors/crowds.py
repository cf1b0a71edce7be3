"""How near pairs of atoms come in numbers: what tells structures of another kind, or in another order, from known ones.

The smallest distance of all is that of a single pair, which may be an exception: a contact that was put into a training
set on purpose, or met at a high temperature. Atoms in a wrong order are too close by the dozen.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from dpserver.frames import Floats, Frames, Ints
from dpserver.neighbors.lists import Edges

REACH: Final = 4.0
"""Å, beyond which no crowd is looked for."""
_ATOMS: Final = 48
_LEAST: Final = 2


def crowd(n_atoms: Ints) -> Ints:
    """How many pairs make a crowd in structures of so many atoms: one for every 48, and two at least."""
    return np.maximum(_LEAST, -(-n_atoms // _ATOMS))


def crowd_distance(frames: Frames, edges: Edges, n_species: int) -> Floats:
    """Find within which distances of each other pairs of two species are a crowd in any of the structures.

    Args:
        frames: structures.
        edges: their neighbours, each pair in both directions.
        n_species: number of species.

    Returns:
        (n_species, n_species), Å; inf where there is no crowd within the reach of the list, or of 4 Å.
    """
    found = np.full((n_species, n_species), np.inf)
    near = np.flatnonzero(edges.distance < REACH)
    if not len(near):
        return found
    centre, neighbour, distance = edges.centre[near], edges.neighbour[near], edges.distance[near]
    group = (frames.frame_idx[centre] * n_species + frames.types[centre]) * n_species + frames.types[neighbour]
    order = np.lexsort((distance, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    rest, b = np.divmod(group[order][starts], n_species)
    frame, a = np.divmod(rest, n_species)
    last = (crowd(frames.counts[frame]) - 1) * np.where(a == b, 2, 1)  # pairs of one species come twice
    is_met = last < counts
    np.minimum.at(found, (a[is_met], b[is_met]), distance[order][(starts + last)[is_met]])
    return found
