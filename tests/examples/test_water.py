"""Every example of examples/water, run as its README says, with fewer steps and sockets of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import ase.io
import numpy as np
import pytest
from ase import units
from scipy.linalg import solve_continuous_lyapunov

from dpserver.ase import DPCalculator
from dpserver.demo.trajectory import read_properties
from dpserver.units import BOHR, BOLTZMANN, HARTREE
from tests.patience import JOB_PATIENCE, PATIENCE

ROOT = Path(__file__).resolve().parents[2]
WATER = ROOT / "examples" / "water"
N_ATOMS = 192
SHELL = f"""
set -e
dpserver() {{ {sys.executable} -m dpserver "$@"; }}
python() {{ {sys.executable} "$@"; }}
# Without the option Hydra 5.0 kills what is left now and then, when i-PI has left before it was noticed.
mpirun() {{ command mpirun -disable-auto-cleanup "$@"; }}
export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT} DPSERVER_TIMEOUT={PATIENCE:g}
"""


def run(name: str, tmp_path: Path, replacements: dict[str, str]) -> Path:
    """Run the shell block of an example's README in a copy of it.

    Args:
        name: of the example.
        tmp_path: for the copy.
        replacements: of patterns in README and input, each of which must be found.
    """
    for file in WATER.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    folder = tmp_path / name
    shutil.copytree(WATER / name, folder)
    found = dict.fromkeys(replacements, False)
    for file in (f for f in folder.iterdir() if f.suffix in {".xml", ".md", ".py", ".json"}):
        text = file.read_text(encoding="utf-8")
        for old, new in replacements.items():
            text, count = re.subn(old, new, text)
            found[old] |= count > 0
        file.write_text(text, encoding="utf-8")
    assert all(found.values()), found
    commands = re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert commands
    script = SHELL + "\n".join(commands) + "\nwait\n"
    with (folder / "output").open("wb") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script], cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = shell.wait(JOB_PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    said = "".join(file.read_text(encoding="utf-8") for file in (folder / "output", *folder.glob("*.log")))
    assert status == 0, said
    return folder


def run_ipi(name: str, tmp_path: Path, steps: int) -> dict[str, np.ndarray]:
    """Run one of i-PI's examples; returns the columns of its property file."""
    unique = {"water_": f"water_{uuid4().hex[:8]}_", "<total_steps>[^<]*<": f"<total_steps> {steps} <"}
    table = read_properties(run(name, tmp_path, unique) / "simulation.out")
    np.testing.assert_array_equal(table["step"], np.arange(steps + 1))
    return table


def first_energy() -> float:
    """What the in-process calculator says of the initial structure, eV."""
    atoms = ase.io.read(WATER / "water.xyz")
    atoms.calc = DPCalculator(WATER / "w.pt")
    return float(atoms.get_potential_energy())


def check(table: dict[str, np.ndarray], drift: float, temperature: tuple[float, float] = (150.0, 450.0)) -> None:
    """The first energy is the in-process one; the conserved quantity stays within `drift` meV per atom."""
    assert table["potential"][0] * HARTREE == pytest.approx(first_energy(), rel=1e-8)
    change = (table["conserved"] - table["conserved"][0]) * HARTREE * 1e3 / N_ATOMS
    assert np.abs(change).max() < drift, change
    assert np.all((temperature[0] < table["temperature"]) & (table["temperature"] < temperature[1]))


def test_nve(tmp_path: Path) -> None:
    check(run_ipi("ipi-nve", tmp_path, 20), drift=0.3)


def test_nvt(tmp_path: Path) -> None:
    check(run_ipi("ipi-nvt", tmp_path, 20), drift=0.3)


def test_npt(tmp_path: Path) -> None:
    table = run_ipi("ipi-npt", tmp_path, 20)
    check(table, drift=0.3)
    assert len(set(table["volume"])) == 21
    np.testing.assert_allclose(table["volume"], 12.444661**3, rtol=0.02)
    np.testing.assert_allclose(table["density"], 0.992, rtol=0.03)
    assert np.all(np.abs(table["pressure_md"]) < 3000)


def test_pimd(tmp_path: Path) -> None:
    table = run_ipi("ipi-pimd", tmp_path, 6)
    check(table, drift=3.0)
    assert table["kinetic_cv"][0] * HARTREE == pytest.approx(1.5 * N_ATOMS * BOLTZMANN * 300.0, rel=1e-4)


@pytest.mark.parametrize("x", [0.1, 1.0, 4.0, 8.0, 13.0, 18.0])
def test_piglet_fluctuations_are_quantum(x: float) -> None:
    """A harmonic mode of ħω = x kT in the thermostat of input.xml: Σ_k x² <q_k²> / PkT = (x/2) coth(x/2)."""
    text = (WATER / "ipi-piglet" / "input.xml").read_text(encoding="utf-8")
    drift, static = (_matrices(text, name) for name in "AC")
    n_beads, beads_temperature = len(drift), len(drift) * 300.0
    rate = BOLTZMANN / units._hbar * units._e * 1e-12 * 300.0  # kT/ħ, 1/ps
    fluctuation = 0.0
    for k in range(n_beads):
        noise = drift[k] @ static[k] + static[k] @ drift[k].T
        assert np.linalg.eigvalsh(noise).min() > -1e-6 * np.abs(noise).max()
        omega = np.hypot(2 * n_beads * np.sin(np.pi * k / n_beads), x)
        flow = np.pad(drift[k] / rate, (1, 0))
        flow[0, 1], flow[1, 0] = -1.0, omega**2
        covariance = solve_continuous_lyapunov(flow, np.pad(noise / rate / beads_temperature, (1, 0)))
        assert k or covariance[0, 0] == pytest.approx(1 / x**2)
        fluctuation += x**2 * covariance[0, 0]
    assert fluctuation == pytest.approx(x / 2 / np.tanh(x / 2), rel=2e-3)


def _matrices(text: str, name: str) -> np.ndarray:
    found = re.search(rf'<{name} shape="\((\d+), (\d+), \d+\)"[^>]*>\s*\[([^]]*)\]', text)
    assert found is not None
    return np.array(found[3].split(","), dtype=float).reshape(int(found[1]), int(found[2]), -1)


def test_shared_memory(tmp_path: Path) -> None:
    check(run_ipi("ipi-shm", tmp_path, 6), drift=3.0)


@pytest.mark.xdist_group("mpi")
@pytest.mark.skipif(not Path(sys.executable).with_name("mpirun").is_file(), reason="no MPI; pip install mpich")
def test_mpi(tmp_path: Path) -> None:
    folder = run("ipi-ffmpi", tmp_path, {"<total_steps>[^<]*<": "<total_steps> 6 <"})
    check(read_properties(folder / "simulation.out"), drift=3.0)
    assert "left: said EXIT; served 56 evaluations" in (folder / "dpserver.log").read_text(encoding="utf-8")


def test_piglet(tmp_path: Path) -> None:
    check(run_ipi("ipi-piglet", tmp_path, 6), drift=5.0, temperature=(150.0, 800.0))


def test_multiple_time_steps(tmp_path: Path) -> None:
    check(run_ipi("ipi-mts", tmp_path, 8), drift=1.0)


def test_ring_polymer_contraction(tmp_path: Path) -> None:
    check(run_ipi("ipi-rpc", tmp_path, 6), drift=3.0)


def test_committee(tmp_path: Path) -> None:
    replacements = {
        "water_": f"water_{uuid4().hex[:8]}_",
        "<total_steps>[^<]*<": "<total_steps> 6 <",
        "--warn-deviation 0.2": "--warn-deviation 0.02",
    }
    folder = run("ipi-committee", tmp_path, replacements)
    table = read_properties(folder / "simulation.out")
    members, deviation = (np.loadtxt(folder / f"simulation.{name}_0") for name in ("pot", "deviation"))
    assert members.shape == (7, 4)
    np.testing.assert_allclose(members.mean(axis=1), table["potential"], rtol=1e-6)
    atoms = ase.io.read(WATER / "water.xyz")
    atoms.calc = DPCalculator(WATER / "committee.pt")
    assert table["potential"][0] * HARTREE == pytest.approx(atoms.get_potential_energy(), rel=1e-8)
    assert atoms.calc.committee is not None
    expected = atoms.calc.committee.force_deviation().max()
    assert deviation[0] * HARTREE / BOHR == pytest.approx(expected, rel=1e-3)
    kept = ase.io.read(folder / "deviating.xyz")
    np.testing.assert_allclose(kept.positions, atoms.positions, atol=1e-6)
    assert kept.info["max_force_deviation"] == pytest.approx(expected, rel=1e-5)
    assert 0.02 < expected < 0.2


def test_ase_langevin(tmp_path: Path) -> None:
    folder = run("ase-langevin", tmp_path, {"run.py 2000": "run.py 5", r"HERE.parents\[2\]": f"Path({str(ROOT)!r})"})
    frames = ase.io.read(folder / "md.traj", index=":")
    assert len(frames) == 2
    assert frames[0].get_potential_energy() == pytest.approx(first_energy(), rel=1e-8)
    assert 0 < frames[-1].get_temperature() < 300


def test_ase_cell(tmp_path: Path) -> None:
    folder = run("ase-cell", tmp_path, {"run.py 200": "run.py 4"})
    before = ase.io.read(WATER / "water.xyz")
    after = ase.io.read(folder / "relaxed.xyz")
    assert after.get_potential_energy() < first_energy()
    assert after.get_volume() != before.get_volume()
    np.testing.assert_allclose(after.cell.angles(), 90.0)
    np.testing.assert_allclose(after.cell.lengths(), after.cell.lengths()[0])


def test_training(tmp_path: Path) -> None:
    folder = run(
        "training",
        tmp_path,
        {
            "make_data.py 50": "make_data.py 5",
            '"numb_steps": 2000': '"numb_steps": 20',
            '"disp_freq": 100': '"disp_freq": 10',
        },
    )
    student = DPCalculator(folder / "mine.pt")
    atoms = ase.io.read(WATER / "water.xyz")
    atoms.calc = student
    assert atoms.get_potential_energy() == pytest.approx(first_energy(), abs=0.05 * N_ATOMS)
    assert student.potential.template == tuple(atoms.symbols)
