"""The smooth radial descriptor, DeePMD-kit's `se_e2_r`: `se_e2_a` without directions.

With s(r) as in `smooth`:

    G_ij = embedding net of (s - davg_c)/dstd_c for a centre of species c
    D_i  = Σ_j G_ij/(5 N_c),  N_c the sum of sel

As in DeePMD-kit an excluded neighbour of `exclude_types` enters with 0 in place of its normalised s, and so adds G(0),
except where the empty slots of its pair add nothing either (`keeps_excluded_slots`).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from dpserver.kernels.segments import sum_outer
from dpserver.models.config import SeE2RConfig
from dpserver.models.description import Description
from dpserver.models.graph import Graph
from dpserver.models.smooth import SmoothDescriptor

SCALE: Final = 1 / 5
"""A factor of DeePMD-kit's."""


class SeE2R(SmoothDescriptor[SeE2RConfig]):
    """The descriptor D of every atom; see `SmoothDescriptor` for its arguments."""

    n_columns = 1

    @property
    def n_features(self) -> int:
        """Size of D."""
        return self.config.neuron[-1]

    def _describe(self, graph: Graph, environment: Tensor, centre: int) -> Description:
        """The descriptors of the atoms of one species."""
        sums = [self._sum(graph, environment, centre, k) for k in range(self.n_species)]
        return Description(torch.stack(sums).sum(dim=0) * (SCALE / sum(self.sel)))

    def _sum(self, graph: Graph, environment: Tensor, centre: int, neighbour: int) -> Tensor:
        """G summed over the slots of one neighbour species, (atoms of the centre's, n_channels)."""
        block = graph.blocks[centre, neighbour]
        n_empty = self.empty_slots(graph, block, centre, neighbour)
        net = self.embedding_of(centre, neighbour)
        dtype = next(net.parameters()).dtype
        if (centre, neighbour) in self.silent:
            return torch.zeros(len(n_empty), self.n_features, dtype=dtype, device=n_empty.device)
        empty = self.empty(centre, dtype)
        total: Tensor = n_empty.to(dtype)[:, None] * net(empty)
        if (centre, neighbour) in self.excluded:
            masked: Tensor = net(torch.zeros_like(empty))
            return total + (self.sel[neighbour] - n_empty).to(dtype)[:, None] * masked
        if (centre, neighbour) in self.unseen:
            return total
        rows = ((environment[block.edges] - self.davg[centre]) / self.dstd[centre]).to(dtype)
        seen: Tensor = sum_outer(block.segments, torch.ones_like(rows), net(rows))
        return total + seen[:, 0]
