"""A batch as the models see it: atoms sorted out by species, edges by pair of species, on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from dpserver.frames import Frames
from dpserver.kernels.segments import Segments
from dpserver.neighbors import Edges


@dataclass(frozen=True, eq=False)
class Block:
    """The edges from centres of one species to neighbours of one species.

    Attributes:
        edges: their place among the graph's edges.
        segments: rows are the atoms of the centre's species in the order of `Graph.atoms`.
        further: edges of each row that were left out because they are too long, (n_rows,), int64; None where none were.
    """

    edges: slice
    segments: Segments
    further: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """Atoms and edges of a batch of frames.

    Edges are sorted by the species of the centre, the species of the neighbour, and the centre.

    Attributes:
        frames: the structures this was made from.
        positions: (n_atoms, 3), float64, Å.
        atoms: indices of the atoms of each species, ghosts left out: the centres, int64.
        blocks: edges of each pair of species, by (centre, neighbour).
        centre: atom i of each edge, (n_edges,), int64.
        neighbour: atom j, (n_edges,), int64.
        shift: lattice translation of each edge, S @ cell, (n_edges, 3), Å.
        frame_idx: frame of each atom, (n_atoms,), int64.
    """

    frames: Frames
    positions: Tensor
    atoms: list[Tensor]
    blocks: dict[tuple[int, int], Block]
    centre: Tensor
    neighbour: Tensor
    shift: Tensor
    frame_idx: Tensor

    @classmethod
    def build(cls, frames: Frames, edges: Edges, n_species: int, device: torch.device) -> Graph:
        """Sort the neighbour list of a batch and move it to the device."""
        types = frames.types
        ti, tj = types[edges.centre], types[edges.neighbour]
        pair = ti * n_species + tj
        order = np.argsort(pair * frames.n_atoms + edges.centre, kind="stable")  # quick where they are sorted already
        centre, pair = edges.centre[order], pair[order]
        bounds = np.searchsorted(pair, np.arange(n_species**2 + 1))
        is_centre = True if frames.is_ghost is None else ~frames.is_ghost
        atoms = [np.flatnonzero((types == c) & is_centre) for c in range(n_species)]
        row = np.empty(frames.n_atoms, dtype=np.int64)
        for members in atoms:
            row[members] = np.arange(len(members))
        blocks, empty = {}, [Segments.from_rows(centre[:0], len(members), device) for members in atoms]
        for c in range(n_species):
            for k in range(n_species):
                here = slice(*map(int, bounds[c * n_species + k : c * n_species + k + 2]))
                is_empty = here.start == here.stop
                rows = empty[c] if is_empty else Segments.from_rows(row[centre[here]], len(atoms[c]), device)
                blocks[c, k] = Block(here, rows)
        frame = frames.frame_idx[centre]
        cells = frames.cell[0][None] if frames.n_frames == 1 else frames.cell[frame]
        shift = np.zeros((len(order), 3))
        for k, cells_moved in enumerate(edges.shift[order].T):
            shift += cells_moved[:, None] * cells[:, k]
        return cls(
            frames,
            torch.tensor(frames.positions, device=device),
            [torch.as_tensor(a, device=device) for a in atoms],
            blocks,
            torch.as_tensor(centre, device=device),
            torch.as_tensor(edges.neighbour[order], device=device),
            torch.as_tensor(shift, device=device),
            torch.tensor(frames.frame_idx, device=device),
        )

    def vectors(self) -> Tensor:
        """r_ij = x_j - x_i + S @ cell, (n_edges, 3), float64, Å."""
        x = self.positions
        return x.index_select(0, self.neighbour) - x.index_select(0, self.centre) + self.shift

    def within(self, rcut: float) -> tuple[Graph, Tensor]:
        """Leave out the edges that are longer than a cutoff.

        Args:
            rcut: the cutoff, Å.

        Returns:
            The same atoms with the edges that are left, and which of the edges here these are, int64.
        """
        return self.subset(torch.linalg.vector_norm(self.vectors(), dim=-1) <= rcut)

    def nearest(self, number: int) -> tuple[Graph, Tensor]:
        """Keep the shortest edges of each atom, whatever the species of the neighbours; see `within`.

        Args:
            number: how many at most.
        """
        distance = torch.linalg.vector_norm(self.vectors(), dim=-1)
        order = np.lexsort((distance.cpu().numpy(), self.centre.cpu().numpy()))
        counts = np.bincount(self.centre.cpu().numpy())
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.subset(torch.as_tensor(rank < number, device=distance.device))

    def subset(self, is_kept: Tensor) -> tuple[Graph, Tensor]:
        """Keep some edges; see `within`.

        Args:
            is_kept: which, (n_edges,), bool.
        """
        before = nn.functional.pad(is_kept.cumsum(0), (1, 0)).tolist()
        blocks = {}
        for pair, block in self.blocks.items():
            rows = block.segments
            kept_here = is_kept[block.edges]
            row = (rows.slot // max(rows.width, 1))[kept_here].cpu().numpy()
            segments = Segments.from_rows(row, rows.n_rows, self.positions.device)
            here = slice(before[block.edges.start], before[block.edges.stop])
            blocks[pair] = Block(here, segments, rows.counts - segments.counts)
        kept = is_kept.nonzero()[:, 0]
        centre, neighbour, shift = self.centre[kept], self.neighbour[kept], self.shift[kept]
        return replace(self, blocks=blocks, centre=centre, neighbour=neighbour, shift=shift), kept

    def by_atom(self, values: Sequence[Tensor]) -> Tensor:
        """Put what was found for the centres of each species, in the order of `atoms`, in the order of the batch.

        Args:
            values: for each species, (atoms of it, …).

        Returns:
            (n_atoms, …), zeros for ghosts.
        """
        together, atoms = torch.cat(list(values)), torch.cat(self.atoms)
        return together.new_zeros(len(self.positions), *together.shape[1:]).index_copy(0, atoms, together)

    def name_atom(self, species: int, row: int) -> str:
        """Name an atom in an error message: its index in its own frame, and the frame where there are several."""
        atom = int(self.atoms[species][row])
        frame = int(self.frames.frame_idx[atom])
        names = self.frames.names
        number = atom - int(self.frames.offsets[frame]) if names is None else names[atom]
        return f"atom {number}{self.frames.of_frame(frame)}"
