"""Full neighbour lists of ragged batches, with lattice shifts.

They are built by vesin; those of structures with ghosts, and of all where vesin is missing, by the search of `rows`.

Conventions, as one equation: an edge i→j with shift S stands for the vector

    r_ij = x_j - x_i + S @ cell,    |r_ij| < rcut,

where atoms are taken as they come, however many cells away, and S absorbs that. A cell smaller than the cutoff gives
several edges between the same two atoms, and edges from an atom to its own images.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Floats, Frames, Ints

logger = logging.getLogger(__name__)

MAX_EDGES_PER_ATOM = 20_000
"""Refuse denser structures (a hundred times water at 8 Å): they are errors, and would exhaust the memory."""

CLOSEST = 0.05
"""Atoms closer than this, Å, are on top of each other: no potential has an answer."""


@dataclass(frozen=True, eq=False)
class Edges:
    """Directed neighbour pairs of a batch, both directions present, but none from a ghost.

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
    def none(cls) -> Edges:
        """No pairs."""
        return cls(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 3)), np.zeros(0))

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
    """Find every pair of atoms of the same frame closer than `rcut`, periodic images included; none of two ghosts.

    Args:
        frames: structures, checked (`Frames.check`).
        rcut: cutoff radius, Å.

    Returns:
        The edges of all frames; those of a frame are contiguous, in no further order.

    Raises:
        StructureError: two atoms overlap, or the density is absurd, so that the list would not fit in memory.
        ConfigError: what would build it cannot be imported.
    """
    parts, library = [], _vesin() if frames.is_ghost is None else None
    for frame in frames:
        check_density(frame, rcut)
        edges = _from_centres(frame, rcut) if library is None else _with_vesin(library, frame, rcut)
        _check_overlap(edges, frame)
        parts.append(edges)
    return Edges.concatenate(parts, frames.offsets[:-1]) if parts else Edges.none()


def builder() -> str:
    """What builds the lists of structures without ghosts on this machine, in words."""
    return "dpserver.neighbors.rows" if _vesin() is None else "vesin"


@functools.cache
def _vesin() -> Any | None:
    """The library, loaded when a list is first built; None where that cannot be."""
    try:
        import vesin

        vesin.NeighborList(cutoff=1.0, full_list=True)  # loads what it is made of
    except (ImportError, OSError) as error:
        logger.info("vesin cannot be loaded (%s); neighbour lists of the reference are built by our own search", error)
        return None
    return vesin


def _with_vesin(library: Any, frame: Frames, rcut: float) -> Edges:
    finder = library.NeighborList(cutoff=rcut, full_list=True, n_threads=1)
    i, j, shift, distance = finder.compute(frame.positions, frame.cell[0], frame.pbc[0].tolist(), "ijSd")
    return Edges(i.astype(np.int64), j.astype(np.int64), shift.astype(np.float64), distance)


def _from_centres(frame: Frames, rcut: float) -> Edges:
    """By our own search, without a look at pairs of ghosts, of which there may be many more; species do not matter."""
    if frame.is_ghost is not None and frame.is_ghost.all():
        return Edges.none()
    try:
        from dpserver.neighbors.rows import build_rows  # vesin needs no compiler
    except ImportError as error:
        if frame.is_ghost is None:
            raise ConfigError(f"neighbour lists need vesin or numba ({error}): pip install vesin") from None
        raise ConfigError(f"neighbour lists with ghosts need numba ({error}): pip install numba") from None
    rows = build_rows(replace(frame, types=np.zeros_like(frame.types)), rcut, 1)
    centre, neighbour = np.repeat(np.arange(frame.n_atoms), np.diff(rows.starts)), rows.neighbour.astype(np.int64)
    shift = rows.shifts[rows.shift] - rows.wraps[neighbour] + rows.wraps[centre]
    vectors = frame.positions[neighbour] - frame.positions[centre] + shift @ frame.cell[0]
    return Edges(centre, neighbour, shift, np.linalg.norm(vectors, axis=1))


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


def _check_overlap(edges: Edges, frame: Frames) -> None:
    if not len(edges):
        return
    closest = int(edges.distance.argmin())
    if edges.distance[closest] < CLOSEST:
        names = np.arange(frame.n_atoms) if frame.names is None else frame.names
        one, other = names[edges.centre[closest]], names[edges.neighbour[closest]]
        raise StructureError(
            f"atoms {one} and {other} are {edges.distance[closest]:.2g} Å apart: "
            "they overlap; check the positions, the cell and the order of the atoms"
        )
