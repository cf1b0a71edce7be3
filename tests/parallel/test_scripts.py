"""The scripts of docs/cluster.md, with stand-ins for what a cluster has: that they are bash, and what they start."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from dpserver import guard
from dpserver.cli.app import app

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")

DOCUMENT = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
SCRIPTS = [block for block in BLOCKS if block.startswith("#!/bin/bash")]
INPUT = "<ffsocket mode='inet'> <address> HOST </address> <port> PORT </port> </ffsocket>\n"
STAND_IN = '#!/bin/bash\necho "$(basename $0) $*" >> "$STARTED"\n'


@pytest.mark.parametrize("block", BLOCKS)
def test_each_is_what_bash_understands(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@pytest.mark.parametrize(("script", "n_nodes"), [(SCRIPTS[0], 1), (SCRIPTS[1], 4)])
def test_a_job_meets_itself_and_no_other(tmp_path, script, n_nodes):
    """i-PI listens where dpserver dials, at a port that the number of the job gives."""
    assert f"#SBATCH --nodes={n_nodes}" in script
    ports = set()
    for job in (4711, 4712):
        folder = tmp_path / str(job)
        folder.mkdir()
        (folder / "input.xml").write_text(INPUT)
        for name in ("srun", "i-pi", "hostname"):
            (folder / name).write_text("#!/bin/bash\necho node7\n" if name == "hostname" else STAND_IN)
            (folder / name).chmod(0o755)
        started = folder / "started"
        environment = {"SLURM_JOB_ID": str(job), "SLURM_CPUS_PER_TASK": "8", "STARTED": str(started)}
        environment["PATH"] = f"{folder}:{os.environ['PATH']}"
        subprocess.run(["bash", "-eu", "-c", script], cwd=folder, env=environment, check=True)
        lines = dict(line.split(" ", 1) for line in started.read_text().splitlines())
        ipi_input = (folder / lines["i-pi"]).read_text()
        port = re.search(r"--port (\d+)", lines["srun"])
        assert port is not None
        assert f"<port> {port[1]} </port>" in ipi_input
        assert 1024 < int(port[1]) < 65536
        if n_nodes > 1:
            assert "--host node7" in lines["srun"]
            assert "<address> node7 </address>" in ipi_input
        ports.add(port[1])
    assert len(ports) == 2


@pytest.mark.parametrize("block", BLOCKS)
def test_options_exist(block):
    """Those of dpserver, that is: what follows its name in a command."""
    joined = block.replace("\\\n", " ")
    serve = typer.main.get_command(app).commands["serve"]
    known = {word for parameter in serve.params for word in parameter.opts}
    for command in re.findall(r"dpserver (-[^\n#]*)", joined):
        given = set(re.findall(r"(?<!\S)--[a-z-]+", command))
        assert given <= known, given - known


@pytest.mark.parametrize(
    ("environment", "size", "rank"),
    [
        # srun with --mpi=pmi2, with --mpi=pmix, and with none of them
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "16", "PMI_RANK": "3", "PMI_SIZE": "16", "PMI_FD": "9"}, 16, 3),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "16", "PMIX_RANK": "3", "SLURM_LOCALID": "1"}, 16, 3),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, 1, 0),
        # mpirun of Open MPI in a batch script, whose own step is one task
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_STEP_NUM_TASKS": "1",
                "OMPI_COMM_WORLD_SIZE": "8",
                "OMPI_COMM_WORLD_RANK": "5",
            },
            8,
            5,
        ),
    ],
)
def test_slurm_tells_how_many_there_are(monkeypatch, environment, size, rank):
    for name in list(os.environ):
        if name.startswith(("PMI", "OMPI", "SLURM")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (guard.job_size(), guard.job_rank()) == (size, rank)


def test_only_the_launcher_of_mpich_is_taken_leave_of(monkeypatch):
    """Slurm's PMI-2 has a connection of the same name, and another protocol."""
    here, there = os.pipe()
    monkeypatch.setenv("PMI_FD", str(there))
    monkeypatch.delenv("HYDI_CONTROL_FD", raising=False)
    monkeypatch.setattr(guard, "_SECONDS_TO_SIGN_OFF", 0.0)
    guard._sign_off()
    monkeypatch.setenv("HYDI_CONTROL_FD", "7")
    guard._sign_off()
    os.close(there)
    assert os.read(here, 100) == b"cmd=finalize\n"
    os.close(here)
