"""The smooth three-body embedding descriptor, DeePMD-kit's `se_e3`.

With R̃ = (s, u) of `se_e2_a`, normalised, u its three angular components:

    θ_jk = u_ij · u_ik                                     which is s_ij s_ik cos(∠jik), normalised
    D_i  = Σ_{a ≤ b} 1/(n_a n_b) Σ_{j of a, k of b} θ_jk G_ab(θ_jk)

over pairs of species a and b of neighbours with n_a and n_b slots of `sel`, j = k included; G_ab the embedding net of
the pair, whatever the species of the centre. An excluded neighbour enters with u = 0, and so adds nothing. Empty slots
enter as those of `smooth` do; their u is 0 unless davg has angular components, which it has not by statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpserver.kernels.segments import Segments, sum_outer
from dpserver.models.config import SeE3Config
from dpserver.models.description import Description
from dpserver.models.graph import Graph
from dpserver.models.smooth import SmoothDescriptor


class SeE3(SmoothDescriptor[SeE3Config]):
    """The descriptor D of every atom; see `SmoothDescriptor` for its arguments.

    There is a net for each pair of species, as in DeePMD-kit's files; those of a > b are not used.
    """

    n_columns = 4

    @property
    def n_features(self) -> int:
        """Size of D."""
        return self.config.neuron[-1]

    def _describe(self, graph: Graph, environment: Tensor, centre: int) -> Description:
        """The descriptors of the atoms of one species."""
        used = [k for k in range(self.n_species) if self.sel[k]]
        n_empty = {k: self.empty_slots(graph, graph.blocks[centre, k], centre, k) for k in range(self.n_species)}
        sums = [self._sum(graph, environment, centre, (a, b), n_empty) for a in used for b in used if a <= b]
        return Description(torch.stack(sums).sum(dim=0))

    def _sum(
        self, graph: Graph, environment: Tensor, centre: int, pair: tuple[int, int], n_empty: dict[int, Tensor]
    ) -> Tensor:
        """The part of D of one pair of species of neighbours, (atoms of the centre's, n_features)."""
        a, b = pair
        net = self.embedding_of(a, b)
        dtype = next(net.parameters()).dtype
        u_a, u_b = (self._angular(graph, environment, centre, k).to(dtype) for k in pair)
        segments_a, segments_b = (graph.blocks[centre, k].segments for k in pair)
        row, j, k = _pairs(segments_a, segments_b, is_same=a == b)
        theta = (u_a[j] * u_b[k]).sum(dim=-1, keepdim=True)
        weighted = theta if a != b else torch.where((j == k)[:, None], theta, 2 * theta)
        total = _summed(weighted, net(theta), row, segments_a.n_rows)
        empty = self.empty(centre, dtype)[:, 1:]
        if empty.any():
            for u, segments, n in ((u_a, segments_a, n_empty[b]), (u_b, segments_b, n_empty[a])):
                rows = segments.slot // max(segments.width, 1)
                theta = (u * empty).sum(dim=-1, keepdim=True)
                total = total + n.to(dtype)[:, None] * _summed(theta, net(theta), rows, segments.n_rows)
            theta = (empty * empty).sum(dim=-1, keepdim=True)
            total = total + (n_empty[a] * n_empty[b]).to(dtype)[:, None] * theta * net(theta)
        return total / (self.sel[a] * self.sel[b])

    def _angular(self, graph: Graph, environment: Tensor, centre: int, neighbour: int) -> Tensor:
        """The vectors u of the edges of one block, (n_edges, 3)."""
        rows = environment[graph.blocks[centre, neighbour].edges, 1:]
        if (centre, neighbour) in self.excluded | self.unseen:
            return torch.zeros_like(rows)
        return (rows - self.davg[centre, 1:]) / self.dstd[centre, 1:]


def _pairs(first: Segments, second: Segments, *, is_same: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of edges of one centre, each unordered pair once where both are of the same block.

    Returns:
        Row, ascending, and the edges of both blocks, (n_pairs,), int64.
    """
    shapes = [(s.n_rows, s.width) for s in (first, second)]
    edges_a, edges_b = (s.edge.view(shape) for s, shape in zip((first, second), shapes, strict=True))
    n_a, n_b = len(first.slot), len(second.slot)
    is_pair = (edges_a < n_a)[:, :, None] & (edges_b < n_b)[:, None, :]
    if is_same:
        is_pair &= edges_a[:, :, None] <= edges_b[:, None, :]
    row, slot_a, slot_b = is_pair.nonzero(as_tuple=True)
    return row, edges_a[row, slot_a], edges_b[row, slot_b]


def _summed(weight: Tensor, values: Tensor, row: Tensor, n_rows: int) -> Tensor:
    """Σ weight · values over the entries of each row, (n_rows, n_columns)."""
    segments = Segments.from_rows(row.cpu().numpy(), n_rows, row.device)
    return sum_outer(segments, weight, values)[:, 0]
