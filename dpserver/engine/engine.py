"""From requests to answers: species, one evaluation, and the answers cut apart again."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from dpserver.engine.budget import Budget
from dpserver.engine.deviations import DeviationWatch
from dpserver.engine.extras import encode_extras
from dpserver.engine.runner import ForceModel, Runner
from dpserver.engine.species import Assigner
from dpserver.errors import DPServerError, StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.ipi import Forces, Structures

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Request:
    """The structures of one message, and who knows their species.

    Attributes:
        structures: all with the same number of atoms.
        assigner: of the connection they came from.
        has_extras: whether the peer is sent what there is to say beside the forces.
        peer: the connection they came on.
        group: the simulation that asks; all connections to one endpoint are one.
    """

    structures: Structures
    assigner: Assigner
    has_extras: bool = False
    peer: Hashable = None
    group: Hashable = None

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
        model: evaluates; the engine is used by one thread at a time.
        max_atoms: of one evaluation; larger batches are evaluated in several.
        watch: is shown what a committee answers.
    """

    def __init__(self, model: ForceModel, max_atoms: int = Budget.atoms, watch: DeviationWatch | None = None) -> None:
        self._runner = Runner(model, max_atoms)
        self._watch = watch

    @property
    def max_atoms(self) -> int:
        """Most atoms of one evaluation; fewer than at first once the memory of the device was full."""
        return self._runner.max_atoms

    def answer(self, requests: Sequence[Request]) -> list[Forces | DPServerError]:
        """Evaluate requests in one batch, or in as few as the memory of the device allows.

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
            except Exception as error:  # a bug of ours must not cost the others their answers
                logger.exception("the species of a request could not be found")
                answers[k] = StructureError(f"internal error: {error!r}")
        outcomes = dict(zip(parts, self._runner.run(list(parts.values())), strict=True))
        for k, outcome in outcomes.items():
            answers[k] = outcome if isinstance(outcome, DPServerError) else to_forces(outcome, requests[k])
        if self._watch is not None:
            results = [(k, outcome) for k, outcome in outcomes.items() if isinstance(outcome, ForceResult)]
            self._watch.see([(str(requests[k].group), parts[k], result) for k, result in results])
        return [answer for answer in answers if answer is not None]


def without_padding(structures: Structures) -> Structures:
    """Drop the copies of the last structure with which i-PI fills a short batch up; the result holds views."""
    positions, cell = structures.positions, structures.cell
    n_real = structures.n_frames
    if n_real == 1:
        return structures
    while n_real > 1 and (positions[n_real - 2] == positions[-1]).all() and (cell[n_real - 2] == cell[-1]).all():
        n_real -= 1
    return Structures(positions[:n_real], cell[:n_real])


def to_forces(result: ForceResult, request: Request) -> Forces:
    """Shape the result of the structures that were computed into an answer for all, padding included."""
    n_frames, n_computed = request.structures.n_frames, len(result.energy)
    forces = result.forces.reshape(n_computed, -1, 3)
    extras = encode_extras(result) if request.has_extras else []
    if n_computed == n_frames:
        return Forces(result.energy, forces, result.virial, extras)
    computed = np.minimum(np.arange(n_frames), n_computed - 1)
    padded = [extras[k] for k in computed] if extras else []
    return Forces(result.energy[computed], forces[computed], result.virial[computed], padded)
