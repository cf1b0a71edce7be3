"""Charges of atoms, and the energy that their interaction adds to the nets of short range.

    q_i = q_c(i) + s h_c(D_i) + (Q - Σ_j …)/N

q_c the charge of a species, h_c a net that sees the descriptor D_i of the atom (where there is one), s its scale. Where
charges are learnt, the last term shifts all of them by the same amount, so that those of a structure add up to Q
exactly. What charges do to each other says `coulomb`; their energy is that of Gaussians, and what points would add
within the cutoff is left to the nets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dpserver.errors import StructureError
from dpserver.frames import Floats, Frames
from dpserver.models.config import ElectrostaticsConfig, FittingConfig
from dpserver.models.coulomb import SmearedCoulomb, periodicity
from dpserver.models.description import Description
from dpserver.models.fitting import Fitting
from dpserver.models.graph import Graph

_TOLERANCE = 1e-6


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
        checked(self.config, frames, self._of_species[frames.types])

    @property
    def _of_species(self) -> Floats:
        """(n_species,), e."""
        values: Floats = self.charges.detach().double().cpu().numpy()
        return values

    def by_species(self, frames: Frames) -> Floats:
        """Charge of each atom where its species decides, (n_atoms,), e."""
        charges = self._of_species[frames.types]
        if self.config.is_fixed:
            return charges
        counts, total = frames.counts, self.config.total_charge or 0.0
        sums = np.bincount(frames.frame_idx, weights=charges, minlength=frames.n_frames)
        shifted: Floats = charges + ((total - sums) / counts)[frames.frame_idx]
        return shifted

    def of_atoms(self, graph: Graph, descriptions: Sequence[Description] | None = None) -> Tensor:
        """Charge of each atom, (n_atoms,), float64, e.

        Args:
            graph: the batch.
            descriptions: of the atoms of each species; needed where there are nets.
        """
        charges = graph.by_atom([q.double().expand(len(a)) for q, a in zip(self.charges, graph.atoms, strict=True)])
        if self.nets is not None and self.config.environment is not None and descriptions is not None:
            outputs = self.nets(graph, descriptions)
            charges = charges + self.config.environment.scale * graph.by_atom([y[:, 0].double() for y in outputs])
        if self.config.is_fixed:
            return charges
        counts = torch.tensor(graph.frames.counts, dtype=torch.float64, device=charges.device)
        sums = charges.new_zeros(len(counts)).index_add(0, graph.frame_idx, charges)
        return charges + (((self.config.total_charge or 0.0) - sums) / counts)[graph.frame_idx]

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
        self.check(graph.frames)
        offsets, found = graph.frames.offsets.tolist(), []
        for k in range(graph.frames.n_frames):
            atoms = slice(offsets[k], offsets[k + 1])
            x, cell = placement.strained(k, atoms)
            is_periodic = bool(periodicity(graph.frames.pbc[k]))
            found.append(self.coulomb.potentials(charges[atoms], x, cell, is_periodic=is_periodic))
        return 0.5 * charges * torch.cat(found) if found else charges


def checked(config: ElectrostaticsConfig, frames: Frames, charges: Floats) -> None:
    """Refuse structures whose charges have no energy here.

    Args:
        config: what is said of the charges.
        frames: the structures.
        charges: of their atoms by species alone, (n_atoms,), e.

    Raises:
        StructureError: a structure is periodic in some directions only, comes in parts, or its fixed charges do not add
            up.
    """
    if frames.is_ghost is not None and frames.is_ghost.any():
        raise StructureError("a model with charges needs whole structures, got one in parts (with ghosts)")
    mixed = np.flatnonzero(frames.pbc.any(axis=1) != frames.pbc.all(axis=1))
    if len(mixed):
        k = int(mixed[0])
        raise StructureError(
            f"frame {k} is periodic in {int(frames.pbc[k].sum())} of 3 directions; charges interact here in periodic "
            "structures or in open ones: give the slab or the wire a cell with room around it, periodic in all three"
        )
    if not config.is_fixed or config.total_charge is None:
        return
    sums = np.bincount(frames.frame_idx, weights=charges, minlength=frames.n_frames)
    wrong = np.flatnonzero(np.abs(sums - config.total_charge) > _TOLERANCE * np.maximum(1, frames.counts))
    if len(wrong):
        k = int(wrong[0])
        raise StructureError(
            f"the charges of frame {k} add up to {sums[k]:+.6g} e, the model is for {config.total_charge:+g} e "
            "(electrostatics.total_charge): the structure has other molecules, or lacks atoms"
        )
