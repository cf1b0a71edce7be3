"""The fast form of potentials on a GPU: Triton kernels around the products of torch, replayed as one CUDA graph.

It answers what `Potential.reference` does, to the accuracy of its tables. The device gets positions and cells, makes
the neighbour lists, which serve until the host sees that atoms have moved too far, computes everything else, and gives
back one block of numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from dpserver.frames import ForceResult, Frames, Ints
from dpserver.kernels.tables import TableError
from dpserver.models.accelerated import SKIN, Accelerated
from dpserver.models.assembly import ACCEPTED, FINEST, dtype_of
from dpserver.models.curves import descriptor_of
from dpserver.models.device_batch import DeviceBatch
from dpserver.models.device_model import Centre, DeviceModel, centre_of
from dpserver.models.planning import layers_of, make_plan, reach_of
from dpserver.neighbors.device_cache import DeviceListCache, DeviceNeighbourhood

if TYPE_CHECKING:
    from dpserver.models.potential import Potential

_MOST_BATCHES: Final = 4


class DeviceCompiled(Accelerated):
    """Potentials of one cutoff, one `sel` and the same species, compiled together for a GPU.

    Args:
        members: the potentials, on one device, with the descriptor `se_e2_a`.
        table_error: of forces, relative, that is aimed at.

    Attributes:
        error: of the tables against the embedding nets.
        is_accurate: whether that is near what was aimed at.
    """

    def __init__(self, members: Sequence[Potential], table_error: float) -> None:
        super().__init__(members)
        device, descriptor = members[0].device, descriptor_of(members[0])
        dtype = dtype_of(members[0])
        table_error = max(table_error, FINEST[dtype])
        reach = np.min([reach_of(member) for member in members], axis=0)
        self.error = TableError(0.0, 0.0, 0.0)
        centres: list[list[Centre]] = []
        for member in members:
            host = _on_host(member)
            plans = [make_plan(host, c, reach[c], dtype, table_error) for c in range(self._n_species)]
            layers = [layers_of(member, c) for c in range(self._n_species)]
            centres.append([centre_of(host, c, plan, reach[c], layers[c]) for c, plan in enumerate(plans)])
            for table in (table for plan in plans for table in plan.tables):
                self.error = self.error.largest(table.error)
        self.is_accurate = max(self.error.value, self.error.first) <= ACCEPTED * table_error
        config = descriptor.config
        cutoff = torch.tensor([config.rcut, config.rcut_smth, config.env_protection], dtype=torch.float64)
        self._model = DeviceModel(centres, cutoff.to(device), members[0].network_dtype)
        self._rcut = descriptor.rcut
        self._lists = self._no_lists()
        self._batches: OrderedDict[tuple[Any, ...], DeviceBatch] = OrderedDict()

    def __str__(self) -> str:
        e, name = self.error, str(self._model.dtype).removeprefix("torch.")
        return (
            f"fused kernels in {name} on {self._model.device}; tables of the embedding nets deviate by {e.value:.1e}, "
            f"{e.first:.1e} (first) and {e.second:.1e} (second derivative)"
        )

    def warm_up(self) -> None:
        """Evaluate a periodic structure as well: whatever makes its list is tried before anybody waits for it."""
        super().warm_up()
        edge = 3 * (self._rcut + SKIN)
        inside, outside = [0.5, 1.0, 1.0], [-0.7, 1.0, 1.0]
        with self._lock:
            self._compute(Frames.single([inside, outside, [edge - 0.9, 2.3, edge + 0.2]], [0, 0, 0], edge * np.eye(3)))

    def profile(self, frames: Frames) -> dict[str, float]:
        """Seconds on the device by stage of one evaluation, launched one by one and not as a graph."""
        with self._lock:
            self._compute(frames)
            near = self._lists.find(frames)
            return self._batch(frames, near).profile()

    def products(self, frames: Frames) -> float:
        """Multiplications and additions of the matrix products in one evaluation, there and back."""
        found: float = sum(
            4.0 * n_atoms * (centre.weights.numel() + sum(layer.weight.numel() for layer in centre.layers[1:]))
            for centres in self._model.centres
            for centre, n_atoms in zip(centres, self.centres_of(frames).tolist(), strict=True)
        )
        return found

    def _compute(self, frames: Frames) -> tuple[list[ForceResult], Ints]:
        try:
            return self._compute_once(frames)
        except torch.OutOfMemoryError:
            self._give_up_what_is_kept()
        # Outside of the handler: the error holds on to what was computed.
        try:
            return self._compute_once(frames)
        except torch.OutOfMemoryError:
            self._give_up_what_is_kept()  # something smaller comes next
            raise

    def _compute_once(self, frames: Frames) -> tuple[list[ForceResult], Ints]:
        near = self._lists.find(frames)
        return self._batch(frames, near).evaluate(frames, near)

    def _give_up_what_is_kept(self) -> None:
        """Leave the memory to what is evaluated next."""
        self._batches.clear()
        self._lists = self._no_lists()

    def _no_lists(self) -> DeviceListCache:
        return DeviceListCache(self._rcut, SKIN, self._n_species, self._model.device)

    def _batch(self, frames: Frames, near: DeviceNeighbourhood) -> DeviceBatch:
        """Room on the device for such a batch."""
        ghosts = b"" if frames.is_ghost is None else frames.is_ghost.tobytes()
        key = (frames.types.tobytes(), frames.counts.tobytes(), ghosts)
        batch = self._batches.get(key)
        if batch is None or not batch.has_room(near):
            batch = self._batches[key] = DeviceBatch(self._model, frames, near)
            while len(self._batches) > _MOST_BATCHES:
                self._batches.popitem(last=False)
        self._batches.move_to_end(key)
        return batch


def _on_host(member: Potential) -> Potential:
    """The same potential on the CPU, where tables and products are planned."""
    return member if member.device.type == "cpu" else deepcopy(member).to("cpu")
