"""Neighbour lists that serve more than once: made with a skin, and used while no pair can have come in unseen.

A list holds every pair that was closer than rcut + skin when it was made; `motion` says how long that is enough.

Lists are found by content: the beads of a simulation may come in any order and over any connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from dpserver.frames import Floats, Frames, Ints
from dpserver.jit import jit
from dpserver.neighbors.keeping import SAME, Batches, Kept, Key, key_of, outdated
from dpserver.neighbors.lists import check_density
from dpserver.neighbors.motion import Snapshot
from dpserver.neighbors.rows import MOST_EDGES, Rows, Workers, build_rows

MAX_EDGES = 4_000_000
"""Edges of all lists that are kept, beside those in use."""

_FEWEST_EDGES = 1 << 14
"""A list counts for as many at least: more than some hundred lists, however small, are not worth a look."""

_SOME = 8
"""Atoms of a structure that are looked at first."""
_LOOKS = 16
"""Lists that hold no more, of which the one is found that a structure's simulation has used so far."""

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


class _Known:
    """Lists of the same atoms, in order, and where some of the atoms were, for a first look at all of them."""

    def __init__(self) -> None:
        self._lists: list[_List] = []
        self._seen = np.empty((0, 0, 3))
        self._cells = np.empty((0, 3, 3))

    def __len__(self) -> int:
        return len(self._lists)

    def __iter__(self) -> Iterator[_List]:
        return iter(self._lists)

    def __getitem__(self, place: int) -> _List:
        return self._lists[place]

    def put(self, entry: _List, place: int) -> None:
        """Keep a list, instead of that at a place or at the end."""
        n, seen = len(self._lists), _some(entry.snapshot.positions)
        if n == len(self._seen):  # twice as much room, lest every list moves all others
            self._seen = np.concatenate([self._seen.reshape(n, *seen.shape), np.zeros((n + 1, *seen.shape))])
            self._cells = np.concatenate([self._cells, np.zeros((n + 1, 3, 3))])
        self._lists[place : place + 1] = [entry]
        self._seen[place], self._cells[place] = seen, entry.snapshot.cell

    def keep(self, is_kept: Callable[[_List], bool]) -> None:
        """Give up all other lists."""
        places = [k for k, entry in enumerate(self._lists) if is_kept(entry)]
        if len(places) < len(self._lists):
            self._lists = [self._lists[k] for k in places]
            self._seen, self._cells = self._seen[places], self._cells[places]

    def moved_at_least(self, frame: Frames) -> Floats:
        """How far some atom has moved at least since each list was made, squared, (n_lists,), Å²; 0 in another cell."""
        found = np.zeros(len(self._lists))
        _compare_some(np.ascontiguousarray(_some(frame.positions)), frame.cell[0], self._seen, self._cells, found)
        return found


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
        self._lists: dict[Key, _Known] = {}
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
        tired: list[tuple[int, Frames, _Known, int]] = []
        n_built = self.n_built
        for frame in frames:
            key = key_of(frame)
            known = self._lists.setdefault(key, _Known())
            place, before, moved = self._search(known, frame, cursors.get(key, 0))
            if place is None:
                place = self._build(known, frame, before)
            elif moved > (_TIRED * (self._reach - self._rcut) / 2) ** 2:
                tired.append((len(found), frame, known, place))
            cursors[key] = place + 1
            known[place].last_use = self._time
            found.append(known[place])
        if self.n_built > n_built:
            for number, frame, known, place in tired:
                self._build(known, frame, place)
                found[number] = known[place]
        self._forget()
        numbers = tuple(entry.number for entry in found)
        return self._batches.find(
            numbers, lambda: Neighbourhood.join([entry.rows for entry in found], frames), self._max_edges
        )

    def _search(self, known: _Known, frame: Frames, cursor: int) -> tuple[int | None, int | None, float]:
        """Place of a list that holds for a frame, or else of the one that its simulation has used so far.

        The third is how far its atoms have moved since then, squared, Å². The place of the last batch is tried first,
        then those used of late: where several simulations have the same atoms, most of the others are of the past.
        """
        before, least = None, np.inf
        for place in self._in_order(known, frame, cursor):
            holds, moved = known[place].compare(frame, self._rcut, self._reach)
            if holds:
                return place, None, moved
            if moved < least and known[place].last_use < self._time:
                before, least = place, moved
        return None, before, least

    def _in_order(self, known: _Known, frame: Frames, cursor: int) -> Iterator[int]:
        """The places of lists worth a look: first those that may hold, then the nearest of the others."""
        n, last_batch, skin = len(known), self._time - 1, self._reach - self._rcut
        if cursor < n:
            yield cursor
        moved = known.moved_at_least(frame)
        may_hold = moved <= skin**2 / 4
        order = sorted(
            np.flatnonzero(may_hold).tolist(), key=lambda k: (-min(known[k].last_use, last_batch), (k - cursor) % n)
        )
        yield from (place for place in order if place != cursor)
        others = np.flatnonzero(~may_hold & (moved <= (SAME * skin) ** 2))
        nearest = others[np.argsort(moved[others], kind="stable")][:_LOOKS]
        yield from (place for place in nearest.tolist() if place != cursor)

    def _build(self, known: _Known, frame: Frames, place: int | None) -> int:
        """Make a list, at a place or else at the end; return where."""
        check_density(frame, self._rcut)
        rows = build_rows(frame, self._reach, self._n_species, self._room(), self._workers)
        entry = _List(next(self._numbers), Snapshot.take(frame), rows, self._time)
        self.n_built += 1
        place = len(known) if place is None else place
        known.put(entry, place)
        return place

    def _forget(self) -> None:
        """Give up the lists that have not been used for longest, down to the edges that may be kept."""
        idle = [entry for known in self._lists.values() for entry in known if entry.last_use < self._time]
        if given_up := outdated(idle, self._max_edges):
            for known in self._lists.values():
                known.keep(lambda entry: entry.number not in given_up)
        for key in [key for key, known in self._lists.items() if not known]:
            del self._lists[key]


def _offsets(sizes: Sequence[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _some(positions: Floats) -> Floats:
    """Positions of a few atoms all over a structure."""
    n = len(positions)
    return positions if n <= _SOME else positions[np.linspace(0, n - 1, _SOME).astype(np.int64)]


@jit
def _compare_some(x: Floats, cell: Floats, seen: Floats, cells: Floats, found: Floats) -> None:
    """The largest distance, squared, of an atom of x from where it is seen; 0 where the cell is another one."""
    for k in range(len(found)):
        is_same = True
        for d in range(9):
            is_same = is_same and cells[k, d // 3, d % 3] == cell[d // 3, d % 3]
        if is_same:
            for i in range(len(x)):
                dx, dy, dz = x[i, 0] - seen[k, i, 0], x[i, 1] - seen[k, i, 1], x[i, 2] - seen[k, i, 2]
                found[k] = max(found[k], dx * dx + dy * dy + dz * dz)


@jit
def _wrap(x: Floats, wraps: Floats, cell: Floats, frame_idx: Ints, found: Floats) -> None:
    """Write x - w @ cell."""
    for i in range(len(x)):
        h = cell[frame_idx[i]]
        for d in range(3):
            moved = wraps[i, 0] * h[0, d] + wraps[i, 1] * h[1, d] + wraps[i, 2] * h[2, d]
            found[i, d] = x[i, d] - moved
