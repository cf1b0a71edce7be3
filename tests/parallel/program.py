"""Run by mpiexec: a daemon over ranks with a model that needs no torch, so that it starts at once.

    program.py [charges] ENDPOINT [EVENT RANK]...

EVENT is what the rank is to do to itself or meet: see `misbehave`. With `charges` the model has some.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time

from dpserver import guard

guard.stand_by()

from dpserver.daemon import Daemon, Target  # noqa: E402
from dpserver.daemon.logs import set_up_logging  # noqa: E402
from dpserver.daemon.team import LOST, Service, Team  # noqa: E402
from dpserver.engine import Order  # noqa: E402
from dpserver.errors import StructureError  # noqa: E402
from dpserver.frames import Frames  # noqa: E402
from dpserver.parallel import exchange  # noqa: E402
from dpserver.parallel.meeting import Meeting  # noqa: E402
from dpserver.parallel.mpi import join_all, load_mpi  # noqa: E402
from dpserver.parallel.plan import Decompose  # noqa: E402
from dpserver.parallel.ranked import RankedModel  # noqa: E402
from dpserver.transport import parse_endpoint  # noqa: E402
from tests.ranks import Springs  # noqa: E402

N_BEFORE = 2
"""Evaluations that go well before one does not."""


class Troubled:
    """Springs that meet something in their third evaluation of many atoms."""

    event = ""
    n_seen = 0

    def evaluate(self, frames: Frames):
        if frames.n_atoms > 20:
            self.n_seen += 1
            if self.n_seen > N_BEFORE:
                misbehave(self.event)
        return super().evaluate(frames)


class TroubledSprings(Troubled, Springs):
    """Without charges."""


def make_model(event: str, has_charges: bool) -> Troubled:
    """Springs, with charges or without."""
    if not has_charges:
        found = TroubledSprings(4.0)
    else:
        from tests.parallel.charged import ChargedSprings

        class TroubledCharges(Troubled, ChargedSprings):
            """With charges."""

        found = TroubledCharges(4.0, method="pme")
        found.sum.warm_up()
    found.event = event
    return found


def misbehave(event: str) -> None:
    """Do what a test asks for, while structures are evaluated."""
    match event:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "error":
            raise ZeroDivisionError("a mistake")
        case "memory":
            raise MemoryError("no room")
        case "refuse":
            raise StructureError("not this one")
        case "hang":
            os.write(2, b"evaluating\n")
            time.sleep(60)


def main() -> None:
    has_charges = sys.argv[1] == "charges"
    endpoint, *words = sys.argv[1 + has_charges :]
    event = dict(zip(words[1::2], words[::2], strict=True)).get(str(guard.job_rank()), "")
    set_up_logging("info" if guard.job_rank() == 0 else "error", is_json=False)
    if event == "kill-at-start":
        os.kill(os.getpid(), signal.SIGKILL)
    team = Team(join_all(load_mpi()))
    if event == "kill-when-met":
        os.kill(os.getpid(), signal.SIGKILL)
    if event == "kill-sending":
        room = exchange.Channel.room

        def kill_at_third(channel: exchange.Channel, n: int):
            count[0] += 1
            if count[0] > (2 * N_BEFORE + 1 if team.is_leader else N_BEFORE):  # between the two others
                os.kill(os.getpid(), signal.SIGKILL)
            return room(channel, n)

        count = [0]
        exchange.Channel.room = kill_at_third
    if event == "kill-meeting":
        swap = Meeting._swap

        def kill_in_the_last(meeting: Meeting, pairs: object, tag: exchange.Tag) -> None:
            if tag is exchange.Tag.PART and model.n_seen > N_BEFORE:
                os.kill(os.getpid(), signal.SIGKILL)  # all others have heard that it is there
            swap(meeting, pairs, tag)

        Meeting._swap = kill_in_the_last
    if event == "memory-receiving":
        receive = exchange.Channel.receive_body

        def fail_at_third(channel: exchange.Channel, size: int, *kind: type):
            if not kind and next(bodies) == N_BEFORE:
                time.sleep(0.5)  # rank 0 is at work by then
                raise MemoryError("no room for what has come")
            return receive(channel, size, *kind)

        bodies = itertools.count()
        exchange.Channel.receive_body = fail_at_third
    model = make_model(event, has_charges)
    service = Service("cpu", None, 1, "native", "")
    if not team.is_leader:
        team.work(team.share(None), lambda files, service, place, places: model)
        return
    team.share(service)
    crew = team.crew()
    crew.send_model(b"")
    crew.await_model()
    ranked = RankedModel(model, crew, Decompose.SPACE)
    where, _ = parse_endpoint(endpoint)
    daemon = Daemon(ranked, [Target(where, where.resolve(), Order.from_text("A B B", "--species"))], is_once=True)
    with team.serving(daemon.stop, daemon.lose):
        code = daemon.run()
    if code != LOST:
        team.finish(crew)
    if code:
        team.leave(code)


main()
