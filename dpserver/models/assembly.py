"""From potentials to the arrays that the CPU kernels run on: embedding nets as tables, everything linear folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch

from dpserver.kernels import angular, layout, radial, simd
from dpserver.kernels.cpu import Kernels
from dpserver.kernels.fitting import padded
from dpserver.kernels.layout import Model, Workspace
from dpserver.kernels.linear import one_thread
from dpserver.kernels.tables import TableError
from dpserver.models.curves import Tabulated, charge_nets, descriptor_of, limits_of, slots_of, variable_of
from dpserver.models.packing import ALIGNMENT, NetSizes, Store, aligned
from dpserver.models.planning import Plan, make_plan, reach_of, rounded
from dpserver.models.se_e2_r import SeE2R

if TYPE_CHECKING:
    from dpserver.models.potential import Potential

FINEST: Final = {np.dtype(np.float64): 5e-11, np.dtype(np.float32): 3e-7}
"""Smallest error of tables that rounding leaves possible, or that makes a difference."""
ACCEPTED: Final = 10.0
"""Tables may deviate by so many times what was aimed at; nets with kinks deviate by thousands of times as much."""


class Room(Protocol):
    """Sizes of what a thread needs."""

    def workspace(self, rows: int, room: int, n_species: int, dtype: np.dtype[Any]) -> Any:
        """Arrays for blocks of so many atoms with so many edges; zeros, since padding is computed on as well."""


@dataclass(frozen=True)
class Sizes:
    """Largest rows of numbers that any member and any species of centres needs.

    Attributes:
        moment: columns of moments; mixed: of channels.
        net: of the fitting nets.
    """

    moment: int
    mixed: int
    net: NetSizes

    def workspace(self, rows: int, room: int, n_species: int, dtype: np.dtype[Any]) -> Workspace:
        """Arrays for blocks of so many atoms with so many edges; zeros, since padding is computed on as well."""
        rows = rounded(rows, simd.TILE_ROWS)
        room = rounded(room + rows * n_species + 2, ALIGNMENT)

        def numbers(columns: int) -> Any:
            return aligned(4 * rows * columns + 2 * simd.lanes(dtype), dtype)

        return Workspace(
            aligned(layout.EDGE_ROWS * room, np.float64).reshape(layout.EDGE_ROWS, room),
            np.zeros(room, dtype=np.int64),
            np.zeros(rows * n_species + 1, dtype=np.int64),
            np.zeros(rows * n_species, dtype=np.int64),
            aligned(simd.RECORD * room, dtype).reshape(room, simd.RECORD),
            np.zeros(room, dtype=np.int32),
            aligned(simd.RECORD * room, dtype).reshape(room, simd.RECORD),
            numbers(self.moment),
            numbers(self.moment),
            numbers(self.mixed),
            numbers(self.mixed),
            self.net.space(rows, dtype),
        )


@dataclass(frozen=True, eq=False)
class Assembly:
    """Potentials for the kernels.

    Attributes:
        kernels: that evaluate them.
        model: all numbers, with `nets` among them.
        sizes: of the workspace.
        error: the largest of all tables; None where there are none.
        is_accurate: whether that is near what was aimed at.
    """

    kernels: Kernels
    model: Any
    sizes: Room
    error: TableError | None
    is_accurate: bool


def dtype_of(member: Potential) -> np.dtype[Any]:
    """The precision of the nets."""
    return np.dtype(np.float64 if member.network_dtype == torch.float64 else np.float32)


@one_thread()
def assemble(members: Sequence[Potential], table_error: float) -> Assembly:
    """Tabulate and fold the weights of potentials of one cutoff, one `sel` and the same species.

    Args:
        members: with smooth descriptors of one kind that the kernels know, see `curves.tabulated`.
        table_error: of forces, relative, that is aimed at.
    """
    dtype = dtype_of(members[0])
    table_error = max(table_error, FINEST[dtype])
    n_members, n_species = len(members), len(members[0].species)
    store = _Store(dtype, n_members, n_species, has_charges=charge_nets(members[0]) is not None)
    descriptor = descriptor_of(members[0])
    reach = np.min([reach_of(member) for member in members], axis=0)
    pairs = (n_members, n_species, n_species)
    model = Model(
        cutoff=np.array([descriptor.rcut, descriptor.config.rcut_smth, descriptor.config.env_protection]),
        sel=np.array(slots_of(descriptor), dtype=np.int64),
        limits=np.array(limits_of(descriptor), dtype=np.int64),
        variable=variable_of(descriptor),
        exclusion=np.array([[exclusion(descriptor, c, k) for k in range(n_species)] for c in range(n_species)]),
        closest=reach**2,
        norm=np.zeros((n_members, n_species, 2 * descriptor.davg.shape[1])),
        bins=np.zeros((*pairs, 2), dtype=np.int64),
        bins_per_s=np.ones(pairs),
        bin_first=np.zeros(0, dtype=np.int32),
        bin_parts=np.zeros(0),
        tables=np.zeros((*pairs, 3), dtype=np.int64),
        centres=np.zeros((n_members, n_species), dtype=layout.CENTRE),
        segments=np.zeros((0, 3), dtype=np.int64),
        nets=Store(dtype, 0, 0).finish(),
    )
    error = TableError(0.0, 0.0, 0.0)
    for m, member in enumerate(members):
        for c in range(n_species):
            plan = make_plan(member, c, reach[c], dtype, table_error)
            _lay_out(model, store, member, plan, (m, c))
            for table in plan.tables:
                error = error.largest(table.error)
    kernels: Kernels = radial if isinstance(descriptor, SeE2R) else angular
    is_accurate = max(error.value, error.first) <= ACCEPTED * table_error
    return Assembly(kernels, store.complete(model), Sizes(store.moment, store.mixed, store.sizes), error, is_accurate)


def exclusion(descriptor: Tabulated, centre: int, neighbour: int) -> int:
    """What `Model.exclusion` holds for a pair."""
    if (centre, neighbour) in descriptor.silent:
        return layout.SILENT
    if (centre, neighbour) in descriptor.unseen:
        return layout.UNSEEN
    return layout.EXCLUDED if (centre, neighbour) in descriptor.excluded else layout.SEEN


class _Store(Store):
    """Arrays of tables and products that grow, beside those of the fitting nets."""

    def __init__(self, dtype: Any, n_members: int, n_species: int, *, has_charges: bool) -> None:
        super().__init__(dtype, n_members, n_species, has_charges=has_charges)
        self.bin_first: list[int] = []
        self.bin_parts: list[int] = []
        self.segments: list[Any] = []
        self.moment = self.mixed = 0

    def complete(self, model: Model) -> Model:
        """Put everything in place."""
        self.need(max(self.moment, self.mixed))
        return model._replace(
            bin_first=np.array(self.bin_first, dtype=np.int32),
            bin_parts=np.array(self.bin_parts, dtype=np.float64),
            segments=np.concatenate(self.segments),
            nets=self.finish(),
        )


def _lay_out(model: Model, store: _Store, member: Potential, plan: Plan, where: tuple[int, int]) -> None:
    """Write what one member needs for centres of one species."""
    descriptor, centre = descriptor_of(member), where[1]
    davg, dstd = (t[centre].numpy() for t in (descriptor.davg, descriptor.dstd))
    model.norm[where] = np.concatenate([davg, 1 / dstd])
    for k, (table, start) in enumerate(zip(plan.tables, plan.starts, strict=True)):
        n_intervals, powers, columns = table.coefficients.shape
        full = np.zeros((n_intervals, powers, rounded(columns, store.lanes)))
        full[:, :, :columns] = table.coefficients
        model.tables[(*where, k)] = store.add(full), full.shape[2], start
        model.bins[(*where, k)] = len(store.bin_first), len(table.parts)
        model.bins_per_s[(*where, k)] = 1 / table.width
        store.bin_first += table.first.tolist()
        store.bin_parts += table.parts.tolist()
    store.add_nets(member, where, plan.products.weights)
    step = padded(plan.columns, store.dtype) + store.lanes
    row = {
        "columns": plan.columns,
        "step": step,
        "mix_at": -1,
        "segment_at": sum(map(len, store.segments)),
        "n_segments": len(plan.products.segments),
    }
    store.segments.append(plan.products.segments)
    if not isinstance(descriptor, SeE2R):
        store.moment = max(store.moment, step)
    if plan.mix is not None:
        n_channels = plan.mix.shape[1]
        row["mix_at"], row["unmix_at"] = store.add_packed(plan.mix), store.add_packed(plan.mix.T)
        row["channels"], row["channel_step"] = n_channels, padded(n_channels, store.dtype) + store.lanes
        store.mixed = max(store.mixed, row["channel_step"])
    for name, value in row.items():
        model.centres[where][name] = value
