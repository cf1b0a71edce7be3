"""The smooth two-body embedding descriptor (Zhang et al., NeurIPS 2018), DeePMD-kit's `se_e2_a`.

With s(r) as in `smooth`:

    R̃_ij = (s, s x/r, s y/r, s z/r), normalised to (R̃ - davg_c)/dstd_c for a centre of species c
    G_ij  = embedding net of the normalised s
    D_i   = (Gᵀ R̃)(R̃ᵀ G_<)/N_c²,  G_< the first axis_neuron columns of G, N_c the sum of sel
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpserver.kernels.segments import sum_outer
from dpserver.models.config import SeE2AConfig
from dpserver.models.description import Description
from dpserver.models.graph import Graph
from dpserver.models.smooth import SmoothDescriptor


class SeE2A(SmoothDescriptor[SeE2AConfig]):
    """The descriptor D of every atom; see `SmoothDescriptor` for its arguments."""

    n_columns = 4

    @property
    def n_features(self) -> int:
        """Size of D."""
        return self.config.neuron[-1] * self.config.axis_neuron

    @property
    def n_channels(self) -> int:
        """Number of directions beside D."""
        return self.config.neuron[-1]

    def _describe(self, graph: Graph, environment: Tensor, centre: int) -> Description:
        """The descriptors of the atoms of one species; their directions are (R̃ᵀ G)ᵀ without its row of s."""
        moments = [self._moment(graph, environment, centre, k) for k in range(self.n_species)]
        return self.of_moments(torch.stack(moments).sum(dim=0))

    def of_moments(self, moment: Tensor) -> Description:
        """The descriptors of atoms from R̃ᵀ G summed over all slots, (n, 4, n_channels)."""
        moment = moment / sum(self.sel)
        d = moment.transpose(1, 2) @ moment[:, :, : self.config.axis_neuron]
        return Description(d.flatten(1), moment[:, 1:].transpose(1, 2))

    def _moment(self, graph: Graph, environment: Tensor, centre: int, neighbour: int) -> Tensor:
        """R̃ᵀ G summed over the slots of one neighbour species, (atoms of the centre's, 4, n_channels)."""
        block = graph.blocks[centre, neighbour]
        n_empty = self.empty_slots(graph, block, centre, neighbour)
        net = self.embedding_of(centre, neighbour)
        dtype = next(net.parameters()).dtype
        if (centre, neighbour) in self.silent:
            return torch.zeros(len(n_empty), 4, self.config.neuron[-1], dtype=dtype, device=n_empty.device)
        empty = self.empty(centre, dtype)
        moment: Tensor = n_empty.to(dtype)[:, None, None] * (empty.T @ net(empty[:, :1]))
        if (centre, neighbour) in self.excluded | self.unseen:
            return moment
        rows = ((environment[block.edges] - self.davg[centre]) / self.dstd[centre]).to(dtype)
        return moment + sum_outer(block.segments, rows, net(rows[:, :1]))
