"""A committee for tests of the serving half: no torch, and members that are known each by itself."""

from __future__ import annotations

import numpy as np

from dpserver.frames import CommitteeResult, ForceResult, Frames
from tests.doubles import PairModel

# Their mean is the default of `PairModel`.
STIFFNESSES = ((0.8, 0.35, 0.2), (0.9, 0.3, 0.15), (0.7, 0.4, 0.25))


class PairCommittee(PairModel):
    """The mean of pair models of different stiffness.

    Args:
        options: of every member.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.members = [PairModel(stiffness, **options) for stiffness in STIFFNESSES]  # type: ignore[arg-type]

    def evaluate(self, frames: Frames) -> ForceResult:
        self.batches.append(frames.n_frames)
        results = [member.evaluate(frames) for member in self.members]
        committee = CommitteeResult(
            *(np.stack([getattr(r, n) for r in results]) for n in ("energy", "forces", "virial"))
        )
        mean = (getattr(committee, name).mean(axis=0) for name in ("energy", "forces", "virial"))
        atom_energy = np.mean([r.atom_energy for r in results], axis=0)
        return ForceResult(*mean, atom_energy, frames.frame_idx.copy(), committee)
