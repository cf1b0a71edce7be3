"""The descriptor of DPA-1 (Zhang et al., arXiv:2208.08236), DeePMD-kit's `se_atten` and `se_atten_v2`.

With s, w and R̃ as in `smooth`, and vectors T for the types:

    G_ij  = N(s, T_j, T_i)                           types and distance in one net ("concat"); or
    G_ij  = N(s) (1 + F w),  F = N'(T_j, T_i)        a net for each ("strip"), w only with smooth type embedding
    G     = layers of attention among the neighbours of an atom, see `attention`; or none
    D_i   = (Gᵀ R̃)(R̃ᵀ G_<)/n², T_i                   n the slots of `sel`, G_< the first axis_neuron columns of G

With lmax > 1 solid harmonics of the degrees l = 2 to lmax, (s/dstd_s) Y_lm(r_ij/r), are further columns of R̃, and in
the second factor of D those of degree l have the weight of the square of a learnt number.

T_i does not enter N and N' with `type_one_side`, and is not part of D without `concat_output_tebd`. One fitting net
serves all types.

There is one section of slots for neighbours of all types, so an empty one has no type. DeePMD-kit lets it have that of
the first atom of the structure. An empty slot adds R̃ = -davg/dstd times G, so this shows only where davg is not 0, and
the types of empty slots matter: there the energy depends on the order of the atoms. It is so repeated here, for models
that come from elsewhere; none such is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from dpserver.errors import ConfigError, StructureError
from dpserver.kernels.segments import Segments, sum_outer
from dpserver.models.attention import AttentionLayer, Neighbourhoods, unit
from dpserver.models.config import AttentionConfig
from dpserver.models.description import Description
from dpserver.models.graph import Graph
from dpserver.models.harmonics import solid_harmonics
from dpserver.models.networks import embedding_net
from dpserver.models.smooth import SmoothDescriptor
from dpserver.models.type_embedding import TypeEmbedding


class _EdgeTerms(NamedTuple):
    """What is known of the edges of a batch.

    Attributes:
        environment: R̃ before normalisation, (n_edges, 4).
        switch: w, (n_edges, 1).
        harmonics: of the directions, from degree 2 on; None without.
    """

    environment: Tensor
    switch: Tensor
    harmonics: Tensor | None = None


class SeAtten(SmoothDescriptor[AttentionConfig]):
    """The descriptor D of every atom.

    Args:
        config: sizes and cutoffs; `sel` resolved to numbers.
        species: symbols of the types.
        generator: source of the networks' initial values.
        unseen: pairs of species that are no neighbours at all, the model's `pair_exclude_types`.

    Attributes:
        types: the embedding of types.
        embedding: N and, where types are stripped, N'.
        attention: the layers.
        gain: of the degrees from 2 on, (lmax - 1,); there if there are any.
        n_slots: of `sel`, for neighbours of all types together.
    """

    n_columns = 4

    def __init__(
        self,
        config: AttentionConfig,
        species: Sequence[str],
        generator: torch.Generator,
        unseen: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__(config, len(species), generator, unseen)
        self.n_slots = sum(self.sel)
        self.types = TypeEmbedding(
            species,
            config.tebd_dim,
            generator,
            of_electrons=config.use_econf_tebd,
            has_bias=config.use_tebd_bias,
        )
        self.attention = nn.ModuleList(AttentionLayer(config, generator) for _ in range(config.attn_layer))
        if config.lmax > 1:
            self.gain = nn.Parameter(0.1 * torch.randn(config.lmax - 1, dtype=torch.float64, generator=generator))

    def _pairs_without_slots(self) -> set[tuple[int, int]]:
        """None: neighbours of all types share the slots."""
        return set()

    def _make_embedding(self, generator: torch.Generator) -> nn.ModuleList:
        """N and, where types are stripped, N'."""
        config = self.config
        n_types = config.tebd_dim * (1 if config.type_one_side else 2)
        sizes = [1, n_types] if config.is_stripped else [1 + n_types]
        return nn.ModuleList(
            embedding_net(config.neuron, config.activation_function, config.resnet_dt, generator, n_in)
            for n_in in sizes
        )

    @property
    def n_features(self) -> int:
        """Size of D."""
        own = self.config.tebd_dim if self.config.concat_output_tebd else 0
        return self.config.neuron[-1] * self.config.axis_neuron + own

    @property
    def n_channels(self) -> int:
        """Number of directions beside D."""
        return self.config.neuron[-1]

    @property
    def has_ordered_atoms(self) -> bool:
        """Whether the energy depends on which atom is the first, see above."""
        return bool(self.davg.any()) and not (self.config.is_stripped and self.config.is_smooth)

    @property
    def sees_beyond(self) -> bool:
        """Whether it has a type that matters, or takes part in attention."""
        return self.has_ordered_atoms or (len(self.attention) > 0 and not self.config.is_smooth)

    def fit_normalisation(self, graphs: Iterable[Graph], protect: float) -> None:
        """Set davg and dstd; see there.

        Raises:
            ConfigError: the energy would depend on the order of the atoms.
        """
        config = self.config
        if not config.set_davg_zero and not (config.is_stripped and config.is_smooth):
            raise ConfigError(
                "descriptor.set_davg_zero must be true for se_atten, unless tebd_input_mode is strip and "
                "smooth_type_embedding true: the energy would jump at the cutoff and depend on the order of the atoms"
            )
        super().fit_normalisation(graphs, protect)

    def forward(self, graph: Graph, r_ij: Tensor) -> list[Description]:
        """Describe the atoms of each species.

        Args:
            graph: the batch.
            r_ij: vectors of its edges, (n_edges, 3), Å.

        Returns:
            For each species, the descriptors of its atoms, in the order of `graph.atoms`.

        Raises:
            StructureError: an atom has more neighbours than `sel` holds, or the first atom counts and is not known.
        """
        if self.has_ordered_atoms and graph.frames.is_ghost is not None:
            raise StructureError(
                "this model's energy depends on which atom is the first of the structure (its davg is not 0), so a "
                "structure cannot be evaluated in parts"
            )
        r = torch.linalg.vector_norm(r_ij, dim=-1, keepdim=True)
        edges = _EdgeTerms(self.environment(r_ij), self.switch(r))
        if self.config.lmax > 1:
            edges = edges._replace(harmonics=solid_harmonics(r_ij / (r + self.config.env_protection), self.config.lmax))
        types = self.types()
        return [self._describe_all(graph, edges, types, c) for c in range(self.n_species)]

    def _describe_all(self, graph: Graph, edges: _EdgeTerms, types: Tensor, centre: int) -> Description:
        """The descriptors of the atoms of one species; their directions are (R̃ᵀ G)ᵀ without its row of s."""
        moment = self._no_moment(graph, types, centre)
        if len(moment):
            counts = self._counts(graph, centre)
            self._check_slots(graph, centre, counts)
            moment = self._moment(graph, edges, types, centre)
            if bool(self.davg[centre].any()):
                taken = [counts[k] for k in counts if (centre, k) not in self.unseen]
                n_empty = self.n_slots - sum(taken, torch.zeros_like(counts[centre]))
                added = self._moment_of_empty(graph, n_empty, types, centre)
                moment = moment + nn.functional.pad(added, (0, 0, 0, moment.shape[1] - 4))
        moment = moment / self.n_slots
        d = (moment.transpose(1, 2) @ self._weighted(moment[:, :, : self.config.axis_neuron])).flatten(1)
        if self.config.concat_output_tebd:
            d = torch.cat([d, types[centre].expand(len(d), -1)], dim=1)
        return Description(d, moment[:, 1:4].transpose(1, 2))

    def _weighted(self, moment: Tensor) -> Tensor:
        """The second factor of D: rows of higher degrees with their weights."""
        if self.config.lmax == 1:
            return moment
        weights = [moment.new_ones(4), *(g.square().expand(2 * n + 5) for n, g in enumerate(self.gain))]
        return moment * torch.cat(weights)[:, None]

    def _no_moment(self, graph: Graph, types: Tensor, centre: int) -> Tensor:
        """R̃ᵀ G without neighbours, (atoms of the centre's species, (lmax + 1)², n_channels)."""
        return types.new_zeros(len(graph.atoms[centre]), (self.config.lmax + 1) ** 2, self.n_channels)

    def _moment(self, graph: Graph, edges: _EdgeTerms, types: Tensor, centre: int) -> Tensor:
        """R̃ᵀ G summed over the neighbours that are seen; see `_no_moment`."""
        hidden = self.excluded | self.unseen
        blocks = {k: graph.blocks[centre, k] for k in range(self.n_species) if (centre, k) not in hidden}
        seen = [k for k, block in blocks.items() if block.edges.stop > block.edges.start]
        if not seen:
            return self._no_moment(graph, types, centre)
        rows, weights, features = [], [], []
        for k in seen:
            here = blocks[k].edges
            rows.append((edges.environment[here] - self.davg[centre]) / self.dstd[centre])
            weights.append(edges.switch[here].to(types.dtype))
            features.append(self.embed(rows[-1][:, :1].to(types.dtype), weights[-1], self.pair_of(types, centre, k)))
        segments, r, g = Segments.joined([blocks[k].segments for k in seen]), torch.cat(rows), torch.cat(features)
        if len(self.attention):
            near = Neighbourhoods(
                segments, torch.cat(weights), unit(r[:, 1:], self.config.shortest).to(g.dtype), self.n_slots
            )
            for layer in self.attention:
                g = layer(g, near)
        if edges.harmonics is not None:
            s = torch.cat([edges.environment[blocks[k].edges, :1] for k in seen]) / self.dstd[centre, 0]
            r = torch.cat([r, s * torch.cat([edges.harmonics[blocks[k].edges] for k in seen])], dim=1)
        return sum_outer(segments, r.to(g.dtype), g)

    def embed(self, s: Tensor, w: Tensor, pair: Tensor) -> Tensor:
        """G before attention, (n, n_channels), of neighbours of one species around centres of one.

        Args:
            s: normalised, (n, 1).
            w: the switch, (n, 1).
            pair: what the nets are told of the types, see `pair_of`.
        """
        if not self.config.is_stripped:
            return cast(Tensor, self.embedding[0](torch.cat([s, pair.expand(len(s), -1)], dim=1)))
        factor = self.embedding[1](pair[None])
        g = self.embedding[0](s)
        return cast(Tensor, g + g * (factor * w if self.config.is_smooth else factor))

    def pair_of(self, types: Tensor, centre: int, neighbour: int) -> Tensor:
        """What the nets are told of the types of two atoms, from the embeddings of all types."""
        return types[neighbour] if self.config.type_one_side else torch.cat([types[neighbour], types[centre]])

    def _moment_of_empty(self, graph: Graph, n_empty: Tensor, types: Tensor, centre: int) -> Tensor:
        """What the empty slots add to R̃ᵀ G, (atoms of the centre's species, 4, n_channels)."""
        row, frames = self.empty(centre, types.dtype), graph.frames
        first = frames.types[frames.offsets[:-1]][frames.frame_idx[graph.atoms[centre].cpu().numpy()]]
        if not self.has_ordered_atoms:
            first = np.full_like(first, centre)
        found, places = np.unique(first, return_inverse=True)
        s, w = row[:, :1], torch.zeros_like(row[:, :1])
        g = torch.cat([self.embed(s, w, self.pair_of(types, centre, int(k))) for k in found])
        for layer in self.attention:
            g = cast(AttentionLayer, layer).of_empty(g)
        weighted = n_empty.to(g.dtype)[:, None] * g[torch.as_tensor(places, device=g.device)]
        return row[0][:, None] * weighted[:, None, :]

    def check(self, graph: Graph, r_ij: Tensor) -> None:
        """Refuse atoms with more neighbours than `sel` holds; see `SmoothDescriptor.check`."""
        for centre in range(self.n_species):
            if len(graph.atoms[centre]):
                self._check_slots(graph, centre, self._counts(graph, centre))

    def _counts(self, graph: Graph, centre: int) -> dict[int, Tensor]:
        """Neighbours of each species around the atoms of one, (atoms of it,)."""
        return {k: graph.blocks[centre, k].segments.counts for k in range(self.n_species)}

    def _check_slots(self, graph: Graph, centre: int, counts: Mapping[int, Tensor]) -> None:
        """Refuse an atom with more neighbours than there are slots; those of unseen pairs count, as in DeePMD-kit."""
        number = torch.stack(list(counts.values())).sum(dim=0)
        if int(number.max()) > self.n_slots:
            atom = graph.name_atom(centre, int(number.argmax()))
            raise StructureError(
                f"{atom} has {int(number.max())} neighbours within {self.rcut} Å, but the model was made for at most "
                f"{self.n_slots} (sel); check the density and the order of the atoms, or train with a larger sel"
            )
