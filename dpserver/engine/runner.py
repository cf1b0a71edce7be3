"""Evaluate a batch on the model, so that one bad structure costs nobody else its answer. Knows no queue and no peer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dpserver.engine.budget import Budget
from dpserver.errors import DeviceError, DPServerError, StructureError
from dpserver.frames import CommitteeResult, Floats, ForceResult, Frames, Responses

logger = logging.getLogger(__name__)

# Torch's own errors by name or wording: the engine runs any model and imports no library of one.
_OUT_OF_MEMORY = "OutOfMemoryError"
_OUT_OF_HOST_MEMORY = "can't allocate memory"
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

    @property
    def crowd_distance(self) -> Floats:
        """The same of pairs in numbers, see `neighbors.crowds`; inf where nothing is known."""

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch; raises StructureError for a structure without an answer."""


Outcome = ForceResult | DPServerError


@dataclass(frozen=True, eq=False)
class _Piece:
    """Consecutive frames of one part.

    Attributes:
        part: its number.
        frames: all of the part's, or some.
    """

    part: int
    frames: Frames


class Runner:
    """Runs a model on batches.

    Args:
        model: evaluates; used by one thread at a time.
        max_atoms: of one evaluation; a frame that is larger by itself is evaluated alone.

    Attributes:
        max_atoms: the same, lowered once that was more than the memory of the device holds.
    """

    def __init__(self, model: ForceModel, max_atoms: int = Budget.atoms) -> None:
        self._model = model
        self.max_atoms = max_atoms

    def run(self, parts: Sequence[Frames]) -> list[Outcome]:
        """Evaluate the parts together, and where that fails or is too much at once, apart.

        Args:
            parts: batches that stand or fall each by itself, one for each request.

        Returns:
            For each part its finite result, or the error that refuses it.

        Raises:
            DeviceError: the device is lost; nothing can be evaluated any more.
        """
        run = _Run(self._model, parts, self.max_atoms)
        run.finish()
        if run.lesson is not None and run.lesson < self.max_atoms:
            logger.warning("the memory of the device is full; evaluations of at most %d atoms from now on", run.lesson)
            self.max_atoms = run.lesson
        return run.outcomes()


class _Run:
    """One batch on its way through the model.

    What has to be evaluated lies on a stack of lists of pieces, the next on top. A list that is too large, or that has
    failed, is replaced by its two halves, down to the piece to blame.

    Args:
        model: evaluates.
        parts: of the batch.
        max_atoms: of one evaluation.
    """

    def __init__(self, model: ForceModel, parts: Sequence[Frames], max_atoms: int) -> None:
        self._model = model
        self._max_atoms = max_atoms
        self._results: list[list[ForceResult]] = [[] for _ in parts]
        self._errors: dict[int, DPServerError] = {}
        self._todo = [[_Piece(k, part) for k, part in enumerate(parts)]]
        self._largest = 0  # evaluation that had enough memory, in atoms
        self._has_overflowed = self._is_too_large = False  # any evaluation | one of a single frame

    @property
    def lesson(self) -> int | None:
        """Atoms that fit into the memory; None where nothing was learnt.

        Where a single frame was too much for it, that frame may have been to blame for all that happened.
        """
        return self._largest if self._has_overflowed and self._largest and not self._is_too_large else None

    def outcomes(self) -> list[Outcome]:
        """For each part its result or its error."""
        return [
            error if (error := self._errors.get(k)) is not None else _join(results)
            for k, results in enumerate(self._results)
        ]

    def finish(self) -> None:
        """Evaluate until every part has an outcome."""
        while self._todo:
            pieces = [piece for piece in self._todo.pop() if piece.part not in self._errors]
            if not pieces:
                continue
            if sum(piece.frames.n_atoms for piece in pieces) > self._max_atoms and (halves := _halve(pieces)):
                self._todo += halves
                continue
            frames = _together(pieces)
            if frames is None:  # not all have the same parameters
                self._todo += _halve(pieces)
                continue
            if self._has_bad(frames, pieces):
                self._todo.append(pieces)
            elif isinstance(outcome := self._evaluate(frames), ForceResult):
                self._largest = max(self._largest, frames.n_atoms)
                self._keep(outcome, pieces)
            else:
                self._blame(outcome, pieces)

    def _has_bad(self, frames: Frames, pieces: Sequence[_Piece]) -> bool:
        """Refuse what must not be shown to the model, and tell whether there was any."""
        n_species, n_errors = len(self._model.species), len(self._errors)
        try:
            frames.check(n_species)
        except StructureError:
            for piece in pieces:
                try:
                    piece.frames.check(n_species)
                except StructureError as error:
                    self._errors[piece.part] = error
        return len(self._errors) > n_errors

    def _evaluate(self, frames: Frames) -> ForceResult | Exception:
        """Ask the model; what it raises is returned, and with it returns the memory that its frames held on to."""
        try:
            result = self._model.evaluate(frames)
            _check_shapes(result, frames)
            return result
        except Exception as error:
            if isinstance(error, DeviceError) or type(error).__name__ == _DEVICE_LOST:
                raise DeviceError(f"the device is lost: {error}") from error
            return error.with_traceback(None) if is_out_of_memory(error) else error

    def _keep(self, result: ForceResult, pieces: Sequence[_Piece]) -> None:
        """Give each piece its share of a result; refuse the shares that are not finite."""
        is_finite = result.is_finite()
        are_all = bool(is_finite.all())
        frame = atom = 0
        for piece in pieces:
            frames = slice(frame, frame := frame + piece.frames.n_frames)
            atoms = slice(atom, atom := atom + piece.frames.n_atoms)
            if are_all or is_finite[frames].all():
                self._results[piece.part].append(result.part(frames, atoms))
            else:
                self._errors[piece.part] = StructureError(
                    "the model's answer is not finite; the structure is probably far from anything it was trained on"
                )

    def _blame(self, error: Exception, pieces: Sequence[_Piece]) -> None:
        """Try each half by itself, or refuse the part that is to blame; only memory is a reason to cut a part."""
        is_memory = is_out_of_memory(error)
        if is_memory:
            self._has_overflowed = True
            self._max_atoms = min(self._max_atoms, sum(piece.frames.n_atoms for piece in pieces) - 1)
        if (len(pieces) > 1 or is_memory) and (halves := _halve(pieces)):
            self._todo += halves
            return
        self._is_too_large |= is_memory
        self._errors[pieces[0].part] = _explain(error, pieces[0].frames)


def _check_shapes(result: ForceResult, frames: Frames) -> None:
    """Hold a result against what was asked; one that is short would be cut apart at the wrong places.

    Raises:
        ValueError: frames or atoms are missing, or there are too many.
    """
    expected = {"energy": (frames.n_frames,), "forces": (frames.n_atoms, 3), "virial": (frames.n_frames, 3, 3)}
    got = {name: getattr(result, name).shape for name in expected}
    if got != expected or not np.array_equal(result.frame_idx, frames.frame_idx):
        raise ValueError(f"the model was asked for {expected}, and answered with {got}")


def _together(pieces: Sequence[_Piece]) -> Frames | None:
    """The frames of all pieces as one batch; None where they cannot be in one."""
    if len(pieces) == 1:
        return pieces[0].frames
    try:
        return Frames.concatenate(piece.frames for piece in pieces)
    except StructureError:
        return None


def _halve(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Cut a list in two, the second half first; nothing for a single frame."""
    if len(pieces) > 1:
        half = len(pieces) // 2
        return [list(pieces[half:]), list(pieces[:half])]
    (piece,) = pieces
    n_frames = piece.frames.n_frames
    half = n_frames // 2
    return [[_Piece(piece.part, piece.frames.part(*ends))] for ends in ((half, n_frames), (0, half))] if half else []


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the memory of the device or of the machine is full."""
    is_named = isinstance(error, MemoryError) or type(error).__name__ == _OUT_OF_MEMORY
    return is_named or (isinstance(error, RuntimeError) and _OUT_OF_HOST_MEMORY in str(error))


def no_memory_for(n_atoms: int, error: Exception) -> DeviceError:
    """The refusal of a structure that is too large, by what was raised."""
    return DeviceError(f"{n_atoms} atoms do not fit into the memory of the device: {error}")


def _explain(error: Exception, part: Frames) -> DPServerError:
    """Turn what the model raised for one part alone into a refusal."""
    if isinstance(error, DPServerError):
        return error
    if is_out_of_memory(error):
        return no_memory_for(part.n_atoms, error)
    logger.error("the model raised an unexpected error", exc_info=error)
    return StructureError(f"the model failed on this structure: {type(error).__name__}: {error}")


def _join(results: Sequence[ForceResult]) -> ForceResult:
    """Put the results of consecutive pieces together."""
    if len(results) == 1:
        return results[0]
    first = np.cumsum([0, *(len(r.energy) for r in results)])
    members = [r.committee for r in results if r.committee is not None]
    responses = [r.responses for r in results if r.responses is not None]
    return ForceResult(
        np.concatenate([r.energy for r in results]),
        np.concatenate([r.forces for r in results]),
        np.concatenate([r.virial for r in results]),
        np.concatenate([r.atom_energy for r in results]),
        np.concatenate([r.frame_idx + k for r, k in zip(results, first[:-1], strict=True)]),
        CommitteeResult(
            np.concatenate([c.energy for c in members], axis=1),
            np.concatenate([c.forces for c in members], axis=1),
            np.concatenate([c.virial for c in members], axis=1),
        )
        if members
        else None,
        Responses.concatenate(responses) if responses else None,
    )
