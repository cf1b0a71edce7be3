"""Full neighbour lists of ragged batches, with lattice shifts, built by vesin.

Conventions, as one equation: an edge i→j with shift S stands for the vector

    r_ij = x_j - x_i + S @ cell,    |r_ij| < rcut,

where atoms are taken as they come, however many cells away, and S absorbs that. A cell smaller than the cutoff gives
several edges between the same two atoms, and edges from an atom to its own images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import vesin

from dpserver.errors import StructureError
from dpserver.frames import Floats, Frames, Ints

MAX_EDGES_PER_ATOM = 20_000
"""Refuse denser structures (a hundred times water at 8 Å): they are errors, and would exhaust the memory."""

CLOSEST = 0.05
"""Atoms closer than this, Å, are on top of each other: no potential has an answer."""


@dataclass(frozen=True, eq=False)
class Edges:
    """Directed neighbour pairs of a batch, both directions present.

    Attributes:
        centre: atom i of each edge, an index into the whole batch, (n_edges,), int64.
        neighbour: atom j, (n_edges,), int64.
        shift: lattice shift S, integers as float64, (n_edges, 3).
        distance: |r_ij| at the positions the list was built with, (n_edges,), Å.
    """

    centre: Ints
    neighbour: Ints
    shift: Floats
    distance: Floats

    def __len__(self) -> int:
        return len(self.centre)

    @classmethod
    def concatenate(cls, parts: Sequence[Edges], atom_offsets: Ints) -> Edges:
        """Join the lists of batches; `atom_offsets` holds the index of each batch's first atom."""
        return cls(
            np.concatenate([p.centre + o for p, o in zip(parts, atom_offsets, strict=True)]),
            np.concatenate([p.neighbour + o for p, o in zip(parts, atom_offsets, strict=True)]),
            np.concatenate([p.shift for p in parts]),
            np.concatenate([p.distance for p in parts]),
        )


def build(frames: Frames, rcut: float) -> Edges:
    """Find every pair of atoms of the same frame closer than `rcut`, periodic images included.

    Args:
        frames: structures, checked (`Frames.check`).
        rcut: cutoff radius, Å.

    Returns:
        The edges of all frames; those of a frame are contiguous, in no further order.

    Raises:
        StructureError: two atoms overlap, or the density is absurd, so that the list would not fit in memory.
    """
    parts = []
    for frame in frames:
        check_density(frame, rcut)
        finder = vesin.NeighborList(cutoff=rcut, full_list=True, n_threads=1)
        i, j, shift, distance = finder.compute(frame.positions, frame.cell[0], frame.pbc[0].tolist(), "ijSd")
        edges = Edges(i.astype(np.int64), j.astype(np.int64), shift.astype(np.float64), distance)
        _check_overlap(edges)
        parts.append(edges)
    return Edges.concatenate(parts, frames.offsets[:-1])


def check_density(frame: Frames, rcut: float) -> None:
    """Estimate the neighbours of an atom of a periodic frame.

    Where all directions are periodic it has n_atoms/V · 4π/3 rcut³; in a slab or a wire at least its own images.

    Args:
        frame: one structure.
        rcut: cutoff radius, Å.

    Raises:
        StructureError: there would be more than `MAX_EDGES_PER_ATOM`.
    """
    vectors = frame.cell[0][frame.pbc[0]]
    if not len(vectors):
        return
    size = float(np.sqrt(np.linalg.det(vectors @ vectors.T)))
    ball = (2 * rcut, np.pi * rcut**2, 4 / 3 * np.pi * rcut**3)[len(vectors) - 1]
    neighbours = (frame.n_atoms if len(vectors) == 3 else 1) * ball / size
    if neighbours > MAX_EDGES_PER_ATOM:
        unit = ("Å", "Å²", "Å³")[len(vectors) - 1]
        raise StructureError(
            f"{frame.n_atoms} atoms in {size:.4g} {unit} give about {neighbours:.0f} neighbours an atom within "
            f"{rcut:g} Å, more than {MAX_EDGES_PER_ATOM}; check the cell and its units"
        )


def _check_overlap(edges: Edges) -> None:
    if not len(edges):
        return
    closest = int(edges.distance.argmin())
    if edges.distance[closest] < CLOSEST:
        raise StructureError(
            f"atoms {edges.centre[closest]} and {edges.neighbour[closest]} are {edges.distance[closest]:.2g} Å apart: "
            "they overlap; check the positions, the cell and the order of the atoms"
        )
