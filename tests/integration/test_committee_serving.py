"""A committee through the daemon: what real i-PI makes of its extras, and that ASE beside it is not disturbed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpserver.frames import CommitteeResult, ForceResult, Frames
from dpserver.units import BOHR, HARTREE, HARTREE_PER_BOHR
from tests import structures
from tests.daemon.serving import serving, target
from tests.engine.committees import PairCommittee
from tests.integration.ipi_runs import (
    N_STEPS,
    cell_bohr,
    energies,
    finish,
    ipi,
    last_positions,
    start,
    verlet,
    write_input,
)
from tests.patience import JOB_PATIENCE
from tests.peer import Peer

pytest.importorskip("ipi")

FRAMES = structures.cubic()
BATCHED = "<batch_size> 4 </batch_size>"
TRAJECTORY = "<trajectory filename='{0}' stride='1' extra_type='{0}'> extras </trajectory>"


@pytest.fixture
def endpoint() -> str:
    """A place where nobody listens yet."""
    with Peer() as place:
        return place.endpoint


def ask_for(folder: Path, keys: list[str], *, is_committee: bool) -> None:
    """Have i-PI print extras, and take a committee apart."""
    path = folder / "input.xml"
    text = path.read_text()
    text = text.replace("</output>", "".join(TRAJECTORY.format(key) for key in keys) + "</output>")
    if is_committee:
        text = text.replace("<ffsocket", "<ffcommittee name='dp'> <parse_json> True </parse_json> <ffsocket")
        text = text.replace("name='dp' pbc", "name='members' pbc").replace("</ffsocket>", "</ffsocket> </ffcommittee>")
    path.write_text(text)


def printed(folder: Path, key: str, bead: int = 0) -> np.ndarray:
    """All numbers of an extra, one row for each step."""
    blocks = (folder / f"run.{key}_{bead}").read_text().split("#EXTRAS")[1:]
    rows = [[float(word) for line in block.splitlines()[1:] for word in line.split()] for block in blocks]
    return np.array(rows)


def evaluate(x_bohr: np.ndarray) -> tuple[ForceResult, CommitteeResult]:
    result = PairCommittee().evaluate(Frames.single(x_bohr * BOHR, FRAMES.types, cell_bohr(FRAMES) * BOHR))
    assert result.committee is not None
    return result, result.committee


def test_ffcommittee_takes_the_members_apart(tmp_path: Path, endpoint: str) -> None:
    """Its mean drives the dynamics, which is that of the mean model; its uncertainty is the spread of our members."""
    keys = ["committee_pot", "committee_uncertainty", "committee_force", "committee_virial"]
    write_input(tmp_path, FRAMES, endpoint)
    ask_for(tmp_path, [*keys, "committee_max_force_deviation"], is_committee=True)
    with serving(PairCommittee(), target(endpoint)), ipi(tmp_path) as process:
        finish(process, tmp_path)
    expected_energies, expected_positions = verlet(FRAMES)
    np.testing.assert_allclose(energies(tmp_path), expected_energies, rtol=1e-8)
    np.testing.assert_allclose(last_positions(tmp_path), expected_positions, rtol=0, atol=1e-8)
    for step, x_bohr in ((0, start(FRAMES)[0]), (N_STEPS, expected_positions)):
        result, members = evaluate(x_bohr)
        found = {key: printed(tmp_path, key)[step] for key in keys}
        np.testing.assert_allclose(found["committee_pot"], members.energy[:, 0] / HARTREE, rtol=1e-6)
        spread = (members.energy[:, 0] / HARTREE).std(ddof=1)
        np.testing.assert_allclose(found["committee_uncertainty"], [spread], rtol=1e-6)
        assert spread > 1e-3
        np.testing.assert_allclose(found["committee_force"], members.forces.ravel() / HARTREE_PER_BOHR, atol=1e-8)
        np.testing.assert_allclose(found["committee_virial"], members.virial.ravel() / HARTREE, atol=1e-7)
        deviation = printed(tmp_path, "committee_max_force_deviation")[step]
        np.testing.assert_allclose(deviation, result.max_force_deviation() / HARTREE_PER_BOHR, rtol=1e-6)


@pytest.mark.parametrize(("options", "connections"), [("", 2), (BATCHED, 1)])
def test_every_bead_has_extras(tmp_path: Path, endpoint: str, options: str, connections: int) -> None:
    """In a plain `<ffsocket>` too; a short batch of i-PI is filled up with copies, which have them as well."""
    keys = ["committee_pot", "max_force_deviation"]
    write_input(tmp_path, FRAMES, endpoint, options, n_beads=6, n_steps=2)
    ask_for(tmp_path, keys, is_committee=False)
    with serving(PairCommittee(), target(endpoint, connections=connections)), ipi(tmp_path) as process:
        finish(process, tmp_path)
    result, members = evaluate(start(FRAMES)[0])
    for bead in range(6):
        np.testing.assert_allclose(
            printed(tmp_path, "committee_pot", bead)[0], members.energy[:, 0] / HARTREE, rtol=1e-6
        )
        np.testing.assert_allclose(
            printed(tmp_path, "max_force_deviation", bead)[0],
            result.max_force_deviation() / HARTREE_PER_BOHR,
            rtol=1e-6,
        )
        assert printed(tmp_path, "committee_pot", bead).shape == (3, 3)


def test_ase_on_the_same_daemon_gets_the_mean(tmp_path: Path, endpoint: str) -> None:
    socketio = pytest.importorskip("ase.calculators.socketio")
    from ase import Atoms

    with Peer() as place:
        other = place.endpoint
    write_input(tmp_path, FRAMES, endpoint, n_steps=10)
    ask_for(tmp_path, ["committee_pot"], is_committee=True)
    expected = PairCommittee().evaluate(FRAMES)
    with (
        serving(PairCommittee(), target(endpoint), target(other)),
        ipi(tmp_path) as process,
        socketio.SocketIOCalculator(
            unixsocket=other.removeprefix("unix:/tmp/ipi_"), timeout=JOB_PATIENCE
        ) as calculator,
    ):
        atoms = Atoms("OHH" * 8, FRAMES.positions, cell=FRAMES.cell[0], pbc=True, calculator=calculator)
        for _ in range(3):
            atoms.rattle(1e-12)
            assert atoms.get_potential_energy() == pytest.approx(expected.energy[0], rel=1e-9)
            np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-8)
        finish(process, tmp_path)
    assert printed(tmp_path, "committee_pot").shape == (11, 3)
