"""Cuts a structure anew when its parts take unequally long."""

from __future__ import annotations

import logging

from dpserver.frames import Floats, Frames
from dpserver.parallel.cuts import Cuts
from dpserver.parallel.domain import Decomposition
from dpserver.parallel.load import Load

logger = logging.getLogger(__name__)


class Balance:
    """Watches the times of the parts of one structure at a time.

    Args:
        cuts: where its decompositions come from.
    """

    def __init__(self, cuts: Cuts) -> None:
        self._cuts = cuts
        self._cut: Decomposition | None = None
        self._load = Load()
        self._has_moved_cuts = False

    def note(self, frame: Frames, cut: Decomposition, seconds: Floats) -> None:
        """Take note of an evaluation, and have the next decomposition balanced better where this one is not.

        Args:
            frame: the structure.
            cut: how it was cut.
            seconds: that each part took, (n_parts,).
        """
        if self._cut is not cut:
            is_another = self._cut is None or (self._cut.n_atoms, self._cut.n_parts) != (cut.n_atoms, cut.n_parts)
            if is_another:
                self._load = Load()
            else:
                self._load.restart(has_moved_cuts=self._has_moved_cuts)
            self._cut, self._has_moved_cuts = cut, False
            return  # neighbour lists were made
        self._load.record(seconds)
        if self._load.has_drifted:
            logger.debug("the slowest part takes %.0f %% longer than the mean", 100 * self._load.imbalance)
            self._cuts.reweigh(cut, frame, self._load.seconds)
            self._has_moved_cuts = True
