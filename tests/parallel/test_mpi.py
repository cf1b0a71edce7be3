"""Ranks in real MPI jobs: the numbers of one process, in a run of i-PI too, and one end for all."""

from __future__ import annotations

import json
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from dpserver.engine import Accompanied
from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.tensors import TensorModel
from dpserver.parallel.waiting import Patience
from dpserver.units import BOHR, HARTREE
from tests import structures
from tests.daemon.serving import serving, target
from tests.integration.ipi_runs import finish, free_endpoint, ipi, last_positions, write_input
from tests.integration.processes import cpu_seconds, save_model
from tests.models import test_electrostatics as charged
from tests.parallel.jobs import HAS_MPI, mpi_job
from tests.peer import EXIT, GETFORCE, Peer, posdata

pytest.importorskip("mpi4py")
pytestmark = [
    pytest.mark.skipif(not HAS_MPI, reason="no mpiexec beside this Python; pip install mpich"),
    pytest.mark.xdist_group("mpi"),
]

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "w.pt"
    save_model(path)
    return path


def tensor_file(path: Path, kind: str) -> TensorModel:
    """Write a model of dipoles or polarizabilities, with a cutoff of its own."""
    config = {
        "type_map": ["H", "O"],
        "descriptor": {
            "type": "se_e2_a", "sel": [120, 60], "rcut": 4.2, "rcut_smth": 1.0, "neuron": [4, 8], "axis_neuron": 2,
        },
        "fitting_net": {"type": kind, "neuron": [8]},
    }  # fmt: skip
    model = TensorModel(parse(ModelConfig, config), seed=3)
    checkpoint.save(path, model)
    return model


@pytest.fixture(scope="module")
def charged_model(tmp_path_factory) -> Path:
    """A model whose charges are learnt, of species and by surroundings."""
    path = tmp_path_factory.mktemp("charged") / "w.pt"
    model = charged.make(
        trainable=True,
        environment={"neuron": [6]},
        accuracy=1e-6,
        descriptor={**charged.MODEL["descriptor"], "sel": [60, 120]},
    )
    checkpoint.save(path, model)
    return path


@pytest.mark.parametrize(
    ("n_ranks", "kind"), [(8, "springs"), (3, "potential"), (4, "charges"), (3, "charged potential")]
)
def test_ranks_agree_with_one_process(tmp_path, model, charged_model, n_ranks, kind):
    """To 1e-10 for each number of ranks and each kind of structure; the program itself compares."""
    what = {"potential": str(model), "charged potential": str(charged_model)}.get(kind, kind)
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


def test_charges_are_served_by_structures_in_parts(tmp_path, charged_model):
    """What a peer is told is what one process finds."""
    frames = structures.water((3, 3, 3))
    options = ["--model", str(charged_model), "--species", "O H H", "--once", "--decompose", "space"]
    expected = checkpoint.load(charged_model, "cpu", threads=1).evaluate(frames)
    with (
        Peer() as peer,
        mpi_job(tmp_path / "log", 3, ["-m", "dpserver", *options, "--connect", peer.endpoint]) as job,
    ):
        job.wait_for(lambda: "dialling" in job.said)
        with peer.accept() as line:
            line.handshake()
            reply = line.ask(frames.positions, frames.cell[0])
            np.testing.assert_allclose(reply.energy, expected.energy, rtol=1e-10)
            np.testing.assert_allclose(reply.forces[0], expected.forces, atol=1e-10)
            np.testing.assert_allclose(reply.virial[0], expected.virial[0], atol=1e-9)
            line.send(EXIT)
        assert job.wait() == 0, job.said
    assert "1 structure of 81 atoms: each structure in 3 parts over 3 ranks" in job.said, job.said


def test_ipi_takes_back_what_a_lost_rank_had(tmp_path):
    """A rank is killed within a step; a job that is started by hand while i-PI waits finishes the same trajectory."""
    pytest.importorskip("ipi")
    frames, last, program = structures.water((3, 3, 3)), [], [str(HERE / "program.py")]
    for events in ([[]], [["kill", "1"], []]):
        folder, endpoint = tmp_path / f"{len(events)}", free_endpoint()
        folder.mkdir()
        write_input(folder, frames, endpoint, n_steps=6)
        with ipi(folder) as process:
            for event in events:
                with mpi_job(folder / f"log{len(event)}", 3, [*program, endpoint, *event]) as job:
                    assert job.wait() == (5 if event else 0), job.said
                    assert ("rank 1" in job.said) == bool(event), job.said
                    assert (process.poll() is None) or not event
            finish(process, folder)
        last.append(last_positions(folder))
    np.testing.assert_allclose(last[1], last[0], rtol=0, atol=1e-10)


def test_models_beside_the_one_of_energies_are_on_all_ranks(tmp_path, model):
    """Dipoles, polarizabilities and Born charges of a structure in three parts, as the extras of one process."""
    frames = structures.water((3, 3, 3))
    options = ["--model", str(model), "--species", "O H H", "--once", "--decompose", "space", "--born-charges"]
    others = {kind: tensor_file(tmp_path / f"{kind}.pt", kind) for kind in ("dipole", "polar")}
    for kind in others:
        options += [f"--{kind}", str(tmp_path / f"{kind}.pt")]
    expected = Accompanied(checkpoint.load(model, "cpu"), **others, has_born_charges=True).evaluate(frames)
    with (
        Peer() as peer,
        mpi_job(tmp_path / "log", 3, ["-m", "dpserver", *options, "--connect", peer.endpoint]) as job,
    ):
        job.wait_for(lambda: "dialling" in job.said)
        with peer.accept() as line:
            line.handshake(b" ")
            line.send(posdata(frames.positions, frames.cell[0]), GETFORCE)
            raw = line.receive(12 + 8 + 4 + 24 * frames.n_atoms + 72 + 4)
            found = json.loads(line.receive(struct.unpack_from("=i", raw, len(raw) - 4)[0]))
            line.send(EXIT)
        assert job.wait() == 0, job.said
    assert "1 structure of 81 atoms: each structure in 3 parts over 3 ranks" in job.said, job.said
    assert struct.unpack_from("=d", raw, 12)[0] * HARTREE == pytest.approx(expected.energy[0], rel=1e-10)
    units = {"dipole": ("dipole", BOHR), "polarizability": ("polar", BOHR**3), "BEC": ("born_charges", 1.0)}
    for name, (attribute, unit) in units.items():
        ours = getattr(expected.responses, attribute)
        np.testing.assert_allclose(
            np.ravel(found[name]) * unit, ours.ravel(), rtol=1e-6, atol=1e-8 * np.abs(ours).max(), err_msg=name
        )


def test_a_companion_that_cannot_be_used_is_said_once(tmp_path, model):
    options = ["--model", str(model), "--dipole", str(model), "--unix", "nobody"]
    with mpi_job(tmp_path / "log", 2, ["-m", "dpserver", *options], ["-disable-auto-cleanup"]) as job:
        assert job.wait() == 3, job.said
        assert job.said.count("error:") == job.said.count("is a model of energies, expected") == 1, job.said


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
        pause, n = Patience().longest, 3000
        since, looks, used, mine = time.monotonic(), sleeps(worker), cpu_seconds(worker), time.thread_time()
        for _ in range(n):
            time.sleep(pause)
        looks, used, mine = sleeps(worker) - looks, cpu_seconds(worker) - used, time.thread_time() - mine
        assert 0 < looks < (time.monotonic() - since) / pause + 10
        # A look costs 1 to 2.4 times what a pause does; who never sleeps uses 25 times as much.
        assert used < 3 * mine * looks / n + 0.05


def sleeps(pid: int) -> int:
    """How often the main thread of a process has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)[1])
