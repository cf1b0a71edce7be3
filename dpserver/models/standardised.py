"""What the descriptors share that are standardised feature by feature: local frames and symmetry functions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dpserver.models.description import Description
from dpserver.models.graph import Graph


class StandardisedDescriptor(nn.Module):
    """A descriptor (D - davg_c)/dstd_c for a centre of species c, without directions.

    Args:
        n_species: number of species.
        rcut: cutoff radius, Å.
        n_features: size of D, the same for all species.

    Attributes:
        n_species: the same.
        rcut: the same.
        n_features: the same.
        n_channels: number of directions beside D: none.
        davg: mean of D per centre species, (n_species, n_features), float64.
        dstd: standard deviation, (n_species, n_features), float64.
    """

    davg: Tensor
    dstd: Tensor

    def __init__(self, n_species: int, rcut: float, n_features: int) -> None:
        super().__init__()
        self.n_species = n_species
        self.rcut = rcut
        self.n_features = n_features
        self.n_channels = 0
        self.register_buffer("davg", torch.zeros(n_species, n_features, dtype=torch.float64))
        self.register_buffer("dstd", torch.ones(n_species, n_features, dtype=torch.float64))

    def forward(self, graph: Graph, r_ij: Tensor) -> list[Description]:
        """Describe the atoms of each species; see `environment` for what it raises.

        Args:
            graph: the batch.
            r_ij: vectors of its edges, (n_edges, 3), Å.

        Returns:
            For each species, the descriptors of its atoms, in the order of `graph.atoms`.
        """
        raw = self.environment(graph, r_ij)
        return [Description((d - self.davg[c]) / self.dstd[c]) for c, d in enumerate(raw)]

    def check(self, graph: Graph, r_ij: Tensor) -> None:
        """Refuse atoms that `forward` would refuse, without describing any: none, unless a descriptor says otherwise.

        Args:
            graph: the batch.
            r_ij: vectors of its edges, (n_edges, 3), Å.
        """

    def environment(self, graph: Graph, r_ij: Tensor) -> list[Tensor]:
        """D before standardisation: for each species, (atoms of it, n_features)."""
        raise NotImplementedError

    @torch.no_grad()
    def fit_normalisation(self, graphs: Iterable[Graph], protect: float) -> None:
        """Set davg and dstd to the moments of each feature of D over the atoms of each species.

        Args:
            graphs: representative batches.
            protect: see `smallest_deviation`.
        """
        sums, squares = torch.zeros_like(self.davg), torch.zeros_like(self.davg)
        n_atoms = self.davg.new_zeros(self.n_species, 1)
        for graph in graphs:
            for centre, raw in enumerate(self.environment(graph, graph.vectors())):
                sums[centre] += raw.sum(dim=0)
                squares[centre] += (raw**2).sum(dim=0)
                n_atoms[centre] += len(raw)
        mean, square = sums / n_atoms.clamp(min=1), squares / n_atoms.clamp(min=1)
        self.davg.copy_(mean)
        self.dstd.copy_((square - mean**2).clamp(min=0).sqrt().maximum(self.smallest_deviation(square, protect)))

    def smallest_deviation(self, square: Tensor, protect: float) -> Tensor:
        """What no deviation is below: `protect`, 1/Å, unless a descriptor says otherwise.

        Args:
            square: mean square of each feature, (n_species, n_features).
            protect: the training input's `data_stat_protect`.
        """
        return torch.full_like(square, protect)
