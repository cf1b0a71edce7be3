"""Models that are evaluated beside the one of energies, and whose answers travel as extras: dipoles, polarizabilities.

They see the same frames. Their types may be numbered in another way; atoms of species they do not know are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from dpserver.engine.runner import ForceModel
from dpserver.engine.wrapped import Wrapped, is_cuttable, why_whole
from dpserver.errors import ConfigError, StructureError
from dpserver.frames import ForceResult, Frames, Ints, Responses, TensorValues
from dpserver.models.parameters import Takes, suited, taken_by


class TensorSource(Protocol):
    """A model of dipoles (`kind` is `dipole`) or polarizabilities (`polar`)."""

    @property
    def kind(self) -> str:
        """Which of them."""

    @property
    def species(self) -> tuple[str, ...]:
        """Symbol of each type."""

    @property
    def rcut(self) -> float:
        """Cutoff radius, Å."""

    def evaluate(self, frames: Frames, *, has_born_charges: bool = False) -> TensorValues:
        """Dipoles or polarizabilities of a batch; raises StructureError for a structure without an answer."""


class Accompanied(Wrapped):
    """A model of energies with others beside it; a `ForceModel` whose results have `responses`.

    Args:
        model: of energies.
        dipole: model of dipoles.
        polar: model of polarizabilities.
        has_born_charges: whether to differentiate the dipole by the positions.

    Raises:
        ConfigError: there is no other model, one is of the wrong kind, or they take different parameters.
    """

    def __init__(
        self,
        model: ForceModel,
        dipole: TensorSource | None = None,
        polar: TensorSource | None = None,
        *,
        has_born_charges: bool = False,
    ) -> None:
        for kind, other in (("dipole", dipole), ("polar", polar)):
            if other is not None and other.kind != kind:
                raise ConfigError(f"the model given for {kind} is one of the kind {other.kind}")
        if has_born_charges and dipole is None:
            raise ConfigError("Born charges are the derivative of a dipole; they need a model of dipoles")
        super().__init__(model)
        self._dipole, self._polar = dipole, polar
        self._has_born_charges = has_born_charges
        others = [other for other in (dipole, polar) if other is not None]
        self._types = {id(other): _translation(model.species, other.species) for other in others}
        self._rcut = max([model.rcut, *(other.rcut for other in others)])
        self._whole = next((m for m in (model, *others) if not is_cuttable(m)), None)
        self._takes = _together([taken_by(m) for m in (model, *others)])

    @property
    def rcut(self) -> float:
        """The largest cutoff radius of the models, Å."""
        return self._rcut

    @property
    def can_cut(self) -> bool:
        """Whether structures can be evaluated in parts by all of the models."""
        return self._whole is None

    @property
    def whole_because(self) -> str:
        """Why not, in words: of the first that cannot."""
        return why_whole(self._whole)

    @property
    def takes(self) -> Takes:
        """The parameters that any of the models takes."""
        return self._takes

    def warm_up(self) -> None:
        """Make now what the first evaluation of the other models would have to."""
        takes = self.takes
        for other in (self._dipole, self._polar):
            if other is not None:
                atom = Frames.single(
                    [[0.0, 0.0, 0.0]], [0], fparam=np.zeros(takes.n_fparam), aparam=np.zeros((1, takes.n_aparam))
                )
                other.evaluate(suited(atom, other))

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch, and what the other models say of it.

        Raises:
            StructureError: a structure that one of the models has no answer for, named with its cause.
        """
        result = self._model.evaluate(suited(frames, self._model))
        dipole = polar = charges = None
        if self._dipole is not None:
            found = self._dipole.evaluate(self._seen_by(self._dipole, frames), has_born_charges=self._has_born_charges)
            dipole, charges = found.total, found.born_charges
        if self._polar is not None:
            polar = self._polar.evaluate(self._seen_by(self._polar, frames)).total
        return replace(result, responses=Responses(dipole, polar, charges))

    def _seen_by(self, other: TensorSource, frames: Frames) -> Frames:
        """A batch with the types of another model, and the parameters that it takes."""
        types = self._types[id(other)][frames.types]
        if (types < 0).any():
            symbol = self.species[int(frames.types[types < 0][0])]
            raise StructureError(f"the model of the kind {other.kind} knows {', '.join(other.species)}, not {symbol}")
        return suited(replace(frames, types=types), other)


def _translation(species: Sequence[str], known: Sequence[str]) -> Ints:
    """The type that each species has in another model; -1 where it has none."""
    return np.array([known.index(s) if s in known else -1 for s in species], dtype=np.int64)


def _together(takes: Sequence[Takes]) -> Takes:
    """The parameters that some models take, of whom each takes all of them or none."""
    frames = [t for t in takes if t.n_fparam]
    n_aparam = {t.n_aparam for t in takes} - {0}
    if len({(t.n_fparam, t.default_fparam) for t in frames}) > 1 or len(n_aparam) > 1:
        counts = "; ".join(f"{t.n_fparam} fparam and {t.n_aparam} aparam" for t in takes)
        raise ConfigError(f"models that are served together must take the same parameters, or none: {counts}")
    first = frames[0] if frames else Takes()
    return first._replace(n_aparam=max(n_aparam, default=0))
