"""The fast form of a potential with charges: kernels for its short range, and the sum of the charges beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from dpserver.errors import ConfigError
from dpserver.frames import Floats, ForceResult, Frames
from dpserver.models.electrostatics import sums_of
from dpserver.models.electrostatics_near import Near
from dpserver.models.electrostatics_sum import ChargeSum, Interaction
from dpserver.models.folding import Evaluate

if TYPE_CHECKING:
    from dpserver.models.potential import Potential


class WithCharges(ABC):
    """A potential with charges.

    Args:
        member: the potential.
        threads: that compute; by default one for each core available.
    """

    def __init__(self, member: Potential, threads: int | None) -> None:
        if member.electrostatics is None:
            raise ConfigError("the potential has no charges")
        self._member = member
        self._electrostatics = member.electrostatics
        self._sum = ChargeSum(member.electrostatics.config, threads)

    def __str__(self) -> str:
        return f"{self._near_in_words()}; beside it CPU kernels for the charges of all atoms"

    def warm_up(self) -> None:
        """Make now what the first evaluation would have to."""
        self._warm_up_near()
        self._sum.warm_up()

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch; see `Potential.evaluate`."""
        self._member.check(frames)
        self._electrostatics.check(frames)
        near, far = self._parts(frames)
        return ForceResult(
            near.energy + sums_of(frames, far.atom_energy),
            near.forces - far.gradient,
            near.virial + (far.virial + far.virial.transpose(0, 2, 1)) / 2,
            near.atom_energy + far.atom_energy,
            near.frame_idx,
        )

    @abstractmethod
    def charges(self, frames: Frames) -> Floats:
        """Charge of each atom of structures that `Potential.check` lets pass, (n_atoms,), e."""

    @abstractmethod
    def _parts(self, frames: Frames) -> tuple[ForceResult, Interaction]:
        """The part of short range, with all forces through charges, and the sum with the charges as they are."""

    @abstractmethod
    def _near_in_words(self) -> str:
        """What evaluates the part of short range."""

    @abstractmethod
    def _warm_up_near(self) -> None:
        """Make what it needs."""


class WithChargesOfSpecies(WithCharges):
    """A potential whose charges depend on the species alone.

    Args:
        member: the potential; its weights and charges are shared.
        prepare: makes the fast form of a potential without charges.
        threads: that compute; by default one for each core available.
    """

    def __init__(self, member: Potential, prepare: Callable[[Potential], Evaluate], threads: int | None) -> None:
        super().__init__(member, threads)
        self._bare = member.without_charges()
        self._near = prepare(self._bare)

    def charges(self, frames: Frames) -> Floats:
        """Charge of each atom, (n_atoms,), e."""
        return self._electrostatics.by_species(frames)

    def _parts(self, frames: Frames) -> tuple[ForceResult, Interaction]:
        near = self._near(frames)  # first: it refuses atoms at one place
        return near, self._sum.evaluate(frames, self.charges(frames))

    def _near_in_words(self) -> str:
        return "; ".join(self._bare.evaluated_by())

    def _warm_up_near(self) -> None:
        for compiled in self._bare.compiled():
            if compiled is not None:
                compiled.warm_up()


class WithChargesOfSurroundings(WithCharges):
    """A potential whose charges depend on the surroundings of each atom.

    Forces and virials through the charges are those of Σ_i w_i h(D_i), w the derivative of the sum by charges before
    they are shifted to their total: exact, and found together with those of the nets of energies.

    Args:
        member: the potential; its weights are shared.
        near: its part of short range.
        threads: that compute; by default one for each core available.
    """

    def __init__(self, member: Potential, near: Near, threads: int | None) -> None:
        super().__init__(member, threads)
        self._near = near

    def charges(self, frames: Frames) -> Floats:
        """Charge of each atom, (n_atoms,), e."""
        changed = self._near.charges(frames)
        return self._electrostatics.shifted(frames, self._electrostatics.of_species(frames) + changed)

    def _parts(self, frames: Frames) -> tuple[ForceResult, Interaction]:
        far = self._sum.evaluate(frames, self.charges(frames))
        return self._near.respond(frames, self._electrostatics.before_shift(frames, far.potential)), far

    def _near_in_words(self) -> str:
        return str(self._near)

    def _warm_up_near(self) -> None:
        self._near.warm_up()
