"""What the caches of neighbour lists have in common, on the host and on a device: what is kept, and for how long."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from dpserver.frames import Frames
from dpserver.neighbors.motion import Snapshot

Key = tuple[bytes, bytes, bytes]

SAME: Final = 1.5
"""A structure whose atoms are all within so many skins of those of a list is a later one of the same simulation."""

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
        return self.snapshot.compare(frame, rcut, reach, SAME * (reach - rcut))


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
