"""What every descriptor's section says of itself, whatever its kind: training asks nothing else of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from dpserver.models.section import Section

SEL_MULTIPLE: Final = 4
"""`sel: auto` rounds up to a multiple of this, as DeePMD-kit does."""


@dataclass(frozen=True)
class NeighbourCounts:
    """The most neighbours that any atom of a data set has within a cutoff.

    Attributes:
        by_species: of each species.
        total: of all species together.
    """

    by_species: tuple[int, ...]
    total: int


class DescriptorSection(Section):
    """Base of the descriptors' sections; a subclass overrides what is different with it."""

    @property
    def embeds_types(self) -> bool:
        """Whether the descriptor tells the type of its atom, so that one fitting net serves all types."""
        return False

    @property
    def precisions(self) -> frozenset[str]:
        """DeePMD-kit's names of the precisions of its nets; empty where it has none."""
        return frozenset({self.precision}) if hasattr(self, "precision") else frozenset()

    @property
    def cutoffs(self) -> frozenset[float]:
        """Cutoffs within which `resolved` and `too_many` have to know the neighbours of atoms, Å."""
        return frozenset({self.rcut}) if hasattr(self, "sel") and hasattr(self, "rcut") else frozenset()

    def resolved(self, counts: Mapping[float, NeighbourCounts]) -> Self:
        """The section with numbers in place of `sel: auto`.

        Args:
            counts: the data's, for each of `cutoffs`.
        """
        if not isinstance(getattr(self, "sel", None), str):
            return self
        raise NotImplementedError(f"{type(self).__name__} does not say how sel: auto is resolved")

    def too_many(self, counts: Mapping[float, NeighbourCounts], species: Sequence[str]) -> str | None:
        """What to say of data whose atoms have more neighbours than `sel`, its numbers resolved; None if they do not.

        Args:
            counts: the data's, for each of `cutoffs`.
            species: names of the types.
        """
        return None


def auto_sel(sel: str, most: Iterable[int]) -> tuple[int, ...]:
    """Numbers for `auto` or `auto:factor`: the most neighbours seen times 1.1 or the factor, rounded up."""
    factor = float(sel.partition(":")[2] or 1.1)
    return tuple(math.ceil(int(max(n, 1) * factor) / SEL_MULTIPLE) * SEL_MULTIPLE for n in most)
