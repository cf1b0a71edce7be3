"""Neighbour lists on a device that serve more than once, as those of `cache` do on the host.

Whether a list still holds is told on the host, which has the positions anyway. A list that has to be made anew is made
together with all others of the batch that will not hold for much longer: on a GPU many cost little more than one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from typing import Final

import numpy as np
import torch
from torch import Tensor

from dpserver.frames import Frames
from dpserver.neighbors.keeping import Batches, Kept, Key, Known, forget, key_of
from dpserver.neighbors.lists import check_density
from dpserver.neighbors.motion import Snapshot
from dpserver.neighbors.on_device import DeviceRows, build_on_device

MAX_EDGES: Final = 32_000_000
"""Edges of all lists that are kept beside those in use, of 12 bytes each."""

MAX_LISTS: Final = 256
"""Lists that are kept beside those in use, however small: a frame that none holds for is held against each."""

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
        self._lists: dict[Key, Known[_List]] = {}
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
        found, stale, ageing = dict[int, _List](), list[int](), list[int]()
        places, cursors = list[tuple[Known[_List], int | None]](), dict[Key, int]()
        for k, frame in enumerate(frames):
            key = key_of(frame)
            known, cursor = self._lists.setdefault(key, Known(self._rcut, self._reach)), cursors.get(key, 0)
            place, holds, moved = known.search(frame, cursor, self._time)
            places.append((known, place))
            cursors[key] = (cursor if place is None else place) + 1
            if place is not None:
                known[place].last_use = self._time
            if place is None or not holds:
                stale.append(k)
                continue
            found[k] = known[place]
            if moved > (_EARLY * (self._reach - self._rcut) / 2) ** 2:
                ageing.append(k)
        for k, entry in self._renew(frames, stale, ageing).items():
            known, place = places[k]
            if k in found and place is not None and known[place] is not found[k]:
                place = None  # frames that share one get one each
            known.put(entry, place)
            found[k] = entry
        forget(self._lists, self._time, MAX_EDGES, MAX_LISTS)
        entries = [found[k] for k in range(frames.n_frames)]
        numbers = tuple(entry.number for entry in entries)
        return self._batches.find(
            numbers, lambda: DeviceNeighbourhood.join([entry.rows for entry in entries]), MAX_EDGES
        )

    def _renew(self, frames: Frames, stale: Sequence[int], ageing: Sequence[int]) -> dict[int, _List]:
        """Make the lists of some frames, if any, and of others that still hold if there is memory for them too."""
        if not stale:
            return {}
        if ageing:
            with contextlib.suppress(MemoryError, torch.OutOfMemoryError):
                return self._build(frames, [*stale, *ageing])
        return self._build(frames, stale)

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


def _before(sizes: Sequence[int]) -> list[int]:
    """Sum of all sizes before each."""
    return list(accumulate([0, *sizes[:-1]]))
