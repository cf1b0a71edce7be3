"""What the smooth descriptors share: the switched 1/r, its normalisation, embedding nets, and the slots of `sel`.

    s(r) = w(r)/r,  w = 1 below rcut_smth, u³(-6u² + 15u - 10) + 1 up to rcut, u = (r - rcut_smth)/(rcut - rcut_smth)

DeePMD-kit fills the slots of `sel` that no neighbour takes with R̃ = 0 before normalisation. All empty slots of one
species add the same, so here they enter as one closed term per centre, (n_sel - n_real) times the pair's value at
r ≥ rcut, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Final, Generic, TypeVar

import torch
from torch import Tensor, nn

from dpserver.errors import ConfigError, StructureError
from dpserver.models.config import SmoothConfig
from dpserver.models.description import Description
from dpserver.models.graph import Block, Graph
from dpserver.models.networks import embedding_net

ABSENT_DEVIATION: Final = 0.1
"""Of the environment of species that training data do not have, 1/Å."""

Config = TypeVar("Config", bound=SmoothConfig)


class SmoothDescriptor(nn.Module, Generic[Config]):
    """A descriptor made of embedded switched distances.

    Args:
        config: sizes and cutoffs; `sel` resolved to numbers.
        n_species: number of species.
        generator: source of the networks' initial values.
        unseen: pairs of species that are no neighbours at all, the model's `pair_exclude_types`.

    Attributes:
        n_columns: of the environment matrix: 4, or 1 without directions.
        davg: mean of R̃ per centre species, (n_species, n_columns), float64.
        dstd: standard deviation, (n_species, n_columns), float64.
        excluded: (centre, neighbour) of the pairs of `exclude_types`; such neighbours take slots, and add nothing.
        silent: those of them whose empty slots add nothing either.
        unseen: (centre, neighbour) of the pairs whose slots stay empty, those of neighbours without slots among them.
    """

    n_columns: ClassVar[int]
    config: Config
    davg: Tensor
    dstd: Tensor

    def __init__(
        self,
        config: Config,
        n_species: int,
        generator: torch.Generator,
        unseen: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        self.config = config
        self.n_species = n_species
        self.rcut = config.rcut
        self.sel = _resolved(config.sel)
        self.excluded = _both_ways(config.exclude_types)
        keeps_slots = config.type_one_side if config.keeps_excluded_slots is None else config.keeps_excluded_slots
        self.silent = set() if keeps_slots else self.excluded
        self.unseen = _both_ways(unseen) | self._pairs_without_slots()
        self.register_buffer("davg", torch.zeros(n_species, self.n_columns, dtype=torch.float64))
        self.register_buffer("dstd", torch.ones(n_species, self.n_columns, dtype=torch.float64))
        self.embedding = self._make_embedding(generator)

    @property
    def n_features(self) -> int:
        """Size of D."""
        raise NotImplementedError

    @property
    def n_channels(self) -> int:
        """Number of directions beside D; none unless a descriptor says otherwise."""
        return 0

    def _pairs_without_slots(self) -> set[tuple[int, int]]:
        """(centre, neighbour) of the pairs whose neighbours have no slots."""
        return {(c, k) for c in range(self.n_species) for k in range(self.n_species) if not self.sel[k]}

    @property
    def sees_beyond(self) -> bool:
        """Whether a neighbour beyond the cutoff that takes a slot, as in a hybrid, differs from an empty slot."""
        return False

    def _make_embedding(self, generator: torch.Generator) -> nn.ModuleList:
        """The embedding nets, with random weights."""
        config, n_species = self.config, self.n_species
        return nn.ModuleList(
            embedding_net(config.neuron, config.activation_function, config.resnet_dt, generator)
            for _ in range(n_species if config.type_one_side else n_species**2)
        )

    def forward(self, graph: Graph, r_ij: Tensor) -> list[Description]:
        """Describe the atoms of each species.

        Args:
            graph: the batch.
            r_ij: vectors of its edges, (n_edges, 3), Å.

        Returns:
            For each species, the descriptors of its atoms, in the order of `graph.atoms`.

        Raises:
            StructureError: an atom has more neighbours of a species than `sel` holds.
        """
        environment = self.environment(r_ij)
        return [self._describe(graph, environment, centre) for centre in range(self.n_species)]

    def check(self, graph: Graph, r_ij: Tensor) -> None:
        """Refuse atoms that `forward` would refuse, without describing any.

        Args:
            graph: the batch.
            r_ij: vectors of its edges, (n_edges, 3), Å.

        Raises:
            StructureError: an atom has more neighbours of a species than `sel` holds.
        """
        for (centre, neighbour), block in graph.blocks.items():
            self.empty_slots(graph, block, centre, neighbour)

    def environment(self, r_ij: Tensor) -> Tensor:
        """R̃ before normalisation, (n_edges, n_columns), 1/Å."""
        r = torch.linalg.vector_norm(r_ij, dim=-1, keepdim=True)
        protected = r + self.config.env_protection
        s = self.switch(r) / protected
        return s if self.davg.shape[1] == 1 else torch.cat([s, s * r_ij / protected], dim=-1)

    def switch(self, r: Tensor) -> Tensor:
        """w(r), from 1 below rcut_smth to 0 at rcut."""
        u = ((r - self.config.rcut_smth) / (self.rcut - self.config.rcut_smth)).clamp(0.0, 1.0)
        return u**3 * (-6 * u**2 + 15 * u - 10) + 1

    @torch.no_grad()
    def fit_normalisation(self, graphs: Iterable[Graph], protect: float) -> None:
        """Set davg and dstd to the moments of R̃ over all slots of `sel`, empty ones included.

        As in DeePMD-kit the mean of the angular components is taken as zero in davg, their three share one deviation,
        excluded neighbours count as empty slots do, and a species that does not occur has deviations of 0.1.

        Args:
            graphs: representative batches.
            protect: smallest deviation, 1/Å.
        """
        sums, squares = torch.zeros_like(self.davg), torch.zeros_like(self.davg)
        slots = self.davg.new_zeros(self.n_species, 1)
        for graph in graphs:
            rows = self.environment(graph.vectors())
            for centre, atoms in enumerate(graph.atoms):
                seen = [k for k in range(self.n_species) if (centre, k) not in self.unseen | self.excluded]
                mine = torch.cat([rows[:0], *(rows[graph.blocks[centre, k].edges] for k in seen)])
                sums[centre] += mine.sum(dim=0)
                squares[centre] += (mine**2).sum(dim=0)
                slots[centre] += len(atoms) * sum(self.sel)
        mean, square = sums / slots.clamp(min=1), squares / slots.clamp(min=1)
        radial = (square[:, 0] - mean[:, 0] ** 2).clamp(min=0).sqrt()
        angular = (square[:, 1:].mean(dim=1) - mean[:, 1:].mean(dim=1) ** 2).clamp(min=0).sqrt()
        deviations = torch.stack([radial, *[angular] * (self.n_columns - 1)], dim=1).clamp(min=protect)
        self.dstd.copy_(torch.where(slots > 0, deviations, ABSENT_DEVIATION))
        if not self.config.set_davg_zero:
            self.davg.copy_(torch.cat([mean[:, :1], torch.zeros_like(mean[:, 1:])], dim=1))

    def _describe(self, graph: Graph, environment: Tensor, centre: int) -> Description:
        """The descriptors of the atoms of one species."""
        raise NotImplementedError

    def embedding_of(self, centre: int, neighbour: int) -> nn.Module:
        """The embedding net of a pair of species."""
        return self.embedding[neighbour if self.config.type_one_side else neighbour * self.n_species + centre]

    def empty(self, centre: int, dtype: torch.dtype) -> Tensor:
        """What an empty slot holds after normalisation, (1, n_columns)."""
        return (-self.davg[centre] / self.dstd[centre]).to(dtype)[None]

    def empty_slots(self, graph: Graph, block: Block, centre: int, neighbour: int) -> Tensor:
        """Slots of `sel` left empty around each centre, (atoms of the centre's species,)."""
        if (centre, neighbour) in self.unseen:
            return torch.full_like(block.segments.counts, self.sel[neighbour])
        if block.segments.width > self.sel[neighbour]:
            atom = graph.name_atom(centre, int(block.segments.counts.argmax()))
            raise StructureError(
                f"{atom} has {block.segments.width} neighbours of type {neighbour} within {self.rcut} Å, but the model "
                f"was made for at most {self.sel[neighbour]} (sel); check the density and the order of the atoms, or "
                "train with a larger sel"
            )
        taken = block.segments.counts
        if (centre, neighbour) in self.excluded and block.further is not None:
            # As in DeePMD-kit's hybrids, where an excluded neighbour takes a slot as far as the longest cutoff reaches.
            taken = (taken + block.further).clamp(max=self.sel[neighbour])
        return self.sel[neighbour] - taken


def _both_ways(pairs: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    return {pair for a, b in pairs for pair in ((a, b), (b, a))}


def _resolved(sel: tuple[int, ...] | str) -> tuple[int, ...]:
    """The numbers of `sel`, which training has to put in place of `auto`."""
    if isinstance(sel, str):
        raise ConfigError(f"descriptor.sel is {sel!r}; a model needs numbers, as `dpserver train` takes from the data")
    return sel
