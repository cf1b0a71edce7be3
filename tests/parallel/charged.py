"""A model with charges that is quickly made: springs of short range, and charges by species that see all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dpserver.frames import ForceResult, Frames
from dpserver.models.config import ElectrostaticsConfig, parse
from dpserver.models.electrostatics import checked
from dpserver.models.electrostatics_method import check_sums
from dpserver.models.electrostatics_sum import ChargeSum
from tests.ranks import Springs


class ChargedSprings(Springs):
    """Springs between atoms of the charges -0.8 (the first species) and 0.4 (the second).

    Args:
        rcut: of the springs, Å.
        mistakes: raise an error for what their function returns one for, before anything is evaluated.
        late: likewise, once all is evaluated.
        threads: that sum.
        options: of the section `electrostatics`.
    """

    has_long_range = True

    def __init__(
        self,
        rcut: float = 3.0,
        mistakes: Callable[[Frames], Exception | None] | None = None,
        late: Callable[[Frames], Exception | None] | None = None,
        threads: int = 1,
        **options: object,
    ) -> None:
        super().__init__(rcut, mistakes=mistakes)
        given = {"charges": {"A": -0.8, "B": 0.4}, "total_charge": None, "accuracy": 1e-6, **options}
        self.config = parse(ElectrostaticsConfig, given)
        self.charges = np.array([-0.8, 0.4])
        self.sum = ChargeSum(self.config, threads)
        self.late = late

    def check_wholes(self, frames: Frames) -> None:
        checked(self.config, frames, self.charges[frames.types])
        check_sums(self.config, frames)

    def evaluate(self, frames: Frames) -> ForceResult:
        self.check_wholes(frames)
        near = super().evaluate(frames)
        far = self.sum.evaluate(frames, self.charges[frames.types])
        if self.late is not None and (error := self.late(frames)) is not None:
            raise error
        return replace(
            near,
            energy=near.energy + np.bincount(frames.frame_idx, far.atom_energy, frames.n_frames),
            forces=near.forces - far.gradient,
            virial=near.virial + far.virial,
            atom_energy=near.atom_energy + far.atom_energy,
        )
