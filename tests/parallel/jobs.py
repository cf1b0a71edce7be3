"""Real MPI jobs of the tests: started, watched, and never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dpserver.transport.shm import SEGMENTS
from tests.patience import JOB_PATIENCE

ROOT = Path(__file__).resolve().parents[2]
MPIEXEC = Path(sys.executable).with_name("mpiexec")
HAS_MPI = MPIEXEC.is_file()


@dataclass(eq=False)
class Job:
    """A running job.

    Attributes:
        process: the launcher.
        log: all that was said.
    """

    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so; the job must not end before."""
        while not is_so():
            assert self.process.poll() is None, self.said
            assert time.monotonic() - self.started < JOB_PATIENCE, self.said
            time.sleep(0.02)

    def wait(self, limit: float = JOB_PATIENCE) -> int:
        """Exit code of the launcher."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the job goes on after {limit:g} s:\n{self.said}")

    def ranks(self) -> dict[int, int]:
        """Process of each rank, without those that stand by."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                environment = dict(
                    entry.split("=", 1) for entry in (folder / "environ").read_text().split("\0") if "=" in entry
                )
                if environment.get("TEST_JOB") != str(self.log) or "PMI_RANK" not in environment:
                    continue
                pid, group = int(folder.name), int((folder / "stat").read_text().rsplit(")", 1)[1].split()[2])
                if pid == group and self._stands_by(pid):
                    found[int(environment["PMI_RANK"])] = pid
        return found

    def are_gone(self, limit: float) -> bool:
        """Whether all ranks end within so many seconds; the launcher may be a moment ahead of those it has killed."""
        end = time.monotonic() + limit
        while self.ranks():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    @staticmethod
    def _stands_by(pid: int) -> bool:
        """Whether the parent is a process of the same program, which stands by."""
        parent = int((Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[1])
        mine, other = ((Path("/proc") / str(p) / "cmdline").read_bytes() for p in (pid, parent))
        return mine == other


@contextmanager
def no_segments_left() -> Iterator[None]:
    """MPICH leaves its shared memory behind when a job is aborted; take away what came meanwhile and nobody uses."""
    before = set(SEGMENTS.glob("mpich_shm_*"))
    try:
        yield
    finally:
        left = set(SEGMENTS.glob("mpich_shm_*")) - before
        for maps in Path("/proc").glob("[0-9]*/maps") if left else ():
            with contextlib.suppress(OSError):
                text = maps.read_text()
                left = {path for path in left if str(path) not in text}
        for path in left:
            path.unlink(missing_ok=True)


@contextmanager
def mpi_job(log: Path, n: int, program: Sequence[str], options: Sequence[str] = ()) -> Iterator[Job]:
    """Run a Python program in so many ranks; what is left at the end is killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TEST_JOB": str(log)}
    with no_segments_left():
        with log.open("w") as stream:
            process = subprocess.Popen(
                [str(MPIEXEC), *options, "-n", str(n), sys.executable, *program],
                cwd=log.parent,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        job = Job(process, log)
        try:
            yield job
        finally:
            for pid in [*job.ranks().values(), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
