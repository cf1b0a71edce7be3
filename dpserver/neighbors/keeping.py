"""What the caches of neighbour lists have in common, on the host and on a device: what is kept, and for how long."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from dpserver.frames import Frames
from dpserver.neighbors.motion import Sightings, Snapshot

Key = tuple[bytes, bytes, bytes]

_SAME: Final = 1.5
"""A structure whose atoms are all within so many skins of those of a list is a later one of the same simulation."""

_LOOKS: Final = 16
"""Lists that hold no more, of which the one is found that a structure's simulation has used so far."""

_MOST_BATCHES: Final = 4


class Edges(Protocol):
    """Lists of a structure, or of a batch."""

    @property
    def n_edges(self) -> int:
        """Number of directed pairs."""


R = TypeVar("R", bound=Edges)


@dataclass(eq=False)
class Kept(Generic[R]):
    """A list, and where the atoms were that it was made for.

    Attributes:
        number: that no other list has.
        snapshot: of the structure that it was made for.
        rows: the list.
        last_use: number of the batch that has used it last.
    """

    number: int
    snapshot: Snapshot
    rows: R
    last_use: int

    @property
    def size(self) -> int:
        """Edges that it counts for."""
        return self.rows.n_edges

    def compare(self, frame: Frames, rcut: float, reach: float) -> tuple[bool, float]:
        """Compare its frame with one of the same atoms; see `Snapshot.compare`."""
        return self.snapshot.compare(frame, rcut, reach, _SAME * (reach - rcut))


L = TypeVar("L", bound=Kept[Any])


class Place(NamedTuple):
    """What is known for a frame.

    Attributes:
        number: of the list's place; None where there is none.
        holds: whether it does, or is only the one that the frame's simulation has used so far.
        moved: how far its atoms have moved since it was made, squared, Å².
    """

    number: int | None
    holds: bool
    moved: float


class Known(Generic[L]):
    """Lists of the same atoms, each at a place.

    Args:
        rcut: cutoff radius, Å.
        reach: distance up to which the lists have all pairs, Å.
    """

    def __init__(self, rcut: float, reach: float) -> None:
        self._rcut, self._reach = rcut, reach
        self._lists: list[L] = []
        self._sightings = Sightings()

    def __len__(self) -> int:
        return len(self._lists)

    def __iter__(self) -> Iterator[L]:
        return iter(self._lists)

    def __getitem__(self, place: int) -> L:
        return self._lists[place]

    def put(self, entry: L, place: int | None) -> int:
        """Keep a list, instead of that at a place or else at the end; return where."""
        place = len(self._lists) if place is None else place
        self._lists[place : place + 1] = [entry]
        self._sightings.put(entry.snapshot, place)
        return place

    def keep(self, is_kept: Callable[[L], bool]) -> None:
        """Give up all other lists; those that stay move up."""
        places = [k for k, entry in enumerate(self._lists) if is_kept(entry)]
        if len(places) < len(self._lists):
            self._lists = [self._lists[k] for k in places]
            self._sightings.keep(places)

    def search(self, frame: Frames, cursor: int, time: int) -> Place:
        """Find a list that holds for a frame, or else the one that its simulation has used so far.

        Args:
            frame: a structure of the same atoms.
            cursor: place that is tried first.
            time: number of this batch. A list that it has used already is given up for no other frame of it.
        """
        before, least = None, float("inf")
        for place in self._in_order(frame, cursor, time):
            entry = self._lists[place]
            holds, moved = entry.compare(frame, self._rcut, self._reach)
            if holds:
                return Place(place, True, moved)
            if moved < least and entry.last_use < time:
                before, least = place, moved
        return Place(before, False, least)

    def _in_order(self, frame: Frames, cursor: int, time: int) -> Iterator[int]:
        """The places of lists worth a look: first those that may hold, then the nearest of the others.

        Those used of late come first: where several simulations have the same atoms, most others are of the past.
        """
        n, last_batch = len(self._lists), time - 1
        if cursor < n:
            yield cursor
        limit = _SAME * (self._reach - self._rcut)
        moved, may_hold = self._sightings.compare(frame, self._rcut, self._reach, limit)
        order = sorted(
            np.flatnonzero(may_hold).tolist(),
            key=lambda k: (-min(self._lists[k].last_use, last_batch), (k - cursor) % n),
        )
        yield from (place for place in order if place != cursor)
        others = np.flatnonzero(~may_hold & np.isfinite(moved))
        nearest = others[np.argsort(moved[others], kind="stable")][:_LOOKS]
        yield from (place for place in nearest.tolist() if place != cursor)


class Batches(Generic[R]):
    """The joined lists of the batches that were used last."""

    def __init__(self) -> None:
        self._joined: OrderedDict[tuple[int, ...], R] = OrderedDict()

    @property
    def n_edges(self) -> int:
        """Edges of all of them."""
        return sum(batch.n_edges for batch in self._joined.values())

    def find(self, numbers: tuple[int, ...], join: Callable[[], R], max_edges: int) -> R:
        """The joined lists of these numbers.

        Args:
            numbers: of the lists, in the order of the batch.
            join: makes them, where they are not kept.
            max_edges: of those that are kept beside.
        """
        if numbers not in self._joined:
            n_edges = self.n_edges
            while self._joined and (len(self._joined) >= _MOST_BATCHES or n_edges > max_edges):
                n_edges -= self._joined.popitem(last=False)[1].n_edges
            self._joined[numbers] = join()
        self._joined.move_to_end(numbers)
        return self._joined[numbers]


def key_of(frame: Frames) -> Key:
    """What structures must have in common to be of one simulation: species, periodic directions, ghosts if any."""
    is_ghost = frame.is_ghost
    ghosts = b"" if is_ghost is None or not is_ghost.any() else is_ghost.tobytes()
    return frame.types.tobytes(), frame.pbc.tobytes(), ghosts


def outdated(idle: Iterable[Kept[R]], max_edges: int, max_lists: float = float("inf")) -> set[int]:
    """Numbers of the lists that have not been used for longest, down to the edges and lists that may be kept.

    Args:
        idle: lists that are not in use.
        max_edges: of all.
        max_lists: so many.
    """
    entries, found = list(idle), set[int]()
    n_edges, n_lists = sum(entry.size for entry in entries), len(entries)
    if n_edges <= max_edges and n_lists <= max_lists:
        return found
    for entry in sorted(entries, key=lambda entry: entry.last_use):
        found.add(entry.number)
        n_edges, n_lists = n_edges - entry.size, n_lists - 1
        if n_edges <= max_edges and n_lists <= max_lists:
            break
    return found


def forget(lists: dict[Key, Known[L]], time: int, max_edges: int, max_lists: float = float("inf")) -> None:
    """Give up the lists that have not been used for longest, and what has none left; see `outdated`.

    Args:
        lists: by what their structures have in common; changed.
        time: number of this batch, whose lists all stay.
        max_edges: of all others.
        max_lists: so many others.
    """
    idle = (entry for known in lists.values() for entry in known if entry.last_use < time)
    if given_up := outdated(idle, max_edges, max_lists):
        for known in lists.values():
            known.keep(lambda entry: entry.number not in given_up)
    for key in [key for key, known in lists.items() if not known]:
        del lists[key]
