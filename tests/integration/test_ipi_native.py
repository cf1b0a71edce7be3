"""The native modes of i-PI: batches and shared memory, against the same beads one by one over a unix socket."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dpserver.transport.shm import SEGMENTS
from tests import structures
from tests.daemon.serving import serving, target
from tests.doubles import PairModel
from tests.integration.ipi_runs import address, finish, free_endpoint, ipi, last_positions, write_input

pytest.importorskip("ipi")

FRAMES = structures.cubic()
N_BEADS = 6
N_STEPS = 8
CLASSIC = "<consolidate_messages> False </consolidate_messages>"


def batch(size: int) -> str:
    return f"<batch_size> {size} </batch_size>"


@dataclass(frozen=True)
class Mode:
    """How i-PI hands its beads out, and over how many connections."""

    kind: str
    options: str = ""
    connections: int | None = 1


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> np.ndarray:
    """Last positions when the beads are served one by one, (n_beads n_atoms, 3), Bohr."""
    folder, endpoint = tmp_path_factory.mktemp("expected"), free_endpoint()
    write_input(folder, FRAMES, endpoint, n_beads=N_BEADS, n_steps=N_STEPS)
    with serving(PairModel(), target(endpoint)), ipi(folder) as process:
        finish(process, folder)
    return last_positions(folder)


def segments_of(pid: int) -> list[str]:
    return [name for name in os.listdir(SEGMENTS) if name.startswith(f"ipi_shm_{pid}_")]


@pytest.mark.parametrize(
    ("mode", "batches"),
    [
        (Mode("inet", batch(4)), {4, 2}),
        (Mode("unix", batch(4), 2), {4, 2, 6}),
        (Mode("unix", batch(32), None), {6}),
        (Mode("shm"), {1}),
        (Mode("shm", CLASSIC), {1}),
        (Mode("shm", "", 3), {1, 2, 3}),
        (Mode("shm", batch(4)), {4, 2}),
        (Mode("shm", batch(2), 3), {2, 4, 6}),
    ],
    ids=lambda value: "-".join(map(str, vars(value).values())) if isinstance(value, Mode) else None,
)
def test_the_trajectory_is_that_of_single_beads(tmp_path, mode, batches, expected):
    """Copies are computed once: those that fill a batch up, and the beads of the first step, which are all the same."""
    endpoint = free_endpoint(mode.kind)
    write_input(tmp_path, FRAMES, endpoint, mode.options, n_beads=N_BEADS, n_steps=N_STEPS)
    model = PairModel()
    with serving(model, target(endpoint, connections=mode.connections)), ipi(tmp_path) as process:
        finish(process, tmp_path)
    np.testing.assert_allclose(last_positions(tmp_path), expected, rtol=1e-12)
    assert N_BEADS * N_STEPS < sum(model.batches) <= N_BEADS * (N_STEPS + 1)
    assert set(model.batches) <= batches | {1, 2, 3}
    assert not segments_of(process.pid)


def test_several_force_fields_at_once(tmp_path):
    """One over a unix socket and one in shared memory, in batches of different sizes; their forces are summed."""
    results = []
    for kinds, sizes in ((("unix", "unix"), (1, 1)), (("unix", "shm"), (4, 5))):
        folder = tmp_path / kinds[1]
        folder.mkdir()
        first, second = (free_endpoint(kind) for kind in kinds)
        write_input(folder, FRAMES, first, batch(sizes[0]), n_beads=N_BEADS, n_steps=N_STEPS)
        path = folder / "input.xml"
        other = f"<ffsocket mode='{kinds[1]}' name='b' pbc='false'> {address(second)} {batch(sizes[1])} </ffsocket>"
        text = path.read_text().replace("</ffsocket>", f"</ffsocket> {other}")
        path.write_text(text.replace("</forces>", "<force forcefield='b'/> </forces>"))
        with serving(PairModel(), target(first), target(second)), ipi(folder) as process:
            finish(process, folder)
        results.append(last_positions(folder))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-12)


def test_a_connection_that_is_refused_in_shared_memory_is_made_anew(tmp_path, expected, monkeypatch):
    """New segments come with the new connection, the old ones are given back, and the trajectory is the same."""
    from dpserver.engine import Assigner
    from dpserver.errors import StructureError
    from dpserver.frames import Frames
    from dpserver.ipi import Structures

    make, calls = Assigner.frames, []

    def refuse_some(self: Assigner, sent: Structures) -> Frames:
        calls.append(len(calls))
        if calls[-1] in {0, 3, 4, 9}:
            raise StructureError("refused for the sake of the test")
        return make(self, sent)

    monkeypatch.setattr(Assigner, "frames", refuse_some)
    endpoint = free_endpoint("shm")
    write_input(tmp_path, FRAMES, endpoint, batch(4), n_beads=N_BEADS, n_steps=N_STEPS)
    n_files = len(os.listdir("/proc/self/fd"))
    with serving(PairModel(), target(endpoint)), ipi(tmp_path) as process:
        finish(process, tmp_path)
    np.testing.assert_allclose(last_positions(tmp_path), expected, rtol=1e-12)
    assert len(os.listdir("/proc/self/fd")) == n_files


@pytest.mark.parametrize(("listens", "dialled"), [("shm", "unix"), ("unix", "shm")])
@pytest.mark.parametrize("size", [1, 4])
def test_the_wrong_kind_of_endpoint_is_said_to_be_wrong(tmp_path, caplog, listens, dialled, size):
    endpoint = free_endpoint(listens)
    write_input(tmp_path, FRAMES, endpoint, batch(size), n_beads=N_BEADS, n_steps=N_STEPS)
    path: Path = tmp_path / "input.xml"
    assert re.search(f"mode='{listens}'", path.read_text())
    wrong = target(endpoint.replace(f"{listens}:", f"{dialled}:"))
    with serving(PairModel(), wrong, is_once=True) as served, ipi(tmp_path):
        assert served.result() == 4
    said = "mode='shm'; dial it as shm:NAME" if listens == "shm" else "atoms in each of|dial it as unix:NAME"
    assert re.search(said, caplog.text)
