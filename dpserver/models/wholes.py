"""Sums over whole structures, of which this process may have some parts only; see `dpserver.parts`."""

from __future__ import annotations

import numpy as np

from dpserver.frames import Floats, Frames
from dpserver.parts import add_up


def totals(frames: Frames, values: Floats) -> Floats:
    """Sum numbers of atoms over the structures of a batch; where frames are parts, over all parts of them.

    Args:
        frames: the batch; its ghosts do not count. Who evaluates the other parts has to ask for the same sums.
        values: of the atoms, (n_atoms, m).

    Returns:
        (n_frames, m); of the same structure the same bits in all parts.

    Raises:
        AbandonedError: another part has failed.
    """
    mine = values if frames.is_ghost is None else np.where(frames.is_ghost[:, None], 0.0, values)
    n_frames, idx = frames.n_frames, frames.frame_idx
    found = np.zeros((n_frames, values.shape[1]))
    for m, column in enumerate(mine.T):
        found[:, m] = np.bincount(idx, weights=column, minlength=n_frames)
    if frames.wholes is not None and frames.wholes.is_part.any():
        sums = found[frames.wholes.is_part]
        add_up(frames.wholes.parts, sums)
        found[frames.wholes.is_part] = sums
    return found
