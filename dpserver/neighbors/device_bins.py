"""The atoms of a batch on a device, in the bins where neighbours are searched for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from dpserver.frames import Floats, Frames, Ints
from dpserver.neighbors.grid import completed, integers

_BINS_PER_REACH: Final = 2


@dataclass(frozen=True, eq=False)
class Grids:
    """The bins of all frames, as `Grid` has them, on the host.

    Attributes:
        inverse: of the completed cells, (n_frames, 3, 3).
        cells: completed, (n_frames, 3, 3), Å.
        pbc: (n_frames, 3).
        n_bins, n_around, largest: see `Grid`, (n_frames, 3).
        low, extent: where bins begin, and how far they reach, in lattice vectors, (n_frames, 3).
        images: of each frame, as `Grid` has them.
    """

    inverse: Floats
    cells: Floats
    pbc: Ints
    n_bins: Ints
    n_around: Ints
    largest: Ints
    low: Floats
    extent: Floats
    images: list[Ints]

    @classmethod
    def of(cls, frames: Frames, reach: float) -> Grids:
        """Choose bins for each frame."""
        cells = np.stack([completed(cell, pbc) for cell, pbc in zip(frames.cell, frames.pbc, strict=True)])
        inverse = np.linalg.inv(cells)
        low, extent = np.zeros((frames.n_frames, 3)), np.ones((frames.n_frames, 3))
        for k in np.flatnonzero(~frames.pbc.all(axis=1)):
            fractional = frames[int(k)].positions @ inverse[k]
            is_open = ~frames.pbc[k]
            low[k, is_open] = fractional.min(axis=0)[is_open]
            extent[k, is_open] = np.maximum(np.ptp(fractional, axis=0)[is_open], 1e-3)
        height = extent / np.linalg.norm(inverse, axis=1)
        n_bins = np.maximum(np.floor(height / reach * _BINS_PER_REACH), 1.0)
        for n, n_atoms in zip(n_bins, frames.counts.tolist(), strict=True):
            while n.prod() > max(n_atoms, 8):
                n[n.argmax()] = np.ceil(n.max() / 2)
        n_around = np.floor(reach / (height / n_bins)) + 1
        n_around = np.where(frames.pbc, n_around, np.minimum(n_around, n_bins - 1)).astype(np.int64)
        largest = np.where(frames.pbc, -(-n_around // n_bins), 0).astype(np.int64)
        of_largest = {most: integers(np.array(most)) for most in set(map(tuple, largest.tolist()))}
        images = [of_largest[tuple(most)] for most in largest.tolist()]
        pbc = frames.pbc.astype(np.int64)
        return cls(
            np.asarray(inverse, np.float64), cells, pbc, n_bins.astype(np.int64), n_around, largest, low, extent, images
        )

    @property
    def shift_offsets(self) -> Ints:
        """First image of each frame among those of all."""
        return offsets_of([len(images) for images in self.images])

    @property
    def bin_offsets(self) -> Ints:
        """First bin of each frame among those of all."""
        return offsets_of(self.n_bins.prod(axis=1))


@dataclass(frozen=True, eq=False)
class Atoms:
    """The atoms of all frames on the device.

    Attributes:
        wraps: lattice vectors between an atom and the cell, (n_atoms, 3); x: positions brought back, (n_atoms, 3), Å.
        given: positions as they came, (n_atoms, 3), Å.
        frame: of each atom; types: of each; is_ghost: whether it is one, or None.
        bin_of: (n_atoms,), among those of all frames.
        translations: of the images of all frames, (n_shifts, 3), Å.
    """

    wraps: Tensor
    x: Tensor
    given: Tensor
    frame: Tensor
    types: Tensor
    is_ghost: Tensor | None
    bin_of: Tensor
    translations: Tensor

    @classmethod
    def upload(cls, frames: Frames, grids: Grids, device: torch.device) -> Atoms:
        """Bring the atoms to the device and into bins."""

        def put(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        given, frame = put(frames.positions), put(frames.frame_idx)
        fractional = _times(given, put(grids.inverse)[frame])
        wraps = torch.floor(fractional) * put(grids.pbc)[frame]
        place = (fractional - wraps - put(grids.low)[frame]) * put(grids.n_bins / grids.extent)[frame]
        n_bins = put(grids.n_bins)[frame]
        b = torch.minimum(place.long().clamp_min(0), n_bins - 1)
        bin_of = (b[:, 0] * n_bins[:, 1] + b[:, 1]) * n_bins[:, 2] + b[:, 2] + put(grids.bin_offsets[:-1])[frame]
        translations = np.concatenate([n @ cell for n, cell in zip(grids.images, grids.cells, strict=True)])
        return cls(
            wraps,
            given - _times(wraps, put(grids.cells)[frame]),
            given,
            frame,
            put(frames.types),
            None if frames.is_ghost is None else put(frames.is_ghost),
            bin_of,
            put(translations),
        )


Pairs = tuple[Tensor, Tensor, Tensor]
"""Atoms i and j and shift, among those of all frames, int64."""


def _times(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Row vectors times a matrix for each, (n, 3)."""
    return (vectors[:, :, None] * matrices).sum(dim=1)


def offsets_of(sizes: Sequence[int] | Ints) -> Ints:
    """Sum of all sizes before each, and of all."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
