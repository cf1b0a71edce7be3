"""Neighbour lists on a device that serve more than once, as those of `cache` do on the host.

Whether a list still holds is told on the host, which has the positions anyway. A list that has to be made anew is made
together with all others of the batch that will not hold for much longer: on a GPU many cost little more than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from typing import Final

import numpy as np
import torch
from torch import Tensor

from dpserver.frames import Frames
from dpserver.neighbors.keeping import Batches, Kept, Key, key_of, outdated
from dpserver.neighbors.lists import check_density
from dpserver.neighbors.motion import Snapshot
from dpserver.neighbors.on_device import DeviceRows, build_on_device

MAX_EDGES: Final = 32_000_000
"""Edges of all lists that are kept beside those in use, of 12 bytes each."""

MAX_LISTS: Final = 256
"""Lists that are kept beside those in use, however small: a frame that none holds for is compared with each."""

_EARLY: Final = 0.7
"""A list whose atoms have moved by this share of what it allows is made anew when another one is."""


@dataclass(frozen=True, eq=False)
class DeviceNeighbourhood:
    """The lists of a batch, joined: `neighbour`, `shift` and `incoming` count over the batch.

    Attributes:
        starts: (n_atoms * n_species + 1,), int64; incoming_starts: (n_atoms + 1,), int64.
        neighbour, shift, incoming: (n_edges,), int32.
        wraps: (n_atoms, 3), float64; shifts: (n_shifts, 3), float64; shift_frame: (n_shifts,), int64.
    """

    starts: Tensor
    neighbour: Tensor
    shift: Tensor
    incoming: Tensor
    incoming_starts: Tensor
    wraps: Tensor
    shifts: Tensor
    shift_frame: Tensor

    @property
    def n_edges(self) -> int:
        """Number of directed pairs."""
        return len(self.neighbour)

    @classmethod
    def join(cls, lists: Sequence[DeviceRows]) -> DeviceNeighbourhood:
        """Put the lists of the frames one after the other."""
        device = lists[0].starts.device

        def put(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64).to(device)

        def shifted(name: str, offsets: Tensor, total: int | None = None) -> Tensor:
            parts = [getattr(rows, name) for rows in lists]
            n = sum(map(len, parts))
            of_each = torch.repeat_interleave(offsets, put([len(part) for part in parts]), output_size=n)
            values = torch.cat(parts)
            values = values + of_each.to(values.dtype)
            return values if total is None else torch.cat([values, put([total])])

        n_edges = sum(rows.n_edges for rows in lists)
        atoms, edges = _before([len(rows.wraps) for rows in lists]), _before([rows.n_edges for rows in lists])
        n_shifts = [len(rows.shifts) for rows in lists]
        return cls(
            shifted("starts", put(edges), n_edges),
            shifted("neighbour", put(atoms)),
            shifted("shift", put(_before(n_shifts))),
            shifted("incoming", put(edges)),
            shifted("incoming_starts", put(edges), n_edges),
            torch.cat([rows.wraps for rows in lists]),
            torch.cat([rows.shifts for rows in lists]),
            put(np.repeat(np.arange(len(lists)), n_shifts).tolist()),
        )


class _List(Kept[DeviceRows]):
    """A list, and where the atoms were that it was made for."""


class DeviceListCache:
    """Neighbour lists with a skin, on a device.

    Args:
        rcut: cutoff radius, Å.
        skin: how much further the lists reach, Å.
        n_species: number of species.
        device: where they are.

    Attributes:
        n_built: lists made so far.
    """

    def __init__(self, rcut: float, skin: float, n_species: int, device: torch.device) -> None:
        self._rcut, self._reach = rcut, rcut + skin
        self._n_species, self._device = n_species, device
        self._numbers = count()
        self._time = 0
        self._lists: dict[Key, list[_List]] = {}
        self._batches: Batches[DeviceNeighbourhood] = Batches()
        self.n_built = 0

    def find(self, frames: Frames) -> DeviceNeighbourhood:
        """Neighbours of all atoms of a batch: every pair within rcut, and some further ones.

        Args:
            frames: structures, checked.

        Returns:
            The same object for as long as the lists are the same.

        Raises:
            StructureError: the density is absurd, so that a list would not fit in memory.
            MemoryError: a list has more edges than it can count.
        """
        self._time += 1
        keys = [key_of(frame) for frame in frames]
        found: dict[int, _List] = {}
        renewed: dict[int, _List | None] = {}
        ageing: dict[int, _List | None] = {}
        cursors: dict[Key, int] = {}
        for k, key in enumerate(keys):
            known, cursor = self._lists.setdefault(key, []), cursors.get(key, 0)
            cursors[key] = cursor + 1
            entry, share = self._search(known, frames[k], cursor)
            if entry is not None:
                entry.last_use = self._time
            if entry is None or share > 1.0:
                renewed[k] = entry
            else:
                found[k] = entry
                if share > _EARLY:
                    ageing[k] = entry
        if renewed:
            renewed |= ageing
            for k, entry in self._build(frames, list(renewed)).items():
                _replace(self._lists[keys[k]], renewed[k], entry)
                found[k] = entry
        self._forget()
        entries = [found[k] for k in range(frames.n_frames)]
        numbers = tuple(entry.number for entry in entries)
        return self._batches.find(
            numbers, lambda: DeviceNeighbourhood.join([entry.rows for entry in entries]), MAX_EDGES
        )

    def _search(self, known: Sequence[_List], frame: Frames, cursor: int) -> tuple[_List | None, float]:
        """The list of a frame, or that which its simulation has used so far, and how much of its time has gone by.

        Returns:
            A list and a share of up to 1, where it holds; one to be replaced, if any, and infinity, where none does.
        """
        before, least = None, np.inf
        skin = self._reach - self._rcut
        for entry in self._in_order(known, cursor):
            holds, moved = entry.compare(frame, self._rcut, self._reach)
            if holds:
                return entry, float(np.sqrt(moved)) / (skin / 2)
            if moved < least and entry.last_use < self._time:
                before, least = entry, moved
        return before, np.inf

    def _in_order(self, known: Sequence[_List], cursor: int) -> Iterator[_List]:
        """Lists, the most promising first: that of the same place in the last batch, then those used of late."""
        n, last_batch = len(known), self._time - 1
        if cursor < n:
            yield known[cursor]
        order = sorted(range(n), key=lambda k: (-min(known[k].last_use, last_batch), (k - cursor) % n))
        yield from (known[place] for place in order if place != cursor)

    def _build(self, frames: Frames, numbers: Sequence[int]) -> dict[int, _List]:
        """Make the lists of some frames, all together."""
        some = [frames[k] for k in numbers]
        for frame in some:
            check_density(frame, self._rcut)
        rows = build_on_device(Frames.concatenate(some), self._reach, self._n_species, self._device)
        self.n_built += len(rows)
        made = (
            _List(next(self._numbers), Snapshot.take(frame), found, self._time)
            for frame, found in zip(some, rows, strict=True)
        )
        return dict(zip(numbers, made, strict=True))

    def _forget(self) -> None:
        """Give up the lists that have not been used for longest, down to the number and edges that may be kept."""
        idle = [entry for known in self._lists.values() for entry in known if entry.last_use < self._time]
        given_up = outdated(idle, MAX_EDGES, MAX_LISTS)
        kept = {key: [entry for entry in known if entry.number not in given_up] for key, known in self._lists.items()}
        self._lists = {key: known for key, known in kept.items() if known}


def _replace(known: list[_List], old: _List | None, new: _List) -> None:
    """Put a list in the place of another, or of none."""
    if old is not None and old in known:
        known[known.index(old)] = new
    else:
        known.append(new)


def _before(sizes: Sequence[int]) -> list[int]:
    """Sum of all sizes before each."""
    return list(accumulate([0, *sizes[:-1]]))
