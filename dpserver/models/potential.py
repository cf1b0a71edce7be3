"""The Deep Potential (Zhang, Han, Wang, Car and E, PRL 120, 143001, 2018): a sum of atomic energies.

E = Σ_i [N_c(i)(D_i) + b_c(i)]      D_i the descriptor of atom i, N_c the fitting net of its species, b_c its bias;
                                    a table of pair energies may join in, see `pair_table`, and charges that
                                    interact at all distances, see `electrostatics`
F_k = -dE/dx_k,   Ξ = -dE/dε        through the derivatives by the edge vectors r_ij
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpserver.errors import ConfigError
from dpserver.frames import Floats, ForceResult, Frames
from dpserver.models.atomic import AtomicModel
from dpserver.models.compilable import Compilable
from dpserver.models.config import EnergyFittingConfig, ModelConfig
from dpserver.models.description import Description
from dpserver.models.descriptors import make_descriptor
from dpserver.models.electrostatics import Electrostatics, Placement
from dpserver.models.fitting import Fitting
from dpserver.models.graph import Graph
from dpserver.models.kept_tables import KeptTables
from dpserver.models.no_descriptor import NoDescriptor
from dpserver.models.pair_table import PairTable, Switch


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of a batch, as tensors that may still be differentiated.

    Attributes:
        energy: (n_frames,), float64, eV.
        forces: (n_atoms, 3), float64, eV/Å.
        virial: -dE/d(strain), (n_frames, 3, 3), float64, eV.
        atom_energy: (n_atoms,), float64, eV.
    """

    energy: Tensor
    forces: Tensor
    virial: Tensor
    atom_energy: Tensor

    @classmethod
    def of_derivatives(
        cls, graph: Graph, r_ij: Tensor, atom_energy: Tensor, edge_grad: Tensor, far: Sequence[Tensor] = ()
    ) -> Prediction:
        """Sum up energies, forces and virials.

        Args:
            graph: the batch.
            r_ij: its edge vectors, (n_edges, 3), Å.
            atom_energy: (n_atoms,), eV.
            edge_grad: derivatives of the energy by the edge vectors, (n_edges, 3), eV/Å.
            far: its derivatives by the positions and the strains for what does not go by edges, (n_atoms, 3), eV/Å, and
                (n_frames, 3, 3), eV.
        """
        n_atoms, n_frames = graph.frames.n_atoms, graph.frames.n_frames
        # F_k = Σ_{i→j: i=k} dE/dr_ij - Σ_{i→j: j=k} dE/dr_ij
        forces = edge_grad.new_zeros(n_atoms, 3).index_add(0, graph.centre, edge_grad)
        forces = forces.index_add(0, graph.neighbour, edge_grad, alpha=-1)
        # Ξ = -Σ_{i→j} dE/dr_ij ⊗ r_ij
        outer = -(edge_grad[:, :, None] * r_ij[:, None, :])
        virial = outer.new_zeros(n_frames, 3, 3).index_add(0, graph.frame_idx[graph.centre], outer)
        if far:
            forces, virial = forces - far[0], virial - far[1]
        energy = atom_energy.new_zeros(n_frames).index_add(0, graph.frame_idx, atom_energy)
        return cls(energy, forces, virial, atom_energy)

    def to_result(self, frames: Frames) -> ForceResult:
        """The numbers for the caller, in arrays of its own.

        Args:
            frames: what was evaluated.
        """
        virial = (self.virial + self.virial.transpose(1, 2)) / 2
        return ForceResult(
            self.energy.cpu().numpy(),
            self.forces.cpu().numpy(),
            virial.cpu().numpy(),
            self.atom_energy.cpu().numpy(),
            frames.frame_idx.copy(),
        )


class Potential(Compilable, AtomicModel):
    """A Deep Potential with random weights; `train` fits them and `load` brings trained ones.

    Args:
        config: species, descriptor and fitting net.
        seed: seed of the initial weights.
        precision: `double`, `mixed` (networks in float32) or `single` (environment in float32 too).

    Attributes:
        species: symbol of each type.
        rcut: cutoff radius, Å.
        template: symbol of each atom of the training structures, where all share one order, else None.
        min_distance: smallest distance seen in training of each pair of species, (n_species, n_species), Å; inf where
            the pair was never met.
        crowd_distance: the same of pairs in numbers, see `neighbors.crowds`; inf where nothing is known.
        table: pair energies beside the net or in its place; None where there are none.
        electrostatics: charges of the atoms; None where there are none.
        absent: species whose atoms have no energy.
        vacuum_removed: species whose atoms have only their bias in an empty environment (`atom_ener`).
        tables: of the embedding nets, that the model file holds; None where it holds none.

    Raises:
        ConfigError: the fitting net is not one of energies.
    """

    energy_bias: Tensor

    def __init__(self, config: ModelConfig, *, seed: int = 0, precision: str = "double") -> None:
        super().__init__(config)
        if not isinstance(config.fitting_net, EnergyFittingConfig):
            raise ConfigError(f"fitting_net.type: a potential needs ener, got {config.fitting_net.type}")
        generator = torch.Generator().manual_seed(seed)
        self.descriptor = make_descriptor(config, generator)
        self.rcut = config.rcut
        self.fitting = Fitting(
            config.fitting_net,
            self.descriptor.n_features,
            0 if isinstance(self.descriptor, NoDescriptor) else len(self.species),
            generator,
            is_shared=config.descriptor.embeds_types,
        )
        self.fitting.freeze()
        self.absent = tuple(sorted(set(config.atom_exclude_types)))
        self.vacuum_removed = _vacuum_removed(config.fitting_net, len(self.species))
        self.register_buffer("energy_bias", torch.zeros(len(self.species), dtype=torch.float64))
        self.table = _make_table(config)
        self.electrostatics: Electrostatics | None = None
        if config.electrostatics is not None:
            self.electrostatics = Electrostatics(
                config.electrostatics,
                self.species,
                self.descriptor.n_features,
                generator,
                is_shared=config.descriptor.embeds_types,
            )
        self.tables: KeptTables | None = None
        self.set_precision(precision)

    @property
    def members(self) -> tuple[Potential, ...]:
        """The potential alone."""
        return (self,)

    def without_charges(self) -> Potential:
        """The same model without its charges: what has a short range. It has the same weights, not copies of them."""
        bare = copy.copy(self)
        bare.config = self.config.model_copy(update={"electrostatics": None})
        bare._modules = {**self._modules, "electrostatics": None}
        bare._compilation = None
        return bare

    def atom_energies(self, graph: Graph, r_ij: Tensor, placement: Placement | None = None) -> Tensor:
        """Energy of each atom, 0 for ghosts.

        Args:
            graph: the batch.
            r_ij: edge vectors, (n_edges, 3), Å, to differentiate the part of short range by.
            placement: positions and strains to differentiate the interaction of charges by.

        Returns:
            (n_atoms,), float64, eV.
        """
        return self.energies_of(graph, self.describe(graph, r_ij), r_ij, placement)

    def energies_of(
        self, graph: Graph, described: list[Description] | None, r_ij: Tensor, placement: Placement | None = None
    ) -> Tensor:
        """Energy of each atom from the descriptors of the atoms of each species; see `atom_energies`."""
        net = graph.by_atom(self._net_energies(graph, described))
        bias = graph.by_atom([b.expand(len(atoms)) for b, atoms in zip(self.energy_bias, graph.atoms, strict=True)])
        energies = net + bias if self.table is None else self.table.join(graph, r_ij, net, bias)
        absent = [graph.atoms[c] for c in self.absent]
        energies = energies.index_fill(0, torch.cat(absent), 0.0) if absent else energies
        if self.electrostatics is None:
            return energies
        charges = self.electrostatics.of_atoms(graph, described)
        where = Placement.of(graph) if placement is None else placement
        return energies + self.electrostatics.energies(graph, charges, where)

    def charges(self, frames: Frames) -> Floats:
        """Charge of each atom, (n_atoms,), e; zeros where the model has none.

        Raises:
            StructureError: a structure that has no answer, named with its cause.
        """
        self.check(frames)
        if self.electrostatics is None:
            return np.zeros(frames.n_atoms)
        if self._compilation is not None and (fast := self._compilation.charged()) is not None:
            return fast.charges(frames)
        with torch.no_grad():
            graph = self.graph(frames)
            described = None if self.electrostatics.nets is None else self.describe(graph, graph.vectors())
            return self.electrostatics.of_atoms(graph, described).cpu().numpy()

    def describe(self, graph: Graph, r_ij: Tensor) -> list[Description] | None:
        """The descriptors of the atoms of each species; None without a descriptor."""
        if not len(self.fitting):
            return None
        if self.descriptor.rcut < self.rcut:
            graph, edges = graph.within(self.descriptor.rcut)
            r_ij = r_ij.index_select(0, edges)
        described: list[Description] = self.descriptor(graph, r_ij.to(self.environment_dtype))
        return described

    def _net_energies(self, graph: Graph, described: Sequence[Description] | None) -> list[Tensor]:
        """What the nets say of the atoms of each species, (n,), float64, eV."""
        if described is None:
            return [graph.positions.new_zeros(len(atoms)) for atoms in graph.atoms]
        outputs = self.fitting(graph, described)
        for c in self.vacuum_removed:
            parameters = self.fitting.parameters_of(graph)
            mine = None if parameters is None else parameters[graph.atoms[c]]
            outputs[c] = outputs[c] - self.fitting.vacuum(c, mine)
        return [output.squeeze(-1).double() for output in outputs]

    def forward(self, graph: Graph, *, is_training: bool = False) -> Prediction:
        """Predict energies, and by differentiation forces and virials.

        Args:
            graph: the batch.
            is_training: keep what is needed to differentiate the forces by the weights.
        """
        with torch.enable_grad():
            r_ij = graph.vectors().requires_grad_()
            placement = None if self.electrostatics is None else Placement.of(graph).requires_grad_()
            atom_energy = self.atom_energies(graph, r_ij, placement)
            variables = [r_ij] if placement is None else [r_ij, placement.positions, placement.strain]
            edge_grad, *far = torch.autograd.grad(
                atom_energy.sum(), variables, create_graph=is_training, materialize_grads=True
            )
        if not is_training:
            r_ij, atom_energy = r_ij.detach(), atom_energy.detach()
        return Prediction.of_derivatives(graph, r_ij, atom_energy, edge_grad, far)

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch, the fastest way.

        Args:
            frames: structures, of any sizes, or none; not changed.

        Returns:
            Arrays that belong to the caller, in eV and eV/Å.

        Raises:
            StructureError: a structure that has no answer, named with its cause.
        """
        if self._compilation is None:
            return self.reference(frames)
        self.fitting.check(frames)
        return self._compilation.evaluate(frames)[0]

    def reference(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch by torch and its automatic differentiation; see `evaluate`."""
        self.check(frames)
        prediction: Prediction = self(self.graph(frames))
        return prediction.to_result(frames)


def _make_table(config: ModelConfig) -> PairTable | None:
    """The table of pair energies that a model has, if any; its numbers are not known yet.

    Raises:
        ConfigError: its file has not been read.
    """
    if config.use_srtab is not None:
        raise ConfigError(
            f"use_srtab is the file {config.use_srtab}; a model needs the table, as `dpserver train` reads it"
        )
    if config.pair_table is None:
        return None
    unseen = frozenset(pair for a, b in config.pair_exclude_types for pair in ((a, b), (b, a)))
    switch = None
    if config.sw_rmin is not None and config.sw_rmax is not None:
        switch = Switch(config.smin_alpha, config.sw_rmin, config.sw_rmax, config.srtab_add_bias)
    return PairTable(config.pair_table, len(config.type_map), switch, unseen)


def _vacuum_removed(config: EnergyFittingConfig, n_species: int) -> tuple[int, ...]:
    """The species that have an energy in vacuum."""
    return tuple(c for c in range(n_species) if config.given_energies and config.given_energies[c] is not None)
