"""The Deep Potential (Zhang, Han, Wang, Car and E, PRL 120, 143001, 2018): a sum of atomic energies.

E = Σ_i [N_c(i)(D_i) + b_c(i)]      D_i the descriptor of atom i, N_c the fitting net of its species, b_c its bias
F_k = -dE/dx_k,   Ξ = -dE/dε        through the derivatives by the edge vectors r_ij
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dpserver import neighbors
from dpserver.errors import ConfigError
from dpserver.frames import Floats, ForceResult, Frames
from dpserver.models.compilation import TABLE_ERROR, Compilation
from dpserver.models.config import ModelConfig
from dpserver.models.descriptors import make_descriptor
from dpserver.models.fitting import Fitting
from dpserver.models.graph import Graph

PRECISIONS = {
    "double": (torch.float64, torch.float64),
    "mixed": (torch.float64, torch.float32),
    "single": (torch.float32, torch.float32),
}
"""Precision of the environment and of the networks; edge vectors come from and sums are made in float64 always."""


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


class Potential(nn.Module):
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
    """

    energy_bias: Tensor

    def __init__(self, config: ModelConfig, *, seed: int = 0, precision: str = "double") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = config
        self.species = tuple(config.type_map)
        self.template: tuple[str, ...] | None = None
        self.min_distance: Floats = np.full((len(self.species), len(self.species)), np.inf)
        self.descriptor = make_descriptor(config, generator)
        self.rcut = self.descriptor.rcut
        self.fitting = Fitting(config.fitting_net, self.descriptor.n_features, len(self.species), generator)
        self.register_buffer("energy_bias", torch.zeros(len(self.species), dtype=torch.float64))
        self._compilation: Compilation | None = None
        self.set_precision(precision)

    def set_precision(self, precision: str) -> None:
        """Choose the precision of environment and networks; statistics and sums stay in float64.

        Raises:
            ConfigError: the name is unknown.
        """
        if precision not in PRECISIONS:
            raise ConfigError(f"precision {precision!r} is unknown; expected one of {', '.join(PRECISIONS)}")
        self.precision = precision
        self.environment_dtype, self.network_dtype = PRECISIONS[precision]
        for parameter in self.parameters():
            parameter.data = parameter.data.to(self.network_dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.energy_bias.device

    def graph(self, frames: Frames) -> Graph:
        """Find the neighbours of a batch.

        Raises:
            StructureError: atoms overlap, or the density is absurd.
        """
        return Graph.build(frames, neighbors.build(frames, self.rcut), len(self.species), self.device)

    def atom_energies(self, graph: Graph, r_ij: Tensor) -> Tensor:
        """Energy of each atom, 0 for ghosts, (n_atoms,), float64, eV, from the edge vectors (n_edges, 3), Å."""
        outputs = self.fitting(graph, self.descriptor(graph, r_ij.to(self.environment_dtype)))
        energies = [output.squeeze(-1).double() + bias for output, bias in zip(outputs, self.energy_bias, strict=True)]
        return graph.by_atom(energies)

    def forward(self, graph: Graph, *, is_training: bool = False) -> Prediction:
        """Predict energies, and by differentiation forces and virials.

        Args:
            graph: the batch.
            is_training: keep what is needed to differentiate the forces by the weights.
        """
        with torch.enable_grad():
            r_ij = graph.vectors().requires_grad_()
            atom_energy = self.atom_energies(graph, r_ij)
            (edge_grad,) = torch.autograd.grad(
                atom_energy.sum(), r_ij, create_graph=is_training, materialize_grads=True
            )
        if not is_training:
            r_ij, atom_energy = r_ij.detach(), atom_energy.detach()
        n_atoms, n_frames = graph.frames.n_atoms, graph.frames.n_frames
        # F_k = Σ_{i→j: i=k} dE/dr_ij - Σ_{i→j: j=k} dE/dr_ij
        forces = edge_grad.new_zeros(n_atoms, 3).index_add(0, graph.centre, edge_grad)
        forces = forces.index_add(0, graph.neighbour, edge_grad, alpha=-1)
        # Ξ = -Σ_{i→j} dE/dr_ij ⊗ r_ij
        outer = -(edge_grad[:, :, None] * r_ij[:, None, :])
        virial = outer.new_zeros(n_frames, 3, 3).index_add(0, graph.frame_idx[graph.centre], outer)
        energy = atom_energy.new_zeros(n_frames).index_add(0, graph.frame_idx, atom_energy)
        return Prediction(energy, forces, virial, atom_energy)

    def accelerate(self, threads: int | None = None, table_error: float = TABLE_ERROR) -> None:
        """Let `evaluate` use the CPU kernels, where they know this model; see `Compilation`.

        Args:
            threads: that compute; by default one for each core available.
            table_error: of forces, relative to forces of typical size.

        Raises:
            ConfigError: a number that is not positive.
        """
        self._compilation = Compilation([self], threads, table_error)

    def warm_up(self) -> None:
        """Make now what the first evaluation would have to."""
        if self._compilation is not None:
            self._compilation.warm_up()

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch, the fastest way.

        Args:
            frames: structures, of any sizes; not changed.

        Returns:
            Arrays that belong to the caller, in eV and eV/Å.

        Raises:
            StructureError: a structure that has no answer, named with its cause.
        """
        if self._compilation is None:
            return self.reference(frames)
        return self._compilation.evaluate(frames)[0]

    def reference(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch by torch and its automatic differentiation; see `evaluate`."""
        frames.check(len(self.species))
        prediction: Prediction = self(self.graph(frames))
        return prediction.to_result(frames)
