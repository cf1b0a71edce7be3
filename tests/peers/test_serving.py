"""DeePMD-kit behind the socket: its own driver beside the daemon, and models that only it can evaluate."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py")
pytest.importorskip("google.protobuf")

from dpserver.frames import Frames
from tests import structures
from tests.patience import JOB_PATIENCE
from tests.peer import EXIT, GETFORCE, Line, Peer, Reply, posdata, read_reply, reply_size
from tests.peers.cases import CASES
from tests.peers.conftest import DeePMDKit

pytestmark = pytest.mark.peer

SAYS = len(b"nothing")  # as extras
NAMES = ("OW", "HW")
OLDER_CONSTANTS = 3e-8
"""How far those of dp_ipi lie from those of i-PI, relative."""

DPA3: dict[str, Any] = {
    "type_map": ["O", "H"],
    "descriptor": {
        "type": "dpa3",
        "repflow": {
            "n_dim": 8, "e_dim": 6, "a_dim": 4, "nlayers": 2, "axis_neuron": 2,
            "e_rcut": 4.0, "e_rcut_smth": 3.5, "e_sel": 80, "a_rcut": 3.0, "a_rcut_smth": 2.5, "a_sel": 40,
        },
    },
    "fitting_net": {"neuron": [8, 8]},
}  # fmt: skip


@contextmanager
def running(folder: Path, *command: object) -> Iterator[subprocess.Popen[str]]:
    """A driver, killed at the end; its output is in `log`."""
    with (folder / "log").open("w") as log:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        process = subprocess.Popen(
            list(map(str, command)), cwd=folder, stdout=log, stderr=log, env=environment, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def accept(peer: Peer, process: subprocess.Popen[str], folder: Path) -> Line:
    """The connection of a driver that takes its time to start."""
    peer.listener.settimeout(1.0)
    for _ in range(int(JOB_PATIENCE)):
        try:
            line = peer.accept()
        except TimeoutError:
            if process.poll() is None:
                continue
            break
        line.sock.settimeout(JOB_PATIENCE)
        return line
    pytest.fail((folder / "log").read_text()[-2000:])


def write_water(folder: Path, frame: Frames, model: Path, peer: Peer) -> Path:
    """An input of dp_ipi."""
    lines = [f"{NAMES[kind]} 0 0 0" for kind in frame.types]
    (folder / "conf.xyz").write_text("\n".join([str(len(lines)), "water", *lines]) + "\n")
    given = {
        "verbose": False, "use_unix": True, "port": 31415, "host": str(peer.address).removeprefix("/tmp/ipi_"),
        "graph_file": str(model), "coord_file": "conf.xyz", "atom_type": {"OW": 0, "HW": 1},
    }  # fmt: skip
    (folder / "water.json").write_text(json.dumps(given))
    return folder / "water.json"


def answer(line: Line, frame: Frames, says: int) -> Reply:
    """The reply to one structure."""
    line.send(posdata(frame.positions, frame.cell[0]), GETFORCE)
    return read_reply(line.receive(reply_size(frame.n_atoms) - 1 + says))


@pytest.mark.parametrize("frame", [structures.cubic(), structures.triclinic()], ids=["cubic", "triclinic"])
def test_the_daemon_answers_as_dp_ipi(deepmd_kit: DeePMDKit, peer_python: Path, tmp_path: Path, frame: Frames) -> None:
    """With the very file that dp_ipi is started with, by its own networks and through DeePMD-kit."""
    source = deepmd_kit.make(CASES["se_e2_a"].parameters, tmp_path / "model.dp")
    model = deepmd_kit.convert(source, tmp_path / "graph.pb")
    moved = structures.moved(frame, np.random.default_rng(3).normal(scale=0.1, size=(frame.n_atoms, 3)))
    commands: dict[str, list[object]] = {
        "dp_ipi": [peer_python.with_name("dp_ipi"), "water.json"],
        "native": [peer_python, "-m", "dpserver", "--dp-ipi", "water.json", "--once"],
        "deepmd": [peer_python, "-m", "dpserver", "--dp-ipi", "water.json", "--once", "--backend", "deepmd"],
    }
    replies = {}
    for name, command in commands.items():
        with Peer() as peer, running(tmp_path, *command) as process:
            write_water(tmp_path, frame, model, peer)
            with accept(peer, process, tmp_path) as line:
                replies[name] = [answer(line, f, SAYS if name == "dp_ipi" else 1) for f in (frame, moved)]
                line.send(EXIT)
            assert name == "dp_ipi" or process.wait(JOB_PATIENCE) == 0, (tmp_path / "log").read_text()
    for name in ("native", "deepmd"):
        for expected, found in zip(replies["dp_ipi"], replies[name], strict=True):
            np.testing.assert_allclose(found.energy, expected.energy, rtol=OLDER_CONSTANTS)
            size = np.abs(expected.forces).max()
            np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=10 * OLDER_CONSTANTS * size)
            size = np.abs(expected.virial).max()
            np.testing.assert_allclose(found.virial, expected.virial, rtol=0, atol=10 * OLDER_CONSTANTS * size)


def test_a_model_only_deepmd_kit_knows_is_served(deepmd_kit: DeePMDKit, peer_python: Path, tmp_path: Path) -> None:
    model = deepmd_kit.make(DPA3, tmp_path / "frozen.pth")
    frame = structures.triclinic()
    expected = deepmd_kit.evaluate(model, frame)
    with Peer() as peer:
        options = ["--unix", peer.address, "--species", "O H H", "--once"]
        command = [peer_python, "-m", "dpserver", "--model", model, *options]
        with running(tmp_path, *command) as process:
            assert process.wait(JOB_PATIENCE) == 3
        log = (tmp_path / "log").read_text()
        assert "its descriptor is DPA-3, not supported" in log
        assert "`dpserver --backend deepmd` serves this one through it" in log
        with running(tmp_path, *command, "--backend", "deepmd") as process, accept(peer, process, tmp_path) as line:
            line.handshake()
            reply = answer(line, frame, 1)
            line.send(EXIT)
            assert process.wait(JOB_PATIENCE) == 0
    np.testing.assert_allclose(reply.energy, expected["energy"], rtol=1e-10)
    np.testing.assert_allclose(reply.forces[0], expected["forces"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(reply.virial, expected["virial"], rtol=0, atol=1e-9)
