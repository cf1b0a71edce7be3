"""A rank that is gone ends all, at whichever moment: soon, with exit code 5 and one message; a refusal ends nothing.

Without cleaning up by the launcher, which would hide what the ranks do by themselves; with it once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests import structures
from tests.parallel.jobs import HAS_MPI, Job, mpi_job
from tests.peer import GETFORCE, Line, Peer, posdata
from tests.ranks import Springs

pytest.importorskip("mpi4py")
pytestmark = pytest.mark.skipif(not HAS_MPI, reason="no mpiexec beside this Python; pip install mpich")

PROGRAM = str(Path(__file__).with_name("program.py"))
KEPT = ("-disable-auto-cleanup",)
FRAMES = structures.water((3, 3, 3))
LIMIT = 10.0  # s, from what happens to the end of all
COMPLAINT = re.compile(r"rank (\d)(?: of \d)? \(process \d+ on \S+\) (.*)")


@contextmanager
def job_of(
    tmp_path: Path, event: str = "", rank: int = -1, options: tuple[str, ...] = KEPT
) -> Iterator[tuple[Job, Peer]]:
    """Three ranks that dial a peer, one of which has something before it."""
    with (
        Peer() as peer,
        mpi_job(tmp_path / "log", 3, [PROGRAM, peer.endpoint, event, str(rank)], options) as job,
    ):
        yield job, peer


@contextmanager
def asking(job: Job, peer: Peer) -> Iterator[Line]:
    """The connection of the daemon, after two good answers."""
    with peer.accept() as line:
        line.handshake()
        for step in range(2):
            positions = FRAMES.positions + 0.01 * step
            reply = line.ask(positions, FRAMES.cell[0])
            expected = Springs(4.0).evaluate(FRAMES)
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
    assert not job.ranks()


@pytest.mark.parametrize(("event", "rank"), [("kill-at-start", 0), ("kill-at-start", 2), ("kill-when-met", 1)])
def test_killed_before_anything_is_served(tmp_path, event, rank):
    with job_of(tmp_path, event, rank) as (job, _):
        check_end(job, rank, "was killed by signal 9 (SIGKILL)")


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_while_idle(tmp_path, rank):
    with job_of(tmp_path) as (job, peer), asking(job, peer) as line:
        os.kill(job.ranks()[rank], signal.SIGKILL)
        assert line.is_closed()
        check_end(job, rank, "was killed by signal 9 (SIGKILL)")


@pytest.mark.parametrize(("event", "rank"), [("kill", 0), ("kill", 1), ("kill-sending", 0), ("kill-sending", 2)])
def test_killed_at_work(tmp_path, event, rank):
    with job_of(tmp_path, event, rank) as (job, peer), asking(job, peer) as line:
        assert ask(line)
        check_end(job, rank, "was killed by signal 9 (SIGKILL), as the system does where memory runs out")


def test_killed_while_another_is_at_work_for_long(tmp_path):
    """Rank 0 is in an evaluation that nothing can interrupt."""
    with job_of(tmp_path, "hang", 0) as (job, peer), asking(job, peer) as line:
        line.send(posdata(FRAMES.positions, FRAMES.cell[0]), GETFORCE)
        job.wait_for(lambda: "evaluating" in job.said)
        os.kill(job.ranks()[2], signal.SIGKILL)
        assert job.wait(LIMIT) == 5, job.said
        assert not job.ranks()


@pytest.mark.parametrize(
    ("event", "cause"), [("crash", "was killed by signal 11 (SIGSEGV)"), ("error", "failed: Zero")]
)
def test_another_end_than_by_a_kill(tmp_path, event, cause):
    with job_of(tmp_path, event, 1) as (job, peer), asking(job, peer) as line:
        assert ask(line)
        check_end(job, 1, cause)


@pytest.mark.parametrize("event", ["refuse", "memory"])
def test_a_refused_structure_ends_nothing(tmp_path, event):
    """The peer is turned away, comes again, and is served by the same ranks."""
    with job_of(tmp_path, event, 1) as (job, peer):
        with asking(job, peer) as line:
            assert ask(line)
        assert job.wait(LIMIT) == 4, job.said  # with --once; all in step to the end
        assert ("not this one" in job.said) == (event == "refuse"), job.said
        assert not job.ranks()


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
        assert not job.ranks()


def test_under_a_launcher_that_cleans_up(tmp_path):
    """MPICH's kills the others, with a code of its own; who is to blame is said all the same."""
    with job_of(tmp_path, "kill", 1, ()) as (job, peer), asking(job, peer) as line:
        assert ask(line)
        assert job.wait(LIMIT) != 0
        assert "rank 1 (process" in job.said, job.said
        assert not job.ranks()
