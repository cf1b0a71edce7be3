"""Dipoles beside the forces in real i-PI: printed as extras, and driving the dynamics in an electric field."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dpserver.engine import Accompanied
from dpserver.frames import ForceResult, Frames, Responses
from dpserver.models.tensors import TensorModel
from dpserver.units import BOHR, HARTREE_PER_BOHR
from tests import structures
from tests.daemon.serving import serving, target
from tests.doubles import PairModel
from tests.integration.ipi_runs import (
    TIME_STEP,
    cell_bohr,
    finish,
    free_endpoint,
    ipi,
    last_positions,
    start,
    verlet,
    write_input,
)
from tests.integration.test_committee_serving import ask_for, printed
from tests.models.test_tensors import make

pytest.importorskip("ipi")

FRAMES = structures.cubic()
FIELD = np.array([0.02, -0.03, 0.05])  # Hartree/(e Bohr), strong enough to be seen
N_STEPS = 10
DRIVEN = f"""
    <motion mode='driven_dynamics'>
      <fixcom> False </fixcom>
      <driven_dynamics mode='eda-nve'>
        <timestep> {TIME_STEP} </timestep>
        <bec mode='driver'> </bec>
        <efield> <amp> [ {", ".join(map(str, FIELD))} ] </amp> </efield>
      </driven_dynamics>
    </motion>
"""


@pytest.fixture(scope="module")
def dipole() -> TensorModel:
    return make(type="dipole", sel_type=[0])


def served(dipole: TensorModel) -> Accompanied:
    return Accompanied(PairModel(), dipole, make(type="polar"), has_born_charges=True)


def evaluate(dipole: TensorModel, x_bohr: np.ndarray) -> tuple[ForceResult, Responses]:
    result = served(dipole).evaluate(Frames.single(x_bohr * BOHR, FRAMES.types, cell_bohr(FRAMES) * BOHR))
    assert result.responses is not None
    return result, result.responses


@pytest.mark.parametrize(
    ("options", "connections"), [("", 3), ("<batch_size> 4 </batch_size>", 1)], ids=["connections", "native batch"]
)
def test_every_bead_has_its_dipole(tmp_path: Path, dipole: TensorModel, options: str, connections: int) -> None:
    endpoint = free_endpoint()
    write_input(tmp_path, FRAMES, endpoint, options, n_beads=6, n_steps=2)
    ask_for(tmp_path, ["dipole", "BEC", "polarizability"], is_committee=False)
    with serving(served(dipole), target(endpoint, connections=connections)), ipi(tmp_path) as process:
        finish(process, tmp_path)
    beads = last_positions(tmp_path).reshape(6, -1, 3)
    distinct = set()
    for bead, x_bohr in enumerate(beads):
        _, expected = evaluate(dipole, x_bohr)
        assert expected.dipole is not None
        assert expected.polar is not None
        assert expected.born_charges is not None
        rows = printed(tmp_path, "dipole", bead)
        assert rows.shape == (3, 3)
        np.testing.assert_allclose(rows[-1], expected.dipole[0] / BOHR, rtol=1e-6, atol=1e-9)
        alpha = printed(tmp_path, "polarizability", bead)[-1].reshape(3, 3)
        np.testing.assert_allclose(alpha, expected.polar[0] / BOHR**3, rtol=1e-6, atol=1e-9)
        charges = printed(tmp_path, "BEC", bead)[-1].reshape(-1, 3, 3)
        np.testing.assert_allclose(charges, expected.born_charges, rtol=1e-6, atol=1e-9)
        distinct.add(tuple(np.round(rows[-1], 5)))
    assert len(distinct) == 6


def test_an_electric_field_drives_the_dynamics(tmp_path: Path, dipole: TensorModel) -> None:
    """The force of a field E on an atom is Z E: velocity Verlet of our own with it, in atomic units."""
    endpoint = free_endpoint()
    write_input(tmp_path, FRAMES, endpoint, n_steps=N_STEPS)
    path = tmp_path / "input.xml"
    text = re.sub(r"<motion mode='dynamics'>.*</motion>", DRIVEN, path.read_text(), flags=re.DOTALL)
    path.write_text(text.replace("conserved ]", "conserved, dipole(bead=0) ]"))
    with serving(served(dipole), target(endpoint)), ipi(tmp_path) as process:
        finish(process, tmp_path)
    x, v, masses, _ = start(FRAMES)
    dipoles = []

    def acceleration(x_bohr: np.ndarray) -> np.ndarray:
        result, responses = evaluate(dipole, x_bohr)
        assert responses.born_charges is not None
        assert responses.dipole is not None
        dipoles.append(responses.dipole[0] / BOHR)
        return (result.forces / HARTREE_PER_BOHR + responses.born_charges @ FIELD) / masses[:, None]

    a = acceleration(x)
    for _ in range(N_STEPS):
        v = v + 0.5 * TIME_STEP * a
        x = x + TIME_STEP * v
        a = acceleration(x)
        v = v + 0.5 * TIME_STEP * a
    np.testing.assert_allclose(last_positions(tmp_path), x, rtol=0, atol=1e-7)
    columns = np.loadtxt(tmp_path / "run.out")
    np.testing.assert_allclose(columns[:, 3:], dipoles, rtol=1e-6, atol=1e-8)
    assert np.abs(x - verlet(FRAMES, N_STEPS)[1]).max() > 1e-4, "the field is too weak to test anything"
