"""The smooth two-body embedding descriptor (Zhang et al., NeurIPS 2018), DeePMD-kit's `se_e2_a`.

    s(r)  = w(r)/r,  w = 1 below rcut_smth, u³(-6u² + 15u - 10) + 1 up to rcut, u = (r - rcut_smth)/(rcut - rcut_smth)
    R̃_ij = (s, s x/r, s y/r, s z/r), normalised to (R̃ - davg_c)/dstd_c for a centre of species c
    G_ij  = embedding net of the normalised s
    D_i   = (Gᵀ R̃)(R̃ᵀ G_<)/N_c²,  G_< the first axis_neuron columns of G, N_c the sum of sel

DeePMD-kit fills the slots of `sel` that no neighbour takes with R̃ = 0 before normalisation. All empty slots of one
species add the same, so here they enter as one closed term per centre, (n_sel - n_real) times the pair's value at
r ≥ rcut, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dpserver.errors import ConfigError, StructureError
from dpserver.kernels.segments import sum_outer
from dpserver.models.config import SeE2AConfig
from dpserver.models.graph import Block, Graph
from dpserver.models.networks import embedding_net


class SeE2A(nn.Module):
    """The descriptor D of every atom.

    Args:
        config: sizes and cutoffs; `sel` resolved to numbers.
        n_species: number of species.
        generator: source of the networks' initial values.

    Attributes:
        davg: mean of R̃ per centre species, (n_species, 4), float64.
        dstd: standard deviation, (n_species, 4), float64.
    """

    davg: Tensor
    dstd: Tensor

    def __init__(self, config: SeE2AConfig, n_species: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.n_species = n_species
        self.rcut = config.rcut
        self.sel = _resolved(config.sel)
        self.n_features = config.neuron[-1] * config.axis_neuron
        self.excluded = {pair for a, b in config.exclude_types for pair in ((a, b), (b, a))}
        self.register_buffer("davg", torch.zeros(n_species, 4, dtype=torch.float64))
        self.register_buffer("dstd", torch.ones(n_species, 4, dtype=torch.float64))
        n_nets = n_species if config.type_one_side else n_species**2
        self.embedding = nn.ModuleList(
            embedding_net(config.neuron, config.activation_function, config.resnet_dt, generator) for _ in range(n_nets)
        )

    def forward(self, graph: Graph, r_ij: Tensor) -> list[Tensor]:
        """Describe the atoms of each species.

        Args:
            graph: the batch.
            r_ij: vectors of its edges, (n_edges, 3), Å.

        Returns:
            For each species, (atoms of it, n_features), in the order of `graph.atoms`.

        Raises:
            StructureError: an atom has more neighbours of a species than `sel` holds.
        """
        environment = self.environment(r_ij)
        return [self._describe(graph, environment, centre) for centre in range(self.n_species)]

    def environment(self, r_ij: Tensor) -> Tensor:
        """R̃ before normalisation, (n_edges, 4), 1/Å."""
        rcut, rcut_smth, protection = self.rcut, self.config.rcut_smth, self.config.env_protection
        r = torch.linalg.vector_norm(r_ij, dim=-1, keepdim=True)
        u = ((r - rcut_smth) / (rcut - rcut_smth)).clamp(0.0, 1.0)
        w = u**3 * (-6 * u**2 + 15 * u - 10) + 1
        s = w / (r + protection)
        return torch.cat([s, s * r_ij / (r + protection)], dim=-1)

    @torch.no_grad()
    def fit_normalisation(self, graphs: Iterable[Graph], protect: float) -> None:
        """Set davg and dstd to the moments of R̃ over all slots of `sel`, empty ones included.

        As in DeePMD-kit the mean of the angular components is taken as zero, and their three share one deviation.

        Args:
            graphs: representative batches.
            protect: smallest deviation, 1/Å.
        """
        sums, squares = torch.zeros_like(self.davg), torch.zeros_like(self.davg)
        slots = self.davg.new_zeros(self.n_species, 1)
        for graph in graphs:
            rows = self.environment(graph.vectors())
            for centre, atoms in enumerate(graph.atoms):
                mine = torch.cat([rows[graph.blocks[centre, k].edges] for k in range(self.n_species)])
                sums[centre] += mine.sum(dim=0)
                squares[centre] += (mine**2).sum(dim=0)
                slots[centre] += len(atoms) * sum(self.sel)
        mean, square = sums / slots.clamp(min=1), squares / slots.clamp(min=1)
        radial = (square[:, :1] - mean[:, :1] ** 2).clamp(min=0).sqrt()
        angular = square[:, 1:].mean(dim=1, keepdim=True).sqrt().expand(-1, 3)
        self.dstd.copy_(torch.cat([radial, angular], dim=1).clamp(min=protect))
        if not self.config.set_davg_zero:
            self.davg.copy_(torch.cat([mean[:, :1], torch.zeros_like(angular)], dim=1))

    def _describe(self, graph: Graph, environment: Tensor, centre: int) -> Tensor:
        """D of the atoms of one species."""
        moments = [self._moment(graph, environment, centre, k) for k in range(self.n_species)]
        moment = torch.stack(moments).sum(dim=0) / sum(self.sel)
        d = moment.transpose(1, 2) @ moment[:, :, : self.config.axis_neuron]
        return d.flatten(1)

    def _moment(self, graph: Graph, environment: Tensor, centre: int, neighbour: int) -> Tensor:
        """R̃ᵀ G summed over the slots of one neighbour species, (atoms of the centre's, 4, n_channels)."""
        block = graph.blocks[centre, neighbour]
        n_empty = self._empty_slots(graph, block, centre, neighbour)
        is_excluded = (centre, neighbour) in self.excluded
        net = self.embedding[neighbour if self.config.type_one_side else neighbour * self.n_species + centre]
        dtype = next(net.parameters()).dtype
        if is_excluded and not self.config.type_one_side:
            return torch.zeros(len(n_empty), 4, self.config.neuron[-1], dtype=dtype, device=n_empty.device)
        empty = (-self.davg[centre] / self.dstd[centre]).to(dtype)[None]
        moment: Tensor = n_empty.to(dtype)[:, None, None] * (empty.T @ net(empty[:, :1]))
        if is_excluded:
            return moment
        rows = ((environment[block.edges] - self.davg[centre]) / self.dstd[centre]).to(dtype)
        return moment + sum_outer(block.segments, rows, net(rows[:, :1]))

    def _empty_slots(self, graph: Graph, block: Block, centre: int, neighbour: int) -> Tensor:
        """Slots of `sel` left empty around each centre, (atoms of the centre's species,)."""
        if block.segments.width > self.sel[neighbour]:
            atom = graph.name_atom(centre, int(block.segments.counts.argmax()))
            raise StructureError(
                f"{atom} has {block.segments.width} neighbours of type {neighbour} within {self.rcut} Å, but the model "
                f"was made for at most {self.sel[neighbour]} (sel); check the density, or train with a larger sel"
            )
        return self.sel[neighbour] - block.segments.counts


def _resolved(sel: tuple[int, ...] | str) -> tuple[int, ...]:
    """The numbers of `sel`, which training has to put in place of `auto`."""
    if isinstance(sel, str):
        raise ConfigError(f"descriptor.sel is {sel!r}; a model needs numbers, as `dpserver train` takes from the data")
    return sel
