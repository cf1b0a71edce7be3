"""A table of pair energies beside the net, or alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dpserver.models.config.descriptor import DescriptorSection
from dpserver.models.section import NonNegativeFloat, Positive, PositiveFloat, Section


class PairTableConfig(Section):
    """The shape of a table of pair energies, whose numbers are in the state of the model file.

    Attributes:
        rmin: first distance, Å.
        step: from distance to distance, Å.
        n_splines: number of pieces.
        rcut: distance from which on the energy is 0, Å.
        sel: most neighbours of an atom within it; None for any number.
        weights: of net and table, where they are summed; None where the distances of the neighbours switch between
            them.
        softmin_floor: smallest sum of exp(-r/smin_alpha) that the mean of distances is divided by; DeePMD-kit's
            PyTorch backend has 1e-20.
    """

    rmin: NonNegativeFloat
    step: PositiveFloat
    n_splines: Annotated[Positive, Field(le=1_000_000)]
    rcut: PositiveFloat
    sel: Positive | None = None
    weights: tuple[float, float] | None = None
    softmin_floor: NonNegativeFloat = 0.0


class NoDescriptorConfig(DescriptorSection):
    """In place of a descriptor, where a table is the whole model.

    Attributes:
        rcut: cutoff of the table, Å.
    """

    type: Literal["none"] = "none"
    rcut: PositiveFloat

    def check_types(self, n_types: int) -> None:
        """Nothing depends on the types."""
