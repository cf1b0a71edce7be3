"""The fitting nets of a model: from the descriptor of an atom to what is predicted of it.

The input of a net is the descriptor D, then the parameters of the frame and of the atom, where it takes any, each less
its mean in training and divided by its deviation there:

    y = net(D, (f - f̄)/σ_f, (a - ā)/σ_a)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dpserver.frames import Floats, Frames
from dpserver.models.config import FittingConfig
from dpserver.models.description import Description
from dpserver.models.graph import Graph
from dpserver.models.networks import fitting_net
from dpserver.models.parameters import check_parameters


class Fitting(nn.ModuleList):
    """A fitting net for each species, or one that all share.

    Args:
        config: sizes of the nets.
        n_features: of a descriptor.
        n_species: number of species.
        generator: source of the initial values.
        n_outputs: numbers predicted of each atom.
        is_shared: one net for all, which then knows the species by the descriptor.

    Attributes:
        config: the same.
        is_shared: the same.
        fparam_avg: mean of the parameters of frames in training, (n_fparam,), float64; there if the nets take any.
        fparam_inv_std: inverse of their deviation.
        aparam_avg: mean of the parameters of atoms in training, (n_aparam,), float64; there if the nets take any.
        aparam_inv_std: inverse of their deviation.
    """

    fparam_avg: Tensor
    fparam_inv_std: Tensor
    aparam_avg: Tensor
    aparam_inv_std: Tensor

    def __init__(
        self,
        config: FittingConfig,
        n_features: int,
        n_species: int,
        generator: torch.Generator,
        *,
        n_outputs: int = 1,
        is_shared: bool = False,
    ) -> None:
        super().__init__(
            fitting_net(
                n_features + config.numb_fparam + config.numb_aparam,
                config.neuron,
                config.activation_function,
                config.resnet_dt,
                generator,
                config.skips_only_equal,
                n_outputs,
            )
            for _ in range(1 if is_shared else n_species)
        )
        self.config = config
        self.is_shared = is_shared
        for name, number in (("fparam", config.numb_fparam), ("aparam", config.numb_aparam)):
            if number:
                self.register_buffer(f"{name}_avg", torch.zeros(number, dtype=torch.float64))
                self.register_buffer(f"{name}_inv_std", torch.ones(number, dtype=torch.float64))

    def net_of(self, species: int) -> nn.Sequential:
        """The net of a species."""
        return cast(nn.Sequential, self[0 if self.is_shared else species])

    def freeze(self) -> None:
        """Leave the layers alone that are not to be trained."""
        for net in self:
            for layer, is_trained in zip(cast(nn.Sequential, net), self.config.trains, strict=True):
                layer.requires_grad_(is_trained)

    def check(self, frames: Frames) -> None:
        """Refuse frames without the parameters that the nets take, and those with some that they do not take.

        Raises:
            StructureError: the number of parameters is another than expected.
        """
        has_default = self.config.default_fparam is not None
        check_parameters(frames, self.config.numb_fparam, self.config.numb_aparam, has_default_fparam=has_default)

    def fit_parameters(self, fparam: Floats | None, aparam: Floats | None, protect: float) -> None:
        """Set mean and deviation of the parameters to those of a training set.

        Args:
            fparam: of its frames, (n, n_fparam); None where the nets take none, or all frames take the default.
            aparam: of its atoms, (n, n_aparam).
            protect: smallest deviation.
        """
        for name, values in (("fparam", fparam), ("aparam", aparam)):
            if values is not None:
                getattr(self, f"{name}_avg").copy_(torch.from_numpy(values.mean(axis=0)))
                deviation = torch.from_numpy(values.std(axis=0)).clamp(min=protect)
                getattr(self, f"{name}_inv_std").copy_(1 / deviation)

    def parameters_of(self, graph: Graph) -> Tensor | None:
        """The normalised parameters that each atom's net is given, (n_atoms, n_fparam + n_aparam), float64."""
        frames, parts = graph.frames, []
        if self.config.numb_fparam:
            if frames.fparam is not None:
                fparam = torch.tensor(frames.fparam, dtype=torch.float64, device=self.fparam_avg.device)
            else:
                fparam = self.fparam_avg.new_tensor(self.config.default_fparam).expand(frames.n_frames, -1)
            parts.append(((fparam - self.fparam_avg) * self.fparam_inv_std)[graph.frame_idx])
        if self.config.numb_aparam:
            aparam = torch.tensor(frames.aparam, dtype=torch.float64, device=self.aparam_avg.device)
            parts.append((aparam - self.aparam_avg) * self.aparam_inv_std)
        return torch.cat(parts, dim=1) if parts else None

    def vacuum(self, species: int, parameters: Tensor | None = None) -> Tensor:
        """What the net of a species says of an environment that is zero, (n, n_outputs); n is 1 without parameters.

        Args:
            species: number of the species.
            parameters: as the net is given them, (n, n_fparam + n_aparam).
        """
        net = self.net_of(species)
        weight = next(net.parameters())
        given = weight.new_zeros(1, 0) if parameters is None else parameters.to(weight.dtype)
        zeros = weight.new_zeros(len(given), len(weight) - given.shape[1])
        return cast(Tensor, net(torch.cat([zeros, given], dim=1)))

    def forward(
        self, graph: Graph, descriptions: Sequence[Description], species: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Predict for the atoms of each species.

        Args:
            graph: the batch, which has the parameters that the nets take.
            descriptions: of the atoms of each species.
            species: those predicted for; by default all.

        Returns:
            For each of these species, the outputs of its net, (atoms of it, n_outputs), in the order of `graph.atoms`.
        """
        outputs = []
        parameters = self.parameters_of(graph)
        for c in range(len(descriptions)) if species is None else species:
            net, features = self.net_of(c), descriptions[c].features
            if parameters is not None:
                features = torch.cat([features, parameters[graph.atoms[c]].to(features.dtype)], dim=1)
            outputs.append(net(features.to(next(net.parameters()).dtype)))
        return outputs
