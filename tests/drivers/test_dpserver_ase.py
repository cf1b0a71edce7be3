"""The calculator that starts a daemon for itself, against the same model in this process."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest

ase = pytest.importorskip("ase")

from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError  # noqa: E402

from dpserver.ase import DPCalculator  # noqa: E402
from dpserver.models import checkpoint  # noqa: E402
from tests import structures  # noqa: E402
from tests.models.test_se_e2_a import make  # noqa: E402
from tests.test_ase import to_atoms  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dpserver_ase(monkeypatch: pytest.MonkeyPatch):
    """The driver's module, found as a user finds it; the daemon is that of this tree."""
    monkeypatch.syspath_prepend(ROOT / "drivers" / "ase")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    import dpserver_ase

    return dpserver_ase


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "w.pt"
    checkpoint.save(path, make())
    return path


def same(atoms: ase.Atoms, reference: DPCalculator) -> None:
    """Energy, forces and stress are those of the in-process calculator."""
    other = atoms.copy()
    other.calc = reference
    np.testing.assert_allclose(atoms.get_potential_energy(), other.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), other.get_forces(), rtol=0, atol=1e-11)
    if atoms.pbc.all():
        np.testing.assert_allclose(atoms.get_stress(), other.get_stress(), rtol=0, atol=1e-12)
    else:
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()


def test_one_daemon_for_all_atoms_of_one_order(dpserver_ase, model: Path) -> None:
    reference = DPCalculator(model)
    first, second = to_atoms(structures.cubic()), to_atoms(structures.cubic())
    second.rattle(0.02, seed=1)
    second.set_cell(second.cell @ structures.SHEAR, scale_atoms=True)
    with dpserver_ase.DPServer(model) as calc:
        first.calc = second.calc = calc
        same(first, reference)
        daemon = calc._daemon.process
        same(second, reference)
        for pbc in ([True, True, False], False, True):
            first.pbc = pbc
            same(first, reference)
        assert calc._daemon.process is daemon
    assert daemon.returncode == 0


def test_other_species_and_refused_structures_take_another_daemon(dpserver_ase, model: Path) -> None:
    reference = DPCalculator(model)
    atoms = to_atoms(structures.cubic())
    with dpserver_ase.DPServer(model, device="cpu", precision="double") as calc:
        atoms.calc = calc
        same(atoms, reference)
        first = calc._daemon.process
        turned_round = atoms[::-1]
        turned_round.calc = calc
        same(turned_round, reference)
        assert first.returncode == 0
        turned_round.positions[3] = np.nan
        for _ in range(2):
            with pytest.raises(CalculationFailed, match="the position of atom 3 is not finite"):
                turned_round.get_forces()
        assert calc._daemon is None


def test_daemon_that_does_not_start(dpserver_ase, model: Path, tmp_path: Path) -> None:
    atoms = to_atoms(structures.molecule())
    with dpserver_ase.DPServer(tmp_path / "none.pt") as atoms.calc, pytest.raises(CalculationFailed) as caught:
        atoms.get_forces()
    assert f"model file {tmp_path}/none.pt does not exist" in str(caught.value)
    with (
        dpserver_ase.DPServer(model, command=["/no/such/program"]) as atoms.calc,
        pytest.raises(CalculationFailed, match="/no/such/program"),
    ):
        atoms.get_forces()


def test_unknown_species(dpserver_ase, model: Path) -> None:
    atoms = ase.Atoms("SH2", structures.molecule().positions)
    with (
        dpserver_ase.DPServer(model) as atoms.calc,
        pytest.raises(CalculationFailed, match=r"species 'S' .* is unknown to the model"),
    ):
        atoms.get_forces()


def test_daemon_goes_with_the_calculator(dpserver_ase, tmp_path: Path) -> None:
    """A forgotten calculator takes its process along; a stand-in that would wait for ever shows it quickly."""
    script = tmp_path / "waits.py"
    script.write_text("import time\ntime.sleep(600)\n", encoding="utf-8")
    daemon = dpserver_ase._Daemon([sys.executable, str(script)], to_atoms(structures.molecule()))
    process = daemon.process
    assert process.poll() is None
    del daemon
    gc.collect()
    assert process.returncode == -15
