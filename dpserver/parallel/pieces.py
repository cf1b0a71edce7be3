"""A structure that is too large for the memory, evaluated in parts by one process, one after the other."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from dpserver.engine.runner import ForceModel, is_out_of_memory
from dpserver.engine.wrapped import Wrapped
from dpserver.frames import ForceResult, Frames

if TYPE_CHECKING:
    from dpserver.parallel.domain import Decomposition

logger = logging.getLogger(__name__)

_FEWEST: Final = 16
"""Centres of a part; where no more of them fit into the memory, something else is wrong."""


class Pieces(Wrapped):
    """A model whose memory bounds no structure; a `ForceModel`.

    A structure is evaluated as it is, if the model has the memory for it. If not, it is cut into parts of half as many
    atoms as have failed, and these again, until they fit, and so are those that come after it.

    Args:
        model: evaluates; only one that says by `can_cut` that it can be evaluated in parts ever is, and only if these
            need not be evaluated at the same time. It raises an error that says so when the memory is full.

    Attributes:
        most_centres: that have been found to fit; None while nothing has failed.
    """

    def __init__(self, model: ForceModel) -> None:
        super().__init__(model)
        self._cut: Decomposition | None = None
        self.most_centres: int | None = None

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch.

        Args:
            frames: structures, of any sizes; not changed.

        Raises:
            StructureError: a structure that has no answer, named with its cause.
            MemoryError: several structures do not fit together, or a few atoms do not.
        """
        n_centres = _centres(frames)
        if frames.n_frames != 1 or self.most_centres is None or n_centres <= self.most_centres:
            found = self._try(frames)
            if not isinstance(found, Exception):
                return found
            if frames.n_frames != 1 or not self.can_cut or self.has_long_range:
                raise found
            self._learn(n_centres, found)
        frames.check(len(self.species))
        while (result := self._in_parts(frames, n_centres)) is None:
            self._cut = None
        return result

    def _in_parts(self, frame: Frames, n_centres: int) -> ForceResult | None:
        """The sum of the parts; None where one of them does not fit, and the next attempt has smaller ones."""
        from dpserver.parallel.domain import Decomposition  # with numba, which not every machine has

        n_parts = -(-n_centres // (self.most_centres or n_centres))
        if self._cut is None or self._cut.n_parts != n_parts or not self._cut.is_valid(frame):
            self._cut = Decomposition.build(frame, n_parts, self.rcut)
            logger.debug("%d atoms are evaluated in %d parts", frame.n_atoms, n_parts)
        results: list[ForceResult | None] = []
        for k, n_owned in enumerate(self._cut.n_owned):
            found = self._try(self._cut.local(frame, k)) if n_owned else None
            if isinstance(found, Exception):
                self._learn(int(n_owned), found)
                return None
            results.append(found)
        return self._cut.total(results)

    def _try(self, frames: Frames) -> ForceResult | Exception:
        """Evaluate, or return what the memory being full has raised, without what that holds on to."""
        try:
            return self._model.evaluate(frames)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return error.with_traceback(None)

    def _learn(self, n_centres: int, error: Exception) -> None:
        """Take parts of half the size from now on.

        Raises:
            MemoryError: they are as small as they can sensibly be.
        """
        if n_centres < 2 * _FEWEST:
            raise error
        self.most_centres = n_centres // 2
        logger.warning(
            "%d atoms at once are more than the memory holds (%s); evaluated in parts of %d atoms, one after the other",
            n_centres,
            error,
            self.most_centres,
        )


def _centres(frames: Frames) -> int:
    """Atoms that are no ghosts."""
    return frames.n_atoms - (0 if frames.is_ghost is None else int(frames.is_ghost.sum()))
