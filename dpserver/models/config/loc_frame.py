"""The descriptor of the 2018 paper, loc_frame."""

from __future__ import annotations

from typing import Literal

from dpserver.models.config.descriptor import DescriptorSection
from dpserver.models.section import Count, PositiveFloat, complain


class LocFrameConfig(DescriptorSection):
    """The local-frame descriptor of the 2018 Deep Potential paper, DeePMD-kit's loc_frame.

    Attributes:
        sel_a: neighbours of each type that enter with full (angular) information.
        sel_r: further neighbours of each type that enter with their distance only.
        rcut: cutoff, Å.
        axis_rule: six integers per centre type, two triples (class, neighbour type, index) that name the atoms of
            the first and the second axis; class 0 is a neighbour of `sel_a`, 1 of `sel_r`; the index counts the
            neighbours of that class and type by distance.
    """

    type: Literal["loc_frame"] = "loc_frame"
    sel_a: tuple[Count, ...]
    sel_r: tuple[Count, ...]
    rcut: PositiveFloat = 6.0
    axis_rule: tuple[Count, ...]

    @property
    def axes(self) -> tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...]:
        """`axis_rule` by centre type: the triples of the first and of the second axis."""
        r = self.axis_rule
        return tuple(((r[k], r[k + 1], r[k + 2]), (r[k + 3], r[k + 4], r[k + 5])) for k in range(0, len(r), 6))

    def check_types(self, n_types: int) -> None:
        """Raise where a list does not fit the number of types, or an axis names no possible neighbour."""
        for name in ("sel_a", "sel_r"):
            if len(getattr(self, name)) != n_types:
                raise complain(
                    f"descriptor.{name}",
                    f"needs one number per type of type_map ({n_types}), got {len(getattr(self, name))}",
                )
        if not sum(self.sel_a) + sum(self.sel_r):
            raise complain("descriptor.sel_a", "selects no neighbour at all, and neither does sel_r")
        key = "descriptor.axis_rule"
        if len(self.axis_rule) != 6 * n_types:
            raise complain(key, f"needs 6 integers per type, {6 * n_types} in all, got {len(self.axis_rule)}")
        for centre, (first, second) in enumerate(self.axes):
            for kind, neighbour, index in (first, second):
                if kind > 1 or neighbour >= n_types:
                    raise complain(
                        key,
                        f"for centre type {centre}: ({kind}, {neighbour}, {index}) must be a class 0 or 1, "
                        f"a type 0 to {n_types - 1} and an index",
                    )
                slots = (self.sel_r if kind else self.sel_a)[neighbour]
                if index >= slots:
                    raise complain(
                        key,
                        f"for centre type {centre}: neighbour {index} of type {neighbour} does not exist, "
                        f"{'sel_r' if kind else 'sel_a'} keeps {slots} of them",
                    )
            if first == second:
                raise complain(key, f"for centre type {centre}: both axes are defined by the same neighbour {first}")
