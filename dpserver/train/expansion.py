"""A quick way to train `se_e2_a`: moments of environments in polynomials, which no weight changes.

The embedding net of a pair of species is a smooth function of one number, the normalised s̃ of an edge, so that it is a
sum of Chebyshev polynomials T_p(u(s̃)), and what the descriptor takes of it is

    Σ_e R̃_e G(s̃_e) = Σ_p A_p C_p,   A_p = Σ_e R̃_e T_p(u(s̃_e)),   C_p = Σ_q w_pq G(s̃_q)

with the values of the net in the few Chebyshev nodes s̃_q alone. A is a property of the structure: the net is never
evaluated on edges. Forces are the derivative by A, which automatic differentiation finds, times that of A by the edge
vectors, a linear map by a kernel, whose adjoint is all that the loss's derivative by the weights needs of the edges.

The number of polynomials is such that the last ones do not matter; it grows as the weights ask for it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from weakref import WeakKeyDictionary, finalize

import numpy as np
import torch
from torch import Tensor

from dpserver.frames import Floats, Ints
from dpserver.kernels import expansion as kernels
from dpserver.models.description import Description
from dpserver.models.electrostatics import Placement
from dpserver.models.graph import Graph
from dpserver.models.potential import Potential, Prediction
from dpserver.models.se_e2_a import SeE2A
from dpserver.models.tensors import TensorModel
from dpserver.train.room import Room

SIZES: Final = (16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of polynomials to choose from."""
TOLERANCE: Final = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Of the last polynomials' coefficients, relative to the largest."""
MAX_SPECIES: Final = 10
"""With more of them most of A would be zeros."""
_TAIL: Final = 4
_MARGIN: Final = 1e-9


def reason_against(model: Potential | TensorModel) -> str | None:
    """Why a model cannot be evaluated this way; None where it can."""
    if not isinstance(model, Potential):
        return "it is no potential"
    if not isinstance(model.descriptor, SeE2A):
        return f"the descriptor is {model.config.descriptor.type}"
    if model.descriptor.rcut < model.rcut:
        return "a table of pair energies reaches further than the descriptor"
    if len(model.species) > MAX_SPECIES:
        return f"it has more than {MAX_SPECIES} species"
    return None if model.device.type == "cpu" else "the device is not the CPU"


@dataclass(frozen=True, eq=False)
class _Edges:
    """The edges from centres of one species to neighbours of one species, as the kernels take them."""

    centre: int
    first: int
    edges: slice
    vectors: Floats
    bounds: Ints
    constants: Floats


@dataclass(frozen=True, eq=False)
class _Structure:
    """What no weight changes of a batch.

    Attributes:
        vectors: of the edges, (n_edges, 3), Å.
        pairs: atoms of each edge, and the frame of each atom.
        n_frames: number of frames.
        blocks: the edges by pairs of species.
        moments: A of the atoms of each species, (n, 4, n_species * count), float64.
        count: number of polynomials.
    """

    vectors: Floats
    pairs: tuple[Ints, Ints, Ints]
    n_frames: int
    blocks: Sequence[_Edges]
    moments: Sequence[Tensor]
    count: int


class _Forces(torch.autograd.Function):
    """Forces and virials from derivatives by A: linear, so that its derivative is its adjoint."""

    @staticmethod
    def forward(ctx: Any, structure: _Structure, *by_moment: Tensor) -> tuple[Tensor, Tensor]:
        ctx.structure = structure
        arrays = [m.detach().numpy() for m in by_moment]
        gradients = np.zeros_like(structure.vectors)
        for block in structure.blocks:
            by_mine, into = arrays[block.centre], gradients[block.edges]
            kernels.edge_gradients(
                block.vectors, block.bounds, block.constants, by_mine, block.first, structure.count, into
            )
        forces, virial = np.zeros((len(structure.pairs[2]), 3)), np.zeros((structure.n_frames, 3, 3))
        kernels.sum_gradients(structure.vectors, structure.pairs, gradients, forces, virial)
        return torch.from_numpy(forces), torch.from_numpy(virial)

    @staticmethod
    def backward(ctx: Any, by_forces: Tensor, by_virial: Tensor) -> tuple[Tensor | None, ...]:
        structure: _Structure = ctx.structure
        changes = np.empty_like(structure.vectors)
        given = [np.ascontiguousarray(by.numpy()) for by in (by_forces, by_virial)]
        kernels.spread_gradients(structure.vectors, structure.pairs, given[0], given[1], changes)
        moments = [np.zeros(tuple(m.shape)) for m in structure.moments]
        for block in structure.blocks:
            mine, of_mine = moments[block.centre], changes[block.edges]
            kernels.add_changes(
                block.vectors, block.bounds, block.constants, of_mine, mine, block.first, structure.count
            )
        return (None, *(torch.from_numpy(m) for m in moments))


class Expansion:
    """Predicts what a potential of `se_e2_a` predicts, for training.

    Args:
        potential: whose weights are used, and trained.
        closest: smallest distance of each pair of species in all structures to come, (n_species, n_species), Å.
        count: number of polynomials to begin with.
        room: where A is kept as long as a graph is; by default one of its own.

    Attributes:
        potential: the same.
        count: number of polynomials.
    """

    def __init__(self, potential: Potential, closest: Floats, count: int = SIZES[0], room: Room | None = None) -> None:
        self.potential = potential
        self.descriptor = cast(SeE2A, potential.descriptor)
        self.closest = closest
        self.count = count
        self._room = Room() if room is None else room
        self._kept: WeakKeyDictionary[Graph, tuple[_Structure, finalize[[int], Graph]]] = WeakKeyDictionary()
        self._constants = {(c, k): self._constants_of(c, k) for c in range(len(closest)) for k in range(len(closest))}

    def fits(self) -> bool:
        """Take as many polynomials as the weights need now; False where these are too many."""
        with torch.no_grad():
            while self._tail() > TOLERANCE[self.potential.network_dtype]:
                larger = [size for size in SIZES if size > self.count]
                if not larger:
                    return False
                self.count = larger[0]
        return True

    def forget(self) -> None:
        """Keep nothing of any graph any more, and give its room back."""
        for _, release in list(self._kept.values()):
            release()
        self._kept.clear()

    def __call__(self, graph: Graph, *, is_training: bool = False) -> Prediction:
        """Predict energies, forces and virials; see `Potential.forward`."""
        potential, structure = self.potential, self._structure(graph)
        with torch.enable_grad():
            r_ij = torch.from_numpy(structure.vectors).requires_grad_(potential.table is not None)
            moments = [m.detach().requires_grad_() for m in structure.moments]
            described = [self._describe(c, m) for c, m in enumerate(moments)]
            placement = None if potential.electrostatics is None else Placement.of(graph).requires_grad_()
            atom_energy = potential.energies_of(graph, described, r_ij, placement)
            variables = [*moments, *([r_ij] if potential.table is not None else [])]
            if placement is not None:
                variables += [placement.positions, placement.strain]
            found = list(
                torch.autograd.grad(atom_energy.sum(), variables, create_graph=is_training, materialize_grads=True)
            )
            by_moment, found = found[: len(moments)], found[len(moments) :]
            forces, virial = cast(
                tuple[Tensor, Tensor],
                _Forces.apply(structure, *(g.double().contiguous() for g in by_moment)),  # type: ignore[no-untyped-call]
            )
            if potential.table is not None:
                beside = Prediction.of_derivatives(graph, r_ij.detach(), atom_energy, found.pop(0))
                forces, virial = forces + beside.forces, virial + beside.virial
            if placement is not None:
                forces, virial = forces - found[0], virial - found[1]
        if not is_training:
            atom_energy, forces, virial = atom_energy.detach(), forces.detach(), virial.detach()
        energy = atom_energy.new_zeros(structure.n_frames).index_add(0, graph.frame_idx, atom_energy)
        return Prediction(energy, forces, virial, atom_energy)

    def _structure(self, graph: Graph) -> _Structure:
        """What no weight changes of a batch, kept as long as the graph is, if there is room.

        Raises:
            ValueError: atoms are closer than what the polynomials are good for.
            StructureError: an atom has more neighbours of a species than `sel` holds.
        """
        if graph in self._kept:
            structure, release = self._kept[graph]
            if structure.count == self.count:
                return structure
            del self._kept[graph]
            release()
        vectors = graph.vectors().numpy()
        blocks = self._blocks(graph, vectors)
        pairs = (graph.centre.numpy(), graph.neighbour.numpy(), graph.frame_idx.numpy())
        made = _Structure(vectors, pairs, graph.frames.n_frames, blocks, self._moments(graph, blocks), self.count)
        n_bytes = sum(m.nbytes for m in made.moments)
        if self._room.take(n_bytes):
            self._kept[graph] = made, finalize(graph, self._room.give, n_bytes)
        return made

    def _describe(self, centre: int, moment: Tensor) -> Description:
        """The descriptors of the atoms of one species from A, (n, 4, n_species * count)."""
        descriptor = self.descriptor
        mixed = moment.to(self.potential.network_dtype).flatten(0, 1) @ self._coefficients(centre)
        return descriptor.of_moments(mixed.view(-1, 4, mixed.shape[1]))

    def _coefficients(self, centre: int) -> Tensor:
        """C of all neighbour species, (n_species * count, n_channels)."""
        return torch.cat([self._of_net(centre, k) for k in range(len(self.closest))])

    def _of_net(self, centre: int, neighbour: int) -> Tensor:
        """Chebyshev coefficients of what a net says of s̃, (count, n_channels)."""
        constants = self._constants[centre, neighbour]
        nodes, weights = _chebyshev(self.count)
        dtype = self.potential.network_dtype
        places = torch.from_numpy((nodes - constants[12]) / constants[11]).to(dtype)
        values: Tensor = self.descriptor.embedding_of(centre, neighbour)(places[:, None])
        return torch.from_numpy(weights).to(dtype) @ values

    def _tail(self) -> float:
        """The largest of the last coefficients of a net relative to its largest, over all nets."""
        worst = 0.0
        for centre, neighbour in self._constants:
            size = self._of_net(centre, neighbour).abs()
            worst = max(worst, float(size[-_TAIL:].max() / size.max()))
        return worst if math.isfinite(worst) else 0.0  # more polynomials are no help; the loss is not finite either

    def _moments(self, graph: Graph, blocks: Sequence[_Edges]) -> list[Tensor]:
        """A of the atoms of each species, (n, 4, n_species * count), float64."""
        n_species = len(self.closest)
        moments = [np.zeros((len(atoms), 4, n_species * self.count)) for atoms in graph.atoms]
        for block in blocks:
            mine = moments[block.centre]
            kernels.add_moments(block.vectors, block.bounds, block.constants, mine, block.first, self.count)
        for (c, k), slots in graph.blocks.items():
            n_empty = self.descriptor.empty_slots(graph, slots, c, k).numpy()
            if (c, k) in self.descriptor.silent:
                continue
            empty = self.descriptor.empty(c, torch.float64).numpy()[0]
            constants = self._constants[c, k]
            values = np.polynomial.chebyshev.chebvander(constants[11] * empty[:1] + constants[12], self.count - 1)[0]
            first = k * self.count
            moments[c][:, :, first : first + self.count] += n_empty[:, None, None] * empty[:, None] * values
        return [torch.from_numpy(m) for m in moments]

    def _blocks(self, graph: Graph, vectors: Floats) -> list[_Edges]:
        """The edges that A is made of."""
        descriptor, found = self.descriptor, []
        for (c, k), block in graph.blocks.items():
            here = block.edges
            if here.start == here.stop or (c, k) in descriptor.excluded | descriptor.unseen | descriptor.silent:
                continue
            nearest = float(np.linalg.norm(vectors[here], axis=1).min())
            if nearest < self.closest[c, k] * (1 - _MARGIN):
                raise ValueError(
                    f"atoms {nearest:g} Å apart, but the expansion is for {self.closest[c, k]:g} Å and more"
                )
            bounds = np.concatenate([[0], np.cumsum(block.segments.counts.numpy())])
            found.append(_Edges(c, k * self.count, here, vectors[here], bounds, self._constants[c, k]))
        return found

    def _constants_of(self, centre: int, neighbour: int) -> Floats:
        """What the kernels know of a pair of species; u is -1 at the cutoff and 1 at the smallest distance."""
        config, descriptor = self.descriptor.config, self.descriptor
        davg, dstd = descriptor.davg[centre].numpy(), descriptor.dstd[centre].numpy()
        closest = torch.tensor(min(float(self.closest[centre, neighbour]), config.rcut / 2), dtype=torch.float64)
        top = float(descriptor.switch(closest)) / (float(closest) + config.env_protection)
        low, high = -davg[0] / dstd[0], (top * (1 + _MARGIN) - davg[0]) / dstd[0]
        scale = 2 / (high - low)
        return np.array([config.rcut_smth, config.rcut, config.env_protection, *davg, *dstd, scale, -1 - scale * low])


@functools.cache
def _chebyshev(count: int) -> tuple[Floats, Floats]:
    """Nodes between -1 and 1, (count,), and what makes coefficients of values there, (count, count)."""
    angle = np.pi * (np.arange(count) + 0.5) / count
    weights = 2 / count * np.cos(np.arange(count)[:, None] * angle)
    weights[0] /= 2
    return np.cos(angle), weights
