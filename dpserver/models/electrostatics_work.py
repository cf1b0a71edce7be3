"""What the sum of charges costs in a cell, known before it is made, and which cells are too large for it.

Waves and points of a mesh fill the cell, however few atoms there are in it: a molecule alone in a huge periodic box may
ask for more of them than any machine has room or time for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from dpserver.errors import StructureError
from dpserver.frames import Floats
from dpserver.models.config import ElectrostaticsConfig

_PATIENCE: Final = 10.0
_PATIENCE_BY_ATOM: Final = 1e-3
"""Seconds that one evaluation may take, and what each atom adds: nothing interrupts it."""


@dataclass(frozen=True)
class Box:
    """The size of a cell; numbers are floats, so that none is too large.

    Attributes:
        lengths: of its lattice vectors, Å.
        volume: Å³.
    """

    lengths: tuple[float, ...]
    volume: float

    @classmethod
    def of(cls, cell: Floats) -> Box:
        """Of lattice vectors as rows, (3, 3), none of them 0, Å."""
        rows = cell.tolist()
        lengths = tuple(math.hypot(*row) for row in rows)
        (a, b, c), (d, e, f), (g, h, i) = ([x / n for x in row] for row, n in zip(rows, lengths, strict=True))
        return cls(lengths, abs(a * (e * i - f * h) + b * (f * g - d * i) + c * (d * h - e * g)) * math.prod(lengths))

    def longest(self, reach: float) -> tuple[float, ...]:
        """Largest component, along each reciprocal lattice vector, of waves up to a length in Å⁻¹."""
        return tuple(float(np.floor(reach * length / (2 * math.pi))) for length in self.lengths)

    def tried(self, reach: float) -> float:
        """How many triples of components are looked at for waves up to a length, one of each pair of opposite ones."""
        return math.prod(2 * n + 1 for n in self.longest(reach)) / 2

    def waves(self, reach: float) -> float:
        """About how many of them are no longer than that."""
        return self.volume * reach**3 / (12 * math.pi**2)

    def __str__(self) -> str:
        return f"a cell of {' × '.join(f'{length:.4g}' for length in self.lengths)} Å"


def check_work(seconds: float, n_atoms: int, box: Box | None, what: str, config: ElectrostaticsConfig) -> None:
    """Refuse a sum that would keep its caller waiting, with no way to interrupt it.

    Args:
        seconds: that it takes, about.
        n_atoms: in the structure.
        box: its cell; None in an open one.
        what: is summed over, for the message.
        config: of the charges.

    Raises:
        StructureError: that is too long.
    """
    most = _PATIENCE + _PATIENCE_BY_ATOM * n_atoms
    if seconds <= most:
        return
    where = "without a cell" if box is None else f"in {box}"
    advice = "give them a periodic cell"
    if box is not None:
        wider = f"the charges wider (electrostatics.sigma is {config.sigma:g} Å)"
        advice = f"make the cell smaller, {wider}, or the boundaries open, without a cell"
    raise StructureError(
        f"the charges of {n_atoms} atoms {where} would take a sum over {what}, about {seconds:.2g} s for each "
        f"evaluation, where {most:.3g} s is the most: {advice}"
    )
