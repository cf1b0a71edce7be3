from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpserver import guard
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nobody stands by elsewhere")

ROOT = Path(__file__).resolve().parents[1]
START = "import os, sys, time; from dpserver import guard; guard.stand_by(); os.write(1, b'%d\\n' % os.getpid()); "


@contextmanager
def guarded(program: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A program that somebody stands by, and the process it runs in."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PMI", "OMPI", "SLURM"))}
    with subprocess.Popen(
        [sys.executable, "-c", START + program],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_that_of_the_rank(code):
    with guarded(f"sys.exit({code})") as (process, pid):
        assert pid != process.pid
        assert process.wait(PATIENCE) == code


def test_what_has_killed_a_rank_is_said():
    with guarded("time.sleep(60)", OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="2") as (process, pid):
        os.kill(pid, signal.SIGKILL)
        assert process.wait(PATIENCE) == guard.LOST
        assert process.stderr is not None
        said = process.stderr.read()
    assert f"error: rank 2 of 4 (process {pid} on " in said
    assert "was killed by signal 9 (SIGKILL), as the system does where memory runs out; ending the whole job" in said


def test_a_signal_is_passed_on_and_taken_note_of():
    wait = "\nwhile guard.asked_at is None: time.sleep(0.01)\nsys.exit(7)"
    with guarded(wait) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 7


def test_an_echo_is_no_second_signal():
    again = "guard._note(15, None); first = guard.asked_at; guard._note(15, None); sys.exit(guard.asked_at != first)"
    with guarded(again) as (process, _):
        assert process.wait(PATIENCE) == 0


def test_a_second_signal_ends_the_rank():
    with guarded("guard._note(15, None); guard.asked_at -= 2; time.sleep(60)") as (process, pid):
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert not is_alive(pid)


def test_a_rank_does_not_outlive_who_stands_by():
    with guarded("time.sleep(60)") as (process, pid):
        process.kill()
        process.wait(PATIENCE)
        for _ in range(1000):
            if not is_alive(pid):
                return
            time.sleep(0.01)
        pytest.fail("the rank lives on")


@pytest.mark.parametrize(
    ("environment", "size", "rank"),
    [
        ({}, 1, 0),
        ({"PMI_SIZE": "4", "PMI_RANK": "3"}, 4, 3),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"}, 2, 1),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "5"}, 16, 5),
        ({"SLURM_NTASKS": "16"}, 1, 0),  # in a batch script, before srun
        ({"PMI_SIZE": "many"}, 1, 0),
    ],
)
def test_the_job_is_told_by_the_launcher(monkeypatch, environment, size, rank):
    for name in ("PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (guard.job_size(), guard.job_rank()) == (size, rank)
