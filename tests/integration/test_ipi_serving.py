"""Real i-PI dynamics through the daemon."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpserver.daemon import ExitCode
from dpserver.frames import Frames
from dpserver.ipi import Structures
from dpserver.units import BOHR, HARTREE_PER_BOHR
from tests import structures
from tests.daemon.serving import WATER, serving, target
from tests.doubles import PairModel
from tests.integration.ipi_runs import (
    N_STEPS,
    cell_bohr,
    energies,
    finish,
    first_forces,
    ipi,
    last_positions,
    start,
    upright,
    verlet,
    write_input,
)
from tests.peer import Peer

pytest.importorskip("ipi")


@pytest.fixture
def endpoint(request) -> str:
    """A place where nobody listens yet; unix unless a test asks for inet."""
    with Peer(0 if getattr(request, "param", "unix") == "inet" else "unix") as place:
        return place.endpoint


# i-PI leaves consolidated messages out when told so: then it is the i-PI of before 3.2.
MESSAGES = {"consolidated": "", "classic": "<consolidate_messages> False </consolidate_messages>"}
BATCHED = "<batch_size> 4 </batch_size>"
FRAMES = {"cubic": structures.cubic(), "triclinic": upright(structures.water((2, 2, 2), structures.SHEAR))}


@pytest.mark.parametrize(
    ("endpoint", "messages", "name"),
    [
        ("unix", "consolidated", "triclinic"),
        ("inet", "consolidated", "cubic"),
        ("unix", "classic", "cubic"),
        ("inet", "classic", "triclinic"),
    ],
    indirect=["endpoint"],
)
def test_nve_is_velocity_verlet_on_the_model(tmp_path, endpoint, messages, name):
    frames = FRAMES[name]
    write_input(tmp_path, frames, endpoint, MESSAGES[messages])
    with serving(PairModel(), target(endpoint), is_once=True) as served, ipi(tmp_path) as process:
        finish(process, tmp_path)
        assert served.result() is ExitCode.STOPPED
    expected_energies, expected_positions = verlet(frames)
    np.testing.assert_allclose(energies(tmp_path), expected_energies, rtol=1e-8)
    np.testing.assert_allclose(last_positions(tmp_path), expected_positions, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("endpoint", "options", "connections"),
    [("unix", "", 1), ("inet", "", 3), ("unix", BATCHED, 3), ("inet", BATCHED, 1)],
    indirect=["endpoint"],
)
def test_beads_are_all_served(tmp_path, endpoint, options, connections):
    """Each of six beads at one point gets the forces of that point."""
    frames = FRAMES["cubic"]
    x, _, _, _ = start(frames)
    write_input(tmp_path, frames, endpoint, options, n_beads=6, n_steps=4)
    model = PairModel()
    with serving(model, target(endpoint, connections=connections)), ipi(tmp_path) as process:
        finish(process, tmp_path)
    np.testing.assert_allclose(energies(tmp_path)[0], verlet(frames, 0)[0][0], rtol=1e-8)
    result = model.evaluate(Frames.single(x * BOHR, frames.types, cell_bohr(frames) * BOHR))
    for bead in range(6):
        served_forces = first_forces(tmp_path, frames.n_atoms, bead)
        np.testing.assert_allclose(served_forces, result.forces / HARTREE_PER_BOHR, rtol=1e-5)


def test_the_parameters_of_the_forcefield_name_the_template(tmp_path, endpoint, caplog):
    caplog.set_level("INFO")
    frames = FRAMES["cubic"]
    template = tmp_path / "w.xyz"
    template.write_text("3\n\nO 0 0 0\nH 0 0 1\nH 0 1 0\n")
    options = f"<parameters> {{ template: {template} }} </parameters>"
    write_input(tmp_path, frames, endpoint, options, n_steps=2)
    with serving(PairModel(), target(endpoint, None)), ipi(tmp_path) as process:
        finish(process, tmp_path)
    np.testing.assert_allclose(energies(tmp_path), verlet(frames, 2)[0], rtol=1e-8)
    assert f"from the peer's INIT template ({template})" in caplog.text


def test_a_refused_frame_is_queued_again_and_the_trajectory_is_the_same(tmp_path, endpoint, monkeypatch):
    """The daemon drops its peer in the middle of a run, and dials again."""
    from dpserver.engine import Assigner
    from dpserver.errors import StructureError

    frames, calls = FRAMES["cubic"], []
    make = Assigner.frames

    def refuse_some(self: Assigner, sent: Structures) -> Frames:
        calls.append(len(calls))
        if calls[-1] in {0, 5, 6, 11}:
            raise StructureError("refused for the sake of the test")
        return make(self, sent)

    monkeypatch.setattr(Assigner, "frames", refuse_some)
    write_input(tmp_path, frames, endpoint)
    with serving(PairModel(), target(endpoint)), ipi(tmp_path) as process:
        finish(process, tmp_path)
    expected_energies, expected_positions = verlet(frames)
    np.testing.assert_allclose(energies(tmp_path), expected_energies, rtol=1e-8)
    np.testing.assert_allclose(last_positions(tmp_path), expected_positions, rtol=0, atol=1e-8)
    assert len(calls) == N_STEPS + 1 + 4


def test_two_simulations_and_one_that_is_killed(tmp_path):
    frames = FRAMES["cubic"]
    endpoints = []
    for name in ("a", "b", "killed"):
        with Peer() as place:
            endpoints.append(place.endpoint)
        (tmp_path / name).mkdir()
        write_input(tmp_path / name, frames, endpoints[-1], n_steps=N_STEPS if name != "killed" else 100_000)
    with (
        serving(PairModel(), *(target(e, WATER) for e in endpoints)),
        ipi(tmp_path / "a") as a,
        ipi(tmp_path / "b") as b,
    ):
        with ipi(tmp_path / "killed"):
            finish(a, tmp_path / "a")
        finish(b, tmp_path / "b")
    Path(endpoints[-1].removeprefix("unix:")).unlink()  # the killed one could not tidy up
    expected, _ = verlet(frames)
    for name in ("a", "b"):
        np.testing.assert_allclose(energies(tmp_path / name), expected, rtol=1e-8)
