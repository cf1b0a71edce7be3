"""A rank other than 0: waits for what it is to evaluate, evaluates it, and answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Final

import numpy as np

from dpserver.engine.runner import ForceModel, is_out_of_memory
from dpserver.errors import DPServerError, StructureError
from dpserver.parallel.communicator import Communicator
from dpserver.parallel.exchange import Channel, Command, Recent, Status, describe, status_of
from dpserver.parallel.meeting import Meeting, MeetingLostError, evaluate
from dpserver.parallel.packing import Contents, pack, packed_size
from dpserver.parallel.refusals import UNKNOWN, find_culprit
from dpserver.parallel.shares import Form
from dpserver.parallel.waiting import SECONDS_TO_NOTICE, Patience

logger = logging.getLogger(__name__)

LEADER: Final = 0


class Worker:
    """Serves rank 0 until it says that it is over.

    Whatever a structure is refused for is an answer, and so is every error of an evaluation: rank 0 decides what
    follows. All ranks stay in step, for each message that asks for an answer gets exactly one.

    Args:
        group: of all ranks that compute together.
        load: makes the model of its file, and of those of the models beside it.
        patience: how to wait.
        about: what it computes with, in words for rank 0.
    """

    def __init__(
        self, group: Communicator, load: Callable[..., ForceModel], patience: Patience, about: str = ""
    ) -> None:
        self._channel = Channel(group, LEADER, patience)
        self._group, self._patience = group, patience
        self._load = load
        self._about = np.frombuffer(about.encode(), dtype=np.uint8)
        self._model: ForceModel | None = None
        self._forms: Recent[Form] = Recent()

    def run(self) -> None:
        """Work until rank 0 says that it is over."""
        while True:
            command, number, *more, size = self._channel.receive_head()
            match command:
                case Command.MODEL:
                    body = self._channel.receive_body(size, np.uint8).tobytes()
                    ends = list(accumulate(more[:number]))
                    self._take_model([body[start:end] for start, end in pairwise([0, *ends])])
                case Command.FORM:
                    self._forms.add(number, Form.decode(self._channel.receive_body(size, np.int64)))
                case Command.STEP:
                    self._step(self._forms.use(number), size)
                case Command.STOP:
                    return
            self._channel.flush()

    def _take_model(self, files: Sequence[bytes]) -> None:
        try:
            self._model = self._load(*files)
        except Exception as error:
            self._refuse(error)
        else:
            self._channel.send([Status.DONE], self._about)

    def _step(self, form: Form, size: int) -> None:
        """Evaluate a share."""
        numbers = self._channel.receive_body(size)
        meeting = None if form.wholes is None else Meeting(self._group, form.wholes.ranks, self._patience)
        share = partial(form.frames, numbers, meeting)
        since = time.perf_counter_ns()
        if self._model is None:
            self._refuse(RuntimeError("no model has come before the first structures"))
            return
        try:
            result = evaluate(self._model, share, meeting)
        except MeetingLostError as error:  # who is to blame for it, rank 0 learns before it learns of this
            self._patience.linger(SECONDS_TO_NOTICE)
            raise error.cause from error
        except StructureError as error:
            number, text = find_culprit(self._model, share, error)
            self._refuse(StructureError(text), number)
            return
        except Exception as error:
            self._refuse(error)
            return
        waited = int(1e9 * (0.0 if meeting is None else meeting.waited))
        took = time.perf_counter_ns() - since - waited
        contents = Contents.of(result)
        body = self._channel.room(packed_size(form, contents))
        pack(result, body)
        self._channel.send([Status.DONE, took, *contents, waited], body)

    def _refuse(self, error: Exception, number: int = UNKNOWN) -> None:
        """Answer with an error; number is that of the structure to blame."""
        if not isinstance(error, DPServerError):
            logger.debug("an evaluation failed", exc_info=error)
        text = np.frombuffer(describe(error).encode() or b"?", dtype=np.uint8)
        self._channel.send([status_of(error, is_out_of_memory(error)), number], text)
