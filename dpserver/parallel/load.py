"""Whether the parts of a structure still take equally long, and when cutting it anew is worth while."""

from __future__ import annotations

from typing import Final

import numpy as np

from dpserver.frames import Floats

DRIFT: Final = 0.10
"""So much longer than the mean the slowest part may take before the structure is cut anew."""

_STEPS: Final = 8


class Load:
    """Watches how long the parts of one decomposition take.

    Single times are noise: a verdict is on the medians of the last steps. Where cutting anew has not helped, because
    one core is slower than it was or atoms are few, what is left counts as unavoidable, and only what comes on top of
    it is a reason to cut again.

    Args:
        drift: that is tolerated, relative.
        steps: that a verdict takes.
    """

    def __init__(self, drift: float = DRIFT, steps: int = _STEPS) -> None:
        self._drift = drift
        self._steps = steps
        self._times: list[Floats] = []
        self._unavoidable = 0.0
        self._was_cut = False

    def record(self, seconds: Floats) -> None:
        """Take note of one step.

        Args:
            seconds: that each part took, (n_parts,); 0 for parts without atoms.
        """
        self._times = [*self._times[1 - self._steps :], np.asarray(seconds, dtype=np.float64)]

    @property
    def seconds(self) -> Floats:
        """What each part takes, (n_parts,): the median of the last steps."""
        return np.asarray(np.median(self._times, axis=0))

    @property
    def imbalance(self) -> float:
        """How much longer than the mean the slowest part takes, relative; 0 while too little is known."""
        if len(self._times) < self._steps or not self.seconds.any():
            return 0.0
        taken = self.seconds[self.seconds > 0]
        return float(taken.max() / taken.mean() - 1)

    @property
    def has_drifted(self) -> bool:
        """Whether the structure should be cut anew, by `Decomposition.reweighted(load.seconds)`."""
        imbalance = self.imbalance
        if len(self._times) == self._steps and self._was_cut:
            self._was_cut = False
            self._unavoidable = imbalance
        return imbalance > self._unavoidable + self._drift

    def restart(self, *, has_moved_cuts: bool) -> None:
        """Forget the times; the structure has been cut anew.

        Args:
            has_moved_cuts: by `seconds`, and not only because atoms have moved.
        """
        self._times = []
        self._was_cut = has_moved_cuts
