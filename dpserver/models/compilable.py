"""What one potential and several that are evaluated together have in common: kernels, and structures in parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpserver.defaults import TABLE_ERROR
from dpserver.frames import Frames
from dpserver.models.accelerated import Accelerated
from dpserver.models.atomic import ORDERED
from dpserver.models.compilation import Compilation

if TYPE_CHECKING:
    from dpserver.models.potential import Potential


class Compilable(ABC):
    """Potentials that answer together; by torch, until they are told to use kernels."""

    _compilation: Compilation | None = None

    @property
    @abstractmethod
    def members(self) -> Sequence[Potential]:
        """The potentials."""

    @property
    def can_cut(self) -> bool:
        """Whether a structure can be evaluated in parts, with ghosts, as it is over ranks."""
        has_joint_charges = self._compilation is not None and self._compilation.has_joint_charges
        is_ordered = any(member.has_ordered_atoms for member in self.members)
        return not is_ordered and (has_joint_charges or not self.has_long_range)

    @property
    def whole_because(self) -> str:
        """Why it cannot, in words."""
        if any(member.has_ordered_atoms for member in self.members):
            return ORDERED
        return "its charges interact at all distances, and without kernels (numba) they are summed in whole structures"

    @property
    def has_long_range(self) -> bool:
        """Whether parts of a structure have to be evaluated at the same time, with `Frames.wholes`."""
        return any(member.electrostatics is not None for member in self.members)

    def check_wholes(self, frames: Frames) -> None:
        """Refuse structures whose charges have no answer, as long as they are not in parts.

        Raises:
            StructureError: a structure is periodic in some directions only, its fixed charges do not add up, or their
                sum would take too long.
        """
        for member in self.members:
            if member.electrostatics is not None:
                member.electrostatics.check(frames)
        if self._compilation is not None:
            self._compilation.check_sums(frames)

    def accelerate(self, threads: int | None = None, table_error: float = TABLE_ERROR) -> None:
        """Let `evaluate` use kernels, where they know the potentials; see `Compilation`.

        Args:
            threads: that compute; by default one for each core available.
            table_error: of forces that is aimed at, relative to their typical size; ten times as much is accepted.

        Raises:
            ConfigError: a number that is not positive.
        """
        self._compilation = Compilation(self.members, threads, table_error)

    def compiled(self) -> list[Accelerated | None]:
        """The kernels made at once, one for each group of potentials; None where there are none."""
        return [None] if self._compilation is None else [compiled for _, compiled in self._compilation.groups()]

    def evaluated_by(self) -> list[str]:
        """What evaluates, one for each group of potentials, in words."""
        return ["torch"] if self._compilation is None else self._compilation.descriptions()

    def warm_up(self) -> None:
        """Make now what the first evaluation would have to."""
        if self._compilation is not None:
            self._compilation.warm_up()
