"""Neighbour lists for kernels: the neighbours of each atom in rows by species, and the edges that end at each atom.

Atoms are sorted by species, and those of a species by bins, so that those in neighbouring bins along one lattice vector
lie side by side. Each atom is held against all such runs around it. What is found is kept in pieces until it is known
where each row begins. Threads share the bins without a word between them, and what comes out is the same for any number
of threads. Ghosts are neighbours and no centres: they have no edges of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final, Protocol

import numpy as np

from dpserver.frames import Floats, Frames, Ints
from dpserver.neighbors import search
from dpserver.neighbors.grid import Grid, integers
from dpserver.neighbors.search import Bins
from dpserver.neighbors.selection import Found, Ints32

MOST_EDGES: Final = 2**31 - 1
"""What a list can count."""

_FEW_ATOMS: Final = 1000
"""They are not worth waking other threads for."""
_PIECE: Final = 1 << 15
"""Edges that are found, about, before they are put aside."""
_MOST_PARTS: Final = 16
"""Parts of the edges that are entered at once, each of which has an integer for every atom."""


class Workers(Protocol):
    """Threads that run one function together."""

    @property
    def count(self) -> int:
        """How many there are."""

    def run(self, job: Callable[[int], None]) -> None:
        """Call a function in each of them, with its number, and wait for all."""


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


def build_rows(
    frame: Frames, reach: float, n_species: int, max_edges: int = MOST_EDGES, workers: Workers | None = None
) -> Rows:
    """Find the pairs of one frame that are closer than `reach`, periodic images included.

    Args:
        frame: one structure, checked.
        reach: largest distance, Å.
        n_species: number of species.
        max_edges: that there is memory for.
        workers: threads that share the work on a large structure; what is found does not depend on them.

    Raises:
        MemoryError: there are more.
    """
    team = _Alone() if workers is None or frame.n_atoms < _FEW_ATOMS else workers
    grid = Grid.build(frame, reach)
    starts, neighbour, shift = _Search(frame, grid, reach, n_species, min(max_edges, MOST_EDGES)).run(team)
    incoming, incoming_starts = _incoming(team, neighbour, frame.n_atoms)
    return Rows(starts, neighbour, shift, incoming, incoming_starts, grid.wraps, grid.images.astype(np.float64))


class _Alone:
    """The calling thread."""

    count = 1

    def run(self, job: Callable[[int], None]) -> None:
        """Call a function."""
        job(0)


class _Search:
    """The edges of one frame while they are found, piece by piece.

    Args:
        frame: the structure.
        grid: its atoms in bins.
        reach: largest distance, Å.
        n_species: number of species.
        most: edges that there is memory for.
    """

    def __init__(self, frame: Frames, grid: Grid, reach: float, n_species: int, most: int) -> None:
        is_ghost = np.zeros(frame.n_atoms, dtype=bool) if frame.is_ghost is None else frame.is_ghost
        sorted_atoms = search.sort_by_species(grid.order, grid.positions, grid.bounds, frame.types, is_ghost, n_species)
        columns = integers(np.append(grid.n_around[:2], 0))
        self._bins = Bins(*sorted_atoms, grid.table, columns, int(grid.n_around[2]), grid.translations, reach**2)
        self._starts = np.zeros(frame.n_atoms * n_species + 1, dtype=np.int64)
        self._counts = self._starts[1:].reshape(-1, n_species)
        self._places = np.zeros(frame.n_atoms, dtype=np.int64)
        self._what, self._most = f"{frame.n_atoms} atoms have more than {most} neighbours within {reach:g} Å", most
        per_atom = min(grid.density() * 4 / 3 * np.pi * reach**3, frame.n_atoms * len(grid.images))
        n_bins, expected = len(grid.ends), int(1.1 * per_atom * frame.n_atoms)
        self._n_pieces = min(max(expected // _PIECE, 1), n_bins)
        self._ends = np.linspace(0, n_bins, self._n_pieces + 1).astype(np.int64)
        self._room = expected // self._n_pieces + 2048
        self._found: dict[int, Found] = {}
        self._sizes: dict[int, int] = {}

    def run(self, team: Workers) -> tuple[Ints, Ints32, Ints32]:
        """Search with all threads: `starts`, `neighbour` and `shift` of `Rows`.

        Raises:
            MemoryError: there are too many edges.
        """
        _share_out(team, self._n_pieces, self._find)
        n_edges = search.add_up(self._starts)
        neighbour, shift = np.empty(n_edges, dtype=np.int32), np.empty(n_edges, dtype=np.int32)
        _share_out(team, self._n_pieces, lambda piece: self._write(piece, neighbour, shift))
        return self._starts, neighbour, shift

    def _find(self, piece: int) -> None:
        """Find the edges of a piece."""
        room, n = self._room, -1
        low, high = self._ends[piece : piece + 2]
        while n < 0:
            found = Found(np.empty(room, dtype=np.int32), np.empty(room, dtype=np.int32))
            n = search.find_edges(self._bins, low, high, found, self._counts, self._places)
            self._sizes[piece] = n if n >= 0 else -1 - n
            if sum(self._sizes.copy().values()) > self._most:
                raise MemoryError(f"{self._what}, too many for one neighbour list in the memory that is left")
            room *= 2
        self._found[piece] = found

    def _write(self, piece: int, neighbour: Ints32, shift: Ints32) -> None:
        """Put the edges of a piece into their rows."""
        low, high = self._ends[piece : piece + 2]
        search.write_rows(self._bins, low, high, self._found.pop(piece), self._places, self._starts, neighbour, shift)


def _share_out(team: Workers, n_pieces: int, job: Callable[[int], None]) -> None:
    """Do something to all pieces, each thread the next one when it is done with one."""
    numbers = count()

    def work(_: int) -> None:
        while (piece := next(numbers)) < n_pieces:
            job(piece)

    team.run(work)


def _incoming(team: Workers, neighbour: Ints32, n_atoms: int) -> tuple[Ints32, Ints]:
    """The edges that end at each atom, ascending, and where they begin: each thread enters parts of the edges."""
    n = min(team.count, _MOST_PARTS)
    ends = np.linspace(0, len(neighbour), n + 1).astype(np.int64)
    places = np.zeros((n, n_atoms), dtype=np.int32)
    _share_out(team, n, lambda k: search.count_ends(neighbour[ends[k] : ends[k + 1]], places[k]))
    starts, incoming = search.find_places(places), np.empty(len(neighbour), dtype=np.int32)
    _share_out(team, n, lambda k: search.write_incoming(neighbour, ends[k], ends[k + 1], places[k], incoming))
    return incoming, starts
