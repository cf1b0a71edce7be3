"""The loop of a driver rank of i-PI's `<ffmpi>`: wait for structures, compute, answer.

Two things are other than on a socket. There is no STATUS to be answered while the model works, and so no second
thread; and there is no way to refuse a structure, since i-PI waits for the answer of this rank and of no other. What
cannot be answered ends the job.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dpserver.daemon.conversation import describe_service, take_parameters
from dpserver.daemon.daemon import ExitCode
from dpserver.engine import Assigner, DeviationWatch, Engine, ForceModel, Order, Parameters, Request
from dpserver.errors import DeviceError, DPServerError
from dpserver.ipi import Extras, Forces, ForcesWanted, Initialised, PeerLeft, Structures
from dpserver.monitor import Kind, Meter, Phase, Reporter
from dpserver.parallel.mpi import load_mpi
from dpserver.transport.ffmpi import DriverGroup

logger = logging.getLogger(__name__)

INTERRUPTED = 130
"""Exit code of a job that a signal has ended."""

GRACE_SECONDS = 20.0
"""How long i-PI has to end the job after a signal: it writes its restart file first."""


class Channel(Protocol):
    """What joins the loop to i-PI: `transport.ffmpi.DriverGroup`, or a double of it. Its `str` is for the log."""

    def next_event(self) -> Initialised | ForcesWanted | PeerLeft | None:
        """What has come; None if nothing has."""

    def send(self, answer: Forces) -> None:
        """Answer the last `ForcesWanted`."""

    def take_traffic(self) -> tuple[int, int]:
        """Bytes that came and that went since this was last asked."""


@dataclass
class Pauses:
    """How long to sleep between two looks for a message.

    A share of the time waited so far: an answer is never later than by that share, and who waits long looks rarely.

    Attributes:
        shortest: s; also about as long as a system lets sleep at least.
        longest: s.
        share: of the time waited.
    """

    shortest: float = 5e-5
    longest: float = 0.02
    share: float = 0.02

    def after(self, waited: float) -> float:
        """The next pause, s, after so long without a message."""
        return min(max(self.shortest, self.share * waited), self.longest)


class MPIDriver:
    """Serves a model to one `<ffmpi>` of i-PI, in the MPI job that both are part of.

    Args:
        model: loaded, and not used by anybody else.
        order: species of the atoms, if the user gave them.
        mpi_name: of the force field; needed only where i-PI's input has several.
        channel: to i-PI; None joins the MPI job.
        extras: whether i-PI is sent extras; it reads them.
        parameters: of the structures, for models that take such.
        watch: is shown what a committee answers.
        meter: is told what goes on; on the same clock.
        report: seconds between two lines in the log that say how it goes; None for none.
        clock: seconds, monotonic.
        sleep: waits for so many seconds.

    Raises:
        ConfigError: there is no MPI, or no i-PI in this job.
    """

    def __init__(
        self,
        model: ForceModel,
        order: Order | None = None,
        *,
        mpi_name: str = "",
        channel: Channel | None = None,
        extras: Extras = Extras.AUTO,
        parameters: Parameters | None = None,
        watch: DeviationWatch | None = None,
        meter: Meter | None = None,
        report: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._channel: Channel = DriverGroup(load_mpi(), mpi_name) if channel is None else channel
        self._name = str(self._channel)
        self._engine = Engine(model, watch=watch)
        self._assigner = Assigner(model, order, self._name, given=parameters)
        self._has_extras = extras is not Extras.OFF
        self._meter = meter or Meter(clock)
        self._reporter = Reporter(self._meter, report, clock)
        self._clock = clock
        self._sleep = sleep
        self._pauses = Pauses()
        self._is_stopping = False
        self._lost: DeviceError | None = None
        self._deadline: float | None = None
        self._n_evaluations = 0
        self._seconds = 0.0

    def stop(self) -> None:
        """Ask to leave; from any thread or a signal handler. Only i-PI can end the job in good order."""
        self._is_stopping = True

    def lose(self, error: DeviceError) -> None:
        """End the job, for the device is lost; from any thread."""
        self._lost = error

    def run(self) -> int:
        """Serve until i-PI leaves.

        Returns:
            An exit code. Any but 0 is a job that has to be ended, for i-PI waits.
        """
        self._meter.phase = Phase.SERVING
        self._meter.opened(self._name, self)
        try:
            return self._serve()
        except DeviceError as error:
            self._meter.phase = Phase.DEVICE_LOST
            return self._give_up(ExitCode.DEVICE_LOST, error)
        except DPServerError as error:
            return self._give_up(ExitCode.INPUT_REFUSED, error)
        finally:
            self._meter.closed(self)
            self._reporter.report()

    def _serve(self) -> int:
        while True:
            event = self._wait()
            match event:
                case Initialised():
                    take_parameters(event, self._assigner, self._name)
                case ForcesWanted(structures):
                    self._answer(structures)
                case PeerLeft(is_clean, reason):
                    self._take_leave(is_clean, reason)
                    return ExitCode.STOPPED
                case None:
                    logger.critical(
                        "%s: asked to stop, and i-PI has not ended the job within %.0f s: ending it",
                        self._name,
                        GRACE_SECONDS,
                    )
                    return INTERRUPTED

    def _wait(self) -> Initialised | ForcesWanted | PeerLeft | None:
        """The next event; None when we have been asked to stop and i-PI has had its time."""
        since = self._clock()
        self._meter.asleep()
        while (event := self._channel.next_event()) is None:
            now = self._clock()
            if self._has_run_out(now):
                return None
            if self._lost is not None:
                raise self._lost
            self._reporter.report()
            self._sleep(self._pauses.after(now - since))
        self._meter.awake()
        return None if self._has_run_out(self._clock()) and not isinstance(event, PeerLeft) else event

    def _has_run_out(self, now: float) -> bool:
        if self._is_stopping and self._deadline is None:
            self._deadline = now + GRACE_SECONDS
            self._meter.phase = Phase.STOPPING
            logger.info("%s: asked to stop; i-PI has to end this job, and has %.0f s for it", self._name, GRACE_SECONDS)
        return self._deadline is not None and now >= self._deadline

    def _answer(self, structures: Structures) -> None:
        asked_at = self._clock()
        request = Request(structures, self._assigner, self._has_extras, self, self._name)
        self._meter.asked(request)
        self._meter.started([request])
        self._reporter.note_work()
        (answer,) = self._engine.answer([request])
        seconds = self._clock() - asked_at
        self._meter.evaluated(seconds)
        if isinstance(answer, DPServerError):
            self._meter.refused(self._name, Kind.of(answer), request.n_frames)
            raise answer
        self._channel.send(answer)
        self._meter.replied(request, *self._channel.take_traffic())
        self._n_evaluations += request.n_frames
        self._seconds += seconds

    def _take_leave(self, is_clean: bool, reason: str) -> None:
        service = describe_service(self._n_evaluations, self._seconds)
        if is_clean:
            logger.info("%s: left: %s; %s", self._name, reason, service)
        else:
            logger.warning("%s: lost: %s before it took its forces; %s", self._name, reason, service)

    def _give_up(self, code: ExitCode, error: DPServerError) -> int:
        logger.critical(
            "%s: %s. Over MPI there is no way to go on without these forces: ending the whole job", self._name, error
        )
        return code
