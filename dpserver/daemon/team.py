"""The ranks of a job that serve one model together: how they meet, how they part, and what happens when one is gone.

Rank 0 leads: it reads the command line and the model file, serves, and speaks for all. The others ask nobody else. A
rank that is gone ends the job: rank 0 says which and why, closes its connections, so that the peers ask somebody else,
and leaves with exit code 5, as all do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from dpserver import guard
from dpserver.daemon.signals import stop_on_signals
from dpserver.defaults import TABLE_ERROR
from dpserver.engine import ForceModel
from dpserver.errors import DeviceError
from dpserver.parallel.communicator import Place, threads_of
from dpserver.parallel.crew import SPIN, Crew
from dpserver.parallel.exchange import describe
from dpserver.parallel.mpi import MPIGroup
from dpserver.parallel.waiting import Patience
from dpserver.parallel.worker import Worker
from dpserver.transport.lifeline import Address, Hub, Line

logger = logging.getLogger(__name__)

_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"

LOST: Final = 5
"""Exit code of all when one is gone."""

_SECONDS_TO_FINISH: Final = 8.0
"""What all have to end MPI in good order, which waits for each of them."""

_LAST_WORDS_SECONDS: Final = 0.2
"""What a launcher has to pass on before a process ends, or it may drop the message that says why."""

_GRACE_SECONDS: Final = 4.0
"""What rank 0 has to close its connections when a rank is gone."""

_SECONDS_FOR_ORDERS: Final = _GRACE_SECONDS + 3.0
"""What a rank that has failed waits for the order to leave: longer than rank 0 may take to give it."""


@dataclass(frozen=True)
class Service:
    """What the other ranks have to know to load the model.

    Attributes:
        device: as the user gave it.
        precision: likewise; None is the model's own.
        threads: likewise; None is the share of each rank.
        backend: what evaluates; any but `native` reads the model file by itself.
        path: of the model file.
        beside: kind and file of each model whose answers travel beside the forces.
        has_born_charges: whether the model of dipoles is to give their derivatives too.
        table_error: of forces, by tables, relative, that is aimed at.
    """

    device: str
    precision: str | None
    threads: int | None
    backend: str
    path: str
    beside: tuple[tuple[str, str], ...] = ()
    has_born_charges: bool = False
    table_error: float = TABLE_ERROR

    def device_of(self, place: Place) -> str:
        """The device of a rank: those of its node in turn, unless the user named one."""
        if self.device not in ("auto", "cuda"):
            return self.device
        import torch

        if n := torch.cuda.device_count():
            return f"cuda:{place.local_rank % n}"
        return self.device

    def threads_of(self, place: Place, places: Sequence[Place]) -> int:
        """Threads of a rank."""
        return threads_of(place, list(places)) if self.threads is None else self.threads

    def describe(self, place: Place, places: Sequence[Place]) -> str:
        """What a rank computes with, in words."""
        device = self.device_of(place)
        if device.startswith("cuda"):
            visible = os.environ.get(_VISIBLE)
            return device if visible is None else f"{device} of {_VISIBLE}={visible}"
        n = self.threads_of(place, places)
        return f"{n} thread{'s' * (n != 1)}"


def shared_devices(places: Sequence[Place], about: Sequence[str]) -> list[str]:
    """Which GPUs several ranks compute on, in words.

    Args:
        places: of the ranks.
        about: what each computes with, see `Service.describe`.
    """
    users: dict[tuple[int, str], list[Place]] = {}
    for place, device in zip(places, about, strict=True):
        if device.startswith("cuda"):
            users.setdefault((place.node, device), []).append(place)
    return [
        f"{device} of {mine[0].host} is shared by the ranks {', '.join(str(place.rank) for place in mine)}"
        for (_, device), mine in users.items()
        if len(mine) > 1
    ]


Loader = Callable[[Sequence[bytes], Service, Place, Sequence[Place]], ForceModel]
"""Makes the model of a rank of the files that rank 0 has sent: that of the model, and those of others beside it."""


class Team:
    """This process and the others, once they have met.

    Args:
        group: of all ranks that serve together.
        abandon: ends this process, and where others depend on it all of the job, with an exit code.
    """

    def __init__(self, group: MPIGroup, abandon: Callable[[int], NoReturn] | None = None) -> None:
        self._group = group
        self._abandon = abandon or _leave
        self._is_alone = self._is_whole_job = abandon is None
        self.places = group.places()
        self.me = self.places[group.rank]
        self.is_leader = group.rank == 0
        self._lost: DeviceError | None = None
        self._on_lost: Callable[[DeviceError], None] | None = None
        self._on_stop: Callable[[], None] | None = None
        self._is_asked = threading.Event()
        self._is_over = threading.Event()  # all have been let go
        self._is_leaving = threading.Event()  # without an order
        self._hub: Hub | None = None
        self._line: Line | None = None
        self._connect()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._ask())
        if guard.asked_at is not None:
            self._ask()

    def _connect(self) -> None:
        """Connect every rank to rank 0, and begin to listen."""
        is_one_node = len({place.node for place in self.places}) == 1
        hub = Hub(len(self.places) - 1, is_one_node=is_one_node) if self.is_leader else None
        address: Address = self._group.share(hub.address if hub is not None else None)
        why = None
        if hub is None:
            self._line = Line(self._group.rank)
            why = self._line.call(address)
        failures = {rank: text for rank, text in enumerate(self._group.collect(why)) if text is not None}
        self._is_whole_job = self._is_whole_job and not failures
        if hub is not None:
            hub.accept(set(range(1, len(self.places))) - set(failures))
            for rank, text in failures.items():
                logger.warning(
                    "%s cannot reach rank 0 (%s): if it is lost, ending the others is left to the launcher",
                    self.places[rank],
                    text,
                )
            hub.watch(self._note_loss, self._ask)
            self._hub = hub
        elif self._line is not None and why is None:
            self._line.watch(self._follow)
        if self._is_whole_job:
            guard.mark(guard.MET)

    def _ask(self) -> None:
        """Somebody wants all to end in good order: a signal to this rank, or another rank that had one."""
        self._is_asked.set()
        if self._line is not None:
            self._line.ask_to_stop()
        elif self._on_stop is not None:
            self._on_stop()

    # Of rank 0.

    def crew(self) -> Crew:
        """The others, for rank 0."""
        return Crew(self._group, self.places, Patience(spin=SPIN, check=self.check))

    def check(self) -> None:
        """Raise where there is nobody left to wait for.

        Raises:
            DeviceError: a rank is gone.
        """
        if self._lost is not None:
            if self._on_lost is None:
                time.sleep(_GRACE_SECONDS)  # who has noticed is about to end this process
            raise self._lost

    @contextmanager
    def serving(self, stop: Callable[[], None], lose: Callable[[DeviceError], None]) -> Iterator[None]:
        """While rank 0 serves.

        Args:
            stop: asks the server to end; another rank may have been asked for it.
            lose: tells it that a rank is gone.
        """
        self._on_stop, self._on_lost = stop, lose
        if self._lost is not None:
            lose(self._lost)
        if self._is_asked.is_set():  # meanwhile
            stop()
        with stop_on_signals(stop, guard.ECHO_SECONDS):
            yield

    def finish(self, crew: Crew) -> None:
        """Let all leave in good order."""
        if self._lost is not None:
            self.leave(LOST)
        crew.dismiss()
        self._is_over.set()
        if self._hub is not None:
            self._hub.close()
        self._end_mpi()

    def _end_mpi(self) -> None:
        """End MPI together with all others, and alone where one of them does not come."""
        guard.mark(0)  # from here on it is the launcher that has to end what is left
        if not self._is_alone:
            self._group.finish()  # waits for other programs too
            return
        watchdog = threading.Timer(_SECONDS_TO_FINISH, self._abandon, (LOST,))
        watchdog.daemon = True
        watchdog.start()
        self._group.finish()
        watchdog.cancel()

    def leave(self, code: int) -> NoReturn:
        """End all ranks now, with an exit code; what there is to say has been said."""
        self._is_leaving.set()
        _flush()
        if self._hub is not None:
            self._hub.end(code)
        self._part(code)

    def _part(self, code: int) -> NoReturn:
        """End this process; all others know."""
        if self._is_whole_job:
            guard.mark(guard.LEAVING)
        self._abandon(code)

    def _note_loss(self, rank: int, why: str) -> None:
        """Let the server know that a rank is gone; where it cannot leave in good order, leave without."""
        if self._is_leaving.is_set():
            return
        self._lost = DeviceError(f"{self.places[rank]} {why}")
        if self._on_lost is None or self._is_over.is_set():
            logger.critical("%s; ending the whole job", self._lost)
            self.leave(LOST)
        self._on_lost(self._lost)
        if not self._is_leaving.wait(_GRACE_SECONDS):
            self.leave(LOST)

    # Of the others.

    def work(self, service: Service, load: Loader) -> None:
        """Compute for rank 0 until it is over; for all ranks but 0.

        Args:
            service: of rank 0.
            load: makes the model.
        """
        worker = Worker(
            self._group,
            lambda *files: load(files, service, self.me, self.places),
            Patience(),
            service.describe(self.me, self.places),
        )
        try:
            worker.run()
        except Exception as error:
            logger.debug("a rank has failed", exc_info=error)
            if self._line is not None:
                self._line.died(f"failed: {describe(error)}")
            time.sleep(_SECONDS_FOR_ORDERS)  # `_follow` ends this process when the order comes
            self._abandon(LOST)
        if self._line is not None:
            self._line.close()
        self._is_over.set()
        self._end_mpi()

    def share(self, value: Any) -> Any:
        """Give all ranks a value of rank 0; all have to ask."""
        return self._group.share(value)

    def _follow(self, code: int | None) -> None:
        """Leave as rank 0 did; who stands by it says why, if it has not."""
        if not self._is_over.is_set():
            self._part(LOST if code is None else code)

    def __str__(self) -> str:
        nodes = Counter(place.host for place in self.places)
        return f"{len(self.places)} ranks on " + ", ".join(
            f"{host} ({n})" if len(nodes) > 1 else host for host, n in nodes.items()
        )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # in a signal handler, say
            stream.flush()


def _leave(code: int) -> NoReturn:
    """End this process; the launcher ends what is left, if there is any."""
    _flush()
    time.sleep(_LAST_WORDS_SECONDS)
    os._exit(code)
