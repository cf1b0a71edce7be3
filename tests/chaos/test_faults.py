"""The faults of tests/daemon/test_broken_lines.py and tests/integration/test_faults.py, for longer and at random."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ipi")
pytest.importorskip("ase")

from dpserver.transport import Backoff
from tests import structures
from tests.daemon.broken import ask, break_lines, play_mutated_line
from tests.daemon.serving import serving, target
from tests.doubles import PairModel
from tests.integration.crowd import KINDS, Crowd, Results, alone
from tests.integration.cutting import MANNERS, cuts, run
from tests.integration.ipi_runs import last_positions
from tests.integration.processes import cpu_seconds, daemon, save_model, serve
from tests.ipi.bouts import recordings
from tests.peer import NEEDINIT, READY, Peer, init

pytestmark = pytest.mark.chaos

Report = Callable[[str], None]

N_LINES = int(os.environ.get("DPSERVER_CHAOS_LINES", "1000"))
"""Lines that break, of each kind."""

N_RESTARTS = 50
N_CROWDS = 5
IDLE_SECONDS = 10.0
IDLE_SHARE = 0.02
FRAME = structures.cubic()


@pytest.mark.parametrize("address", ["unix", 0])
def test_broken_lines(address, chaos_seed: int, report: Report) -> None:
    with (
        Peer(address) as bad,
        Peer() as good,
        serving(PairModel(), target(bad.endpoint), target(good.endpoint)),
        good.accept() as line,
    ):
        break_lines(chaos_seed, bad, line, N_LINES)
        ask(line, FRAME)
    report(f"{N_LINES} lines broken, 0 wrong forces")


def test_mutated_sessions_over_a_socket(chaos_seed: int, report: Report) -> None:
    recorded = recordings()
    with (
        Peer() as bad,
        Peer() as good,
        serving(PairModel(), target(bad.endpoint), target(good.endpoint)),
        good.accept() as line,
    ):
        for number in range(N_LINES):
            play_mutated_line(chaos_seed, number, recorded, bad)
            if number % 4 == 0:
                ask(line, structures.cubic(number))
    report(f"{N_LINES} sessions, 0 wrong forces for the other peer")


@pytest.mark.parametrize("manner", MANNERS)
def test_lines_cut_between_ipi_and_the_daemon(manner, tmp_path: Path, chaos_seed: int, report: Report) -> None:
    """A quarter of them in each manner; the trajectory is that of a run without."""
    wanted = cuts(random.Random(f"{chaos_seed}:{manner}"), MANNERS[manner], N_LINES // 4)
    n_cut, last = 0, []
    for some in ([], wanted):
        folder = tmp_path / f"{len(some)}"
        folder.mkdir()
        n_cut += run(folder, MANNERS[manner], some, 10 + 2 * len(wanted), limit=1200)
        last.append(last_positions(folder))
    np.testing.assert_allclose(last[1], last[0], rtol=0, atol=1e-10)
    assert n_cut > 0.8 * len(wanted)  # the last ones may have come too late
    report(f"{n_cut} lines cut, largest difference of a coordinate {abs(last[1] - last[0]).max():.2g} Bohr")


def test_a_peer_that_starts_again_is_served_again(report: Report) -> None:
    """With the real pauses; how long it takes from the moment at which it listens again."""
    with Peer(0) as peer:
        port, endpoint = peer.address, peer.endpoint
    times = []
    rng = random.Random(0)
    with serving(PairModel(), target(endpoint), make_backoff=Backoff):
        for number in range(N_RESTARTS):
            threading.Event().wait(rng.uniform(0, 0.5))
            with Peer(port) as peer:
                started = time.monotonic()
                with peer.accept() as line:
                    line.handshake()
                    ask(line, structures.cubic(number))
                    times.append(time.monotonic() - started)
    report(f"{N_RESTARTS} restarts: first forces after {np.mean(times):.3f} s on average, {max(times):.3f} s at most")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return alone(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("number", range(N_CROWDS))
def test_simulations_at_once_that_are_stopped_at_random(number, tmp_path, expected, chaos_seed, report) -> None:
    crowd = Crowd(tmp_path)
    rng = random.Random(f"{chaos_seed}:{number}")
    n_stops = 0
    with crowd.running(PairModel()) as optimisation:
        while any(process.poll() is None for process in crowd.processes.values()):
            process = rng.choice(list(crowd.processes.values()))
            process.send_signal(signal.SIGSTOP)
            threading.Event().wait(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGCONT)
            threading.Event().wait(rng.uniform(0, 0.3))
            n_stops += 1
        crowd.finish(*KINDS)
        optimisation.join()
    crowd.results().check(expected)
    report(f"stopped {n_stops} times, results unchanged")


@pytest.mark.parametrize("what", ["nobody listens", "connected and idle"])
def test_an_idle_daemon_takes_no_cpu(what, tmp_path: Path, report: Report) -> None:
    save_model(tmp_path / "w.pt")
    with (
        Peer() as unix,
        Peer(0) as inet,
        daemon("-m", "dpserver", *serve(tmp_path / "w.pt", unix.endpoint, inet.endpoint)) as process,
    ):
        unix.listener.settimeout(60)
        with unix.accept() as first, inet.accept() as second:
            for line in (first, second):
                assert line.status() == NEEDINIT
                line.send(init(b"species: O H H"))
                assert line.status() == READY
                line.ask(FRAME.positions, FRAME.cell[0])
            if what == "nobody listens":
                for peer in (unix, inet):
                    peer.listener.close()
                for line in (first, second):
                    line.close()
            threading.Event().wait(1.0)
            before, started = cpu_seconds(process.pid), time.monotonic()
            threading.Event().wait(IDLE_SECONDS)
            share = (cpu_seconds(process.pid) - before) / (time.monotonic() - started)
    report(f"{what}: {100 * share:.2f} % of a core")
    assert share < IDLE_SHARE
