"""Atom-centred symmetry functions (Behler and Parrinello, PRL 98, 146401, 2007; Behler, JCP 134, 074106, 2011).

For each atom i, each species of neighbours and each unordered pair of species of neighbours:

    G2 = Σ_j exp(-η (R_ij - R_s)²) f(R_ij)
    G4 = 2^(1-ζ) Σ_{j<k} (1 + λ cos θ_jik)^ζ exp(-η (R_ij² + R_ik² + R_jk²)) f(R_ij) f(R_ik) f(R_jk)
    f(R) = (1 + cos(π R/rcut))/2 below rcut, 0 beyond

with each pair of neighbours counted once (the papers' double sum may count it twice). D_i are these numbers, those of
the pairs before those of the triples, standardised to (D - davg_c)/dstd_c for a centre of species c. A fitting net for
each species then makes them an energy: the papers' high-dimensional neural network.

The energy and its forces are continuous at the cutoff; the derivatives of the forces are not, as f'' jumps there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from dpserver.kernels.segments import Segments, sum_outer
from dpserver.models.config import BehlerParrinelloConfig
from dpserver.models.graph import Graph
from dpserver.models.memory import check_room
from dpserver.models.standardised import StandardisedDescriptor

_MANY: Final = 2_000_000
"""Pairs of neighbours from which on the memory is looked at first."""
_AT_ONCE: Final = 4_000_000
"""Pairs of neighbours that are made, and sorted out by distance, in one go."""
_NUMBERS: Final = 60
"""That torch keeps of a triple, beside its functions and their derivatives."""


@dataclass(frozen=True, eq=False)
class Triples:
    """Two neighbours of one atom each, that lie within the cutoff of each other too.

    Attributes:
        first: edge from the atom to one neighbour, among the graph's edges, (n_triples,), int64.
        second: edge to the other; of the same or a later species.
        segments: rows are the atoms of the centre's species in the order of `Graph.atoms`.
    """

    first: Tensor
    second: Tensor
    segments: Segments


class BehlerParrinello(StandardisedDescriptor):
    """The descriptor D of every atom.

    Args:
        config: cutoff and functions.
        n_species: number of species.

    Attributes:
        pairs: species of neighbours of each block of angular functions, (a, b) with a ≤ b.
        reaches: the different η of the angular functions.
        angles: their different (λ, ζ).
        places: of each angular function, among these.
    """

    def __init__(self, config: BehlerParrinelloConfig, n_species: int) -> None:
        pairs = [(a, b) for a in range(n_species) for b in range(a, n_species)] if config.angular else []
        super().__init__(n_species, config.rcut, n_species * len(config.radial) + len(pairs) * len(config.angular))
        self.config = config
        self.pairs = pairs
        self.reaches = sorted({eta for eta, _, _ in config.angular})
        self.angles = sorted({(sign, zeta) for _, sign, zeta in config.angular})
        self.places = [(self.reaches.index(eta), self.angles.index((sign, zeta))) for eta, sign, zeta in config.angular]

    def environment(self, graph: Graph, r_ij: Tensor) -> list[Tensor]:
        """D before standardisation: for each species, (atoms of it, n_features)."""
        if self.pairs:
            self._check_room(graph)
        distance = torch.linalg.vector_norm(r_ij, dim=-1)
        weight = self.cutoff(distance)
        found = []
        for centre in range(self.n_species):
            radial = [self._radial(graph, distance, weight, centre, k) for k in range(self.n_species)]
            angular = [self._angular(graph, r_ij, distance, weight, (centre, *pair)) for pair in self.pairs]
            found.append(torch.cat([*radial, *angular], dim=1))
        return found

    def cutoff(self, distance: Tensor) -> Tensor:
        """f(R), from 1 at 0 to 0 at the cutoff."""
        return 0.5 * (1 + torch.cos(math.pi / self.rcut * distance.clamp(max=self.rcut)))

    def smallest_deviation(self, square: Tensor, protect: float) -> Tensor:
        """A share of a feature's own root mean square, for features differ in size by orders of magnitude.

        Nor is it below the square of that share, lest the mere tail of a function counts for much.
        """
        return (protect * square.sqrt()).clamp(min=protect**2)

    def _radial(self, graph: Graph, distance: Tensor, weight: Tensor, centre: int, neighbour: int) -> Tensor:
        """G2 of one species of neighbours, (atoms of the centre's, functions)."""
        block = graph.blocks[centre, neighbour]
        r = distance[block.edges, None]
        eta, shift = (r.new_tensor(values) for values in zip(*self.config.radial, strict=True))
        summed: Tensor = sum_outer(block.segments, weight[block.edges, None], torch.exp(-eta * (r - shift) ** 2))
        return summed[:, 0]

    def _angular(
        self, graph: Graph, r_ij: Tensor, distance: Tensor, weight: Tensor, species: tuple[int, int, int]
    ) -> Tensor:
        """G4 of one pair of species of neighbours, (atoms of the centre's, functions)."""
        triples = self._triples(graph, r_ij.detach(), species)
        first, second = triples.first, triples.second
        u, v, r_u, r_v = r_ij[first], r_ij[second], distance[first], distance[second]
        r_uv = torch.linalg.vector_norm(v - u, dim=-1)
        cosine = (u * v).sum(dim=-1) / (r_u * r_v)
        weights = weight[first] * weight[second] * self.cutoff(r_uv)
        squares = r_u**2 + r_v**2 + r_uv**2
        reaches = weights[:, None] * torch.exp(-squares[:, None] * squares.new_tensor(self.reaches))
        angles = [2.0 ** (1 - zeta) * (1 + sign * cosine) ** zeta for sign, zeta in self.angles]
        summed = sum_outer(triples.segments, reaches, torch.stack(angles, dim=1))
        return summed.flatten(1)[:, [reach * len(self.angles) + angle for reach, angle in self.places]]

    def _triples(self, graph: Graph, r_ij: Tensor, species: tuple[int, int, int]) -> Triples:
        """The triples around centres of one species with neighbours of two."""
        centre, a, b = species
        block_a, block_b = graph.blocks[centre, a], graph.blocks[centre, b]
        rows_a = block_a.segments.slot // max(block_a.segments.width, 1)
        ends = block_b.segments.counts.cumsum(0)
        edges = torch.arange(len(rows_a), device=rows_a.device)
        if a == b:
            from_, numbers = edges + 1, ends[rows_a] - edges - 1
        else:
            numbers = block_b.segments.counts[rows_a]
            from_ = ends[rows_a] - numbers
        found = [
            self._near(r_ij, edges[part] + block_a.edges.start, from_[part] + block_b.edges.start, numbers[part])
            for part in _parts(numbers)
        ]
        first, second = (torch.cat(edges) for edges in zip(*found, strict=True))
        row = rows_a[first - block_a.edges.start]
        return Triples(first, second, Segments.from_rows(row.cpu().numpy(), block_a.segments.n_rows, row.device))

    def _near(self, r_ij: Tensor, edges: Tensor, from_: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Pair each edge with so many edges from another one on, and keep the pairs that end near each other."""
        first = edges.repeat_interleave(numbers)
        second = torch.arange(len(first), device=first.device)
        second = second + (from_ - numbers.cumsum(0) + numbers).repeat_interleave(numbers)
        between = torch.linalg.vector_norm(r_ij[second] - r_ij[first], dim=-1)
        is_near = between < self.rcut
        return first[is_near], second[is_near]

    def _check_room(self, graph: Graph) -> None:
        """Refuse more triples than there is memory for.

        Raises:
            MemoryError: see there.
        """
        if graph.positions.device.type != "cpu":
            return
        n_neighbours = torch.bincount(graph.centre, minlength=1)
        n_pairs = int((n_neighbours * (n_neighbours - 1) // 2).sum())
        if n_pairs > _MANY:
            numbers = _NUMBERS + 8 * len(self.angles) + 8 * len(self.reaches)
            check_room(8.0 * n_pairs * numbers, f"evaluating {n_pairs} pairs of neighbours")


def _parts(numbers: Tensor) -> list[slice]:
    """Cut edges so that the pairs to make of each part are not too many at once."""
    if not len(numbers):
        return [slice(0, 0)]
    part = (numbers.cumsum(0) - numbers) // _AT_ONCE
    bounds = [0, *((part[1:] != part[:-1]).nonzero()[:, 0] + 1).tolist(), len(numbers)]
    return [slice(low, high) for low, high in pairwise(bounds)]
