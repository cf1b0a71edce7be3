"""Pair energies from a table, beside a Deep Potential or in its place, as DeePMD-kit interpolates them.

    T_i = ½ Σ_j V_ij(r_ij),  V a cubic on each piece of the table, 0 from its end or rcut on

Where the two are switched (`use_srtab`, DeePMD-kit's `zbl` model), short distances go by the table:

    E_i = (1 - w_i) N_i + w_i (T_i + t) + b
    σ_i = Σ_j r_ij exp(-r_ij/α)/Σ_j exp(-r_ij/α),  a smooth distance of the nearest neighbour
    w_i = 1 for σ_i < rmin, u³(-6u² + 15u - 10) + 1 up to rmax with u = (σ_i - rmin)/(rmax - rmin), then 0

N the net, b the energy bias of the species, which can be the net's alone (`srtab_add_bias` false), t one of the table;
an atom without neighbours has w = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dpserver.errors import StructureError
from dpserver.frames import Floats
from dpserver.models.config import PairTableConfig
from dpserver.models.graph import Graph


class Switch(NamedTuple):
    """How table and net are switched.

    Attributes:
        alpha: decay length of the mean of distances, Å.
        rmin: below it the table is all, Å.
        rmax: from there on the net is all, Å.
        has_bias: whether the energy bias of the net is added to the table too.
    """

    alpha: float
    rmin: float
    rmax: float
    has_bias: bool


class PairTable(nn.Module):
    """Pair energies by species and distance.

    Args:
        config: the shape of the table.
        n_species: number of species.
        switch: how it is joined to the net; None for a sum with weights.
        unseen: pairs of species that are no neighbours at all.

    Attributes:
        config: the same.
        switch: the same.
        coefficients: of a₃u³ + a₂u² + a₁u + a₀ on each piece, u from 0 to 1, (n_species, n_species, n_splines, 4), eV.
        values: distances and energies of the pairs of species, 00, 01, …, 11, …, that the pieces were made from,
            (n_splines + 1, 1 + n_pairs), Å and eV.
        bias: energy t of each species that goes with the table, (n_species,), eV.
    """

    coefficients: Tensor
    values: Tensor
    bias: Tensor

    def __init__(
        self,
        config: PairTableConfig,
        n_species: int,
        switch: Switch | None = None,
        unseen: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        super().__init__()
        self.config, self.switch, self.n_species, self.unseen = config, switch, n_species, unseen
        n_pairs = n_species * (n_species + 1) // 2
        for name, shape in (
            ("coefficients", (n_species, n_species, config.n_splines, 4)),
            ("values", (config.n_splines + 1, 1 + n_pairs)),
            ("bias", (n_species,)),
        ):
            self.register_buffer(name, torch.zeros(*shape, dtype=torch.float64))

    def fill(self, values: Floats, coefficients: Floats) -> None:
        """Take over the numbers of a table."""
        self.values.copy_(torch.from_numpy(values))
        self.coefficients.copy_(torch.from_numpy(coefficients))

    def join(self, graph: Graph, r_ij: Tensor, net: Tensor, bias: Tensor) -> Tensor:
        """Join what net and table say.

        Args:
            graph: the batch, with edges at least as long as the cutoff of the table.
            r_ij: vectors of its edges, (n_edges, 3), Å.
            net: energies of the atoms by the net, (n_atoms,), eV.
            bias: energy bias of each atom, 0 for ghosts, (n_atoms,), eV.

        Returns:
            Energies of the atoms, (n_atoms,), eV.

        Raises:
            StructureError: atoms come closer than the table reaches, or an atom has more neighbours than `sel`.
        """
        r, pair = torch.linalg.vector_norm(r_ij, dim=-1), self._pairs(graph)
        is_near = (r < self.config.rcut) & (pair >= 0)
        table = self._energies(graph, r, pair, is_near)
        if self.switch is None:
            weights = self.config.weights or (1.0, 1.0)
            return weights[0] * net + weights[1] * table + bias
        own = torch.cat([self.bias[c].expand(len(atoms)) for c, atoms in enumerate(graph.atoms)])
        own = own.new_zeros(len(table)).index_copy(0, torch.cat(graph.atoms), own)
        w = self._weight(graph, r, is_near, self.switch)
        table = table + own
        return (1 - w) * net + w * table + (bias if self.switch.has_bias else (1 - w) * bias)

    def _pairs(self, graph: Graph) -> Tensor:
        """The row of each edge in the table, -1 where the pair is not seen, (n_edges,), int64."""
        rows = []
        for (centre, neighbour), block in graph.blocks.items():
            row = -1 if (centre, neighbour) in self.unseen else centre * self.n_species + neighbour
            rows.append(graph.centre.new_full((block.edges.stop - block.edges.start,), row))
        return torch.cat(rows)

    def _energies(self, graph: Graph, r: Tensor, pair: Tensor, is_near: Tensor) -> Tensor:
        """T of each atom, (n_atoms,), eV."""
        config, n_atoms = self.config, len(graph.positions)
        near = is_near.nonzero()[:, 0]
        centre, u = graph.centre[near], (r[near] - config.rmin) / config.step
        if (u < 0).any():
            raise StructureError(
                f"atoms are {float(r.detach()[near].min()):.4f} Å apart, but the table of pair energies begins at "
                f"{config.rmin} Å; the dynamics has blown up, or the table must begin at shorter distances"
            )
        most = int(torch.bincount(centre, minlength=1).max())
        if config.sel is not None and most > config.sel:
            raise StructureError(
                f"an atom has {most} neighbours within {config.rcut} Å, but the table of pair energies was made for at "
                f"most {config.sel} (sel)"
            )
        piece = u.detach().long().clamp(max=config.n_splines - 1)
        u = u - piece
        a = self.coefficients.view(-1, 4)[pair[near] * config.n_splines + piece]
        energy = ((a[:, 0] * u + a[:, 1]) * u + a[:, 2]) * u + a[:, 3]
        energy = torch.where(u < 1, energy, torch.zeros_like(energy))
        return 0.5 * energy.new_zeros(n_atoms).index_add(0, centre, energy)

    def _weight(self, graph: Graph, r: Tensor, is_near: Tensor, switch: Switch) -> Tensor:
        """The weight w of the table for each atom, (n_atoms,)."""
        n_atoms, near = len(graph.positions), is_near.nonzero()[:, 0]
        centre, r = graph.centre[near], r[near]
        nearest = r.new_zeros(n_atoms)
        if not self.config.softmin_floor:  # the same for all terms, which cancels; it keeps them from underflowing
            nearest = nearest.fill_(torch.inf).scatter_reduce(0, centre, r.detach(), "amin")
        decay = torch.exp((nearest[centre] - r) / switch.alpha)
        above = r.new_zeros(n_atoms).index_add(0, centre, r * decay)
        below = r.new_zeros(n_atoms).index_add(0, centre, decay)
        has_neighbours = below > 0
        sigma = above / torch.where(has_neighbours, below, torch.ones_like(below)).clamp(min=self.config.softmin_floor)
        u = (sigma - switch.rmin) / (switch.rmax - switch.rmin)
        smooth = u**3 * (-6 * u**2 + 15 * u - 10) + 1
        weight = torch.where(sigma < switch.rmin, torch.ones_like(u), smooth)
        return torch.where(has_neighbours & (sigma < switch.rmax), weight, torch.zeros_like(u))
