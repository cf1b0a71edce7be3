"""A rank that is gone ends all, at whichever moment: soon, with exit code 5 and one message; a refusal ends nothing.

Some without cleaning up by the launcher, which could hide what the ranks do by themselves; some with it, for they do so
before the launcher would.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests import structures
from tests.parallel.charged import ChargedSprings
from tests.parallel.jobs import HAS_MPI, Job, mpi_job
from tests.peer import GETFORCE, Line, Peer, posdata
from tests.ranks import Springs

pytest.importorskip("mpi4py")
pytestmark = [
    pytest.mark.skipif(not HAS_MPI, reason="no mpiexec beside this Python; pip install mpich"),
    pytest.mark.xdist_group("mpi"),
]

PROGRAM = str(Path(__file__).with_name("program.py"))
CHARGES = ("charges",)
KEPT = ("-disable-auto-cleanup",)
FRAMES = structures.water((3, 3, 3))
LIMIT = 10.0  # s, from what happens to the end of all: not patience, but what is promised
COMPLAINT = re.compile(r"rank (\d)(?: of \d)? \(process \d+ on \S+\) (.*)")


@contextmanager
def job_of(
    tmp_path: Path,
    event: str = "",
    rank: int = -1,
    options: tuple[str, ...] = KEPT,
    others: tuple[str, ...] = (),
    kind: tuple[str, ...] = (),
) -> Iterator[tuple[Job, Peer]]:
    """Three ranks that dial a peer, one of which has something before it, and the others perhaps something else."""
    with (
        Peer() as peer,
        mpi_job(tmp_path / "log", 3, [PROGRAM, *kind, peer.endpoint, event, str(rank), *others], options) as job,
    ):
        yield job, peer


@contextmanager
def asking(job: Job, peer: Peer, model: Springs | None = None) -> Iterator[Line]:
    """The connection of the daemon, after two good answers."""
    with peer.accept() as line:
        line.handshake()
        for step in range(2):
            positions = FRAMES.positions + 0.01 * step
            reply = line.ask(positions, FRAMES.cell[0])
            expected = (model or Springs(4.0)).evaluate(FRAMES)
            np.testing.assert_allclose(reply.energy, expected.energy, rtol=1e-9)
            np.testing.assert_allclose(reply.forces[0], expected.forces, atol=1e-8)
        yield line


def ask(line: Line) -> bool:
    """Ask again; whether the connection is closed in place of an answer."""
    line.send(posdata(FRAMES.positions, FRAMES.cell[0]), GETFORCE)
    with contextlib.suppress(ConnectionResetError):
        return line.is_closed()
    return True


def check_end(job: Job, rank: int, cause: str, code: int = 5) -> None:
    """All have gone, in time, with one word about who and why."""
    assert job.wait(LIMIT) == code, job.said
    found = [match.groups() for match in map(COMPLAINT.search, job.said.splitlines()) if match]
    assert len(found) == 1, job.said
    assert int(found[0][0]) == rank, job.said
    assert cause in found[0][1], job.said
    assert "Traceback" not in job.said
    assert job.are_gone(LIMIT), job.said


@pytest.mark.parametrize(("event", "rank"), [("kill-at-start", 0), ("kill-at-start", 2), ("kill-when-met", 1)])
def test_killed_before_anything_is_served(tmp_path, event, rank):
    with job_of(tmp_path, event, rank) as (job, _):
        check_end(job, rank, "was killed by signal 9 (SIGKILL)")


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_while_idle(tmp_path, rank):
    with job_of(tmp_path, options=()) as (job, peer), asking(job, peer) as line:
        os.kill(job.ranks()[rank], signal.SIGKILL)
        assert line.is_closed()
        check_end(job, rank, "was killed by signal 9 (SIGKILL)")


@pytest.mark.parametrize(
    ("event", "rank", "options"),
    [("kill", 0, KEPT), ("kill", 1, KEPT), ("kill", 2, ()), ("kill-sending", 0, ()), ("kill-sending", 2, ())],
)
def test_killed_at_work(tmp_path, event, rank, options):
    with job_of(tmp_path, event, rank, options) as (job, peer), asking(job, peer) as line:
        assert ask(line)
        check_end(job, rank, "was killed by signal 9 (SIGKILL), as the system does where memory runs out")


@pytest.mark.parametrize(
    ("event", "rank", "cause"),
    [
        ("kill", 2, "was killed by signal 9 (SIGKILL)"),
        ("kill-meeting", 0, "was killed by signal 9 (SIGKILL)"),
        ("kill-meeting", 2, "was killed by signal 9 (SIGKILL)"),
        ("error", 1, "failed: ZeroDivisionError: a mistake"),
    ],
)
def test_gone_while_others_wait_for_its_charges(tmp_path, event, rank, cause):
    with (
        job_of(tmp_path, event, rank, (), kind=CHARGES) as (job, peer),
        asking(job, peer, ChargedSprings(4.0, method="pme")) as line,
    ):
        assert ask(line)
        check_end(job, rank, cause)


def test_a_refusal_by_one_part_ends_nothing(tmp_path):
    with job_of(tmp_path, "refuse", 1, kind=CHARGES) as (job, peer):
        with asking(job, peer, ChargedSprings(4.0, method="pme")) as line:
            assert ask(line)
        assert job.wait(LIMIT) == 4, job.said  # with --once; all in step to the end
        assert "not this one" in job.said, job.said
        assert "another part" not in job.said, job.said
        assert job.are_gone(LIMIT), job.said


def test_ranks_of_two_nodes(tmp_path, monkeypatch):
    """MPICH takes the ranks for those of two nodes: they share no memory, and their lines no loopback interface."""
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        pytest.skip("this host does not know its own name")
    monkeypatch.setenv("MPIR_CVAR_NUM_CLIQUES", "2")
    with job_of(tmp_path, "kill", 1, ()) as (job, peer), asking(job, peer) as line:
        assert ask(line)
        check_end(job, 1, "was killed by signal 9 (SIGKILL)")


def test_killed_while_another_is_at_work_for_long(tmp_path):
    """Rank 0 is in an evaluation that nothing can interrupt."""
    with job_of(tmp_path, "hang", 0) as (job, peer), asking(job, peer) as line:
        line.send(posdata(FRAMES.positions, FRAMES.cell[0]), GETFORCE)
        job.wait_for(lambda: "evaluating" in job.said)
        os.kill(job.ranks()[2], signal.SIGKILL)
        assert job.wait(LIMIT) == 5, job.said
        assert job.are_gone(LIMIT), job.said


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        ("crash", "was killed by signal 11 (SIGSEGV)"),
        ("error", "failed: ZeroDivisionError: a mistake"),
        ("memory-receiving", "failed: MemoryError: no room for what has come"),
    ],
)
def test_another_end_than_by_a_kill(tmp_path, event, cause):
    with job_of(tmp_path, event, 1, ()) as (job, peer), asking(job, peer) as line:
        assert ask(line)
        check_end(job, 1, cause)


def test_failed_while_rank_0_is_at_work_for_long(tmp_path):
    """Who has failed waits until rank 0, late, has all leave: a launcher that sees it go first returns another code."""
    with job_of(tmp_path, "memory-receiving", 1, (), ("hang", "0")) as (job, peer), asking(job, peer) as line:
        leader = job.ranks()[0]
        line.send(posdata(FRAMES.positions, FRAMES.cell[0]), GETFORCE)
        job.wait_for(lambda: "evaluating" in job.said)
        os.kill(leader, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(leader, signal.SIGCONT)
        assert job.wait(LIMIT) == 5, job.said
        assert job.are_gone(LIMIT), job.said


@pytest.mark.parametrize("event", ["refuse", "memory"])
def test_a_refused_structure_ends_nothing(tmp_path, event):
    """The peer is turned away, comes again, and is served by the same ranks."""
    with job_of(tmp_path, event, 1) as (job, peer):
        with asking(job, peer) as line:
            assert ask(line)
        assert job.wait(LIMIT) == 4, job.said  # with --once; all in step to the end
        assert ("not this one" in job.said) == (event == "refuse"), job.said
        assert job.are_gone(LIMIT), job.said


@pytest.mark.parametrize(
    ("number", "whom"),
    [(signal.SIGTERM, "launcher"), (signal.SIGINT, "launcher"), (signal.SIGTERM, "rank 0"), (signal.SIGINT, "rank 2")],
)
def test_asked_to_stop_all_leave_in_good_order(tmp_path, number, whom):
    with job_of(tmp_path) as (job, peer), asking(job, peer) as line:
        os.kill(job.process.pid if whom == "launcher" else job.ranks()[int(whom[-1])], number)
        assert line.is_closed()
        assert job.wait(LIMIT) == 0, job.said
        assert "Traceback" not in job.said
        assert job.are_gone(LIMIT), job.said
