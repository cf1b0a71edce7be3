"""Several potentials trained alike: their mean serves, and how far they lie apart tells where it is not to be trusted.

⟨E⟩ = (1/M) Σ_m E_m, and so for forces, virials and atomic energies: the mean of conservative forces is conservative.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dpserver.errors import ConfigError
from dpserver.frames import CommitteeResult, Floats, ForceResult, Frames
from dpserver.models.compilable import Compilable
from dpserver.models.parameters import Takes, check_parameters
from dpserver.models.potential import Potential


class Committee(Compilable):
    """The mean of several potentials, evaluated together.

    Args:
        members: at least one, on one device, with the same species in the same order.

    Attributes:
        species: symbol of each type.
        rcut: largest cutoff radius of the members, Å.
        template: symbol of each atom of the training structures, where it is that of all members, else None.
        min_distance: smallest distance that any member has seen in training of each pair of species, (n_species,
            n_species), Å; inf where none has met the pair.
        crowd_distance: the same of pairs in numbers, see `neighbors.crowds`; inf unless all members know it.
        takes: the parameters that all members take beside a structure.

    Raises:
        ConfigError: there is no member, or their species or parameters differ.
    """

    def __init__(self, members: Sequence[Potential]) -> None:
        if not members:
            raise ConfigError("a committee needs at least one member")
        self._members = tuple(members)
        self.species = self.members[0].species
        for k, member in enumerate(self.members):
            check_species(member.species, self.species, f"member {k + 1}", "member 1")
        self.rcut = max(member.rcut for member in self.members)
        templates = {member.template for member in self.members}
        self.template = templates.pop() if len(templates) == 1 else None
        self.min_distance: Floats = np.min([member.min_distance for member in self.members], axis=0)
        self.crowd_distance = _common_crowds(self.members)
        self.takes = _common_parameters(self.members)

    @property
    def device(self) -> torch.device:
        """Where the members compute."""
        return self.members[0].device

    @property
    def members(self) -> tuple[Potential, ...]:
        """The potentials."""
        return self._members

    def evaluate(self, frames: Frames) -> ForceResult:
        """Mean energies, forces and virials of a batch, and those of the members.

        Args:
            frames: structures, of any sizes, or none; not changed.

        Returns:
            Arrays that belong to the caller, in eV and eV/Å, with `committee`.

        Raises:
            StructureError: a structure that has no answer, named with its cause.
        """
        n_fparam, n_aparam, has_default, _ = self.takes
        check_parameters(frames, n_fparam, n_aparam, has_default_fparam=has_default)
        return _mean(self._evaluate_each(frames))

    def _evaluate_each(self, frames: Frames) -> list[ForceResult]:
        """The answer of each member; members of one cutoff share the neighbour list and all that is made of it."""
        if self._compilation is not None:
            return self._compilation.evaluate(frames)
        frames.check(len(self.species))
        graphs = {member.rcut: member.graph(frames) for member in {m.rcut: m for m in self.members}.values()}
        return [member(graphs[member.rcut]).to_result(frames) for member in self.members]


def check_species(species: Sequence[str], expected: Sequence[str], name: str, other: str) -> None:
    """Refuse a member whose types mean something else than those of the others.

    Args:
        species: of the member.
        expected: of the committee.
        name: of the member, for the message.
        other: of one whose species are expected.

    Raises:
        ConfigError: they differ, or come in another order.
    """
    if tuple(species) != tuple(expected):
        raise ConfigError(
            f"{name} knows the species {' '.join(species)}, {other} {' '.join(expected)}; the members of a committee "
            "need the same type_map, in the same order"
        )


def _common_crowds(members: Sequence[Potential]) -> Floats:
    """The smallest of all members, inf where one knows nothing of a pair."""
    found = np.stack([member.crowd_distance for member in members])
    return np.where(np.isfinite(found).all(axis=0), found.min(axis=0), np.inf)


def _common_parameters(members: Sequence[Potential]) -> Takes:
    """The parameters that each member takes.

    Raises:
        ConfigError: not all take the same number, or only some have a default, or another one.
    """
    for k, member in enumerate(members):
        if member.takes != members[0].takes:
            raise ConfigError(
                f"member {k + 1} takes {member.takes.n_fparam} parameters of frames (fparam, by default "
                f"{member.takes.default_fparam}) and {member.takes.n_aparam} of atoms (aparam), member 1 "
                f"{members[0].takes.n_fparam} ({members[0].takes.default_fparam}) and {members[0].takes.n_aparam}; the "
                "members of a committee need the same ones"
            )
    return members[0].takes


def _mean(results: Sequence[ForceResult]) -> ForceResult:
    """The mean of the members' answers to one batch, and these answers."""
    committee = CommitteeResult(
        np.stack([r.energy for r in results]),
        np.stack([r.forces for r in results]),
        np.stack([r.virial for r in results]),
    )
    return ForceResult(
        committee.energy.mean(axis=0),
        committee.forces.mean(axis=0),
        committee.virial.mean(axis=0),
        np.mean([r.atom_energy for r in results], axis=0),
        results[0].frame_idx,
        committee,
    )
