"""What stands in front of a model and is asked in its place."""

from __future__ import annotations

from dpserver.engine.runner import ForceModel
from dpserver.frames import Floats
from dpserver.models.parameters import Takes, taken_by


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
    def takes(self) -> Takes:
        """The parameters that the model takes beside a structure."""
        return taken_by(self._model)
