"""Ranks in real MPI jobs: the numbers of one process, in a run of i-PI too, and one end for all."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest

from dpserver.models import checkpoint
from dpserver.parallel.waiting import Patience
from tests import structures
from tests.daemon.serving import serving, target
from tests.integration.ipi_runs import finish, free_endpoint, ipi, last_positions, write_input
from tests.integration.processes import cpu_seconds, save_model
from tests.parallel.jobs import HAS_MPI, mpi_job

pytest.importorskip("mpi4py")
pytestmark = pytest.mark.skipif(not HAS_MPI, reason="no mpiexec beside this Python; pip install mpich")

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "w.pt"
    save_model(path)
    return path


@pytest.mark.parametrize(("n_ranks", "kind"), [(8, "springs"), (3, "potential")])
def test_ranks_agree_with_one_process(tmp_path, model, n_ranks, kind):
    """To 1e-10 for each number of ranks and each kind of structure; the program itself compares."""
    what = "springs" if kind == "springs" else str(model)
    with mpi_job(tmp_path / "log", n_ranks, [str(HERE / "agree.py"), what]) as job:
        assert job.wait() == 0, job.said
        sizes = {int(n) for n in re.findall(r"^(\d) space crystal: ", job.said, re.MULTILINE)}
        assert sizes == {n for n in (1, 2, 3, 4, 7, 8) if n <= n_ranks}, job.said


@pytest.mark.parametrize(("way", "n_beads"), [("space", 1), ("auto", 4)])
def test_ipi_notices_nothing(tmp_path, model, way, n_beads):
    """A trajectory over three ranks is that of one process."""
    pytest.importorskip("ipi")
    frames = structures.water((3, 3, 3))
    last = []
    for n_ranks in (0, 3):
        folder, endpoint = tmp_path / str(n_ranks), free_endpoint()
        folder.mkdir()
        write_input(folder, frames, endpoint, n_beads=n_beads, n_steps=20)
        arguments = ["-m", "dpserver", "--model", str(model), "--species", "O H H", "--once", "--decompose", way]
        with ipi(folder) as process:
            if n_ranks:
                with mpi_job(folder / "log", n_ranks, [*arguments, "--connect", endpoint]) as job:
                    assert job.wait() == 0, job.said
                    assert "3 ranks on" in job.said
            else:
                with serving(checkpoint.load(model, device="cpu"), target(endpoint)):
                    finish(process, folder)
            finish(process, folder)
        last.append(last_positions(folder))
    np.testing.assert_allclose(last[1], last[0], rtol=1e-10)


def test_a_model_that_cannot_be_used_is_said_once(tmp_path):
    (tmp_path / "w.pt").write_text("no model")
    program = ["-m", "dpserver", "--model", str(tmp_path / "w.pt"), "--unix", "nobody"]
    with mpi_job(tmp_path / "log", 2, program, ["-disable-auto-cleanup"]) as job:
        assert job.wait() == 3, job.said
        assert job.said.count("error:") == job.said.count("is not a dpserver model file") == 1, job.said


def test_a_wrong_option_is_said_once(tmp_path):
    program = ["-m", "dpserver", "--modle", "w.pt"]
    with mpi_job(tmp_path / "log", 2, program, ["-disable-auto-cleanup"]) as job:
        assert job.wait() == 2, job.said
        assert job.said.count("No such option") == 1, job.said


def test_idle_ranks_sleep(tmp_path):
    """A program of two ranks, the second of which waits: it looks a thousand times a second, and sleeps in between."""
    with mpi_job(tmp_path / "log", 2, [str(HERE / "program.py"), "unix:nobody"]) as job:
        job.wait_for(lambda: "dialling" in job.said)
        worker = job.ranks()[1]
        looks, used = sleeps(worker), cpu_seconds(worker)
        time.sleep(3)
        assert sleeps(worker) - looks < 3 / Patience().longest + 10
        assert cpu_seconds(worker) - used < 0.1 * 3  # 0.03 where the machine is quiet


def sleeps(pid: int) -> int:
    """How often the main thread of a process has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)[1])
