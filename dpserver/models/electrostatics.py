"""Charges of atoms, and the energy that their interaction adds to the nets of short range.

    q_i = q_c(i) + s h_c(D_i) + (Q - Σ_j …)/N

q_c the charge of a species, h_c a net that sees the descriptor D_i of the atom (where there is one), s its scale. Where
charges are learnt, the last term shifts all of them by the same amount, so that those of a structure add up to Q
exactly. What charges do to each other says `coulomb`; their energy is that of Gaussians, and what points would add
within the cutoff is left to the nets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from dpserver.errors import StructureError
from dpserver.frames import Floats, Frames, Ints
from dpserver.models.config import ElectrostaticsConfig, FittingConfig
from dpserver.models.coulomb import SmearedCoulomb, periodicity
from dpserver.models.description import Description
from dpserver.models.fitting import Fitting
from dpserver.models.graph import Graph
from dpserver.models.wholes import totals

_TOLERANCE = 1e-6
_CAUSES = "the structure has other molecules, or lacks atoms"


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the atoms are, as tensors to differentiate by.

    Attributes:
        positions: (n_atoms, 3), float64, Å.
        strain: of each frame, ε in x' = (1 + ε) x, (n_frames, 3, 3).
        cell: before the strain, (n_frames, 3, 3), Å.
    """

    positions: Tensor
    strain: Tensor
    cell: Tensor

    @classmethod
    def of(cls, graph: Graph) -> Placement:
        """Of a batch, without strain."""
        cell = torch.tensor(graph.frames.cell, device=graph.positions.device)
        return cls(graph.positions.detach().clone(), torch.zeros_like(cell), cell)

    def requires_grad_(self) -> Placement:
        """Follow what is computed from it; returns itself."""
        self.positions.requires_grad_()
        self.strain.requires_grad_()
        return self

    def strained(self, frame: int, atoms: slice) -> tuple[Tensor, Tensor]:
        """Positions, (n, 3), and cell, (3, 3), of a frame under its strain."""
        x, h, strain = self.positions[atoms], self.cell[frame], self.strain[frame].T
        return x + x @ strain, h + h @ strain


class Electrostatics(nn.Module):
    """The charges of a model and their interaction.

    Args:
        config: what is said of them.
        species: symbol of each type.
        n_features: of a descriptor.
        generator: source of the initial weights.
        is_shared: one net for all species, where they have nets.

    Attributes:
        config: the same.
        charges: of each species, (n_species,), e; a parameter where they are trained.
        nets: for what the neighbours change; None without.
        coulomb: sums the interaction.
    """

    charges: Tensor

    def __init__(
        self,
        config: ElectrostaticsConfig,
        species: Sequence[str],
        n_features: int,
        generator: torch.Generator,
        *,
        is_shared: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.coulomb = SmearedCoulomb(config)
        charges = torch.tensor([config.charges[name] for name in species], dtype=torch.float64)
        if config.trainable:
            self.charges = nn.Parameter(charges)
        else:
            self.register_buffer("charges", charges)
        self.nets: Fitting | None = None
        if (net := config.environment) is not None:
            given = FittingConfig(neuron=net.neuron, activation_function=net.activation_function)
            self.nets = Fitting(given, n_features, len(species), generator, is_shared=is_shared)

    def check(self, frames: Frames) -> None:
        """Refuse structures that have no answer; see `checked`."""
        checked(self.config, frames, self.of_species(frames))

    def of_species(self, frames: Frames) -> Floats:
        """Charge that the species of each atom has, (n_atoms,), e."""
        values: Floats = self.charges.detach().double().cpu().numpy()
        return values[frames.types]

    def by_species(self, frames: Frames) -> Floats:
        """Charge of each atom where its species decides, (n_atoms,), e."""
        charges = self.of_species(frames)
        if self.config.is_fixed:
            return charges
        return self.shifted(frames, charges)

    def shifted(self, frames: Frames, charges: Floats) -> Floats:
        """Charges that are learnt, all of a structure shifted by the same amount, so that they add up.

        Args:
            frames: the structures.
            charges: as species and surroundings have them, (n_atoms,), e.
        """
        total = self.config.total_charge or 0.0
        found: Floats = charges + (total / counts_of(frames) - means_of(frames, charges))[frames.frame_idx]
        return found

    def before_shift(self, frames: Frames, potential: Floats) -> Floats:
        """Derivatives of an energy by charges before they are `shifted`, from those by charges after it.

        A charge moves those of all N atoms of its structure by -1/N, so that dE/dq_i is φ_i less the mean of all φ.

        Args:
            frames: the structures.
            potential: φ, (n_atoms,), eV/e.
        """
        found: Floats = potential - means_of(frames, potential)[frames.frame_idx]
        return found

    def of_atoms(self, graph: Graph, descriptions: Sequence[Description] | None = None) -> Tensor:
        """Charge of each atom, (n_atoms,), float64, e.

        Args:
            graph: the batch.
            descriptions: of the atoms of each species; needed where there are nets.
        """
        charges = graph.by_atom([q.double().expand(len(a)) for q, a in zip(self.charges, graph.atoms, strict=True)])
        if self.nets is not None:
            charges = charges + self.of_surroundings(graph, descriptions)
        if self.config.is_fixed:
            return charges
        counts = torch.tensor(graph.frames.counts, dtype=torch.float64, device=charges.device)
        sums = charges.new_zeros(len(counts)).index_add(0, graph.frame_idx, charges)
        return charges + (((self.config.total_charge or 0.0) - sums) / counts)[graph.frame_idx]

    def of_surroundings(self, graph: Graph, descriptions: Sequence[Description] | None) -> Tensor:
        """What surroundings change of the charge of each atom, (n_atoms,), float64, e.

        Args:
            graph: the batch.
            descriptions: of the atoms of each species, where there is a descriptor.
        """
        if self.nets is None or self.config.environment is None or descriptions is None:
            return graph.positions.new_zeros(len(graph.positions))
        outputs = self.nets(graph, descriptions)
        return self.config.environment.scale * graph.by_atom([y[:, 0].double() for y in outputs])

    def energies(self, graph: Graph, charges: Tensor, placement: Placement) -> Tensor:
        """Energy of each atom in the potential of all others, ½ q_i φ_i, (n_atoms,), eV.

        Args:
            graph: the batch.
            charges: of its atoms, (n_atoms,), e.
            placement: where they are.

        Raises:
            StructureError: a structure has no answer, see `checked`.
            ConfigError: torch-pme is not installed.
        """
        self.check(replace(graph.frames, wholes=None))  # torch cannot sum over parts
        offsets, found = graph.frames.offsets.tolist(), []
        for k in range(graph.frames.n_frames):
            atoms = slice(offsets[k], offsets[k + 1])
            x, cell = placement.strained(k, atoms)
            is_periodic = bool(periodicity(graph.frames.pbc[k]))
            found.append(self.coulomb.potentials(charges[atoms], x, cell, is_periodic=is_periodic))
        return 0.5 * charges * torch.cat(found) if found else charges


def sums_of(frames: Frames, values: Floats) -> Floats:
    """Sum a quantity of atoms over each frame, (n_frames,)."""
    found: Floats = np.bincount(frames.frame_idx, weights=values, minlength=frames.n_frames).astype(np.float64)
    return found


def means_of(frames: Frames, values: Floats) -> Floats:
    """Mean of a quantity of atoms in each structure, over all its parts where frames are parts, (n_frames,)."""
    found: Floats = totals(frames, values[:, None])[:, 0] / counts_of(frames)
    return found


def counts_of(frames: Frames) -> Ints:
    """Atoms of each structure, that a frame may be a part of, (n_frames,)."""
    wholes = frames.wholes
    return frames.counts if wholes is None else np.where(wholes.is_part, wholes.counts, frames.counts)


def checked(config: ElectrostaticsConfig, frames: Frames, charges: Floats, causes: str = _CAUSES) -> None:
    """Refuse structures whose charges have no energy here.

    Args:
        config: what is said of the charges.
        frames: the structures.
        charges: of their atoms by species alone, (n_atoms,), e.
        causes: why they may not add up.

    Raises:
        StructureError: a structure is periodic in some directions only, comes in parts that are not evaluated together,
            or its fixed charges do not add up; parts of one are taken to have been looked at as a whole.
    """
    if frames.wholes is None and frames.is_ghost is not None and frames.is_ghost.any():
        raise StructureError("a model with charges needs whole structures, got one in parts (with ghosts)")
    mixed = np.flatnonzero(frames.pbc.any(axis=1) != frames.pbc.all(axis=1))
    if len(mixed):
        k = int(mixed[0])
        raise StructureError(
            f"the cell{frames.of_frame(k)} is periodic in {int(frames.pbc[k].sum())} of 3 directions; charges interact "
            "here in periodic structures or in open ones: give the slab or the wire a cell with room around it, "
            "periodic in all three"
        )
    if not config.is_fixed or config.total_charge is None:
        return
    sums = sums_of(frames, charges)
    is_wrong = np.abs(sums - config.total_charge) > _TOLERANCE * np.maximum(1, frames.counts)
    wrong = np.flatnonzero(is_wrong if frames.wholes is None else is_wrong & ~frames.wholes.is_part)
    if len(wrong):
        k = int(wrong[0])
        raise StructureError(
            f"the charges{frames.of_frame(k)} add up to {sums[k]:+.6g} e, the model is for {config.total_charge:+g} e "
            f"(electrostatics.total_charge): {causes}"
        )
