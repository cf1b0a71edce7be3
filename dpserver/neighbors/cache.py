"""Neighbour lists that serve more than once: made with a skin, and used while no pair can have come in unseen.

A list holds every pair that was closer than rcut + skin when it was made; `motion` says how long that is enough.

Lists are found by content: the beads of a simulation may come in any order and over any connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from dpserver.frames import Floats, Frames, Ints
from dpserver.jit import jit
from dpserver.neighbors.keeping import Batches, Kept, Key, Known, forget, key_of
from dpserver.neighbors.lists import check_density
from dpserver.neighbors.motion import Snapshot
from dpserver.neighbors.rows import MOST_EDGES, Rows, Workers, build_rows

MAX_EDGES = 4_000_000
"""Edges of all lists that are kept, beside those in use."""

_FEWEST_EDGES = 1 << 14
"""A list counts for as many at least: more than some hundred lists, however small, are not worth a look."""

_TIRED = 0.6
"""Part of the way that atoms may go. A list that has come so far is made anew along with another one of its batch: each
time one of them changes, all have to be joined again, which takes as long as making ten for beads."""


@dataclass(frozen=True, eq=False)
class Neighbourhood(Rows):
    """The lists of a batch, joined: `neighbour`, `shift` and `incoming` count over the batch.

    Attributes:
        shift_frame: whose the `shifts` are, (n_shifts,).
        frame_idx: frame of each atom, (n_atoms,).
    """

    shift_frame: Ints
    frame_idx: Ints

    @classmethod
    def join(cls, lists: Sequence[Rows], frames: Frames) -> Neighbourhood:
        """Put the lists of the frames one after the other."""
        n_shifts = [len(rows.shifts) for rows in lists]
        parts = (lists, frames.offsets, _offsets([rows.n_edges for rows in lists]), _offsets(n_shifts))
        if len(lists) == 1:
            (rows,) = lists
            starts, neighbour, shift = rows.starts, rows.neighbour, rows.shift
            incoming, incoming_starts = rows.incoming, rows.incoming_starts
        else:
            zipped = list(zip(*(part[: len(lists)] for part in parts), strict=True))
            starts = np.concatenate([*(rows.starts[:-1] + e for rows, _, e, _ in zipped), parts[2][-1:]])
            neighbour = np.concatenate([rows.neighbour + np.int32(a) for rows, a, _, _ in zipped])
            shift = np.concatenate([rows.shift + np.int32(s) for rows, _, _, s in zipped])
            incoming = np.concatenate([rows.incoming + np.int32(e) for rows, _, e, _ in zipped])
            first = [rows.incoming_starts[:-1] + e for rows, _, e, _ in zipped]
            incoming_starts = np.concatenate([*first, parts[2][-1:]])
        wraps = np.concatenate([rows.wraps for rows in lists])
        shifts = np.concatenate([rows.shifts for rows in lists])
        shift_frame = np.repeat(np.arange(len(lists)), n_shifts)
        rows_of_all = (starts, neighbour, shift, incoming, incoming_starts, wraps, shifts)
        return cls(*rows_of_all, shift_frame, frames.frame_idx.copy())

    def positions(self, frames: Frames) -> Floats:
        """Positions with each atom brought back by its wraps, (n_atoms, 3), Å."""
        found = np.empty_like(self.wraps)
        _wrap(np.ascontiguousarray(frames.positions), self.wraps, frames.cell, self.frame_idx, found)
        return found

    def translations(self, frames: Frames) -> Floats:
        """Lattice translation of each shift, (n_shifts, 3), Å."""
        return np.asarray(np.einsum("ns,nsd->nd", self.shifts, frames.cell[self.shift_frame]))


class _List(Kept[Rows]):
    """A list, and where the atoms were that it was made for."""

    @property
    def size(self) -> int:
        """Edges that it counts for."""
        return max(self.rows.n_edges, _FEWEST_EDGES)


class ListCache:
    """Neighbour lists with a skin.

    Args:
        rcut: cutoff radius, Å.
        skin: how much further the lists reach, Å.
        n_species: number of species.
        max_edges: of the lists that are kept beside those in use.
        room: tells how many edges a new list may have at the moment.
        workers: threads that make new lists together.
    """

    def __init__(
        self,
        rcut: float,
        skin: float,
        n_species: int,
        max_edges: int = MAX_EDGES,
        room: Callable[[], int] = lambda: MOST_EDGES,
        workers: Workers | None = None,
    ) -> None:
        self._rcut = rcut
        self._reach = rcut + skin
        self._n_species = n_species
        self._max_edges = max_edges
        self._room = room
        self._workers = workers
        self._numbers = count()
        self._time = 0
        self._lists: dict[Key, Known[_List]] = {}
        self._batches: Batches[Neighbourhood] = Batches()
        self.n_built = 0

    def find(self, frames: Frames) -> Neighbourhood:
        """Neighbours of all atoms of a batch: every pair within rcut, and some further ones.

        Args:
            frames: structures, checked.

        Returns:
            The caller must not change it; it may be used again.

        Raises:
            StructureError: the density is absurd, so that a list would not fit in memory.
            MemoryError: a list has more edges than there is room for.
        """
        self._time += 1
        found, cursors = list[_List](), dict[Key, int]()
        tired: list[tuple[int, Frames, Known[_List], int]] = []
        n_built = self.n_built
        for frame in frames:
            key = key_of(frame)
            known = self._lists.setdefault(key, Known(self._rcut, self._reach))
            place, holds, moved = known.search(frame, cursors.get(key, 0), self._time)
            if place is None or not holds:
                place = known.put(self._build(frame), place)
            elif moved > (_TIRED * (self._reach - self._rcut) / 2) ** 2:
                tired.append((len(found), frame, known, place))
            cursors[key] = place + 1
            known[place].last_use = self._time
            found.append(known[place])
        if self.n_built > n_built:
            self._renew(tired, found)
        forget(self._lists, self._time, self._max_edges)
        numbers = tuple(entry.number for entry in found)
        return self._batches.find(
            numbers, lambda: Neighbourhood.join([entry.rows for entry in found], frames), self._max_edges
        )

    def _renew(self, tired: Sequence[tuple[int, Frames, Known[_List], int]], found: list[_List]) -> None:
        """Make lists anew that still hold, as far as there is memory."""
        for number, frame, known, place in tired:
            try:
                entry = self._build(frame)
            except MemoryError:
                return
            known.put(entry, place if known[place] is found[number] else None)  # frames that share one get one each
            found[number] = entry

    def _build(self, frame: Frames) -> _List:
        check_density(frame, self._rcut)
        rows = build_rows(frame, self._reach, self._n_species, self._room(), self._workers)
        self.n_built += 1
        return _List(next(self._numbers), Snapshot.take(frame), rows, self._time)


def _offsets(sizes: Sequence[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


@jit
def _wrap(x: Floats, wraps: Floats, cell: Floats, frame_idx: Ints, found: Floats) -> None:
    """Write x - w @ cell."""
    for i in range(len(x)):
        h = cell[frame_idx[i]]
        for d in range(3):
            moved = wraps[i, 0] * h[0, d] + wraps[i, 1] * h[1, d] + wraps[i, 2] * h[2, d]
            found[i, d] = x[i, d] - moved
