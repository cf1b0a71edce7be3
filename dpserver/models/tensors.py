"""Dipoles and polarizabilities: sums of atomic vectors and tensors, which turn with the structure.

With M_j the directions of an atom's descriptor, vectors that turn with its neighbours, and y the outputs of the
fitting net of its species, which do not:

    μ_i = Σ_j y_j M_j                                a dipole of each atom
    α_i = s_c Σ_jk Y_jk M_j ⊗ M_k + b_c 1            a polarizability; Y is diagonal or symmetric, s_c a scale

    μ = Σ_i μ_i,   α = Σ_i α_i,   Z_k = dμ/dx_k      the charges of Born, which sum to 0
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpserver.errors import ConfigError
from dpserver.frames import Frames, TensorValues
from dpserver.models.atomic import AtomicModel
from dpserver.models.config import ModelConfig, PolarFittingConfig, TensorFittingConfig
from dpserver.models.description import Description
from dpserver.models.descriptors import make_descriptor
from dpserver.models.fitting import Fitting
from dpserver.models.graph import Graph


@dataclass(frozen=True, eq=False)
class TensorPrediction:
    """What a model of dipoles or polarizabilities says of a batch, as tensors that may still be differentiated.

    Attributes:
        total: (n_frames, 3) or (n_frames, 3, 3), float64.
        atoms: what each atom adds, (n_atoms, 3) or (n_atoms, 3, 3), float64.
    """

    total: Tensor
    atoms: Tensor


class TensorModel(AtomicModel):
    """A model of dipoles or polarizabilities with random weights; `train` fits them, `load_tensor` brings trained ones.

    Args:
        config: species, descriptor and fitting net.
        seed: seed of the initial weights.
        precision: `double`, `mixed` (networks in float32) or `single` (environment in float32 too).

    Attributes:
        kind: `dipole` or `polar`.
        selected: species whose atoms carry a vector or tensor; those of the others are zero.
        shift: b_c of each species, (n_species,), float64; there for polarizabilities.

    Raises:
        ConfigError: the fitting net is one of energies, or the descriptor has no directions.
    """

    shift: Tensor

    def __init__(self, config: ModelConfig, *, seed: int = 0, precision: str = "double") -> None:
        super().__init__(config)
        fitting, n_species = config.fitting_net, len(config.type_map)
        if not isinstance(fitting, TensorFittingConfig):
            raise ConfigError(f"fitting_net.type: a model of tensors needs dipole or polar, got {fitting.type}")
        generator = torch.Generator().manual_seed(seed)
        self.descriptor = make_descriptor(config, generator)
        self.rcut = config.rcut
        n_channels = self.descriptor.n_channels
        if not n_channels:
            raise ConfigError(
                f"fitting_net.type: {fitting.type} needs a descriptor with directions, such as se_e2_a; "
                f"{config.descriptor.type} has none"
            )
        self.kind = fitting.type
        self.selected = config.selected_types
        has_matrix = isinstance(fitting, PolarFittingConfig) and not fitting.fit_diag
        n_outputs = n_channels**2 if has_matrix else n_channels
        self.fitting = Fitting(
            fitting,
            self.descriptor.n_features,
            n_species,
            generator,
            n_outputs=n_outputs,
            is_shared=config.descriptor.embeds_types,
        )
        self.fitting.freeze()
        if isinstance(fitting, PolarFittingConfig):
            self.register_buffer("shift", torch.zeros(n_species, dtype=torch.float64))
        self.set_precision(precision)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what an atom adds."""
        return (3,) if self.kind == "dipole" else (3, 3)

    def atom_tensors(self, graph: Graph, r_ij: Tensor) -> Tensor:
        """What each atom adds, 0 for ghosts, (n_atoms, 3) or (n_atoms, 3, 3), float64, from the edge vectors."""
        descriptions = self.descriptor(graph, r_ij.to(self.environment_dtype))
        outputs = dict(zip(self.selected, self.fitting(graph, descriptions, self.selected), strict=True))
        tensors = []
        for species, description in enumerate(descriptions):
            if species in outputs:
                tensors.append(self._tensor(species, outputs[species], description))
            else:
                tensors.append(r_ij.new_zeros(len(description.features), *self.shape))
        return graph.by_atom(tensors)

    def _tensor(self, species: int, output: Tensor, description: Description) -> Tensor:
        """Vectors or tensors of the atoms of one species, float64."""
        fitting, directions = self.config.fitting_net, description.directions
        if directions is None:
            raise TypeError(f"the descriptor {self.config.descriptor.type} gave no directions")
        directions = directions.to(output.dtype)
        if not isinstance(fitting, PolarFittingConfig):
            return torch.einsum("nj,njd->nd", output, directions).double()
        if fitting.fit_diag:
            weighted = output[:, :, None] * directions
        else:
            matrix = output.view(len(output), directions.shape[1], directions.shape[1])
            weighted = (matrix + matrix.transpose(1, 2)) / 2 @ directions
        scale = fitting.scales(len(self.species))[species]
        tensor = scale * (directions.transpose(1, 2) @ weighted).double()
        return tensor + self.shift[species] * torch.eye(3, dtype=torch.float64, device=tensor.device)

    def forward(self, graph: Graph, *, is_training: bool = False) -> TensorPrediction:
        """Predict vectors or tensors.

        Args:
            graph: the batch.
            is_training: keep what is needed to differentiate by the weights.
        """
        with torch.set_grad_enabled(is_training):
            return self._predict(graph, graph.vectors())

    def _predict(self, graph: Graph, r_ij: Tensor) -> TensorPrediction:
        atoms = self.atom_tensors(graph, r_ij)
        total = atoms.new_zeros(graph.frames.n_frames, *self.shape).index_add(0, graph.frame_idx, atoms)
        return TensorPrediction(total, atoms)

    def evaluate(self, frames: Frames, *, has_born_charges: bool = False) -> TensorValues:
        """Dipoles or polarizabilities of a batch.

        Args:
            frames: structures, of any sizes; not changed.
            has_born_charges: whether to differentiate the dipole by the positions, which takes about twice as long.

        Returns:
            Arrays that belong to the caller.

        Raises:
            StructureError: a structure that has no answer, named with its cause.
            ConfigError: Born charges are asked for, and the model gives polarizabilities.
        """
        if has_born_charges and self.kind != "dipole":
            raise ConfigError("Born charges are the derivative of a dipole; this model gives polarizabilities")
        self.check(frames)
        graph = self.graph(frames)
        if not has_born_charges:
            prediction = self(graph)
            return TensorValues(prediction.total.cpu().numpy(), prediction.atoms.cpu().numpy())
        with torch.enable_grad():
            r_ij = graph.vectors().requires_grad_()
            prediction = self._predict(graph, r_ij)
            charges = torch.stack([_by_positions(prediction.total[:, b], r_ij, graph) for b in range(3)], dim=2)
        total, atoms = prediction.total.detach().cpu().numpy(), prediction.atoms.detach().cpu().numpy()
        return TensorValues(total, atoms, np.ascontiguousarray(charges.cpu().numpy()))


def _by_positions(values: Tensor, r_ij: Tensor, graph: Graph) -> Tensor:
    """The derivative of one number of each frame by the positions of its atoms, (n_atoms, 3)."""
    (edge_grad,) = torch.autograd.grad(values.sum(), r_ij, retain_graph=True, materialize_grads=True)
    derivative = edge_grad.new_zeros(graph.frames.n_atoms, 3).index_add(0, graph.neighbour, edge_grad)
    return derivative.index_add(0, graph.centre, edge_grad, alpha=-1)
