from __future__ import annotations

import os
import sys
from collections.abc import Callable

import numpy as np
import pytest

from dpserver import guard
from dpserver.cli import app, mpi, ranks, serve
from dpserver.daemon import mpi_driver
from dpserver.parallel import mpi as parallel_mpi
from dpserver.parallel.communicator import Place
from dpserver.transport import ffmpi
from tests import fake_deepmd, structures
from tests.cli.commands import exit_code
from tests.fake_mpi import FakeIpi


class Job:
    """An MPI job that this process is rank 1 of; it takes down the codes with which it is ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int = 2) -> None:
        self.ipi = FakeIpi(size)
        self.codes: list[int] = []
        module = self.ipi.modules[size - 1]
        module.COMM_WORLD.Abort = self.codes.append
        monkeypatch.setattr(ffmpi, "load_mpi", lambda: module)
        monkeypatch.setattr(mpi_driver, "load_mpi", lambda: module)
        monkeypatch.setattr(parallel_mpi, "load_mpi", lambda: module)
        monkeypatch.setattr(guard, "stand_by", lambda: None)
        monkeypatch.setattr(ffmpi, "LAST_WORDS_SECONDS", 0.0)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what a launcher tells its processes, and nothing else of the kind."""

    def launch(**environment: str) -> None:
        for name in [name for name in os.environ if name.startswith(("PMI", "OMPI", "SLURM"))]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--modle", "w.pt"], 2, "No such option"),
        (["--model", "nowhere.pt"], 3, "model file nowhere.pt does not exist"),
        (["--model", "w.pt", "--port", "4000"], 2, "--port has no meaning with --mpi-driver: i-PI is reached through"),
        (["--model", "w.pt", "-p", "4000", "--once", "-a", "x"], 2, "--port, --host, --once have no meaning with"),
        (["--model", "w.pt", "--unix", "x", "-u", "--shm"], 2, "--unix, -u, --shm have no meaning"),
        (["--model", "w.pt", "--connect", "unix:x"], 2, "--connect has no meaning"),
        (["--model", "w.pt", "--connections", "auto"], 2, "--connections has no meaning"),
        (["--model", "w.pt", "--timeout", "3", "-S", "x"], 2, "--sockets-prefix, --timeout have no meaning"),
    ],
)
def test_what_is_wrong_ends_the_whole_job(monkeypatch, capsys, arguments, code, complaint):
    job = Job(monkeypatch)
    assert exit_code(monkeypatch, *arguments, "--mpi-driver") == code
    assert job.codes == [code]
    assert complaint in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "w.pt", "--mpi-drivr"], "No such option: --mpi-drivr"),
        (["--model", "w.pt", "--group-size", "2"], "--group-size is for drivers of i-PI's <ffmpi>"),
        (["--model", "w.pt", "--decompose", "time"], "--decompose must be auto, beads, space; got 'time'"),
    ],
)
def test_a_job_does_not_wait_for_a_rank_without_the_option(monkeypatch, capsys, variable, arguments, complaint):
    job = Job(monkeypatch)
    monkeypatch.setenv(variable, "2")
    assert exit_code(monkeypatch, *arguments) == 2
    assert job.codes == [2]
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_an_mpirun_of_another_mpi_is_named(monkeypatch, capsys):
    job = Job(monkeypatch, size=3)
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "0")
    assert exit_code(monkeypatch, "--model", "w.pt") == 2
    assert job.codes == [2]
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "mpirun has started 2 processes, and MPI shows 3: mpirun is of another MPI than mpi4py, which has Fake" in said
    )


def test_options_for_other_commands_in_the_environment_are_left_alone(monkeypatch, capsys):
    job = Job(monkeypatch)
    monkeypatch.setenv("DPSERVER_TIMEOUT", "60")
    monkeypatch.setenv("DPSERVER_MPI_DRIVER", "1")
    assert exit_code(monkeypatch, "--model", "nowhere.pt") == 3
    assert job.codes == [3]
    assert "has no meaning" not in capsys.readouterr().err


def test_a_bug_ends_the_whole_job_and_shows_itself(monkeypatch, capsys):
    job = Job(monkeypatch)
    monkeypatch.setattr(serve, "_order", lambda template, species: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["dpserver", "--model", "w.pt", "--mpi-driver"])
    with pytest.raises(ZeroDivisionError):
        app.main()
    assert job.codes == [1]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_job_of_one_and_other_commands_end_as_usual(monkeypatch):
    job = Job(monkeypatch, size=1)
    assert exit_code(monkeypatch, "--model", "nowhere.pt", "--mpi-driver") == 3
    assert exit_code(monkeypatch, "--model", "nowhere.pt") == 3
    with pytest.raises(SystemExit), mpi.whole_job(["--mpi-driver"]):
        sys.exit(0)
    assert not job.codes


@pytest.mark.parametrize(("code", "expected"), [(None, []), (0, []), (4, [4]), ("what went wrong", [1])])
def test_the_code_of_the_process_is_that_of_the_job(monkeypatch, code, expected):
    job = Job(monkeypatch)
    with pytest.raises(SystemExit), mpi.whole_job(["serve", "--mpi-driver"]):
        sys.exit(code)
    assert job.codes == expected


@pytest.mark.parametrize("command", ["train", "test", "change-bias", "export", "import", "bench", "demo", "committee"])
@pytest.mark.parametrize(
    "job",
    [
        {"PMI_SIZE": "4", "PMI_RANK": "{}"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "{}"},
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "{}"},
    ],
    ids=["mpich", "openmpi", "slurm"],
)
def test_a_command_that_writes_files_is_for_one_process(launched, monkeypatch, capsys, command, job):
    monkeypatch.setattr(ranks, "_AS_LONG_AS_RANK_0", 0.0)
    for rank in range(4):
        launched(**{name: value.format(rank) for name, value in job.items()})
        assert exit_code(monkeypatch, command, "input.json") == 2
        said = capsys.readouterr()
        assert said.out == ""
        if rank:
            assert said.err == ""
            continue
        assert said.err.startswith(f"error: dpserver {command} is for one process, and 4 were started")
        assert "run it without mpirun" in said.err
        assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--help"], 0, ""),
        (["--version"], 0, ""),
        (["train", "--help"], 0, ""),
        (["test", "-h"], 0, ""),
        (["info", "nowhere.pt"], 3, "nowhere.pt does not exist"),
        (["trian", "input.json"], 2, "Did you mean 'train'?"),
    ],
)
def test_what_only_tells_something_is_for_any_number(launched, monkeypatch, capsys, arguments, code, complaint):
    Job(monkeypatch)
    launched(PMI_SIZE="4", PMI_RANK="0")
    assert exit_code(monkeypatch, *arguments) == code
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_one_task_of_slurm_is_one_process(launched, monkeypatch, capsys):
    launched(SLURM_NTASKS="4", SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0")
    exit_code(monkeypatch, "train", "nowhere.json")
    said = " ".join(capsys.readouterr().err.split())
    assert "nowhere.json" in said
    assert "for one process" not in said


def test_all_ranks_leave_the_energies_of_atoms_out(monkeypatch, tmp_path):
    """DeePMD-kit takes long for them, and no message has a place for them."""
    fake_deepmd.install(monkeypatch)
    file = tmp_path / "graph.pb"
    file.write_text("a model")
    service = ranks.service_of("cpu", None, 1, "deepmd", file)
    place = Place(1, "here", os.getpid(), 0, 1, (0, 1))
    with ranks.loaded(None, service) as (model, *_):
        results = [m.evaluate(structures.cubic()) for m in (model, ranks._load([b""], service, place, [place, place]))]
    for result in results:
        assert np.isnan(result.atom_energy).all()
