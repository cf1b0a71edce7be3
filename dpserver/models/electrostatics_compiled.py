"""The fast form of a potential with charges: kernels for its short range, and the sum of the charges beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dpserver.errors import ConfigError
from dpserver.frames import ForceResult, Frames
from dpserver.models.electrostatics_sum import ChargeSum

if TYPE_CHECKING:
    from dpserver.models.potential import Potential

Evaluate = Callable[[Frames], ForceResult]


class WithCharges:
    """A potential whose charges depend on the species alone.

    Args:
        member: the potential; its weights are shared, its charges copied.
        prepare: makes the fast form of a potential without charges.
        threads: that compute; by default one for each core available.
    """

    def __init__(self, member: Potential, prepare: Callable[[Potential], Evaluate], threads: int | None) -> None:
        if member.electrostatics is None:
            raise ConfigError("the potential has no charges")
        self._member = member
        self._electrostatics = member.electrostatics
        self._sum = ChargeSum(member.electrostatics.config, threads)
        self._bare = member.without_charges()
        self._near = prepare(self._bare)

    def __str__(self) -> str:
        return f"{'; '.join(self._bare.evaluated_by())}; beside it CPU kernels for the charges of all atoms"

    def warm_up(self) -> None:
        """Make now what the first evaluation would have to."""
        self._bare.warm_up()
        self._sum.warm_up()

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch; see `Potential.evaluate`."""
        self._member.check(frames)
        self._electrostatics.check(frames)
        found = self._near(frames)  # first: it refuses atoms at one place
        far = self._sum.evaluate(frames, self._electrostatics.by_species(frames))
        energy = np.bincount(frames.frame_idx, weights=far.atom_energy, minlength=frames.n_frames)
        return ForceResult(
            found.energy + energy,
            found.forces - far.gradient,
            found.virial + far.virial,
            found.atom_energy + far.atom_energy,
            found.frame_idx,
        )
