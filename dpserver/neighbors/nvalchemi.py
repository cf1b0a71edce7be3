"""Neighbour pairs by the batched cell list of nvalchemi-toolkit-ops, for as long as that can be relied on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from dpserver.frames import Frames
from dpserver.neighbors.device_bins import Atoms, Grids, Pairs

logger = logging.getLogger(__name__)

_ROOM_FOR_NEIGHBOURS: Final = 1.5
"""Of a list, over what the density lets expect."""

_OF_THE_DEVICE: Final = ("OutOfMemoryError", "AcceleratorError")
"""Torch's errors that say nothing of the library."""


class Library:
    """nvalchemi-toolkit-ops, which is not asked again once it has failed.

    It is another's work, in any version, or half installed. So its first answer is compared with torch's, the form of
    each one is looked at, and nothing that it fails with is passed on but that the device is full or lost.
    """

    def __init__(self) -> None:
        self._is_known = self._has_failed = False

    def is_there(self) -> bool:
        """Whether it is installed, and has not failed."""
        return not self._has_failed and _is_installed()

    def pairs(
        self, frames: Frames, atoms: Atoms, grids: Grids, reach: float, by_torch: Callable[[], Pairs]
    ) -> Pairs | None:
        """All directed pairs of fully periodic frames, sorted by where they lead to.

        Args:
            frames: structures, without ghosts.
            atoms: theirs.
            grids: theirs.
            reach: largest distance, Å.
            by_torch: finds the same pairs.

        Returns:
            None where the library has no room for them, or cannot be used, which is said once.
        """
        if self._has_failed:
            return None
        try:
            found = _answer(frames, atoms, grids, reach)
            if found is not None and not self._is_known:
                _compare(found, by_torch(), grids)
                self._is_known = True
        except Exception as error:  # whatever another version may fail with
            if isinstance(error, MemoryError) or type(error).__name__ in _OF_THE_DEVICE:
                raise
            self._has_failed = True
            logger.debug("nvalchemi-toolkit-ops failed", exc_info=error)
            logger.warning(
                "nvalchemi-toolkit-ops cannot be used (%s: %s); torch makes the neighbour lists on the GPU instead, "
                "with the same result",
                type(error).__name__,
                error,
            )
            return None
        return found


@cache
def _is_installed() -> bool:
    try:
        return find_spec("nvalchemiops") is not None
    except ValueError:  # a module of that name that was not found as others are
        return False


def _answer(frames: Frames, atoms: Atoms, grids: Grids, reach: float) -> Pairs | None:
    """What the library finds; None where some atom has many more neighbours than the others, which it has no room for.

    Raises:
        ValueError: the answer is none.
    """
    from nvalchemiops.torch.neighbors import NeighborOverflowError, neighbor_list

    device = atoms.x.device
    volumes = np.abs(np.linalg.det(grids.cells))
    neighbours = float((frames.counts / volumes).max()) * 4 / 3 * np.pi * reach**3
    try:
        pairs, _, shifts = neighbor_list(
            atoms.given,
            reach,
            cell=torch.from_numpy(grids.cells).to(device),
            pbc=torch.from_numpy(frames.pbc).to(device),
            batch_idx=atoms.frame.int(),
            batch_ptr=torch.from_numpy(frames.offsets.astype(np.int32)).to(device),
            return_neighbor_list=True,
            method="batch_cell_list",
            max_neighbors=int(_ROOM_FOR_NEIGHBOURS * neighbours) + 64,
        )
    except NeighborOverflowError:
        return None
    return _in_order(_pairs_of(pairs, shifts, atoms, grids), grids)


def _pairs_of(pairs: Tensor, shifts: Tensor, atoms: Atoms, grids: Grids) -> Pairs:
    """Pairs with the number of their shift, once they are known to be some: an index too large would end the device.

    Raises:
        ValueError: they are not.
    """
    device, n_atoms = atoms.x.device, len(atoms.frame)
    if pairs.ndim != 2 or len(pairs) != 2 or shifts.shape != (pairs.shape[1], 3):
        raise ValueError(
            f"a list must have pairs (2, n) and shifts (n, 3), got {tuple(pairs.shape)} and {tuple(shifts.shape)}"
        )
    if bool(((pairs < 0) | (pairs >= n_atoms)).any()):
        raise ValueError(f"a list of {n_atoms} atoms has others in it")
    i, j = pairs.long()
    most = torch.from_numpy(grids.largest).to(device)[atoms.frame[i]]
    image = (shifts + atoms.wraps[j] - atoms.wraps[i]).round().long()
    if bool((atoms.frame[i] != atoms.frame[j]).any() | (image.abs() > most).any()):
        raise ValueError("a list has pairs of different structures, or farther apart than was asked for")
    place = image + most
    s = (place[:, 0] * (2 * most[:, 1] + 1) + place[:, 1]) * (2 * most[:, 2] + 1) + place[:, 2]
    return i, j, s + torch.from_numpy(grids.shift_offsets).to(device)[atoms.frame[i]]


def _in_order(pairs: Pairs, grids: Grids) -> Pairs:
    """Sort pairs by the second atom and the shift: then those of one first atom have an order of their own."""
    i, j, s = pairs
    order = torch.argsort(j * int(grids.shift_offsets[-1]) + s, stable=True)
    return i[order], j[order], s[order]


def _compare(found: Pairs, expected: Pairs, grids: Grids) -> None:
    """Compare pairs with those that torch finds.

    Raises:
        ValueError: they are not the same.
    """
    lists: list[Any] = []
    for pairs in (found, _in_order(expected, grids)):
        order = torch.argsort(pairs[0], stable=True)
        lists.append(torch.stack([part[order] for part in pairs]))
    if not torch.equal(*lists):
        raise ValueError(f"a list has other pairs than torch finds: {lists[0].shape[1]} and {lists[1].shape[1]}")
