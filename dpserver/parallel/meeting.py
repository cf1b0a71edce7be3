"""The ranks that evaluate parts of the same structures, and what they exchange while they do; see `dpserver.parts`.

Every exchange begins with a word of each to all others: that it is there, that it has done all it had to, or that it
has failed. So all learn at the same moment when one has failed, whatever it was at, and none waits for what will not
come, nor leaves a message behind; a last word of this kind is said when the evaluation is over.

    exchange  GOING … bodies     close  DONE, or FAILED: every other's exchange is abandoned
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dpserver.engine.runner import ForceModel
from dpserver.errors import AbandonedError
from dpserver.frames import ForceResult, Frames
from dpserver.parallel.communicator import Communicator, Pending
from dpserver.parallel.exchange import Tag
from dpserver.parallel.waiting import Patience

_SPINS: Final = {Tag.WORD: 1e-3, Tag.PART: 5e-3}
"""s: how long to look without a pause for those who are at work on the same thing, and for what is on its way."""


class _Word(IntEnum):
    """What each says to all others."""

    GOING = 0
    DONE = 1
    FAILED = 2


class Meeting:
    """The ranks that evaluate parts of the same structures, for one evaluation; `Parts` for models.

    Args:
        group: of all ranks.
        members: those that have parts, this one among them, in the same order everywhere.
        patience: how to wait.

    Attributes:
        number: of this rank's parts.
        count: of the ranks.
        waited: for the others, s.
        failure: what kept this rank from speaking with the others: it cannot go on; None while nothing has.
    """

    def __init__(self, group: Communicator, members: Sequence[int], patience: Patience) -> None:
        self._group, self._members = group, tuple(members)
        self._patience = patience
        self.number, self.count = self._members.index(group.rank), len(self._members)
        self._others = [(k, rank) for k, rank in enumerate(self._members) if rank != group.rank]
        self._is_over = False
        self.waited = 0.0
        self.failure: BaseException | None = None

    def exchange(self, outgoing: Sequence[NDArray[Any]], incoming: Sequence[NDArray[Any]]) -> None:
        """See `Parts`.

        Raises:
            AbandonedError: another part has failed, or the evaluation is over.
            DeviceError: a rank is gone.
        """
        if self._is_over:
            raise AbandonedError("the other parts of the structure are not evaluated any more")
        since = self._patience.clock()
        try:
            self._greet(_Word.GOING)
            self._swap([(outgoing[k], incoming[k], rank) for k, rank in self._others], Tag.PART)
        except AbandonedError:
            self._is_over = True
            raise
        except BaseException as error:  # interrupted, it is in step with nobody either
            self._is_over, self.failure = True, error
            raise
        finally:
            self.waited += self._patience.clock() - since

    def close(self, *, is_good: bool) -> None:
        """Part from the others: all have to, once, whatever has happened.

        Args:
            is_good: this rank has evaluated its parts.
        """
        if self._is_over:
            return
        since = self._patience.clock()
        self._is_over = True
        try:
            self._greet(_Word.DONE if is_good else _Word.FAILED)
        except AbandonedError:
            return
        except BaseException as error:
            self.failure = error
            if not isinstance(error, Exception):
                raise
        finally:
            self.waited += self._patience.clock() - since

    def _greet(self, word: _Word) -> None:
        """Say a word to all others, and hear theirs.

        Raises:
            AbandonedError: one of them, this one included, has failed.
            RuntimeError: they are not at the same place: a mistake of ours.
        """
        said = np.array([word], dtype=np.int64)
        heard = np.full(self.count, word, dtype=np.int64)
        self._swap([(said, heard[k : k + 1], rank) for k, rank in self._others], Tag.WORD)
        if (heard == _Word.FAILED).any():
            raise AbandonedError("another part of the structure could not be evaluated")
        if (heard != word).any():
            raise RuntimeError(f"ranks that evaluate one structure are at different places: {heard.tolist()}")

    def _swap(self, pairs: Sequence[tuple[NDArray[Any], NDArray[Any], int]], tag: Tag) -> None:
        """Send and receive; arrays without numbers are not sent."""
        under_way: list[Pending] = []
        for _, incoming, rank in pairs:
            if incoming.size:
                under_way.append(self._group.irecv(incoming, rank, tag))
        for outgoing, _, rank in pairs:
            if outgoing.size:
                under_way.append(self._group.isend(outgoing, rank, tag))
        patience = replace(self._patience, spin=_SPINS[tag])
        patience.until_all(pending.test for pending in under_way)


class MeetingLostError(Exception):
    """A rank cannot speak with the others any more.

    Args:
        cause: what it has met.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def evaluate(model: ForceModel, share: Callable[[], Frames], meeting: Meeting | None) -> ForceResult:
    """Evaluate a share, and part from the others however it went.

    Args:
        model: evaluates.
        share: makes it; where even that fails, the others learn so too.
        meeting: with those that have the other parts; None where nobody has to be met.

    Raises:
        MeetingLostError: there is no speaking with them; whatever else the model raises.
    """
    if meeting is None:
        return model.evaluate(share())
    is_good = False
    try:
        result = model.evaluate(share())
        is_good = True
    finally:
        meeting.close(is_good=is_good)
        if isinstance(meeting.failure, Exception):  # an interrupt goes on as it is
            raise MeetingLostError(meeting.failure)
    return result
