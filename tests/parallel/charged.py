"""A model with charges that is quickly made, structures for it, and what is asked of answers by ranks.

Its springs have a short range, and its charges by species see all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dpserver.errors import StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.models.config import ElectrostaticsConfig, parse
from dpserver.models.electrostatics import checked
from dpserver.models.electrostatics_method import Methods
from dpserver.models.electrostatics_sum import ChargeSum
from dpserver.parallel.ranked import RankedModel
from tests import structures
from tests.ranks import Springs

OPEN = (False, False, False)
BATCHES = {
    "one": structures.water((4, 3, 3)),
    "triclinic": structures.triclinic(),
    "droplet": structures.water((3, 3, 3), None, OPEN),
    "charged": Frames.single(*(lambda w: (w.positions[1:], w.types[1:], w.cell[0]))(structures.water((3, 2, 2)))),
    "ion": Frames.single([[0.0, 0.0, 0.0]], [1], np.eye(3) * 9),
    "beads": Frames.concatenate(structures.water(seed=k) for k in range(5)),
    "mixed": Frames.concatenate(
        [structures.water((4, 4, 4)), structures.cluster(), structures.cubic(), structures.water((2, 2, 2), None, OPEN)]
    ),
}


class ChargedSprings(Springs):
    """Springs between atoms of the charges -0.8 (the first species) and 0.4 (the second).

    Args:
        rcut: of the springs, Å.
        mistakes: raise an error for what their function returns one for, before anything is evaluated.
        late: likewise, once all is evaluated.
        threads: that sum.
        options: of the section `electrostatics`.
    """

    has_long_range = True

    def __init__(
        self,
        rcut: float = 3.0,
        mistakes: Callable[[Frames], Exception | None] | None = None,
        late: Callable[[Frames], Exception | None] | None = None,
        threads: int = 1,
        **options: object,
    ) -> None:
        super().__init__(rcut, mistakes=mistakes)
        given = {"charges": {"A": -0.8, "B": 0.4}, "total_charge": None, "accuracy": 1e-6, **options}
        self.config = parse(ElectrostaticsConfig, given)
        self.charges = np.array([-0.8, 0.4])
        self.sum = ChargeSum(self.config, threads)
        self.late = late

    def check_wholes(self, frames: Frames) -> None:
        checked(self.config, frames, self.charges[frames.types])
        Methods(self.config).choose_or_refuse(frames)

    def evaluate(self, frames: Frames) -> ForceResult:
        self.check_wholes(frames)
        near = super().evaluate(frames)
        far = self.sum.evaluate(frames, self.charges[frames.types])
        if self.late is not None and (error := self.late(frames)) is not None:
            raise error
        return replace(
            near,
            energy=near.energy + np.bincount(frames.frame_idx, far.atom_energy, frames.n_frames),
            forces=near.forces - far.gradient,
            virial=near.virial + far.virial,
            atom_energy=near.atom_energy + far.atom_energy,
        )


def agree(found: ForceResult, expected: ForceResult, tolerance: float = 1e-12) -> None:
    for name in ("energy", "forces", "virial", "atom_energy"):
        a, b = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()), err_msg=name)


def refuses_a_huge_cell(found: RankedModel, lone: object) -> None:
    """Before anything is sent, by one rule for all numbers of ranks and threads."""
    water = structures.water((2, 2, 2))
    huge = Frames.single(water.positions, water.types, 3e3 * np.eye(3))
    message = r"^the charges of 24 atoms in a cell of 3000 × 3000 × 3000 Å would take a sum over .*"
    agree(found.evaluate(water), lone.evaluate(water), 1e-11)
    n_messages = found.world.n_messages
    with pytest.raises(StructureError, match=message) as alone:
        lone.evaluate(huge)
    for batch in (huge, Frames.concatenate([water, huge])):
        with pytest.raises(StructureError) as caught:
            found.evaluate(batch)
        assert str(caught.value) == str(alone.value)
    assert found.world.n_messages == n_messages
    agree(found.evaluate(water), lone.evaluate(water), 1e-11)
