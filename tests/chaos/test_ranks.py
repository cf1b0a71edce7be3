"""Ranks for longer than `make test` has time for: large structures, long runs, and one rank lost after the other."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ipi")
pytest.importorskip("mpi4py")

from tests.integration.ipi_runs import finish, free_endpoint, ipi, place
from tests.integration.processes import daemon
from tests.parallel.jobs import HAS_MPI, ROOT, mpi_job
from tests.parallel.test_failures import COMPLAINT

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not HAS_MPI, reason="no mpiexec beside this Python; pip install mpich"),
]

Report = Callable[[str], None]

PARALLEL = ROOT / "tests" / "parallel"
EXAMPLES = ROOT / "examples" / "water"
MODEL = str(EXAMPLES / "w.pt")
N_STEPS = int(os.environ.get("DPSERVER_CHAOS_STEPS", "1000"))
N_LOSSES = 5
LIMIT = 1800.0


def prepare(folder: Path, ensemble: str) -> list[str]:
    """Write the input of an example of 192 atoms; the command that serves it."""
    folder.mkdir()
    (folder.parent / "water.xyz").write_text((EXAMPLES / "water.xyz").read_text())
    endpoint = free_endpoint()
    text = (EXAMPLES / f"ipi-{ensemble}" / "input.xml").read_text()
    text = re.sub(r"<total_steps>.*</total_steps>", f"<total_steps> {N_STEPS} </total_steps>", text)
    name = str(place(endpoint)).removeprefix("/tmp/ipi_")
    (folder / "input.xml").write_text(re.sub(r"<address>.*</address>", f"<address> {name} </address>", text))
    command = ["-m", "dpserver", "--model", MODEL, "--template", str(EXAMPLES / "water.xyz"), "--connect", endpoint]
    return [*command, "--once", "--threads", "1", "--precision", "double", "--decompose", "space"]


def run_example(folder: Path, ensemble: str, n_ranks: int) -> np.ndarray:
    """What i-PI has printed, of all steps."""
    command = prepare(folder, ensemble)
    with ipi(folder) as process:
        if n_ranks == 1:
            with daemon(*command):
                finish(process, folder, LIMIT)
        else:
            with mpi_job(folder / "log", n_ranks, command) as job:
                finish(process, folder, LIMIT)
                assert job.wait() == 0, job.said
    return np.loadtxt(folder / "simulation.out")


@pytest.mark.parametrize("ensemble", ["nve", "npt"])
def test_long_runs_are_those_of_one_process(tmp_path: Path, ensemble: str, report: Report) -> None:
    """Round-off grows in a liquid, by a factor of e within some hundred steps of 0.5 fs."""
    one, three = (run_example(tmp_path / str(n), ensemble, n) for n in (1, 3))
    assert one.shape == three.shape
    assert len(one) == N_STEPS + 1
    deviation = np.abs(three - one) / np.abs(one).max(axis=0)
    report(f"{N_STEPS} steps on 3 ranks: at most {deviation.max():.1e} of the largest number of a column")
    assert deviation[: N_STEPS // 10].max() < 1e-9
    assert deviation.max() < 1e-6


@pytest.mark.parametrize(("n_ranks", "kind"), [(8, "springs"), (4, MODEL)], ids=["springs", "potential"])
def test_large_structures(tmp_path: Path, n_ranks: int, kind: str, report: Report) -> None:
    with mpi_job(tmp_path / "log", n_ranks, [str(PARALLEL / "agree.py"), kind, "large"]) as job:
        assert job.wait(LIMIT) == 0, job.said
    found = re.findall(r"^(\d) \w+ (.*): (\S+)$", job.said, re.MULTILINE)
    assert {name for _, name, _ in found} >= {"water 1536", "water 12288", "crystal 5324"}
    report(
        f"{len(found)} cases on 1 to {n_ranks} ranks: at most {max(float(worst) for *_, worst in found):.1e} relative"
    )


def test_jobs_that_are_lost_one_after_the_other(tmp_path: Path, chaos_seed: int, report: Report) -> None:
    """Any rank killed at any moment: i-PI waits, another job goes on, and the trajectory is that of a calm run."""
    rng, killed = random.Random(chaos_seed), []
    calm = run_example(tmp_path / "calm", "nve", 1)
    folder = tmp_path / "troubled"
    command = prepare(folder, "nve")
    with ipi(folder) as process:
        for number in range(N_LOSSES):
            with mpi_job(folder / f"log{number}", 3, command) as job:
                job.wait_for(lambda job=job: "parts over 3 ranks" in job.said)
                time.sleep(rng.uniform(0.0, 0.5))
                rank = rng.randrange(3)
                os.kill(job.ranks()[rank], signal.SIGKILL)
                assert job.wait(10) == 5, job.said
                blamed = [int(match[1]) for match in map(COMPLAINT.search, job.said.splitlines()) if match]
                assert blamed == [rank], job.said
                assert process.poll() is None, "i-PI has finished too soon; take more steps"
                killed.append(rank)
        with mpi_job(folder / "log", 3, command) as job:
            finish(process, folder, LIMIT)
            assert job.wait() == 0, job.said
    troubled = np.loadtxt(folder / "simulation.out")
    deviation = np.abs(troubled - calm) / np.abs(calm).max(axis=0)
    report(f"ranks killed: {killed}; {N_STEPS} steps within {deviation.max():.1e}")
    assert deviation.max() < 1e-6
