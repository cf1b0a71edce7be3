"""The local-frame descriptor of the first Deep Potential (Zhang et al., PRL 120, 143001, 2018), `loc_frame`.

    e_x along the first axis neighbour, e_z along first × second, e_y = e_z × e_x
    D_ij = (1/R, x/R², y/R², z/R²) in that frame for the `sel_a` nearest neighbours of each species,
    D_ij = 1/R                     for the `sel_r` next ones

As DeePMD-kit's: neighbours by species, then by distance, `sel_r` counting on where `sel_a` ends; first all full rows,
then all radial ones; empty slots zero; all of it standardised to (D - davg_c)/dstd_c, feature by feature, for a centre
of species c. Neighbours beyond `sel_a` + `sel_r` are not seen: that is the method. (In its own graphs DeePMD-kit puts z
before x and y in a row.)

The cutoff is sharp, and the energy jumps where two neighbours change places in the order or in the axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpserver.errors import StructureError
from dpserver.kernels.layout import COLINEAR
from dpserver.models.config import LocFrameConfig
from dpserver.models.graph import Block, Graph
from dpserver.models.standardised import StandardisedDescriptor


class LocFrame(StandardisedDescriptor):
    """The descriptor D of every atom.

    Args:
        config: numbers of neighbours, cutoff and axis rules.
        n_species: number of species.
    """

    def __init__(self, config: LocFrameConfig, n_species: int) -> None:
        super().__init__(n_species, config.rcut, 4 * sum(config.sel_a) + sum(config.sel_r))
        self.config = config

    def check(self, graph: Graph, r_ij: Tensor) -> None:
        """Refuse atoms without a local frame; see `environment`."""
        self.environment(graph, r_ij)

    def environment(self, graph: Graph, r_ij: Tensor) -> list[Tensor]:
        """D before standardisation: for each species, (atoms of it, n_features), 1/Å.

        Raises:
            StructureError: an atom has no neighbour, or no two off one line, to span its frame.
        """
        return [self._describe(graph, r_ij, centre) for centre in range(self.n_species)]

    def _describe(self, graph: Graph, r_ij: Tensor, centre: int) -> Tensor:
        """D of the atoms of one species, before standardisation."""
        nearest = [self._nearest(graph.blocks[centre, k], r_ij, k) for k in range(self.n_species)]
        frame = self._frame(graph, nearest, centre)
        full, radial = [], []
        for (vectors, is_real), n_full in zip(nearest, self.config.sel_a, strict=True):
            inverse = is_real / torch.linalg.vector_norm(vectors, dim=-1)
            local = vectors[:, :n_full] @ frame.transpose(1, 2) * inverse[:, :n_full, None] ** 2
            full.append(torch.cat([inverse[:, :n_full, None], local], dim=-1).flatten(1))
            radial.append(inverse[:, n_full:])
        return torch.cat([*full, *radial], dim=1)

    def _nearest(self, block: Block, r_ij: Tensor, neighbour: int) -> tuple[Tensor, Tensor]:
        """Neighbours of one species by distance.

        Returns:
            Their vectors, (atoms of the centre's species, sel_a + sel_r, 3), Å, of no meaning in empty slots; and
            whether a slot is taken, (atoms, sel_a + sel_r).
        """
        n_slots = self.config.sel_a[neighbour] + self.config.sel_r[neighbour]
        rows, here = block.segments, r_ij[block.edges]
        edge = rows.edge.view(rows.n_rows, rows.width)
        edge = nn.functional.pad(edge, (0, max(0, n_slots - rows.width)), value=len(here))
        distance = torch.cat([torch.linalg.vector_norm(here.detach(), dim=-1), here.new_full((1,), torch.inf)])
        distance = distance.masked_fill(distance >= self.rcut, torch.inf)[edge]
        distance, order = distance.sort(dim=1, stable=True)
        edge = edge.gather(1, order[:, :n_slots])
        vectors = torch.cat([here, here.new_ones(1, 3)]).index_select(0, edge.flatten())
        return vectors.view(rows.n_rows, n_slots, 3), distance[:, :n_slots].isfinite()

    def _frame(self, graph: Graph, nearest: list[tuple[Tensor, Tensor]], centre: int) -> Tensor:
        """Unit vectors e_x, e_y, e_z as rows, (atoms of the centre's species, 3, 3)."""
        axes = []
        for kind, neighbour, index in self.config.axes[centre]:
            vectors, is_real = nearest[neighbour]
            slot = index + kind * self.config.sel_a[neighbour]
            if not is_real[:, slot].all():
                row = int(is_real.sum(dim=1).argmin())
                raise StructureError(
                    f"{graph.name_atom(centre, row)} of type {centre} has {int(is_real[row].sum())} neighbours of "
                    f"type {neighbour} within {self.rcut} Å, but its axis_rule ({kind}, {neighbour}, {index}) needs "
                    f"{slot + 1}: it has no local frame; isolated atoms and small fragments need se_e2_a"
                )
            axes.append(vectors[:, slot])
        e_x, second = (nn.functional.normalize(a, dim=-1) for a in axes)
        normal = torch.linalg.cross(e_x, second)
        sine = torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
        if (sine < COLINEAR).any():
            atom = graph.name_atom(centre, int(sine.argmin()))
            raise StructureError(
                f"{atom} of type {centre} lies on one line with the two neighbours of its axis_rule "
                f"{self.config.axes[centre]}: they span no local frame; use se_e2_a for linear arrangements"
            )
        e_z = normal / sine
        return torch.stack([e_x, torch.linalg.cross(e_z, e_x), e_z], dim=1)
