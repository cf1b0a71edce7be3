"""One kind of batch on a GPU: its room there, the kernels launched one after the other, the graph that replays them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from dpserver.frames import ForceResult, Frames, Ints
from dpserver.kernels import fused
from dpserver.kernels.tables import DEGREE
from dpserver.models.device_model import Centre, DeviceModel
from dpserver.neighbors.device_cache import DeviceNeighbourhood

_INPUTS, _PAIRS, _LISTED, _ROWS = 256, 32, 64, 64  # sizes of what a program takes at a time
_CHUNK: Final = 1 << 15
_ROOM: Final = 1.25
_BLOCK_ATOMS: Final = 512


def staging(device: torch.device, *shape: int) -> Tensor:
    """Room on the host for what goes to a device or comes from it: float64, pinned for CUDA, zeros.

    What ranks send each other lies in ordinary memory, and is copied here as whatever else is evaluated.
    """
    return torch.zeros(shape, dtype=torch.float64, pin_memory=device.type == "cuda")


class DeviceBatch:
    """One kind of batch, of the same atoms again and again, with all its room on the device.

    Args:
        model: evaluates it.
        frames: of that kind.
        near: lists to make room for, and somewhat longer ones.
    """

    def __init__(self, model: DeviceModel, frames: Frames, near: DeviceNeighbourhood) -> None:
        self._model = model
        self._device = device = model.device
        self._n_species, self._n_members = len(model.centres[0]), len(model.centres)
        n_atoms, n_frames = frames.n_atoms, frames.n_frames
        is_centre = np.ones(n_atoms, dtype=bool) if frames.is_ghost is None else ~frames.is_ghost
        self._atoms = [self._tensor(np.flatnonzero(is_centre & (frames.types == c))) for c in range(self._n_species)]
        self._room = int(_ROOM * near.n_edges) + 1
        self._shift_room = int(_ROOM * len(near.shifts)) + 1
        self._near: DeviceNeighbourhood | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        n_rows = n_atoms * self._n_species

        def room(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._starts, self._incoming_starts = room(n_rows + 1, dtype=torch.int64), room(n_atoms + 1, dtype=torch.int64)
        self._neighbour, self._shift, self._incoming, self._kept = (
            room(self._room, dtype=torch.int32) for _ in range(4)
        )
        self._n_kept, self._n_empty = (room(n_rows, dtype=torch.int64) for _ in range(2))
        self._edge_gradient, self._pair_virial = room(self._room, 3), room(n_atoms, self._n_species, 6)
        self._wraps, self._shifts = room(n_atoms, 3), room(self._shift_room, 3)
        self._shift_frame, self._atom_frame = room(self._shift_room, dtype=torch.int64), self._tensor(frames.frame_idx)
        self._x, self._translations = room(n_atoms, 3), room(self._shift_room, 3)
        # Down goes one block of numbers, positions and cells as they come; up comes one: for each member forces,
        # energies of atoms, sums of frames.
        self._down_host = staging(device, n_atoms + 3 * n_frames, 3)
        self._down = self._down_host.to(device)
        sizes = [3 * n_atoms, n_atoms, 7 * n_frames]
        self._up = room(self._n_members * sum(sizes) + n_atoms)
        self._up_host = staging(device, len(self._up))
        *parts, self._status = torch.split(self._up, [*(sizes * self._n_members), n_atoms])
        self._results = list(zip(parts[0::3], parts[1::3], parts[2::3], strict=True))
        blocks = _frame_blocks(frames.counts)
        self._block_starts = self._tensor(np.append(0, np.cumsum([n for n, _ in blocks])))
        self._frame_starts = self._tensor(np.append(0, np.cumsum(np.bincount([f for _, f in blocks]))))

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.int64), device=self._device)

    def has_room(self, near: DeviceNeighbourhood) -> bool:
        """Whether lists are short enough."""
        return near.n_edges <= self._room and len(near.shifts) <= self._shift_room

    def evaluate(self, frames: Frames, near: DeviceNeighbourhood) -> tuple[list[ForceResult], Ints]:
        """Results of each member, and the status of each atom."""
        self._take(near)
        n_atoms, n_frames = frames.n_atoms, frames.n_frames
        down = self._down_host.numpy()
        down[:n_atoms] = frames.positions
        down[n_atoms:] = frames.cell.reshape(-1, 3)
        self._down.copy_(self._down_host, non_blocking=True)
        self._run()
        self._up_host.copy_(self._up, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        up = self._up_host.numpy()
        size = 4 * n_atoms + 7 * n_frames
        found = []
        for m in range(self._n_members):
            forces, atom_energy, sums = np.split(up[m * size : (m + 1) * size], [3 * n_atoms, 4 * n_atoms])
            energy, *virial = sums.reshape(n_frames, 7).T
            found.append(
                ForceResult(
                    energy.copy(),
                    forces.reshape(n_atoms, 3).copy(),
                    np.stack([virial[k] for k in (0, 3, 4, 3, 1, 5, 4, 5, 2)], axis=1).reshape(n_frames, 3, 3),
                    atom_energy.copy(),
                    frames.frame_idx.copy(),
                )
            )
        return found, up[self._n_members * size :].astype(np.int64)

    def _take(self, near: DeviceNeighbourhood) -> None:
        """Put new lists where the kernels look for them."""
        if near is self._near:
            return
        for room, values in (
            (self._starts, near.starts),
            (self._incoming_starts, near.incoming_starts),
            (self._neighbour, near.neighbour),
            (self._shift, near.shift),
            (self._incoming, near.incoming),
            (self._wraps, near.wraps),
            (self._shifts, near.shifts),
            (self._shift_frame, near.shift_frame),
        ):
            room[: len(values)].copy_(values)
        self._near = near

    def _run(self) -> None:
        """Launch everything, from the second time on as one graph."""
        if self._device.type != "cuda":
            self._launch()
        elif self._graph is not None:
            self._graph.replay()
        else:
            with torch.cuda.device(self._device):
                stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    self._launch()  # compiles the kernels
                torch.cuda.current_stream().wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self._launch()
                self._graph = graph
                graph.replay()

    def profile(self) -> dict[str, float]:
        """Seconds by stage of what was evaluated last."""
        watch = _Watch(self._device)
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            self._launch(watch.mark)
            return watch.seconds()

    def _launch(self, mark: Callable[[str], None] = lambda _: None) -> None:
        """All stages; nothing here may wait for the device.

        Args:
            mark: called with the name of each stage once it has been launched.
        """
        mark("")
        self._bring_back()
        for c, atoms in enumerate(self._atoms):
            if len(atoms):
                self._compact(self._model.centres[0][c], atoms)
        mark("edges")
        for centres, (forces, atom_energy, sums) in zip(self._model.centres, self._results, strict=True):
            self._edge_gradient.zero_()
            for centre, all_atoms in zip(centres, self._atoms, strict=True):
                for atoms in torch.split(all_atoms, _CHUNK):
                    if len(atoms):
                        atom_energy.index_copy_(0, atoms, self._descend(centre, atoms, mark))
            fused.sum_forces[(len(atom_energy),)](
                self._edge_gradient, self._starts, self._incoming, self._incoming_starts, forces, self._n_species,
                WIDTH=_LISTED,
            )  # fmt: skip
            values = torch.cat([atom_energy[:, None], self._pair_virial.sum(dim=1)], dim=1)
            partial = values.new_empty(len(self._block_starts) - 1, 7)
            for rows, starts, target in ((values, self._block_starts, partial), (partial, self._frame_starts, sums)):
                fused.sum_rows[(len(starts) - 1,)](rows, starts, target, 7, ROWS=_ROWS, COLUMNS=8)
            mark("sums")

    def _bring_back(self) -> None:
        """Positions as the lists mean them, each atom brought back by its wraps, and translations of the shifts."""
        n_atoms = len(self._x)
        cells = self._down[n_atoms:].view(-1, 3, 3)
        wrapped = (self._wraps[:, :, None] * cells[self._atom_frame]).sum(dim=1)
        torch.sub(self._down[:n_atoms], wrapped, out=self._x)
        torch.sum(self._shifts[:, :, None] * cells[self._shift_frame], dim=1, out=self._translations)

    def _compact(self, centre: Centre, atoms: Tensor) -> None:
        """Edges within the cutoff."""
        fused.compact[(len(atoms),)](
            self._x, self._translations, atoms, self._starts, self._neighbour, self._shift,
            centre.pairs, centre.bins, self._model.cutoff,
            self._kept, self._n_kept, self._n_empty, self._status,
            self._n_species, WIDTH=_LISTED,
        )  # fmt: skip

    def _descend(self, centre: Centre, atoms: Tensor, mark: Callable[[str], None]) -> Tensor:
        """Energies of some atoms, (n,), with the derivatives by their edges left where they belong."""
        n, columns, channels = len(atoms), centre.columns, centre.n_channels
        geometry = (self._x, self._translations, atoms, self._starts, self._neighbour, self._shift, self._kept)
        tables = (
            centre.pairs, centre.bins, centre.bin_first, centre.bin_parts, centre.coefficients, centre.norm,
            self._model.cutoff,
        )  # fmt: skip
        moment = torch.zeros(n, 4, columns, dtype=self._model.dtype, device=self._device)
        fused.moments[(n, len(centre.blocks))](
            *geometry, self._n_kept, self._n_empty, *tables, centre.blocks, moment, self._n_species, columns,
            POWERS=DEGREE + 1, **fused.MOMENTS,
        )  # fmt: skip
        mark("moments")
        mixed = moment if centre.mix is None else moment @ centre.mix
        n_inputs = len(centre.left)
        inputs = moment.new_empty(n, n_inputs)
        fused.inputs[(n, -(-n_inputs // _INPUTS))](
            mixed, centre.left, centre.right, inputs, n_inputs, channels, WIDTH=_INPUTS
        )
        mark("products")
        with torch.enable_grad():
            energy = centre.energies(inputs.requires_grad_())
            (by_input,) = torch.autograd.grad(energy.sum(), inputs)
        mark("fitting")
        by_mixed = torch.empty_like(mixed)
        fused.inputs_back[(n, -(-channels // _PAIRS))](
            mixed, centre.places, by_input.contiguous(), by_mixed, n_inputs, channels, WIDTH=_PAIRS
        )
        by_moment = by_mixed if centre.mix is None else by_mixed @ centre.mix.T
        mark("back to moments")
        fused.gradients[(n, self._n_species)](
            *geometry, self._n_kept, *tables, by_moment, self._edge_gradient, self._pair_virial,
            self._n_species, columns, POWERS=DEGREE + 1,
            **fused.GRADIENTS,
        )  # fmt: skip
        mark("back to edges")
        return energy.detach()


class _Watch:
    """Tells how long stages take that are launched one after the other.

    Args:
        device: they run on.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def mark(self, stage: str) -> None:
        """A stage has been launched; with the first mark nothing has."""
        moment: Any = time.perf_counter()
        if self._is_cuda:
            moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            moment.record()
        self._marks.append((stage, moment))

    def seconds(self) -> dict[str, float]:
        """Of each stage, all its turns together."""
        found: dict[str, float] = {}
        if self._is_cuda:
            torch.cuda.synchronize()
        for (_, before), (stage, after) in pairwise(self._marks):
            spent = 1e-3 * before.elapsed_time(after) if self._is_cuda else after - before
            found[stage] = found.get(stage, 0.0) + spent
        return found


def _frame_blocks(counts: Ints) -> list[tuple[int, int]]:
    """Atoms of each piece of work when frames are summed, and the frame it belongs to."""
    return [
        (min(_BLOCK_ATOMS, n - first), frame)
        for frame, n in enumerate(counts.tolist())
        for first in range(0, n, _BLOCK_ATOMS)
    ]
