"""The fitting nets of a model: from the descriptor of an atom to what is predicted of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dpserver.models.config import FittingConfig
from dpserver.models.description import Description
from dpserver.models.graph import Graph
from dpserver.models.networks import fitting_net


class Fitting(nn.ModuleList):
    """A fitting net for each species, or one that all share.

    Args:
        config: sizes of the nets.
        n_features: of a descriptor.
        n_species: number of species.
        generator: source of the initial values.
        is_shared: one net for all, which then knows the species by the descriptor.

    Attributes:
        is_shared: the same.
    """

    def __init__(
        self,
        config: FittingConfig,
        n_features: int,
        n_species: int,
        generator: torch.Generator,
        *,
        is_shared: bool = False,
    ) -> None:
        super().__init__(
            fitting_net(
                n_features,
                config.neuron,
                config.activation_function,
                config.resnet_dt,
                generator,
                config.skips_only_equal,
            )
            for _ in range(1 if is_shared else n_species)
        )
        self.is_shared = is_shared

    def net_of(self, species: int) -> nn.Sequential:
        """The net of a species."""
        return cast(nn.Sequential, self[0 if self.is_shared else species])

    def forward(self, graph: Graph, descriptions: Sequence[Description]) -> list[Tensor]:
        """Predict for the atoms of each species.

        Args:
            graph: the batch.
            descriptions: of the atoms of each species.

        Returns:
            For each species, the outputs of its net, (atoms of it, 1), in the order of `graph.atoms`.
        """
        outputs = []
        for species, description in enumerate(descriptions):
            net = self.net_of(species)
            outputs.append(net(description.features.to(next(net.parameters()).dtype)))
        return outputs
