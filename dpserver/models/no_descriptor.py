"""What stands in for a descriptor where a table of pair energies is the whole model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from dpserver.models.config import NoDescriptorConfig
from dpserver.models.description import Description
from dpserver.models.graph import Graph


class NoDescriptor(nn.Module):
    """Describes no atom.

    Args:
        config: the cutoff.

    Attributes:
        rcut: the same, Å.
        n_features: 0.
        n_channels: 0.
    """

    def __init__(self, config: NoDescriptorConfig) -> None:
        super().__init__()
        self.config = config
        self.rcut = config.rcut
        self.n_features = self.n_channels = 0

    def forward(self, graph: Graph, r_ij: Tensor) -> list[Description]:
        """Say nothing of the atoms of each species."""
        return [Description(r_ij.new_zeros(len(atoms), 0)) for atoms in graph.atoms]

    def fit_normalisation(self, graphs: Iterable[Graph], protect: float) -> None:
        """There is nothing to set."""
