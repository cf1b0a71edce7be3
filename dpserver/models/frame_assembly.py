"""From potentials with local frames to the arrays that the CPU kernels run on; there are no tables in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpserver.kernels import local_frames, simd
from dpserver.kernels.layout import FrameModel, FrameSpace
from dpserver.models.assembly import Assembly, dtype_of
from dpserver.models.curves import charge_nets
from dpserver.models.loc_frame import LocFrame
from dpserver.models.packing import ALIGNMENT, NetSizes, Store
from dpserver.models.planning import rounded
from dpserver.neighbors.lists import CLOSEST

if TYPE_CHECKING:
    from dpserver.models.potential import Potential


@dataclass(frozen=True)
class FrameSizes:
    """Rows of numbers that any member and any species of centres needs.

    Attributes:
        features: of a descriptor.
        net: of the fitting nets.
    """

    features: int
    net: NetSizes

    def workspace(self, rows: int, room: int, n_species: int, dtype: np.dtype[Any]) -> FrameSpace:
        """Arrays for blocks of so many atoms with so many edges; zeros, since padding is computed on as well."""
        rows, room = rounded(rows, simd.TILE_ROWS), rounded(room + 1, ALIGNMENT)
        return FrameSpace(
            found=np.zeros((4, room)),
            found_slot=np.zeros(room, dtype=np.int64),
            rank=np.zeros(room, dtype=np.int64),
            near=np.zeros((4, room)),
            slot=np.zeros(room, dtype=np.int64),
            first=np.zeros(rows * n_species + 1, dtype=np.int64),
            frame=np.zeros((rows, local_frames.FRAME)),
            feature=np.zeros((rows, self.features)),
            by_feature=np.zeros(self.features),
            gradient=np.zeros((3, room)),
            net=self.net.space(rows, dtype),
        )


def descriptor_of(member: Potential) -> LocFrame:
    """The descriptor of a potential with local frames."""
    if not isinstance(member.descriptor, LocFrame):
        raise TypeError(f"{type(member.descriptor).__name__} has no local frames")
    return member.descriptor


def assemble_frames(members: Sequence[Potential]) -> Assembly:
    """Lay out potentials of one cutoff, the same numbers of neighbours, axes and species."""
    config, n_species = descriptor_of(members[0]).config, len(members[0].species)
    has_charges = charge_nets(members[0]) is not None
    store = Store(dtype_of(members[0]), len(members), n_species, has_charges=has_charges)
    for m, member in enumerate(members):
        for c in range(n_species):
            store.add_nets(member, (m, c))
    n_full, n_radial = np.array(config.sel_a, dtype=np.int64), np.array(config.sel_r, dtype=np.int64)
    full_at = 4 * (np.cumsum(n_full) - n_full)
    radial_at = 4 * n_full.sum() + np.cumsum(n_radial) - n_radial
    axes = [[(k, slot + kind * config.sel_a[k]) for kind, k, slot in axes] for axes in config.axes]
    model = FrameModel(
        rcut=config.rcut,
        closest=CLOSEST,
        slots=np.stack([n_full, n_radial], axis=1),
        places=np.stack([full_at, radial_at], axis=1),
        axes=np.array(axes, dtype=np.int64).reshape(n_species, 4),
        mean=np.stack([descriptor_of(member).davg.numpy() for member in members]),
        scale=np.stack([1 / descriptor_of(member).dstd.numpy() for member in members]),
        nets=store.finish(),
    )
    sizes = FrameSizes(descriptor_of(members[0]).n_features, store.sizes)
    return Assembly(local_frames, model, sizes, None, is_accurate=True)
