"""Serving, with peers that follow a script."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from dpserver.daemon import ExitCode
from dpserver.daemon.conversation import Conversation
from dpserver.errors import DeviceError
from dpserver.frames import ForceResult, Frames
from dpserver.ipi import Forces
from tests import peer as wire
from tests import structures
from tests.daemon.serving import WATER, serving, target
from tests.doubles import Faulty, PairModel
from tests.patience import PATIENCE
from tests.peer import EXIT, GETFORCE, HAVEDATA, NEEDINIT, READY, STATUS, Line, Peer, init, posdata

FRAME = structures.cubic()
N = FRAME.n_atoms


def check(reply: wire.Reply, frame: Frames = FRAME) -> None:
    expected = PairModel().evaluate(frame)
    np.testing.assert_allclose(reply.energy, expected.energy, rtol=1e-12)
    np.testing.assert_allclose(reply.forces[0], expected.forces, atol=1e-12)
    np.testing.assert_allclose(reply.virial, expected.virial, atol=1e-12)
    assert reply.extras == [b" "]


def ask(line: Line, frame: Frames = FRAME) -> None:
    check(line.ask(frame.positions, frame.cell[0]), frame)


class Gate:
    """Holds the compute thread until it is opened."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self.is_open = threading.Event()

    def __call__(self, frames: Frames, result: ForceResult) -> ForceResult:
        self.is_reached.set()
        assert self.is_open.wait(PATIENCE)
        return result


@pytest.fixture
def gate(monkeypatch):
    """Where evaluations wait; none of them is made by the thread that talks, however brief those before were."""
    monkeypatch.setattr("dpserver.daemon.daemon.BRIEF_SECONDS", 0.0)
    return Gate()


@pytest.mark.parametrize("address", ["unix", 0])
def test_both_orders_of_messages_on_both_transports(address):
    with Peer(address) as peer, serving(PairModel(), target(peer.endpoint)), peer.accept() as line:
        line.handshake()
        for seed in range(3):
            ask(line, structures.cubic(seed))
            assert line.status() == READY
        for seed in range(3):
            frame = structures.triclinic(seed)
            line.send(posdata(frame.positions, frame.cell[0]))
            assert line.status() == HAVEDATA
            line.send(GETFORCE)
            check(line.reply(frame.n_atoms), frame)
            assert line.status() == READY


def test_native_batch_with_padding():
    frames = [structures.cubic(seed) for seed in (1, 2, 2)]
    model = PairModel()
    with Peer() as peer, serving(model, target(peer.endpoint)), peer.accept() as line:
        line.handshake(b" batch_size:3")
        line.send(wire.batched_posdata([f.positions for f in frames], [f.cell[0] for f in frames]), GETFORCE)
        reply = line.reply(N, 3)
        for k, frame in enumerate(frames):
            expected = PairModel().evaluate(frame)
            np.testing.assert_allclose(reply.energy[k], expected.energy[0], rtol=1e-12)
            np.testing.assert_allclose(reply.forces[k], expected.forces, atol=1e-12)
    assert model.batches == [2]


def test_an_open_system_is_a_cell_of_zeros():
    frame = structures.cluster()
    with Peer() as peer, serving(PairModel(), target(peer.endpoint)), peer.accept() as line:
        ask(line, frame)


def test_the_peers_parameters_name_the_species():
    with Peer() as peer, serving(PairModel(), target(peer.endpoint, None)), peer.accept() as line:
        line.handshake(b" species : O H H , ")
        ask(line)


@pytest.mark.parametrize("address", ["unix", 0])
def test_a_peer_that_starts_again_at_the_same_place_is_served_again(address, caplog):
    caplog.set_level("INFO")
    with Peer(address) as peer:
        place, endpoint = peer.address, peer.endpoint
    with serving(PairModel(), target(endpoint)):
        for is_polite in (True, False, True):
            with Peer(place) as peer, peer.accept() as line:
                line.handshake()
                ask(line)
                if is_polite:
                    line.send(EXIT)
                    assert line.is_closed()
    # A connection that had only got into the queue of a peer that is leaving was served nothing.
    left = [r.getMessage() for r in caplog.records if "served 1 evaluation," in r.getMessage()]
    assert "left: said EXIT; served 1 evaluation, mean " in left[0]
    assert "left: closed the connection while we were waiting for POSDATA" in left[1]


def test_status_is_answered_while_another_peer_computes(gate):
    with (
        Peer() as a,
        Peer() as b,
        serving(Faulty(gate), target(a.endpoint), target(b.endpoint)),
        a.accept() as busy,
        b.accept() as other,
    ):
        busy.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
        assert gate.is_reached.wait(PATIENCE)
        other.handshake()
        assert other.status() == READY
        gate.is_open.set()
        check(busy.reply(N))


def test_all_that_waits_becomes_one_batch(gate):
    model = Faulty(gate)
    with Peer() as peer, serving(model, target(peer.endpoint, connections=5)):
        lines = [peer.accept() for _ in range(5)]
        frames = [structures.cubic(seed) for seed in range(5)]
        lines[0].send(posdata(frames[0].positions, frames[0].cell[0]), GETFORCE)
        assert gate.is_reached.wait(PATIENCE)
        for line, frame in zip(lines[1:], frames[1:], strict=True):
            line.send(posdata(frame.positions, frame.cell[0]), STATUS)
        for line in lines[1:]:  # their positions are read when a message behind them has been
            line.sock.setblocking(False)
        wait_until_read(lines[1:])
        gate.is_open.set()
        check(lines[0].reply(N), frames[0])
        for line, frame in zip(lines[1:], frames[1:], strict=True):
            line.sock.settimeout(PATIENCE)
            assert line.receive(12) == HAVEDATA
            line.send(GETFORCE)
            check(line.reply(N), frame)
            line.close()
        lines[0].close()
    assert model.batches == [1, 4]


class Gates(Gate):
    """Holds each batch until it is let through.

    Attributes:
        threads: by name, that evaluated batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    def __call__(self, frames: Frames, result: ForceResult) -> ForceResult:
        self.threads.append(threading.current_thread().name)
        super().__call__(frames, result)
        self.is_open.clear()
        return result

    def let_through(self) -> None:
        """Once a batch is here."""
        assert self.is_reached.wait(PATIENCE)
        self.is_reached.clear()
        self.is_open.set()


@contextmanager
def held(gates: Gates) -> Iterator[tuple[Line, Line]]:
    """Two lines that have asked: what the first wants is being evaluated, what the second wants has been read."""
    message = posdata(FRAME.positions, FRAME.cell[0])
    with (
        Peer() as a,
        Peer() as b,
        serving(Faulty(gates), target(a.endpoint), target(b.endpoint)),
        a.accept() as one,
        b.accept() as other,
    ):
        one.send(message, GETFORCE)
        assert gates.is_reached.wait(PATIENCE)
        other.send(message, GETFORCE)
        wait_until_read([other])
        yield one, other


def test_no_answer_waits_for_the_evaluation_of_another_in_the_same_thread(monkeypatch):
    monkeypatch.setattr("dpserver.daemon.daemon.BRIEF_SECONDS", np.inf)  # but the first, of which nothing is known
    gates = Gates()
    with held(gates) as (one, other):
        gates.let_through()
        assert gates.is_reached.wait(PATIENCE)
        check(one.reply(N))  # while the other batch is held
        gates.let_through()
        check(other.reply(N))
    assert gates.threads == ["compute", "daemon"]


def test_the_next_batch_is_on_its_way_before_answers_are_brought(monkeypatch):
    monkeypatch.setattr("dpserver.daemon.daemon.BRIEF_SECONDS", 0.0)
    gates = Gates()
    deliver = Conversation.deliver
    are_early: list[bool] = []

    def wait_and_deliver(conversation: Conversation, answer: Forces) -> None:
        if not are_early:
            are_early.append(gates.is_reached.wait(PATIENCE))
        deliver(conversation, answer)

    monkeypatch.setattr(Conversation, "deliver", wait_and_deliver)
    with held(gates) as (one, other):
        gates.let_through()
        check(one.reply(N))
        gates.let_through()
        check(other.reply(N))
    assert are_early == [True]
    assert gates.threads == ["compute", "compute"]


def wait_until_read(lines: Sequence[Line]) -> None:
    pause = threading.Event()
    while not all(is_read(line) for line in lines):
        pause.wait(0.01)


def test_simulations_of_all_kinds_share_a_batch(gate):
    """Connections of one, a native batch of another, an open structure of a third."""
    model = Faulty(gate)
    beads = [structures.cubic(seed) for seed in range(3)]
    replicas = [structures.triclinic(seed) for seed in range(4)]
    molecule = structures.cluster()
    with (
        Peer() as a,
        Peer() as b,
        Peer() as c,
        serving(model, target(a.endpoint, connections=4), target(b.endpoint), target(c.endpoint)),
        b.accept() as native,
        c.accept() as single,
    ):
        first, *lines = [a.accept() for _ in range(4)]
        native.handshake(b" batch_size:4")
        first.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
        assert gate.is_reached.wait(PATIENCE)
        for line, frame in zip(lines, beads, strict=True):
            line.send(posdata(frame.positions, frame.cell[0]), GETFORCE)
        native.send(wire.batched_posdata([f.positions for f in replicas], [f.cell[0] for f in replicas]), GETFORCE)
        single.send(posdata(molecule.positions, molecule.cell[0]), GETFORCE)
        wait_until_read([*lines, native, single])
        gate.is_open.set()
        check(first.reply(N))
        for line, frame in zip(lines, beads, strict=True):
            check(line.reply(N), frame)
        check(single.reply(molecule.n_atoms), molecule)
        reply = native.reply(replicas[0].n_atoms, 4)
        for k, frame in enumerate(replicas):
            np.testing.assert_allclose(reply.forces[k], PairModel().evaluate(frame).forces, atol=1e-12)
        for line in (first, *lines):
            line.close()
    assert model.batches == [1, 3 + 4 + 1]


def test_a_full_memory_costs_no_answer_and_makes_the_batches_smaller(caplog, gate):

    def fill(frames: Frames, result: ForceResult) -> ForceResult:
        if frames.n_frames > 2:
            raise MemoryError("full")
        return gate(frames, result)

    model = Faulty(fill)
    frames = [structures.cubic(seed) for seed in range(5)]
    with Peer() as peer, serving(model, target(peer.endpoint, connections=5)):
        lines = [peer.accept() for _ in frames]
        for _ in range(2):
            lines[0].send(posdata(frames[0].positions, frames[0].cell[0]), GETFORCE)
            assert gate.is_reached.wait(PATIENCE)
            for line, frame in zip(lines[1:], frames[1:], strict=True):
                line.send(posdata(frame.positions, frame.cell[0]), GETFORCE)
            wait_until_read(lines[1:])
            gate.is_open.set()
            for line, frame in zip(lines, frames, strict=True):
                check(line.reply(N), frame)
            gate.is_open.clear()
            gate.is_reached.clear()
        gate.is_open.set()
        for line in lines:
            line.close()
    assert model.batches == [1, 4, 2, 2, 1, 2, 2]
    assert f"evaluations of at most {2 * N} atoms from now on" in caplog.text


def test_a_peer_that_stays_away_holds_nobody_up():
    """After the model has shown that it takes long, the daemon waits for the other peer, but not for ever."""
    pause = threading.Event()

    def linger(frames: Frames, result: ForceResult) -> ForceResult:
        pause.wait(0.03)
        return result

    with Peer() as peer, serving(Faulty(linger), target(peer.endpoint, connections=2)):
        lines = [peer.accept() for _ in range(2)]
        message = posdata(FRAME.positions, FRAME.cell[0])
        for present in [lines] * 3 + [lines[:1]] * 4:
            for line in present:
                line.send(message, GETFORCE)
            for line in present:
                check(line.reply(N))
        for line in lines:
            line.close()


def is_read(line: Line) -> bool:
    """Whether the daemon has taken everything off a unix socket."""
    import array
    import fcntl
    import termios

    unread = array.array("i", [0])
    fcntl.ioctl(line.sock, termios.TIOCOUTQ, unread)
    return unread[0] == 0


BAD = {
    "not a number": (posdata(np.full((N, 3), np.nan), FRAME.cell[0]), "the position of atom 0 is not finite"),
    "singular cell": (posdata(FRAME.positions, np.ones((3, 3))), "the cell is singular"),
    "infinite cell": (posdata(FRAME.positions, np.diag([1, 1, np.inf])), "a lattice vector is not finite"),
    "atom count": (
        posdata(FRAME.positions[:7], FRAME.cell[0]),
        "the peer sent 7 atoms; expected 3 or a whole multiple",
    ),
    "overlap": (posdata(np.zeros((N, 3)), FRAME.cell[0]), "0 Å apart"),
    "no atoms": (posdata(np.zeros((0, 3)), FRAME.cell[0]), "POSDATA announces 0 atoms"),
    "garbage": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "expected the header"),
    "out of turn": (GETFORCE, "the peer sent GETFORCE while we were waiting for INIT"),
    "unknown species": (
        init(b"species: O H Xx") + posdata(FRAME.positions, FRAME.cell[0]),
        "species 'Xx' (atom 2 of the peer's INIT species (O H Xx)) is unknown to the model, which knows O, H",
    ),
    "no template": (
        init(b"template: nowhere.xyz") + posdata(FRAME.positions, FRAME.cell[0]),
        "template 'nowhere.xyz' is no file",
    ),
}
KNOWN = np.array([[2.3, 0.8], [0.8, 1.3]])


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("tail", [b"", GETFORCE, STATUS])
def test_bad_input_is_refused_orderly_and_the_next_peer_is_served(name, tail, caplog):
    message, complaint = BAD[name]
    with Peer() as peer, serving(PairModel(min_distance=KNOWN), target(peer.endpoint)):
        with peer.accept() as line:
            line.send(message + tail)
            assert line.is_closed()
            line.send(GETFORCE)  # what comes late is read off, and resets nothing
        with peer.accept() as line:
            line.handshake()
            ask(line)
    (refusal,) = [r for r in caplog.records if r.levelname == "WARNING" and "refused" in r.getMessage()]
    assert refusal.getMessage().startswith(f"{peer.endpoint}: refused: ")
    assert complaint in refusal.getMessage()


def test_a_bad_structure_in_a_batch_loses_nobody_elses_answer(gate):
    with Peer() as peer, serving(Faulty(gate), target(peer.endpoint, connections=3)):
        lines = [peer.accept() for _ in range(3)]
        lines[0].send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
        assert gate.is_reached.wait(PATIENCE)
        lines[1].send(BAD["not a number"][0], GETFORCE)
        lines[2].send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
        gate.is_open.set()
        check(lines[0].reply(N))
        check(lines[2].reply(N))
        assert lines[1].is_closed()
        for line in lines:
            line.close()


def test_forces_that_are_not_finite_are_never_sent(caplog):
    def spoil(frames: Frames, result: ForceResult) -> ForceResult:
        return replace(result, forces=np.full_like(result.forces, np.nan))

    with Peer() as peer, serving(Faulty(spoil), target(peer.endpoint)), peer.accept() as line:
        line.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
        assert line.is_closed()
    assert "the model's answer is not finite" in caplog.text


def test_an_answer_of_a_wrong_shape_is_our_bug_and_is_never_sent(caplog, monkeypatch):
    from dpserver.engine import engine

    shape = engine.to_forces
    monkeypatch.setattr(
        engine, "to_forces", lambda result, sent: replace(shape(result, sent), forces=np.zeros((1, 2, 3)))
    )
    with Peer() as peer, serving(PairModel(), target(peer.endpoint)), peer.accept() as line:
        line.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
        assert line.is_closed()
    assert "internal error" in caplog.text


def recorded() -> bytes:
    """A short session with everything in it."""
    message = posdata(FRAME.positions[:3], FRAME.cell[0])
    return STATUS + init(b"species: O H H") + STATUS + message + GETFORCE + STATUS + message + STATUS + GETFORCE


def test_a_peer_that_dies_after_any_byte_disturbs_nobody():
    raw = recorded()
    with Peer() as bad, Peer() as good, serving(PairModel(), target(bad.endpoint), target(good.endpoint)):
        with good.accept() as line:
            line.handshake()
            for cut in range(len(raw) + 1):
                with bad.accept() as dying:
                    dying.send(raw[:cut])
                if cut % 8 == 0:
                    ask(line, structures.cubic(cut))
        with bad.accept() as line:
            ask(line)


def test_a_peer_that_stops_in_the_middle_of_a_message_disturbs_nobody():
    half = posdata(FRAME.positions, FRAME.cell[0])[:300]
    with (
        Peer() as a,
        Peer() as b,
        serving(PairModel(), target(a.endpoint), target(b.endpoint)),
        a.accept() as silent,
        b.accept() as line,
    ):
        silent.send(half)
        for seed in range(5):
            ask(line, structures.cubic(seed))
        silent.send(posdata(FRAME.positions, FRAME.cell[0])[300:], GETFORCE)
        check(silent.reply(N))


def test_a_peer_that_leaves_while_it_computes_gets_nothing_and_the_next_does(gate):
    with Peer() as peer, serving(Faulty(gate), target(peer.endpoint)):
        with peer.accept() as line:
            line.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
            assert gate.is_reached.wait(PATIENCE)
        with peer.accept() as line:
            gate.is_open.set()
            ask(line)


def test_a_request_whose_peer_has_gone_is_not_computed(gate):
    model = Faulty(gate)
    with Peer() as peer, serving(model, target(peer.endpoint, connections=2)), peer.accept() as first:
        first.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
        assert gate.is_reached.wait(PATIENCE)
        with peer.accept() as second:
            second.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
        with peer.accept() as third:  # dialled after the daemon saw that the second had gone
            gate.is_open.set()
            check(first.reply(N))
            ask(third)
    assert model.batches == [1, 1]


@pytest.mark.parametrize(
    "script", [EXIT, b"", init(), b"STAT", BAD["atom count"][0][:100], posdata(FRAME.positions, FRAME.cell[0])]
)
def test_once_a_peer_that_has_left_in_whatever_way_is_no_failure(script):
    with Peer() as peer, serving(PairModel(), target(peer.endpoint), is_once=True) as served:
        with peer.accept() as line:
            line.send(script)
            line.sock.shutdown(1)
            line.receive(1000)
        assert served.result() is ExitCode.STOPPED


def test_once_a_peer_that_dies_while_we_compute_is_no_failure(gate):
    with Peer() as peer, serving(Faulty(gate), target(peer.endpoint), is_once=True) as served:
        with peer.accept() as line:
            line.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
            assert gate.is_reached.wait(PATIENCE)
        gate.is_open.set()
        assert served.result() is ExitCode.STOPPED


@pytest.mark.parametrize("script", [BAD["not a number"][0] + GETFORCE, BAD["garbage"][0]])
def test_once_refused_input_is_a_failure(script):
    with Peer() as peer, serving(PairModel(), target(peer.endpoint), is_once=True) as served:
        with peer.accept() as line:
            line.send(script)
            assert line.is_closed()
        assert served.result() is ExitCode.INPUT_REFUSED


def test_once_waits_for_every_target_but_not_for_every_connection():
    with Peer() as a, Peer() as b:
        targets = target(a.endpoint, connections=2), target(b.endpoint)
        with serving(PairModel(), *targets, is_once=True) as served:
            with a.accept() as first:
                second = a.accept()
                a.listener.close()
                second.send(EXIT)
                first.send(EXIT)
                assert first.is_closed()
                second.close()
            assert not served.codes
            with b.accept() as line:
                ask(line)
            assert served.result() is ExitCode.STOPPED


def test_nobody_to_serve_ends_after_the_timeout(caplog):
    with serving(PairModel(), target("unix:dpserver_test_nobody"), timeout=0.05) as served:
        assert served.result() is ExitCode.TIMED_OUT
    assert "nobody has listened for 0.05 s" in caplog.text


def test_the_timeout_does_not_run_while_somebody_is_served():
    with Peer() as peer, serving(PairModel(), target(peer.endpoint), timeout=0.2) as served:
        with peer.accept() as line:
            peer.listener.close()
            ask(line)
            threading.Event().wait(0.5)
            ask(line)
            assert not served.codes
        assert served.result() is ExitCode.TIMED_OUT


def test_a_lost_device_ends_the_daemon(caplog):
    def lose(frames: Frames, result: ForceResult) -> ForceResult:
        raise DeviceError("it fell off the bus")

    with Peer() as peer, serving(Faulty(lose), target(peer.endpoint)) as served, peer.accept() as line:
        line.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
        assert line.is_closed()
        assert served.result() is ExitCode.DEVICE_LOST
    assert "the device is lost: it fell off the bus" in caplog.text


def test_asked_to_stop_an_idle_daemon_says_goodbye():
    with Peer() as peer, serving(PairModel(), target(peer.endpoint)) as served, peer.accept() as line:
        line.handshake()
        served.daemon.stop()
        assert line.is_closed()
        line.close()
        assert served.result() is ExitCode.STOPPED


@pytest.mark.parametrize("is_classic", [True, False])
def test_asked_to_stop_a_busy_daemon_answers_first(is_classic, gate):
    with Peer() as peer, serving(Faulty(gate), target(peer.endpoint)) as served, peer.accept() as line:
        line.send(posdata(FRAME.positions, FRAME.cell[0]), STATUS if is_classic else GETFORCE)
        assert gate.is_reached.wait(PATIENCE)
        served.daemon.stop()
        gate.is_open.set()
        if is_classic:
            assert line.receive(12) == HAVEDATA
            line.send(GETFORCE)
        check(line.reply(N))
        assert line.is_closed()
        line.close()
        assert served.result() is ExitCode.STOPPED


def test_a_slow_reader_is_not_read_either_and_gets_everything():
    n = 20_000
    positions = np.random.default_rng(0).uniform(0, 1000, (3 * n, 3))
    with Peer() as peer, serving(PairFree(), target(peer.endpoint)), peer.accept() as line:
        line.send(posdata(positions, np.zeros((3, 3))), GETFORCE, STATUS * 10)
        reply = line.reply(3 * n)
        np.testing.assert_allclose(reply.forces[0], -positions, rtol=1e-12)
        assert line.receive(120) == READY * 10


class PairFree(PairModel):
    """Harmonic around the origin."""

    def evaluate(self, frames: Frames) -> ForceResult:
        zero = np.zeros(frames.n_atoms)
        return ForceResult(
            np.zeros(frames.n_frames), -frames.positions, np.zeros((frames.n_frames, 3, 3)), zero, frames.frame_idx
        )


def test_connections_are_opened_while_others_are_served():
    """A peer may shake hands with one client after the other, and be slow to accept the next."""
    with Peer(backlog=1) as peer, serving(PairModel(), target(peer.endpoint, connections=6)):
        lines = []
        for _ in range(6):
            lines.append(peer.accept())
            assert lines[-1].status() == NEEDINIT
            lines[-1].send(init())
            for line in lines:
                ask(line)
        for line in lines:
            line.close()


def test_targets_have_orders_of_their_own():
    frame = structures.cubic()
    shuffled = replace(frame, positions=frame.positions.reshape(-1, 3, 3)[:, ::-1].reshape(-1, 3).copy())
    other = replace(WATER, symbols=("H", "H", "O"))
    with (
        Peer() as a,
        Peer() as b,
        serving(PairModel(), target(a.endpoint), target(b.endpoint, other)),
        a.accept() as first,
        b.accept() as second,
    ):
        ask(first, frame)
        reply = second.ask(shuffled.positions, shuffled.cell[0])
        expected = PairModel().evaluate(frame)
        np.testing.assert_allclose(reply.energy, expected.energy, rtol=1e-12)
