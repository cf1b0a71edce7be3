"""From requests to answers: species, one evaluation, and the answers cut apart again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpserver.engine.runner import ForceModel, Runner
from dpserver.engine.species import Assigner
from dpserver.errors import DPServerError
from dpserver.frames import ForceResult, Frames
from dpserver.ipi import Forces, Structures


@dataclass(frozen=True, eq=False)
class Request:
    """The structures of one message, and who knows their species.

    Attributes:
        structures: all with the same number of atoms.
        assigner: of the connection they came from.
    """

    structures: Structures
    assigner: Assigner

    @property
    def n_frames(self) -> int:
        """Structures asked for."""
        return self.structures.n_frames

    @property
    def n_atoms(self) -> int:
        """Atoms of all structures."""
        return self.structures.n_frames * self.structures.n_atoms


class Engine:
    """Answers requests with a model.

    Args:
        model: evaluates; the engine is used by one thread.
    """

    def __init__(self, model: ForceModel) -> None:
        self._runner = Runner(model)

    def answer(self, requests: Sequence[Request]) -> list[Forces | DPServerError]:
        """Evaluate requests in one batch.

        Returns:
            For each its forces, or the error that refuses it and nobody else.

        Raises:
            DeviceError: the device is lost.
        """
        answers: list[Forces | DPServerError | None] = [None] * len(requests)
        parts: dict[int, Frames] = {}
        for k, request in enumerate(requests):
            try:
                parts[k] = request.assigner.frames(without_padding(request.structures))
            except DPServerError as error:
                answers[k] = error
        for k, outcome in zip(parts, self._runner.run(list(parts.values())), strict=True):
            answers[k] = outcome if isinstance(outcome, DPServerError) else to_forces(outcome, requests[k].structures)
        return [answer for answer in answers if answer is not None]


def without_padding(structures: Structures) -> Structures:
    """Drop the copies of the last structure with which i-PI fills a short batch up; the result holds views."""
    positions, cell = structures.positions, structures.cell
    n_real = structures.n_frames
    while n_real > 1 and (positions[n_real - 2] == positions[-1]).all() and (cell[n_real - 2] == cell[-1]).all():
        n_real -= 1
    return Structures(positions[:n_real], cell[:n_real])


def to_forces(result: ForceResult, structures: Structures) -> Forces:
    """Shape the result of the structures that were computed into an answer for all, padding included."""
    computed = np.minimum(np.arange(structures.n_frames), len(result.energy) - 1)
    forces = result.forces.reshape(-1, structures.n_atoms, 3)
    if len(computed) == len(result.energy):
        return Forces(result.energy, forces, result.virial)
    return Forces(result.energy[computed], forces[computed], result.virial[computed])
