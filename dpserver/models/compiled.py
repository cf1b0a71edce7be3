"""The fast form of potentials on CPU cores: run by the kernels, on neighbour lists that serve more than once.

It answers what `Potential.reference` does, to the accuracy of its tables. Members of a committee share one neighbour
list and the geometry of its edges.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dpserver.frames import ForceResult, Frames, Ints
from dpserver.kernels import cpu
from dpserver.kernels.layout import Batch, Output
from dpserver.kernels.tables import TableError
from dpserver.kernels.threads import Threads
from dpserver.models.accelerated import Accelerated
from dpserver.models.assembly import assemble
from dpserver.models.frame_assembly import assemble_frames
from dpserver.models.loc_frame import LocFrame
from dpserver.models.memory import memory_left
from dpserver.neighbors.cache import ListCache, Neighbourhood
from dpserver.neighbors.rows import MOST_EDGES

if TYPE_CHECKING:
    from dpserver.models.potential import Potential

SKIN: Final = 1.0
"""How much further neighbour lists reach than the cutoff, Å."""

_LIST_BYTES: Final = 18  # of an edge: neighbour, shift, incoming; as it is found, and room to spare
_SHARE: Final = 0.9  # of the memory that is left
_MOST_ROWS: Final = 96
_BLOCKS_PER_THREAD: Final = 3
_SERIAL_EDGES: Final = 20_000


@dataclass(frozen=True, eq=False)
class _Work:
    """What stays the same while a neighbourhood is used again.

    Attributes:
        atoms: that are no ghosts, sorted by species; blocks: first, end and species of each piece of work.
        room: edges in the largest block; rows: atoms.
    """

    neighbourhood: Neighbourhood
    atoms: Ints
    blocks: Ints
    room: int
    rows: int


class Compiled(Accelerated):
    """Potentials of one cutoff, one `sel` and the same species, compiled together.

    Args:
        members: the potentials, that the kernels know, see `curves.tabulated`; their weights are copied.
        threads: that compute; None is one for each core available.
        table_error: of forces, relative, that is aimed at.

    Attributes:
        error: of the tables against the embedding nets.
        is_accurate: whether that is near what was aimed at.
    """

    def __init__(self, members: Sequence[Potential], threads: int | None, table_error: float) -> None:
        super().__init__(members)
        self._threads = Threads(threads)
        is_framed = isinstance(self._members[0].descriptor, LocFrame)
        assembly = assemble_frames(self._members) if is_framed else assemble(self._members, table_error)
        self._kernels, self._model, self._sizes = assembly.kernels, assembly.model, assembly.sizes
        self._has_tables = assembly.error is not None
        self.error, self.is_accurate = assembly.error or TableError(0.0, 0.0, 0.0), assembly.is_accurate
        self._lists = ListCache(
            self._members[0].rcut, SKIN, self._n_species, room=self._room_for_edges, workers=self._threads
        )
        self._work: _Work | None = None
        self._spaces: list[Any] = []
        self._room = self._rows = 0
        self._gradient = np.zeros(0)

    def __str__(self) -> str:
        e, n = self.error, self._threads.count
        text = f"CPU kernels in {self._model.nets.weights.dtype} on {n} {'thread' if n == 1 else 'threads'}"
        if not self._has_tables:
            return text
        return (
            f"{text}; tables of the embedding nets deviate by {e.value:.1e}, "
            f"{e.first:.1e} (first) and {e.second:.1e} (second derivative)"
        )

    def profile(self, frames: Frames) -> dict[str, float]:
        """Seconds that one thread spends in each stage, for one batch; what the stages are say the kernels."""
        with self._lock:
            self._compute(frames)
            batch, output = self._arrays(frames)
            seconds = dict.fromkeys(self._kernels.STAGES, 0.0)
            for block in range(len(batch.blocks)):
                for stage, run in self._kernels.stages(self._model, batch, output, self._spaces[0], block):
                    start = time.perf_counter()
                    run()
                    seconds[stage] += time.perf_counter() - start
            start = time.perf_counter()
            for member in range(len(self._members)):
                self._collect(frames, batch, output, member)
            return {**seconds, "sums": time.perf_counter() - start}

    def products(self, frames: Frames) -> float:
        """Multiplications and additions of the matrix products in one evaluation, there and back."""
        nets, found = self._model.nets, 0.0
        for heads in nets.heads:
            for head, n_atoms in zip(heads, self.centres_of(frames), strict=True):
                layers = nets.layers[head["layer_at"] : head["layer_at"] + head["n_layers"]]
                found += 4.0 * n_atoms * float((layers["n_in"] * layers["n_out"]).sum())
        return found

    def _compute(self, frames: Frames) -> tuple[list[ForceResult], Ints]:
        """Run the kernels: results, and the status of each atom."""
        batch, output = self._arrays(frames)
        counter = np.zeros(1, dtype=np.int64)
        self._threads.run(lambda k: self._kernels.run_blocks(counter, self._model, batch, output, self._spaces[k]))
        results = [self._collect(frames, batch, output, member) for member in range(len(self._members))]
        return results, output.status

    def _arrays(self, frames: Frames) -> tuple[Batch, Output]:
        """What the kernels take, and where they leave results."""
        work = self._prepare(self._lists.find(frames), frames)
        near, n_atoms, n_members = work.neighbourhood, frames.n_atoms, len(self._members)
        batch = Batch(
            near.positions(frames),
            near.translations(frames),
            near.starts,
            near.neighbour,
            near.shift,
            near.incoming,
            near.incoming_starts,
            work.atoms,
            work.blocks,
        )
        output = Output(
            self._gradient[: n_members * near.n_edges * 3].reshape(n_members, near.n_edges, 3),
            np.zeros((n_members, n_atoms)),
            np.zeros((n_members, n_atoms, 6)),
            np.zeros(n_atoms, dtype=np.int64),
        )
        return batch, output

    def _room_for_edges(self) -> int:
        """How many edges of a new list fit into the memory, with what is computed for each."""
        left = memory_left()
        if left is None:
            return MOST_EDGES
        return int((_SHARE * left + self._gradient.nbytes) / (_LIST_BYTES + 24 * len(self._members)))

    def _prepare(self, near: Neighbourhood, frames: Frames) -> _Work:
        """Cut the work into blocks, and see that there is room for it."""
        if self._work is None or self._work.neighbourhood is not near:
            self._work = self._cut(near, frames)
        work = self._work
        if work.room > self._room or work.rows > self._rows or len(self._spaces) < self._threads.count:
            room, rows = max(work.room, self._room), max(work.rows, self._rows)
            dtype = self._model.nets.weights.dtype
            self._spaces = []  # if there is no memory for the new ones, the next batch must not run in the old ones
            self._spaces = [
                self._sizes.workspace(rows, room, self._n_species, dtype) for _ in range(self._threads.count)
            ]
            self._room, self._rows = room, rows
        if len(self._gradient) < len(self._members) * near.n_edges * 3:
            self._gradient = np.empty(len(self._members) * near.n_edges * 3)
        return work

    def _cut(self, near: Neighbourhood, frames: Frames) -> _Work:
        """Blocks of centres of one species, small enough for a cache and for all threads to have some."""
        types = frames.types
        atoms = np.argsort(types, kind="stable")
        if frames.is_ghost is not None:
            atoms = atoms[~frames.is_ghost[atoms]]
        step = cpu.rows_of_block(len(atoms), self._threads.count * _BLOCKS_PER_THREAD, _MOST_ROWS)
        bounds = np.searchsorted(types[atoms], np.arange(self._n_species + 1))
        blocks = [
            (low, min(low + step, bounds[c + 1]), c)
            for c in range(self._n_species)
            for low in range(bounds[c], bounds[c + 1], step)
        ]
        n_edges = np.append(0, np.cumsum(np.diff(near.starts[:: self._n_species])[atoms]))
        room = max((int(n_edges[high] - n_edges[low]) for low, high, _ in blocks), default=0)
        return _Work(near, atoms, np.array(blocks, dtype=np.int64).reshape(-1, 3), room, step)

    def _collect(self, frames: Frames, batch: Batch, output: Output, member: int) -> ForceResult:
        """Sum what belongs together."""
        gradient, n_atoms = output.edge_gradient[member], frames.n_atoms
        forces = np.empty((n_atoms, 3))
        if gradient.shape[0] < _SERIAL_EDGES:
            cpu.sum_forces(batch, gradient, self._n_species, 0, n_atoms, forces)
        else:
            n = self._threads.count
            ends = np.linspace(0, n_atoms, n + 1).astype(np.int64)
            self._threads.run(lambda k: cpu.sum_forces(batch, gradient, self._n_species, ends[k], ends[k + 1], forces))
        energy, virial = np.zeros(frames.n_frames), np.zeros((frames.n_frames, 3, 3))
        cpu.sum_frames(output.atom_energy[member], output.atom_virial[member], frames.frame_idx, energy, virial)
        return ForceResult(energy, forces, virial, output.atom_energy[member], frames.frame_idx.copy())
