"""Several descriptors side by side, DeePMD-kit's `hybrid`: D_i is what all of them say of an atom.

Each part sees the neighbours within its own cutoff, and must have slots in its own `sel` for all of them. As in
DeePMD-kit further ones take slots that are left, up to the longest cutoff, where it makes a difference (`sees_beyond`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dpserver.models.description import Description
from dpserver.models.graph import Graph
from dpserver.models.smooth import SmoothDescriptor

AnySmooth = SmoothDescriptor[Any]


class Hybrid(nn.Module):
    """The descriptor D of every atom.

    Args:
        parts: the descriptors.

    Attributes:
        rcut: the largest cutoff radius, Å.
        n_features: size of D.
        n_channels: number of directions beside D.
    """

    def __init__(self, parts: Sequence[AnySmooth]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.rcut = max(part.rcut for part in parts)
        self.n_features = sum(part.n_features for part in parts)
        self.n_channels = sum(part.n_channels for part in parts)

    def __iter__(self) -> Iterator[AnySmooth]:
        return iter(cast(Iterable[AnySmooth], self.parts))

    def forward(self, graph: Graph, r_ij: Tensor) -> list[Description]:
        """Describe the atoms of each species.

        Args:
            graph: the batch.
            r_ij: vectors of its edges, (n_edges, 3), Å.

        Returns:
            For each species, the descriptors of its atoms, in the order of `graph.atoms`.

        Raises:
            StructureError: an atom has more neighbours of a species than the `sel` of a part holds.
        """
        found = []
        for part in self:
            near, edges = self._of_part(part, graph)
            found.append(part(near, r_ij if edges is None else r_ij.index_select(0, edges)))
        return [_joined(descriptions) for descriptions in zip(*found, strict=True)]

    def fit_normalisation(self, graphs: Iterable[Graph], protect: float) -> None:
        """Set the statistics of each part; see there."""
        batches = list(graphs) if isinstance(graphs, Iterator) else graphs
        for part in self:
            part.fit_normalisation((self._of_part(part, graph)[0] for graph in batches), protect)

    def _of_part(self, part: AnySmooth, graph: Graph) -> tuple[Graph, Tensor | None]:
        """The batch as a part sees it, and which edges are left; None for all."""
        if part.rcut == self.rcut:
            return graph, None
        return graph.nearest(sum(part.sel)) if part.sees_beyond else graph.within(part.rcut)


def _joined(parts: Sequence[Description]) -> Description:
    """What all parts say of the same atoms; directions are those of the parts that have any."""
    directions = [part.directions for part in parts if part.directions is not None]
    features = torch.cat([part.features for part in parts], dim=1)
    return Description(features, torch.cat(directions, dim=1) if directions else None)
