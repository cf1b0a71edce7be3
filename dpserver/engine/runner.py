"""Evaluate a batch on the model, so that one bad structure costs nobody else its answer. Knows no queue and no peer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dpserver.errors import DeviceError, DPServerError, StructureError
from dpserver.frames import Floats, ForceResult, Frames

logger = logging.getLogger(__name__)

# Torch's own errors by name: the engine runs any model and imports no library of one.
_OUT_OF_MEMORY = "OutOfMemoryError"
_DEVICE_LOST = "AcceleratorError"


class ForceModel(Protocol):
    """What serves: all that the engine asks of a potential."""

    @property
    def species(self) -> tuple[str, ...]:
        """Symbol of each type."""

    @property
    def rcut(self) -> float:
        """Cutoff radius, Å."""

    @property
    def template(self) -> tuple[str, ...] | None:
        """Symbol of each atom of the training structures, where all share one order."""

    @property
    def min_distance(self) -> Floats:
        """Smallest distance of each pair of species in training, inf where never met, (n_species, n_species), Å."""

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch; raises StructureError for a structure without an answer."""


Outcome = ForceResult | DPServerError


class Runner:
    """Runs a model on batches.

    Args:
        model: evaluates; used by one thread at a time.
    """

    def __init__(self, model: ForceModel) -> None:
        self._model = model

    def run(self, parts: Sequence[Frames]) -> list[Outcome]:
        """Evaluate the parts together, and where that fails, apart.

        Args:
            parts: batches that stand or fall each by itself, one for each request.

        Returns:
            For each part its finite result, or the error that refuses it.

        Raises:
            DeviceError: the device is lost; nothing can be evaluated any more.
        """
        outcomes: list[Outcome | None] = [self._refusal(part) for part in parts]
        sound = [k for k, outcome in enumerate(outcomes) if outcome is None]
        for k, outcome in zip(sound, self._evaluate([parts[k] for k in sound]), strict=True):
            outcomes[k] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _refusal(self, part: Frames) -> StructureError | None:
        """What forbids to show a part to the model."""
        try:
            part.check(len(self._model.species))
        except StructureError as error:
            return error
        return None

    def _evaluate(self, parts: Sequence[Frames]) -> list[Outcome]:
        """One evaluation of all; on failure one of each half, down to the part to blame."""
        if not parts:
            return []
        try:
            result = self._model.evaluate(Frames.concatenate(parts))
        except Exception as error:
            if isinstance(error, DeviceError) or type(error).__name__ == _DEVICE_LOST:
                raise DeviceError(f"the device is lost: {error}") from error
            if len(parts) == 1:
                return [_explain(error, parts[0])]
            half = len(parts) // 2
            return self._evaluate(parts[:half]) + self._evaluate(parts[half:])
        return _split(result, parts)


def _explain(error: Exception, part: Frames) -> DPServerError:
    """Turn what the model raised for one part alone into a refusal."""
    if isinstance(error, DPServerError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == _OUT_OF_MEMORY:
        return DeviceError(f"{part.n_atoms} atoms do not fit into the memory of the device: {error}")
    logger.error("the model raised an unexpected error", exc_info=error)
    return StructureError(f"the model failed on this structure: {type(error).__name__}: {error}")


def _split(result: ForceResult, parts: Sequence[Frames]) -> list[Outcome]:
    """Give each part its share of a result; refuse the shares that are not finite."""
    is_finite = result.is_finite()
    first_frame = np.cumsum([0, *(p.n_frames for p in parts)])
    first_atom = np.cumsum([0, *(p.n_atoms for p in parts)])
    outcomes: list[Outcome] = []
    for k in range(len(parts)):
        frames = slice(first_frame[k], first_frame[k + 1])
        atoms = slice(first_atom[k], first_atom[k + 1])
        if is_finite[frames].all():
            outcomes.append(
                ForceResult(
                    result.energy[frames],
                    result.forces[atoms],
                    result.virial[frames],
                    result.atom_energy[atoms],
                    result.frame_idx[atoms] - first_frame[k],
                )
            )
        else:
            outcomes.append(
                StructureError(
                    "the model's answer is not finite; the structure is probably far from anything it was trained on"
                )
            )
    return outcomes
