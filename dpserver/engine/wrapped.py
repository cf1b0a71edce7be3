"""What stands in front of a model and is asked in its place, and whether a model can be asked for parts."""

from __future__ import annotations

from dpserver.engine.runner import ForceModel
from dpserver.frames import Floats, Frames
from dpserver.models.parameters import Takes, taken_by


def is_cuttable(model: object) -> bool:
    """Whether a model can be given part of a structure, with ghosts, and says what adds up to the whole's answer.

    A model says so by `can_cut`: its energy is a sum over atoms that see no further than `rcut`, and it honours
    `Frames.is_ghost`. One that does not say is only ever given whole structures.
    """
    return bool(getattr(model, "can_cut", False))


def why_whole(model: object) -> str:
    """Why a model can be given whole structures only, in words; it says so by `whole_because`."""
    return str(getattr(model, "whole_because", "it does not say that its energy can be summed over parts"))


def has_long_range(model: object) -> bool:
    """Whether parts of a structure have to be evaluated at the same time, because they have to tell each other of them.

    A model says so by `has_long_range`; its parts come with `Frames.wholes`.
    """
    return bool(getattr(model, "has_long_range", False))


def check_wholes(model: object, frames: Frames) -> None:
    """Refuse, where a model can tell, what parts of structures could not know to be without an answer.

    Raises:
        StructureError: the model has no answer for a structure.
    """
    check = getattr(model, "check_wholes", None)
    if check is not None:
        check(frames)


class Wrapped:
    """All that a `ForceModel` tells of itself, told for the one behind; it does not evaluate.

    Args:
        model: the one behind.
    """

    def __init__(self, model: ForceModel) -> None:
        self._model = model

    @property
    def species(self) -> tuple[str, ...]:
        """Symbol of each type."""
        return self._model.species

    @property
    def rcut(self) -> float:
        """Cutoff radius, Å."""
        return self._model.rcut

    @property
    def template(self) -> tuple[str, ...] | None:
        """Symbol of each atom of the training structures, where all share one order."""
        return self._model.template

    @property
    def min_distance(self) -> Floats:
        """Smallest distance of each pair of species in training, Å."""
        return self._model.min_distance

    @property
    def crowd_distance(self) -> Floats:
        """The same of pairs in numbers, see `neighbors.crowds`."""
        return self._model.crowd_distance

    @property
    def can_cut(self) -> bool:
        """Whether structures can be evaluated in parts."""
        return is_cuttable(self._model)

    @property
    def whole_because(self) -> str:
        """Why they cannot, in words."""
        return why_whole(self._model)

    @property
    def has_long_range(self) -> bool:
        """Whether parts of a structure have to be evaluated at the same time."""
        return has_long_range(self._model)

    def check_wholes(self, frames: Frames) -> None:
        """Refuse structures that have no answer and are about to be cut."""
        check_wholes(self._model, frames)

    @property
    def takes(self) -> Takes:
        """The parameters that the model takes beside a structure."""
        return taken_by(self._model)
