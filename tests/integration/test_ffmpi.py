"""i-PI and driver ranks in one real MPI job, against the same model over a unix socket."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dpserver.models import checkpoint
from tests import structures
from tests.daemon.serving import serving, target
from tests.integration.ipi_runs import IPI, finish, free_endpoint, ipi, last_positions, write_input
from tests.integration.processes import save_model
from tests.parallel.jobs import HAS_MPI, MPIEXEC, no_segments_left
from tests.patience import JOB_PATIENCE, PATIENCE

pytest.importorskip("ipi")
pytest.importorskip("mpi4py")

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(not HAS_MPI, reason=f"no MPI in {MPIEXEC.parent}; pip install mpich"),
    pytest.mark.xdist_group("mpi"),
]

FRAMES = structures.cubic()
N_BEADS = 5
N_STEPS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "w.pt"
    save_model(path)
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory, model) -> np.ndarray:
    """Last positions over a unix socket, (n_beads n_atoms, 3), Bohr."""
    folder, endpoint = tmp_path_factory.mktemp("expected"), free_endpoint()
    write_input(folder, FRAMES, endpoint, n_beads=N_BEADS, n_steps=N_STEPS)
    with serving(checkpoint.load(model, device="cpu"), target(endpoint)), ipi(folder) as process:
        finish(process, folder)
    return last_positions(folder)


def write_mpi_input(folder: Path, options: str = "", names: tuple[str, ...] = ("dp",)) -> None:
    """The input with `<ffmpi>` for its `<ffsocket>`; several share the beads' forces in equal parts."""
    write_input(folder, FRAMES, "unix:nobody", n_beads=N_BEADS, n_steps=N_STEPS)
    path = folder / "input.xml"
    fields = "".join(f"<ffmpi name='{name}' pbc='false'> {options} </ffmpi>" for name in names)
    forces = "".join(f"<force forcefield='{name}' weight='{1 / len(names)}'/>" for name in names)
    text = re.sub(r"<ffsocket.*</ffsocket>", fields, path.read_text(), flags=re.DOTALL)
    path.write_text(re.sub(r"<force .*/>", forces, text))


@pytest.fixture(autouse=True)
def _no_segments_left() -> Iterator[None]:
    with no_segments_left():
        yield


def run_job(folder: Path, *drivers: tuple[int, list[str]], option: str = "--mpi-driver") -> tuple[int, str]:
    """Run i-PI with so many ranks of each dpserver command line; returns exit code and output.

    A job that hangs is killed, and fails the test with what it has said.
    """
    # Without the option Hydra 5.0 kills what is left now and then, when i-PI has left before it was noticed.
    command = [str(MPIEXEC), "-disable-auto-cleanup", "-n", "1", sys.executable, str(IPI), "input.xml"]
    for n_ranks, arguments in drivers:
        command += [":", "-n", str(n_ranks), sys.executable, "-m", "dpserver", *arguments, option]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DPSERVER_TIMEOUT": f"{PATIENCE:g}", "OMP_NUM_THREADS": "1"}
    said = folder / "job.log"
    with said.open("w") as log:
        job = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = job.wait(JOB_PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the job goes on after {JOB_PATIENCE} s:\n{said.read_text()}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    return code, said.read_text()


def water(model: Path) -> list[str]:
    return ["--model", str(model), "--species", "O H H"]


@pytest.mark.parametrize(("options", "n_ranks"), [("", 1), ("<batch_size> 3 </batch_size>", 2)])
def test_the_trajectory_is_that_over_a_socket(tmp_path, model, expected, options, n_ranks):
    write_mpi_input(tmp_path, options)
    code, log = run_job(tmp_path, (n_ranks, water(model)))
    assert code == 0, log
    np.testing.assert_allclose(last_positions(tmp_path), expected, rtol=1e-12)
    served = [int(n) for n in re.findall(r"left: said EXIT; served (\d+) evaluations", log)]
    assert len(served) == n_ranks, log
    assert sum(served) == N_BEADS * (N_STEPS + 1)
    assert "Traceback" not in log


def test_each_force_field_has_its_own_drivers(tmp_path, model, expected):
    """Two force fields of half the forces each; one takes the order of its atoms from i-PI's input."""
    write_mpi_input(tmp_path, "<parameters> {species: O H H} </parameters>", ("a", "b"))
    bare = ["--model", str(model)]
    code, log = run_job(tmp_path, (1, [*bare, "--mpi-name", "b"]), (1, [*water(model), "--mpi-name", "a"]))
    assert code == 0, log
    np.testing.assert_allclose(last_positions(tmp_path), expected, rtol=1e-9)
    assert {"mpi:a rank 2: left", "mpi:b rank 1: left"} <= set(re.findall(r"mpi:. rank .: left", log)), log


def test_a_group_of_ranks_is_one_driver(tmp_path, model, expected):
    """Two drivers of two ranks each; their leaders alone speak with i-PI."""
    write_mpi_input(tmp_path, "<batch_size> 3 </batch_size>")
    code, log = run_job(tmp_path, (4, [*water(model), "--group-size", "2", "--decompose", "space"]))
    assert code == 0, log
    np.testing.assert_allclose(last_positions(tmp_path), expected, rtol=1e-10)
    assert set(re.findall(r"mpi:i-pi rank (.): left: said EXIT", log)) == {"1", "3"}, log
    assert log.count("2 ranks on ") == 2, log
    assert "Traceback" not in log


def test_ranks_that_make_no_whole_group_are_refused(tmp_path, model):
    write_mpi_input(tmp_path)
    code, log = run_job(tmp_path, (3, [*water(model), "--group-size", "2"]))
    assert code == 2, log
    assert "--group-size 2 does not divide the ranks" in log


def test_a_rank_beside_ipi_needs_the_option(tmp_path, model):
    write_mpi_input(tmp_path)
    code, log = run_job(tmp_path, (1, water(model)), option="--once")
    assert code == 2, log
    assert log.count("belongs to the second program of an MPI job; give --mpi-driver to serve an <ffmpi>") == 1, log


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--species", "O O H"], 4, "ending the whole job"),
        (["--species", "O Xx H"], 2, "species 'Xx'"),
        (["--spices", "O H H"], 2, "No such option"),
    ],
)
def test_a_driver_that_cannot_serve_ends_the_job_and_says_why(tmp_path, model, arguments, code, complaint):
    write_mpi_input(tmp_path)
    model_file = checkpoint.load(model, device="cpu")
    model_file.min_distance = np.full((2, 2), 2.0)
    checkpoint.save(tmp_path / "w.pt", model_file)
    found, log = run_job(tmp_path, (1, ["--model", str(tmp_path / "w.pt"), *arguments]))
    assert found == code, log
    assert complaint in log
