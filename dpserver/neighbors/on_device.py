"""Neighbour lists made where a model is evaluated: positions go there once, and lists never come back.

The same lists as those of `rows`, as tensors, of all frames of a batch at once. Fully periodic frames without ghosts go
to the batched cell list of nvalchemi-toolkit-ops where that is installed and the device is CUDA. Everything else, and
everywhere else, plain torch does it, on CPU tensors too: atoms are sorted into bins, every pair of bins near each other
gives its pairs of atoms, and sorting brings these into rows. Nothing depends on the order in which threads finish: what
the library gives in any order is sorted, so that the same positions give the same list to the last entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from torch import Tensor

from dpserver.frames import Frames, Ints
from dpserver.neighbors.device_bins import Atoms, Grids, Pairs, offsets_of
from dpserver.neighbors.grid import integers
from dpserver.neighbors.nvalchemi import Library
from dpserver.neighbors.rows import MOST_EDGES

_CHUNK: Final = 1 << 23
"""Candidates that are looked at together, of about 100 bytes each."""

_AROUND: Final = 1 << 21
"""Pairs of bins that are looked at together, of about 200 bytes each."""

_library = Library()


@dataclass(frozen=True, eq=False)
class DeviceRows:
    """Directed neighbour pairs i→j, as `Rows`, in tensors of one device.

    Attributes:
        starts: first edge for each atom and species of neighbours, without the total, (n_atoms * n_species,), int64.
        neighbour, shift, incoming: (n_edges,), int32.
        incoming_starts: without the total, (n_atoms,), int64.
        wraps: (n_atoms, 3), float64; shifts: (n_shifts, 3), float64.
    """

    starts: Tensor
    neighbour: Tensor
    shift: Tensor
    incoming: Tensor
    incoming_starts: Tensor
    wraps: Tensor
    shifts: Tensor

    @property
    def n_edges(self) -> int:
        """Number of directed pairs."""
        return len(self.neighbour)


def build_on_device(frames: Frames, reach: float, n_species: int, device: torch.device) -> list[DeviceRows]:
    """Find the pairs closer than `reach` in each frame, periodic images included, but none from a ghost.

    Args:
        frames: structures, checked.
        reach: largest distance, Å.
        n_species: number of species.
        device: where.

    Returns:
        A list for each frame, counted from its own first atom; views of what was made together.

    Raises:
        MemoryError: there are more pairs than a list can count.
    """
    grids = Grids.of(frames, reach)
    atoms = Atoms.upload(frames, grids, device)

    def by_torch() -> Pairs:
        return _both_ways([*_half_pairs(atoms, grids, reach)], atoms, grids)

    edges = _library.pairs(frames, atoms, grids, reach, by_torch) if uses_nvalchemi(frames, device) else None
    if edges is None:
        edges = by_torch()
    return _split(edges, atoms, grids, frames, n_species)


def uses_nvalchemi(frames: Frames, device: torch.device) -> bool:
    """Whether nvalchemi-toolkit-ops is there, and made for such frames."""
    return device.type == "cuda" and bool(frames.pbc.all()) and frames.is_ghost is None and _library.is_there()


@dataclass(frozen=True, eq=False)
class _BinPairs:
    """Bins near each other, each two once: `first`, `other`, the shift of that, and whether both are the same."""

    first: Tensor
    other: Tensor
    shift: Tensor
    is_own: Tensor

    def __getitem__(self, part: slice | Tensor) -> _BinPairs:
        return _BinPairs(self.first[part], self.other[part], self.shift[part], self.is_own[part])


def _half_pairs(atoms: Atoms, grids: Grids, reach: float) -> Iterator[Pairs]:
    """Each pair closer than `reach` once, by torch, piece by piece."""
    order = torch.argsort(atoms.bin_of, stable=True)
    x = atoms.x[order]
    bounds = _starts(atoms.bin_of[order], int(grids.bin_offsets[-1]))
    is_ghost = None if atoms.is_ghost is None else atoms.is_ghost[order]
    for n_around in np.unique(grids.n_around, axis=0):
        members = np.flatnonzero((grids.n_around == n_around).all(axis=1))
        near = _near_bins(grids, members, bounds)
        for bins, n_candidates in (chunk for piece in near for chunk in _chunks(piece, bounds)):
            p, q, s = _candidates(bins, n_candidates, bounds)
            r = x[q] + (atoms.translations[s] - x[p])
            is_near = ((r * r).sum(dim=1) < reach**2) & (p >= 0)
            if is_ghost is not None:
                is_near &= ~(is_ghost[p] & is_ghost[q])
            yield order[p[is_near]], order[q[is_near]], s[is_near]


def _near_bins(grids: Grids, members: Ints, bounds: Tensor) -> Iterator[_BinPairs]:
    """Pairs of bins of some frames, alike in how many bins are around one, that both have atoms; piece by piece."""

    def put(values: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(bounds.device)

    n_of = grids.n_bins[members]
    sizes = n_of.prod(axis=1)
    frame = put(np.repeat(np.arange(len(members)), sizes))
    local = put(np.arange(sizes.sum()) - np.repeat(offsets_of(sizes)[:-1], sizes))
    bin_at = put(grids.bin_offsets[members])[frame]
    has_atoms = bounds[bin_at + local + 1] > bounds[bin_at + local]
    frame, local = frame[has_atoms], local[has_atoms]
    around = integers(grids.n_around[members[0]])
    around = around[len(around) // 2 :]  # this bin first, and of two opposite ones only one
    size = max(_AROUND // len(around), 1)
    for first in range(0, len(local), size):
        part = slice(first, first + size)
        yield _bins_around(grids, members, put(around), frame[part], local[part], bounds)


def _bins_around(
    grids: Grids, members: Ints, around: Tensor, frame: Tensor, local: Tensor, bounds: Tensor
) -> _BinPairs:
    """Pairs of some bins with those around them that have atoms.

    Args:
        grids: of all frames.
        members: the frames that the bins may be of.
        around: where to look, counted from a bin, (n_around, 3).
        frame: that each bin is of, among the members, (n,).
        local: number of each bin in its frame, (n,).
        bounds: first atom of each bin of all frames, and the total.
    """

    def put(values: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(bounds.device)

    bin_at = put(grids.bin_offsets[members])[frame]
    n = put(grids.n_bins[members])[frame][:, None]
    b = torch.stack([local // (n[:, 0, 1] * n[:, 0, 2]), local // n[:, 0, 2] % n[:, 0, 1], local % n[:, 0, 2]], dim=1)
    there = b[:, None] + around
    image = torch.div(there, n, rounding_mode="floor")
    is_inside = ((put(grids.pbc[members])[frame][:, None] == 1) | (image == 0)).all(dim=2)
    there -= image * n
    other = (there[..., 0] * n[..., 1] + there[..., 1]) * n[..., 2] + there[..., 2] + bin_at[:, None]
    most = put(grids.largest[members])[frame][:, None]
    place = image + most
    shift = (place[..., 0] * (2 * most[..., 1] + 1) + place[..., 1]) * (2 * most[..., 2] + 1) + place[..., 2]
    shift += put(grids.shift_offsets[members])[frame][:, None]
    is_inside &= bounds[other + 1] > bounds[other]
    which, offset = is_inside.nonzero(as_tuple=True)
    return _BinPairs((bin_at + local)[which], other[which, offset], shift[which, offset], offset == 0)


def _chunks(bins: _BinPairs, bounds: Tensor) -> Iterator[tuple[_BinPairs, int]]:
    """Pieces of pairs of bins with at most some candidates each, and how many they have."""
    ends = _sizes(bins, bounds).cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    cuts = torch.tensor(range(_CHUNK, total, _CHUNK), dtype=ends.dtype).to(ends.device)
    places = [0, *torch.searchsorted(ends, cuts).tolist(), len(ends)]
    for start, stop in pairwise(places):
        if stop > start:
            n = int(ends[stop - 1]) - (int(ends[start - 1]) if start else 0)
            yield bins[start:stop], n


def _sizes(bins: _BinPairs, bounds: Tensor) -> Tensor:
    """Candidates of each pair of bins."""
    found: Tensor = (bounds[bins.first + 1] - bounds[bins.first]) * (bounds[bins.other + 1] - bounds[bins.other])
    return found


def _candidates(bins: _BinPairs, n: int, bounds: Tensor) -> Pairs:
    """Pairs of atoms, by their place in the order of bins; what a bin has twice with itself has a first one of -1."""
    sizes = _sizes(bins, bounds)
    which = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes, output_size=n)
    k = torch.arange(n, device=sizes.device) - (sizes.cumsum(0) - sizes)[which]
    first, other = bounds[bins.first], bounds[bins.other]
    there = (bounds[bins.other + 1] - other)[which]
    p, q = first[which] + k // there, other[which] + k % there
    p = torch.where(bins.is_own[which] & (q <= p), -1, p)
    return p, q, bins.shift[which]


def _both_ways(parts: Sequence[Pairs], atoms: Atoms, grids: Grids) -> Pairs:
    """Enter pairs at both ends, but not at ghosts."""
    if not parts:
        none = torch.zeros(0, dtype=torch.int64, device=atoms.x.device)
        return none, none, none
    i, j, s = (torch.cat(values) for values in zip(*parts, strict=True))
    # The images of a frame are sorted, so that opposite ones are at opposite places.
    offsets = torch.from_numpy(grids.shift_offsets).to(s.device)
    frame = atoms.frame[i]
    mirrored = offsets[frame] + offsets[frame + 1] - 1 - s
    i, j, s = torch.cat([i, j]), torch.cat([j, i]), torch.cat([s, mirrored])
    if atoms.is_ghost is None:
        return i, j, s
    is_real = ~atoms.is_ghost[i]
    return i[is_real], j[is_real], s[is_real]


def _split(edges: Pairs, atoms: Atoms, grids: Grids, frames: Frames, n_species: int) -> list[DeviceRows]:
    """Bring edges into rows, and give each frame its own."""
    i, j, s = edges
    device = i.device
    if len(i) > MOST_EDGES:
        raise MemoryError(
            f"{frames.n_atoms} atoms have {len(i)} pairs, more than the {MOST_EDGES} that a neighbour list can count"
        )
    row = i * n_species + atoms.types[j]
    order = torch.argsort(row, stable=True)
    i, j, s = i[order], j[order], s[order]
    starts = _starts(row[order], frames.n_atoms * n_species)
    incoming = torch.argsort(j, stable=True)
    incoming_starts = _starts(j[incoming], frames.n_atoms)
    atom_at, shift_at = (torch.from_numpy(o).to(device) for o in (frames.offsets, grids.shift_offsets))
    edge_at = starts[atom_at * n_species]
    of_edge, of_atom = atoms.frame[i], atoms.frame
    of_row = of_atom.repeat_interleave(n_species)
    starts, incoming_starts = starts[:-1] - edge_at[of_row], incoming_starts[:-1] - edge_at[of_atom]
    neighbour, shift = (j - atom_at[of_edge]).int(), (s - shift_at[of_edge]).int()
    incoming = (incoming - edge_at[of_edge]).int()
    shifts = torch.from_numpy(np.concatenate(grids.images).astype(np.float64)).to(device)
    bounds = edge_at.tolist()
    found = []
    for k, (first, last) in enumerate(pairwise(grids.shift_offsets.tolist())):
        atom, edge = slice(*frames.offsets[k : k + 2].tolist()), slice(bounds[k], bounds[k + 1])
        rows = slice(atom.start * n_species, atom.stop * n_species)
        found.append(
            DeviceRows(
                starts[rows], neighbour[edge], shift[edge], incoming[edge], incoming_starts[atom], atoms.wraps[atom],
                shifts[first:last],
            )
        )  # fmt: skip
    return found


def _starts(keys: Tensor, n: int) -> Tensor:
    """First place of each key from 0 to n - 1 among sorted ones, and their number, (n + 1,)."""
    return torch.searchsorted(keys, torch.arange(n + 1, device=keys.device))
